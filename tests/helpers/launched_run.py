"""Runs of several real processes, started by tools/launch_local.py, and how their results are compared."""

import subprocess

import numpy as np
import pytest

from helpers import tiny_run
from helpers.train_process import ROOT, Place


class Launched(Place):
    """Runs of several processes that tools/launch_local.py starts."""

    def __init__(self, folder):
        plateau = {"schedule": "plateau", "plateau_patience": 1, "monitor": "validation_accuracy"}
        super().__init__(folder, {"epochs": 2}, {"epochs": 3, "ema": 0.9} | plateau)

    def start(self, workdir, processes, devices, *more):
        launcher = str(ROOT / "tools" / "launch_local.py")
        program = [launcher, f"--processes={processes}", f"--devices-per-process={devices}", "--"]
        return self.train(program, workdir, *more, stderr=subprocess.STDOUT)

    def run(self, workdir, processes, devices, *more):
        """Return (exit code, output)."""
        process = self.start(workdir, processes, devices, *more)
        said, _ = process.communicate(timeout=400)
        return process.returncode, said


def outcome(workdir):
    """Return metrics and predictions of a run, without timings."""
    epochs, phases = tiny_run.results(workdir)
    rows = [line.split(",") for line in (workdir / "predictions.csv").read_text().splitlines()]
    return epochs, phases, rows[0], [row[:4] for row in rows[1:]], np.array([row[4:] for row in rows[1:]], float)


def compare(found, expected):
    """Assert equal results. Devices in another layout sum in another order: a difference of about 2**-23 per step."""
    for ours, theirs in zip(found[0], expected[0], strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert value == (pytest.approx(theirs[key], rel=1e-5) if key.endswith("_loss") else theirs[key]), key
    assert found[2:4] == expected[2:4]
    np.testing.assert_allclose(found[4], expected[4], rtol=0, atol=1e-5)
