"""The same run on 1, 2 and 8 pretended devices."""

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
import jax, numpy as np, small
from flaxtl.results.judge import judge
from flaxtl.train import loop
from flaxtl.train.checkpoint import Checkpoints
folder, workdir, settings = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
config = small.config(folder, **settings)
outcome = loop.train(config, workdir, small.quiet(), "flaxtl train")
judge(outcome, small.quiet())
with Checkpoints(workdir) as checkpoints:
    last = checkpoints.restore_phase(len(outcome.setup.phases), outcome.setup.abstract_params())
np.savez(workdir / "last.npz", **{path.replace("/", "."): np.asarray(value) for path, value in last.items()})
print(jax.device_count())
"""

MOBILENET = {
    "model": {"name": "mobilenet_0.25", "output_layer": "conv_pw_3_relu"},
    "param_groups": (("head", "head/.*"), ("block2", "backbone/conv_.w_[23].*"), ("base", "backbone/.*")),
    "batch_size": 8,
    "phases": ("finetune",),
    "finetune": {"epochs": 4, "lr": {"head": 1e-2, "block2": 1e-3, "base": 1e-3}},
}
"""Every batch norm learns; 8 steps, each of 8 of 12 images. 6 images of validation and test do not fill a batch."""


class Made:
    """What a run made on so many devices."""

    def __init__(self, folder, workdir, devices, settings):
        paths = os.pathsep.join(str(place) for place in (Path(__file__).parent, Path(__file__).parents[2]))
        environment = os.environ | {
            "PYTHONPATH": paths,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        command = [sys.executable, "-c", ONE_RUN, str(folder), str(workdir), json.dumps(settings)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [str(devices)]
        self.rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        self.phases = json.loads((workdir / "summary.json").read_text())["phases"]
        with np.load(workdir / "last.npz") as arrays:
            self.parameters = dict(arrays)


@pytest.fixture(scope="module")
def one(folder, tmp_path_factory):
    return Made(folder, tmp_path_factory.mktemp("runs") / "one", 1, MOBILENET)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 8])
def test_more_devices_learn_the_same(folder, one, tmp_path, devices):
    """Sums over the devices are added up in another order.

    Measured: losses equal in every digit (2 devices) and to 1.2e-7 (8); parameters and statistics within 1.2e-7. The
    bounds are ten times that: another machine's vector width orders the sums otherwise.
    """
    found = Made(folder, tmp_path / "run", devices, MOBILENET)
    assert [row["step"] for row in found.rows] == [row["step"] for row in one.rows] == [2, 4, 6, 8]
    for ours, theirs in zip(found.rows, one.rows, strict=True):
        for key in ("train_loss", "validation_loss"):
            assert ours[key] == pytest.approx(theirs[key], rel=2e-6), key
        for key in ("train_accuracy", "validation_accuracy"):
            assert ours[key] == theirs[key]
    measured, expected = (made.phases["finetune"]["test"] for made in (found, one))
    assert (measured["n"], measured["accuracy"]) == (6, expected["accuracy"])
    for path, value in one.parameters.items():
        np.testing.assert_allclose(found.parameters[path], value, rtol=0, atol=1.2e-6, err_msg=path)
    assert any(path.endswith(".var") for path in one.parameters)
