"""The same run on 1, 2 and 8 simulated devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ONE_RUN = """
import json, sys
from pathlib import Path
import jax, numpy as np
from helpers import tiny_run
from flaxtl.evaluation.evaluate import evaluate_run
from flaxtl.train import trainer
folder, workdir, settings = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
result = trainer.train(tiny_run.config(folder, **settings), workdir, tiny_run.quiet(), "flaxtl train")
params = evaluate_run(result, tiny_run.quiet())
np.savez(workdir / "params.npz", **{path.replace("/", "."): np.asarray(value) for path, value in params.items()})
print(jax.device_count())
"""

MOBILENET = {
    "model": {"name": "mobilenet_025", "output_layer": "conv_pw_3_relu"},
    "param_groups": (("head", "head/.*"), ("block2", "backbone/conv_.w_[23].*"), ("base", "backbone/.*")),
    "batch_size": 8,
    "phases": ("finetune",),
    "finetune": {"epochs": 4, "lr": {"head": 1e-2, "block2": 1e-3, "base": 1e-3}},
}
"""All batch norms train, 8 steps of 8 of 12 images; the 6 images of validation and test do not fill a batch."""


def run_python(devices, *arguments):
    """Run Python with a number of simulated devices; return its output."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(folder) for folder in Path(__file__).parents[1:3]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip(),
    }
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def steps(folder, tmp_path_factory):
    """Three steps of training the head on one and on two devices: 'DEVICES NAME' -> array."""
    result = tmp_path_factory.mktemp("steps") / "result.npz"
    run_python(2, "-m", "helpers.steps_on_devices", str(folder), str(result))
    with np.load(result) as arrays:
        return dict(arrays)


def test_steps_on_two_devices_equal_steps_on_one(steps):
    names = {name.split(" ", 1)[1] for name in steps}
    assert len(names) == 3 + 4
    assert steps["2 count"].sum() == 12
    for name in names:
        # Sums of four examples in another order; Nadam divides by roots of small numbers, as in accumulation.
        np.testing.assert_allclose(steps[f"2 {name}"], steps[f"1 {name}"], rtol=2e-6, atol=5e-6, err_msg=name)


class FinishedRun:
    """The results of a run on a number of devices."""

    def __init__(self, folder, workdir, devices, settings):
        output = run_python(devices, "-c", ONE_RUN, str(folder), str(workdir), json.dumps(settings))
        assert output.split() == [str(devices)]
        self.rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        self.phases = json.loads((workdir / "summary.json").read_text())["phases"]
        with np.load(workdir / "params.npz") as arrays:
            self.params = dict(arrays)


@pytest.fixture(scope="module")
def one(folder, tmp_path_factory):
    return FinishedRun(folder, tmp_path_factory.mktemp("runs") / "one", 1, MOBILENET)


@pytest.mark.exhaustive("processes")
@pytest.mark.parametrize("devices", [2, 8])
def test_run_on_more_devices_gives_the_same_result(folder, one, tmp_path, devices):
    """Sums over devices are computed in another order.

    Measured: losses equal (2 devices) and within 1.2e-7 (8), parameters and batch statistics within 1.2e-7. The bounds
    are ten times that, as sums depend on the machine's vector width.
    """
    run_on_many = FinishedRun(folder, tmp_path / "run", devices, MOBILENET)
    assert [row["step"] for row in run_on_many.rows] == [row["step"] for row in one.rows] == [2, 4, 6, 8]
    for ours, theirs in zip(run_on_many.rows, one.rows, strict=True):
        for key in ("train_loss", "validation_loss"):
            assert ours[key] == pytest.approx(theirs[key], rel=2e-6), key
        for key in ("train_accuracy", "validation_accuracy"):
            assert ours[key] == theirs[key]
    measured, expected = (run.phases["finetune"]["test"] for run in (run_on_many, one))
    assert (measured["n"], measured["accuracy"]) == (6, expected["accuracy"])
    for path, value in one.params.items():
        np.testing.assert_allclose(run_on_many.params[path], value, rtol=0, atol=1.2e-6, err_msg=path)
    assert any(path.endswith(".var") for path in one.params)
