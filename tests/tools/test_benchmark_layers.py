"""tools/benchmark.py layers: it finds every convolution of a network, and sums times of equal ones."""

import json
import math

import benchmark
import jax
import jax.numpy as jnp
import pytest
from benchmarks import layers, with_flaxtl
from benchmarks.compare import Subject
from fresh_process import ProcessError

from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier
from flaxtl.models.head import Head
from flaxtl.models.layers import SeparableConv

SETTINGS = {"size": 96, "batch": 1, "dtype": "float32", "seconds": 0.001}


def num_weights(row):
    """Return the size of a convolution's kernel."""
    return math.prod(row["kernel"]) * row["inputs"] // row["groups"] * row["outputs"]


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "mobilenet_v2_035", "xception"])
def test_list_convolutions_has_the_weights_of_all_kernels(name):
    model = Classifier(registry.get_spec(name), Head(2, "global_average"))
    shapes = classifier.flatten_params(classifier.param_shapes(model, 96, 96))
    sizes = [math.prod(shape) for path, shape in shapes.items() if path.startswith("backbone") and "kernel" in path]
    found = with_flaxtl.list_convolutions(SETTINGS | {"model": name})
    assert sum(row["layers"] for row in found) == len(sizes)
    assert sum(row["layers"] * num_weights(row) for row in found) == sum(sizes)


@pytest.mark.parametrize(("padding", "size"), [("SAME", (5, 4)), ("VALID", (4, 3))])
def test_list_convolutions_follows_a_separable_one_by_its_pointwise_part(padding, size):
    module = SeparableConv(8, (3, 3), 2, padding, jnp.float32)
    first, second = with_flaxtl._convolutions_of(module, jax.ShapeDtypeStruct((1, 9, 8, 4), jnp.float32))
    assert first == ("depthwise", 9, 8, 4, 4, (3, 3), 2, padding, 4)
    assert second == ("conv", *size, 4, 8, (1, 1), 1, "VALID", 1)


@pytest.mark.parametrize(("kind", "groups", "outputs"), [("conv", 1, 6), ("conv", 2, 6), ("depthwise", 4, 4)])
def test_convolution_measures_one_of_that_shape(kind, groups, outputs):
    shape = {"kind": kind, "height": 8, "width": 6, "inputs": 4, "outputs": outputs, "kernel": [3, 3], "stride": 2}
    trial = with_flaxtl.convolution(SETTINGS, shape | {"padding": "SAME", "groups": groups})
    assert trial.step().shape == (1, 4, 3, outputs)


def test_layers_prints_sums_of_equal_layers(monkeypatch, tmp_path, capsys):
    """Two turns of two subjects; the second takes twice as long."""
    seconds = iter([[0.001, 0.003], [0.002, 0.006], [0.003, 0.001], [0.006, 0.002]])
    pointwise = {"kind": "conv", "height": 8, "width": 8, "inputs": 3, "outputs": 4, "kernel": [1, 1], "stride": 1}
    depthwise = {"kind": "depthwise", "height": 4, "width": 4, "inputs": 4, "outputs": 4, "kernel": [3, 3], "stride": 2}
    rows = [pointwise | {"layers": 1, "groups": 1}, depthwise | {"layers": 5, "groups": 4}]
    monkeypatch.setattr(layers, "call", lambda target, *_, **__: rows if "list" in target else next(seconds))
    monkeypatch.setattr(Subject, "missing", lambda subject: "")
    file = tmp_path / "figures.json"
    benchmark.main(["layers", "--model=alexnet", "--repeats=2", f"--json={file}"])
    found = json.loads(file.read_text())["rows"]
    peer = "Keras 3 on TensorFlow"
    assert [row["milliseconds"] for row in found] == [
        {"flaxtl": pytest.approx(10), peer: pytest.approx(20)},  # 5 layers, median of 3 and 1 ms
        {"flaxtl": pytest.approx(2), peer: pytest.approx(4)},
    ]
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["4x4x4,", "3x3", "depthwise", "stride", "2", "5", "10.00", "20.00"] in printed
    assert ["all", "6", "12.00", "24.00"] in printed


def test_layers_of_a_peer_that_is_not_installed_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(Subject, "missing", lambda subject: "not installed: tensorflow" if subject.packages else "")
    with pytest.raises(SystemExit):
        benchmark.main(["layers", "--model=alexnet"])
    assert "Keras 3 on TensorFlow: not installed: tensorflow." in capsys.readouterr().err


def test_layers_of_a_peer_that_fails_says_why(monkeypatch, capsys):
    def fail(target, *_, **__):
        if "list" in target:
            return []
        raise ProcessError("no memory")

    monkeypatch.setattr(layers, "call", fail)
    with pytest.raises(SystemExit):
        benchmark.main(["layers", "--model=alexnet", "--peers=none"])
    assert "flaxtl failed: no memory" in capsys.readouterr().err
