"""tools/benchmark.py variants: each replaces its part of flaxtl, and the outputs of all are compared."""

import json
from pathlib import Path

import benchmark
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks import compare, variants, with_flaxtl, with_variant

from flaxtl.cli import huge_pages
from flaxtl.models import convolution, inference, winograd

SMALL = {"model": "vgg16", "batch": 2, "size": 64, "dtype": "bfloat16", "seconds": 0.01, "layer": "block1_pool"}


@pytest.fixture
def replace(monkeypatch):
    """Return a function that replaces the part of a variant until the test ends."""
    return lambda name: monkeypatch.setattr(*with_variant.REPLACED[name])


def test_whole_batches_are_not_divided(replace):
    images = jax.ShapeDtypeStruct((8, 200, 200, 3), jnp.uint8)
    assert inference._chunk_size(images) == 4
    replace("whole batches")
    assert inference._chunk_size(images) == 8


def test_small_tiles_are_chosen_where_large_ones_were(replace):
    images = jax.ShapeDtypeStruct((32, 50, 50, 64), jnp.float32)
    assert winograd._choose_tiling(images) is winograd.LARGE_TILES
    replace("small tiles")
    assert winograd._choose_tiling(images) is winograd.SMALL_TILES


def test_xla_convolutions_are_all_that_is_traced(replace):
    replace(variants.XLA)
    pixels, kernel = jnp.ones((1, 4, 4, 8)), jnp.ones((1, 1, 8, 8))
    (equation,) = jax.make_jaxpr(convolution.conv)(pixels, kernel).eqns
    assert equation.primitive.name == "conv_general_dilated"


def test_forward_replaces_a_part_and_writes_the_output_of_a_layer(replace, monkeypatch, tmp_path):
    monkeypatch.setattr(with_flaxtl, "CPU_MATMUL_SIDE", 64)
    replace("small tiles")  # restored when the test ends
    winograd.LARGE_TILES = None
    trial = with_variant.forward(SMALL | {"variant": "small tiles", "folder": str(tmp_path)})
    assert winograd.LARGE_TILES is winograd.SMALL_TILES
    output = np.load(tmp_path / "small tiles.npy")
    assert (output.shape, output.dtype) == ((2, 32, 32, 64), np.float32)
    np.testing.assert_array_equal(output, np.asarray(trial.step().output, np.float32))
    assert trial.facts["temporary_mebibytes"] > 0


def test_variants_compares_outputs_speed_and_memory(monkeypatch, tmp_path, capsys):
    """The second variant fails; the others are 1, 3, 4 and 5 times as fast as the first; XLA's output is 0.5 less."""
    tunables = []

    def call(target, module, function, settings, environment):
        names = [variant.name for variant in variants.VARIANTS]
        number, name = names.index(settings["variant"]), settings["variant"]
        if number == 1:
            raise compare.ProcessError("no memory")
        tunables.append(environment[huge_pages.VARIABLE])
        np.save(Path(settings["folder"]) / f"{name}.npy", np.array([1.0, -2.5 if name == variants.XLA else -2.0]))
        rate = {"images_per_second": 10.0 * (number + 1), "cpu_seconds_per_image": 0.125}
        return rate | {"peak_mebibytes": 300.0, "temporary_mebibytes": 40.0}

    monkeypatch.setattr(compare, "call", call)
    file = tmp_path / "figures.json"
    benchmark.main(["variants", "--model=alexnet", "--repeats=2", f"--json={file}"])
    found = json.loads(file.read_text())
    assert (found["kind"], found["settings"]["layer"]) == ("variants", None)
    assert "folder" not in found["settings"]
    assert [len(row["turns"]) for row in found["rows"]] == [2, 0, 2, 2, 2]
    assert found["rows"][0]["differences"] == {"flaxtl": 0.0, variants.XLA: 0.2}
    assert [row["differences"] for row in found["rows"][1:4:2]] == [{}, {"flaxtl": 0.25, variants.XLA: 0.0}]
    assert tunables == 2 * [*3 * [huge_pages.TUNABLES], "glibc.malloc.hugetlb=0"]
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["small", "tiles", "33.33", "0%", "125.00", "300", "40", "3.00", "0.0e+00", "2.0e-01"] in printed
    assert ["whole", "batches:", "failed:", "no", "memory"] in printed


@pytest.mark.parametrize(
    ("option", "message"), [("--layer=conv11", "Did you mean 'conv1'?"), ("--size=8", "Images of 8x8 are too small")]
)
def test_variants_of_a_network_that_cannot_run_measures_nothing(monkeypatch, capsys, option, message):
    monkeypatch.setattr(compare, "call", None)
    with pytest.raises(SystemExit) as ended:
        benchmark.main(["variants", "--model=alexnet", option])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
