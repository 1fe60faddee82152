import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from flaxtl.errors import UserError
from flaxtl.train import mesh as meshes

ONE_RUN = """
import sys
from pathlib import Path
import jax, small
from flaxtl.errors import UserError
from flaxtl.train import loop
folder, workdir = Path(sys.argv[1]), Path(sys.argv[2])
print(jax.device_count())
once = {"frozen": {"epochs": 1}, "finetune": {"epochs": 1}}
loop.train(small.config(folder, **once), workdir, small.quiet(), "flaxtl train")
try:
    loop.train(small.config(folder, batch=3, **once), workdir / "odd", small.quiet(), "flaxtl train")
except UserError as error:
    print(error)
"""


def run_on(devices, folder, workdir):
    """(what was printed, rows of metrics.jsonl) of a tiny run on so many pretended devices."""
    paths = os.pathsep.join(str(place) for place in (Path(__file__).parent, Path(__file__).parents[1]))
    environment = os.environ | {
        "PYTHONPATH": paths,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, "-c", ONE_RUN, str(folder), str(workdir)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return done.stdout.splitlines(), rows


@pytest.mark.slow
def test_two_devices_see_the_same_and_learn_the_same(tmp_path):
    folder = small.pictures(tmp_path / "pictures")
    told, one = run_on(1, folder, tmp_path / "one")
    assert told == ["1"]  # a batch of 3 is as good as any
    told, two = run_on(2, folder, tmp_path / "two")
    assert told == ["2", "a batch of 3 cannot be split over 2 devices; set batch to 2 or 4"]
    assert [row["step"] for row in two] == [row["step"] for row in one] == [3, 6]
    for ours, theirs in zip(two, one, strict=True):
        # Each loss and gradient is the sum of two halves, some 2**-23 away: measured 1.1e-7 after three steps.
        for key in ("train_loss", "validation_loss"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5)
        for key in ("train_accuracy", "validation_accuracy"):
            assert ours[key] == theirs[key]


@pytest.mark.parametrize(
    ("devices", "batch", "near"),
    [(2, 3, "2 or 4"), (4, 9, "8 or 12"), (4, 3, "4"), (8, 1, "8")],
)
def test_a_batch_that_cannot_be_split(devices, batch, near):
    with pytest.raises(UserError, match=f"batch of {batch} .* {devices} devices; set batch to {near}$"):
        meshes.check_batch(devices, batch)


@pytest.mark.parametrize(("devices", "batch"), [(1, 1), (1, 7), (2, 4), (8, 32)])
def test_a_batch_that_can_be_split(devices, batch):
    meshes.check_batch(devices, batch)


@pytest.mark.parametrize(("batch", "devices"), [(8, 4), (6, 3), (5, 1), (2, 2)])
def test_the_mesh_holds_as_many_devices_as_share_a_batch(monkeypatch, batch, devices):
    made = {}
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    monkeypatch.setattr(jax, "devices", lambda: list(range(4)))
    monkeypatch.setattr(jax, "make_mesh", lambda shape, names, **options: made.update(shape=shape, **options))
    meshes.make(batch)
    assert made["shape"] == (devices,)
    assert made["devices"] == list(range(devices))


def test_placed_arrays_are_copies():
    mesh, value = meshes.make(4), jnp.arange(4.0)
    placed = meshes.place({"a": value}, mesh)
    assert placed["a"].sharding == meshes.replicated(mesh)
    jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)(placed)
    assert placed["a"].is_deleted()
    assert np.array_equal(value, [0, 1, 2, 3])
    assert meshes.place({"a": jax.device_put(value, meshes.replicated(mesh))}, mesh)["a"] is not value
