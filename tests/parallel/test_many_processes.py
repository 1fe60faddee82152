"""One run as several real processes on this machine, through the launcher: the same result as one process."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from helpers.launched_run import Launched, compare, outcome


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Launched(tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="module")
def one(place):
    """One process with four devices."""
    code, said = place.run(place.folder / "one", 1, 4)
    assert code == 0, said
    return outcome(place.folder / "one")


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (4, 1)])
def test_several_processes_make_the_same_run(place, one, tmp_path, processes, devices):
    code, said = place.run(tmp_path / "run", processes, devices)
    assert code == 0, said
    compare(outcome(tmp_path / "run"), one)
    assert said.count("report/index.html") == 1  # one speaks, and writes
    assert (tmp_path / "run" / "report" / "index.html").is_file()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["complete"]


@pytest.mark.slow
def test_images_from_a_stream_are_read_by_shares(place, one, tmp_path):
    code, said = place.run(tmp_path / "run", 2, 2, "--config.data.pipeline=stream")
    assert code == 0, said
    for ours, theirs in zip(outcome(tmp_path / "run")[0], one[0], strict=True):
        # The two appliers of augmentation differ by at most 0.03 grey levels of 255.
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)


def wait_for_steps(workdir, n):
    """Until that many epochs have been told."""
    until = time.monotonic() + 300
    while not (workdir / "metrics.jsonl").is_file() or len((workdir / "metrics.jsonl").read_text().splitlines()) < n:
        assert time.monotonic() < until
        time.sleep(0.02)


def members(launcher):
    """Process numbers of the launcher's children, in their order."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(child) for child in children]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_ends_the_others_and_the_job_goes_on(place, one, tmp_path, victim):
    workdir, often = tmp_path / "run", "--config.checkpoint.every_seconds=0"
    launcher = place.start(workdir, 2, 2, often)
    wait_for_steps(workdir, 3)
    os.kill(members(launcher)[victim], signal.SIGKILL)
    killed = time.monotonic()
    said, _ = launcher.communicate(timeout=120)
    assert time.monotonic() - killed < 60
    assert re.search(r"(?i)process [01] of 2\b.*\bconnection\b", said)
    assert launcher.returncode not in (0, 2)
    code, said = place.run(workdir, 2, 2, often)
    assert code == 0, said
    compare(outcome(workdir), one)


@pytest.mark.slow
def test_sigterm_to_one_process_ends_all_after_the_same_step(place, tmp_path):
    workdir = tmp_path / "run"
    launcher = place.start(workdir, 2, 1, "--config.finetune.epochs=400", "--config.checkpoint.every_seconds=3600")
    wait_for_steps(workdir, 4)
    os.kill(members(launcher)[1], signal.SIGTERM)
    said, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 128 + signal.SIGTERM, said
    assert len(list((workdir / "checkpoints" / "latest").iterdir())) == 1


@pytest.mark.slow
def test_a_mistake_of_all_is_told_with_its_own_code(place, tmp_path):
    code, said = place.run(tmp_path / "run", 2, 1, "--config.batch_size=3")
    assert code == 2
    assert re.search(r"\bbatch\b.* 3\b.* 2 device.*\bbatch\w*\b.* 2 or 4\b", said)
