"""A run of several processes on this machine, started by the launcher, gives the same result as one process."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from helpers.launched_run import Launched, compare, outcome

pytestmark = pytest.mark.multiprocess

DEAR = pytest.mark.exhaustive("processes")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Launched(tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="module")
def one(place):
    """The results of one process with four devices."""
    code, output = place.run(place.folder / "one", 1, 4)
    assert code == 0, output
    return outcome(place.folder / "one")


def check_finished(workdir, output, expected):
    compare(outcome(workdir), expected)
    assert output.count("report/index.html") == 1  # only process 0 prints
    assert (workdir / "report" / "index.html").is_file()
    assert json.loads((workdir / "summary.json").read_text())["complete"]


@DEAR
@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (4, 1)])
def test_run_of_several_processes_equals_one_process(place, one, tmp_path, processes, devices):
    code, output = place.run(tmp_path / "run", processes, devices)
    assert code == 0, output
    check_finished(tmp_path / "run", output, one)


@DEAR
@pytest.mark.parametrize("augment_on", ["device", "host"])
def test_streamed_run_of_two_processes_equals_one_process(place, one, tmp_path, augment_on):
    settings = ("--config.data.pipeline=stream", f"--config.data.augment_on={augment_on}")
    code, output = place.run(tmp_path / "run", 2, 2, *settings)
    assert code == 0, output
    if augment_on == "device":
        compare(outcome(tmp_path / "run"), one)
        return
    for ours, theirs in zip(outcome(tmp_path / "run")[0], one[0], strict=True):
        # The two implementations of augmentation differ by at most 0.03 gray levels of 255.
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)


def wait_for_epochs(workdir, n):
    """Wait until `n` epochs have been logged."""
    until = time.monotonic() + 300
    while not (workdir / "metrics.jsonl").is_file() or len((workdir / "metrics.jsonl").read_text().splitlines()) < n:
        assert time.monotonic() < until
        time.sleep(0.02)


def members(launcher):
    """Return the process ids of the launcher's children, in order."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(child) for child in children]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=DEAR)])
def test_killed_process_ends_the_others_and_run_resumes(place, one, tmp_path, victim):
    workdir, often = tmp_path / "run", "--config.checkpoint.every_seconds=0"
    launcher = place.start(workdir, 2, 2, often)
    wait_for_epochs(workdir, 3)
    os.kill(members(launcher)[victim], signal.SIGKILL)
    killed = time.monotonic()
    output, _ = launcher.communicate(timeout=120)
    assert time.monotonic() - killed < 60
    assert re.search(r"(?i)process [01] of 2\b.*\bconnection\b", output)
    assert launcher.returncode not in (0, 2)
    code, output = place.run(workdir, 2, 2, often)
    assert code == 0, output
    check_finished(workdir, output, one)


@DEAR
def test_sigterm_to_one_process_stops_all_at_one_step(place, tmp_path):
    workdir = tmp_path / "run"
    launcher = place.start(workdir, 2, 1, "--config.finetune.epochs=400", "--config.checkpoint.every_seconds=3600")
    wait_for_epochs(workdir, 4)
    os.kill(members(launcher)[1], signal.SIGTERM)
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 128 + signal.SIGTERM, output
    assert len(list((workdir / "checkpoints" / "latest").iterdir())) == 1


@pytest.mark.slow
def test_invalid_config_exits_with_code_2_everywhere(place, tmp_path):
    code, output = place.run(tmp_path / "run", 2, 1, "--config.batch_size=3")
    assert code == 2
    assert re.search(r"\bbatch_size\b.* 3\b.* 2 device.*\bbatch_size\b.* 2 or 4\b", output)
