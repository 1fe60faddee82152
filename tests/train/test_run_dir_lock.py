import os
import re
import subprocess
import sys

import pytest

from flaxtl.errors import UserError
from flaxtl.train import run_dir

HOLD = """
import sys, time
from pathlib import Path
from flaxtl.train.run_dir import run_dir_lock
with run_dir_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_process_is_refused_and_the_death_of_the_first_frees(tmp_path):
    workdir = tmp_path / "runs" / "one"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(workdir)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"{re.escape(str(workdir))} .*\b{holder.pid}\b"):
            run_dir.run_dir_lock(workdir).__enter__()
        assert (workdir / run_dir.LOCK_NAME).exists()  # whoever was refused takes nothing away
    finally:
        holder.kill()
        holder.wait()
    with run_dir.run_dir_lock(workdir):
        pass
    assert not (workdir / run_dir.LOCK_NAME).exists()


def test_one_process_holds_it_once(tmp_path):
    holder = rf"{re.escape(str(tmp_path))} .*\b{os.getpid()}\b"
    with run_dir.run_dir_lock(tmp_path), pytest.raises(UserError, match=holder), run_dir.run_dir_lock(tmp_path):
        pass


def test_a_new_directory_is_made_with_its_parents_and_goes_if_nothing_was_written(tmp_path):
    with run_dir.run_dir_lock(tmp_path / "runs" / "new"):
        assert (tmp_path / "runs" / "new").is_dir()
    assert list(tmp_path.iterdir()) == []
    with run_dir.run_dir_lock(tmp_path / "runs" / "new"):
        (tmp_path / "runs" / "new" / "file").touch()
    assert [path.name for path in (tmp_path / "runs" / "new").iterdir()] == ["file"]


def test_a_directory_that_was_there_stays(tmp_path):
    (tmp_path / "empty").mkdir()
    with run_dir.run_dir_lock(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir()


@pytest.mark.parametrize("below", ["", "below"])
def test_a_workdir_that_is_a_file(tmp_path, below):
    (tmp_path / "file").touch()
    place = tmp_path / "file" / below
    refused = rf"{re.escape(str(place))} .*(File exists|Not a directory)"
    with pytest.raises(UserError, match=refused), run_dir.run_dir_lock(place):
        pass
