"""Runs that are killed or signaled, and resumed: the result equals that of an uninterrupted run."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_run
from helpers.train_process import HERE, Place

from flaxtl.train.signals import GRACE_SECONDS

PLATEAU = {"monitor": "validation_accuracy", "schedule": "plateau", "plateau_patience": 1}
FROZEN = {"epochs": 3, "patience": 2} | PLATEAU
FINETUNE = {"epochs": 2, "schedule": "cosine", "ema": 0.9, "layer_decay": 0.8}


class Killed(Place):
    """Runs that kill themselves at a chosen moment."""

    def __init__(self, folder):
        super().__init__(folder, FROZEN, FINETUNE)

    def start(self, workdir, at=0, number="SIGKILL", every=0.0):
        return self.train(
            [str(HERE / "kill_at.py"), str(at), number], workdir, f"--config.checkpoint.every_seconds={every}"
        )

    def run(self, workdir, at=0, number="SIGKILL", every=0.0):
        """Return (exit code, output, number of moments)."""
        process = self.start(workdir, at, number, every)
        out, err = process.communicate(timeout=300)
        last = out.splitlines()[-1:]
        moments = int(last[0].removeprefix("moments ")) if last and last[0].startswith("moments ") else None
        return process.returncode, out + err, moments


def outcome(workdir):
    """Return the results of a run, without timings: metrics, predictions, summary, hashes of saved parameters."""
    epochs, phases = tiny_run.results(workdir)
    kept = sorted((workdir / "checkpoints" / "phases").iterdir())
    hashes = [json.loads((place / "metadata" / "metadata").read_text())["sha256"] for place in kept]
    return epochs, phases, hashes, (workdir / "predictions.csv").read_bytes()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Killed(tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="module")
def whole(place):
    """The uninterrupted run: its results, and its number of moments."""
    code, said, moments = place.run(place.folder / "whole")
    assert code == 0, said
    found = outcome(place.folder / "whole")
    assert [row["lrs"]["head"] for row in found[0][:3]] == [1e-2, 1e-2, 1e-3]  # a plateau was reached
    return found, moments


def chain(place, whole, workdir, kills, seed):
    """Kill a run again and again, at random moments, until it has been killed often enough; then let it end."""
    expected, moments = whole
    random, done = np.random.default_rng(seed), 0
    while done < kills:
        # At most a fourth of the whole way, so that a run is killed in many places before it ends.
        code, said, _ = place.run(workdir, at=int(random.integers(1, moments // 4)))
        if code == 0:
            break
        assert code == -9, said
        done += 1
    code, said, _ = place.run(workdir)
    assert code == 0, said
    assert outcome(workdir) == expected
    return done


@pytest.mark.slow
def test_killed_run_resumes_bit_identically(place, whole, tmp_path):
    assert chain(place, whole, tmp_path / "run", kills=3, seed=0) == 3


@pytest.mark.exhaustive("processes")
def test_run_killed_at_twenty_random_moments_resumes(place, whole, tmp_path):
    kills, seed = 0, 1
    while kills < 20:
        kills += chain(place, whole, tmp_path / str(seed), kills=20 - kills, seed=seed)
        seed += 1


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param("SIGTERM", 143, marks=pytest.mark.slow),
        pytest.param("SIGINT", 130, marks=pytest.mark.exhaustive("processes")),
    ],
)
def test_signal_saves_the_current_step(place, whole, tmp_path, number, code):
    expected, moments = whole
    started = time.monotonic()
    found, said, _ = place.run(tmp_path / "run", at=moments // 3, number=number, every=3600.0)
    assert found == code, said
    assert re.search(r"^flaxtl: .*\bsame command\b", said, re.MULTILINE)
    assert "Traceback" not in said
    assert time.monotonic() - started < 60 + GRACE_SECONDS
    assert len(list((tmp_path / "run" / "checkpoints" / "latest").iterdir())) == 1  # without the signal there were none
    assert place.run(tmp_path / "run", every=3600.0)[0] == 0
    assert outcome(tmp_path / "run") == expected


@pytest.mark.exhaustive("processes")
def test_signal_around_phase_boundary_resumes(place, whole, tmp_path):
    expected, _ = whole
    code, said, _ = place.run(tmp_path / "once", every=3600.0)
    assert code == 0, said
    end = int(re.search(r"^phase ends at moment (\d+)$", said, re.MULTILINE)[1])
    for at in range(end - 2, end + 10, 3):
        workdir = tmp_path / str(at)
        assert place.run(workdir, at=at, number="SIGTERM", every=3600.0)[0] == 143
        assert place.run(workdir, every=3600.0)[0] == 0
        assert outcome(workdir) == expected


@pytest.mark.slow
def test_finished_run_is_left_unchanged(place, whole):
    workdir = place.folder / "whole"
    before = {file: file.stat().st_mtime_ns for file in workdir.rglob("*")}
    code, said, _ = place.run(workdir)
    assert code == 0
    assert re.search(rf"{re.escape(str(workdir))}\b.*--workdir\b", " ".join(said.split()))
    assert {file: file.stat().st_mtime_ns for file in before} == before


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
from flaxtl.cli.main import main
main(sys.argv[2:])
"""


@pytest.mark.slow
def test_full_disk_is_one_error_and_loses_nothing(place, whole, tmp_path):
    """Limit the size of a file; to the writer this looks like a full disk."""
    workdir = tmp_path / "run"
    arguments = ["train", f"--config={place.folder / 'config.py'}", f"--workdir={workdir}"]
    arguments += [f"--config.data.source=folder:{place.folder / 'images'}", "--config.checkpoint.every_seconds=0"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "9000", *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("flaxtl: "))
    assert str(workdir) in line
    assert "write" in line
    assert place.run(workdir)[0] == 0
    assert outcome(workdir) == whole[0]
