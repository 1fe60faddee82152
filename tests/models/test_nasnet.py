"""What is particular about NASNet: its cells. It is compared with Keras in test_keras_parity.py."""

import re

import pytest

from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier
from flaxtl.models.head import Head

CELLS = {"nasnet_mobile": 4, "nasnet_large": 6}
"""Normal cells per stage."""


@pytest.mark.parametrize(("name", "read"), [("nasnet_mobile", "normal_concat_3"), ("nasnet_large", "normal_concat_4")])
def test_nasnet_large_skips_a_reduction(name, read):
    layers = classifier.list_layers(Classifier(registry.get_spec(name)), 32, 32)
    inputs = {layer.name: layer.inputs for layer in layers}
    assert inputs[f"adjust_relu_1_{CELLS[name] + 1}"] == (read,)


@pytest.mark.parametrize("name", ["nasnet_mobile", pytest.param("nasnet_large", marks=pytest.mark.slow)])
def test_nasnet_last_block_is_the_last_reduction_and_stage(name):
    spec, num_cells = registry.get_spec(name), CELLS[name]
    layers = list(classifier.param_shapes(Classifier(spec, Head(2, "global_average")), 32, 32)["backbone"])
    top = [layer for layer in layers if re.fullmatch(dict(spec.groups)["last_stage"], f"backbone/{layer}/kernel")]
    cells = (f"_reduce_{2 * num_cells}", *(f"_{number}" for number in range(2 * num_cells + 1, 3 * num_cells + 1)))
    assert top == [layer for layer in layers if layer.endswith(cells)]
    assert {next(cell for cell in cells if layer.endswith(cell)) for layer in top} == set(cells)
