"""`flaxtl convert`: files that Keras wrote, with the top and without, come back from ours as they were."""

import keras
import numpy as np
import pytest
import zoo

from flaxtl.models import catalog
from flaxtl.models.classifier import Classifier
from flaxtl.train.convert import convert
from flaxtl.train.pretrained import base_of, expected_shapes, optional_layers
from flaxtl.weights.load import load
from flaxtl.weights.normalization import KNOWN

SLOW = ("inception_v3", "nasnet_mobile", "efficientnetb0", "mobilenet_v3_small", "resnet50v2", "xception")
each = pytest.mark.parametrize(
    "name", ["mobilenet_0.25", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)


@each
@pytest.mark.parametrize("save", [zoo.save_legacy, zoo.save_keras3])
def test_statistics_come_along(name, save, tmp_path):
    """Every array of a batch norm is in the new file, and the network's own top exactly where it was in the old one."""
    architecture = catalog.find(name)
    whole = zoo.keras_network(name, architecture.size, top=True)
    for layer in whole.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.set_weights([*map(np.float32, KNOWN), np.int32(0)])  # as in the published files
    last = zoo.our_names(name, architecture.size, top=False)[-1]
    for kind, network, model in (
        ("whole", whole, Classifier(architecture)),
        ("base", keras.Model(whole.input, whole.get_layer(last).output), base_of(architecture)),
    ):
        source, output = save(network, tmp_path / f"{kind}.h5"), tmp_path / f"{kind}.safetensors"
        convert(name, source, output)
        expected = expected_shapes(model)
        told = load(output, expected)  # nothing is optional: one layer more or less would be an error
        np.testing.assert_equal(told.tree, load(source, expected, optional_layers(architecture)).tree)
        assert {leaf for leaves in told.tree.values() for leaf in leaves} >= {"mean", "var"}
