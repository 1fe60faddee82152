"""NASNet-A against Keras' own, with the same random weights.

Largest deviation measured on CPU, of the largest output: 6.5e-7 in the mobile network and 7.9e-7 in the large one, from
float32 sums in another order. The bound is three times that.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import keras_zoo

from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier
from flaxtl.models.head import Head

BOUND = 2.4e-6
SIDE = 75  # pixels; layers of stride 2 see 75, 37, 19, 10 and 5: the zeros of an odd size and of an even one

CELLS = {"nasnet_mobile": 4, "nasnet_large": 6}
"""Normal cells of a stage."""

each = pytest.mark.parametrize("name", ["nasnet_mobile", pytest.param("nasnet_large", marks=pytest.mark.slow)])


# What is wrong where the first deviation is:
TAPS = (
    "stem_bn1",  # a border around the first convolution
    "reduction_left3_stem_1",  # an average pool that does not count the zeros that a layer before it added
    "reduction_concat_stem_1",
    "adjust_bn_stem_2",  # the path that is shifted by one pixel
    "normal_left3_0",  # an average pool that counts the zeros beyond the border
    "normal_concat_0",
)


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        pytest.param("nasnet_mobile", (), marks=pytest.mark.slow),  # half a minute, most of it compiling
        pytest.param("nasnet_mobile", ("normal_concat_5", "normal_concat_12"), marks=pytest.mark.slow),
        pytest.param("nasnet_large", ("normal_concat_7", "normal_concat_18"), marks=pytest.mark.slow),
    ],
)
def test_base_equals_keras(name, rest, tmp_path):
    network = keras_zoo.keras_network(name, SIDE, top=False)
    both, again = (
        keras_zoo.pair(name, network, save(network, tmp_path / "weights.h5"), top=False)
        for save in (keras_zoo.save_legacy, keras_zoo.save_keras3)
    )
    np.testing.assert_equal(again.parameters, both.parameters)
    theirs, ours = keras_zoo.outputs(both, keras_zoo.preprocessing(name), (*TAPS, *rest))
    keras_zoo.assert_equal(theirs, ours, BOUND)


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_top_equals_keras(name, tmp_path):
    network = keras_zoo.keras_network(name, 64, top=True, classifier_activation=None)
    both = keras_zoo.pair(name, network, keras_zoo.save_legacy(network, tmp_path / "weights.h5"), top=True)
    theirs, ours = keras_zoo.logits(both, keras_zoo.preprocessing(name))
    keras_zoo.assert_equal(theirs, ours, BOUND)


@each
def test_layers_and_counts_are_those_of_keras(name):
    row = registry.get_spec(name)
    network = keras_zoo.keras_network(name, row.input_size, top=True)
    assert keras_zoo.our_names(name, row.input_size, top=True) == keras_zoo.names(network)
    assert keras_zoo.our_batch_norms(name, row.input_size) == keras_zoo.batch_norms(network)
    assert keras_zoo.count(name, top=True) == row.num_params == network.count_params()
    assert keras_zoo.count(name, top=False) == row.num_params_no_top


@pytest.mark.parametrize(("name", "read"), [("nasnet_mobile", "normal_concat_3"), ("nasnet_large", "normal_concat_4")])
def test_the_large_network_looks_past_a_reduction(name, read):
    layers = classifier.list_layers(Classifier(registry.get_spec(name)), 32, 32)
    inputs = {layer.name: layer.inputs for layer in layers}
    assert inputs[f"adjust_relu_1_{CELLS[name] + 1}"] == (read,)


def test_the_network_can_start_behind_its_stem():
    """In bfloat16: what a cell is does not depend on the sizes of what was skipped."""
    model = Classifier(registry.get_spec("nasnet_mobile"), dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
    whole, variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, taps=("stem_bn1",)), images
    )
    stem = whole.taps["stem_bn1"]
    rest = jax.eval_shape(lambda variables, x: model.apply(variables, x, start="stem_bn1"), variables, stem)
    assert stem.dtype == jnp.bfloat16
    assert rest.logits == whole.logits
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@each
def test_the_last_stage_is_the_last_reduction_and_what_follows(name):
    row = registry.get_spec(name)
    layers = list(
        classifier.param_shapes(Classifier(row, Head(num_classes=2, pooling="global_average")), 32, 32)["backbone"]
    )
    chosen = [layer for layer in layers if re.fullmatch(dict(row.groups)["last_stage"], f"backbone/{layer}/kernel")]
    stages = 2 * CELLS[name], 3 * CELLS[name]
    cells = (f"_reduce_{stages[0]}", *(f"_{number}" for number in range(stages[0] + 1, stages[1] + 1)))
    assert chosen == [layer for layer in layers if layer.endswith(cells)]
    assert {next(cell for cell in cells if layer.endswith(cell)) for layer in chosen} == set(cells)
