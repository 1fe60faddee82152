"""`flaxtl convert`: files that Keras wrote, with the top and without, come back from ours as they were."""

import keras
import numpy as np
import pytest
from helpers import keras_zoo

from flaxtl.models import registry
from flaxtl.models.classifier import Classifier
from flaxtl.pretrained.backbone import convert_weights_file, expected_shapes, headless_model, optional_layers
from flaxtl.pretrained.keras_layers import PUBLISHED_NORMALIZATION
from flaxtl.pretrained.loader import load_weights

SLOW = ("inception_v3", "nasnet_mobile", "efficientnetb0", "mobilenet_v3_small", "resnet50v2", "xception")
each = pytest.mark.parametrize(
    "name", ["mobilenet_0.25", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)


@each
@pytest.mark.parametrize("save", [keras_zoo.save_legacy, keras_zoo.save_keras3])
def test_statistics_come_along(name, save, tmp_path):
    """Every array of a batch norm is in the new file, and the network's own top exactly where it was in the old one."""
    architecture = registry.get_spec(name)
    whole = keras_zoo.keras_network(name, architecture.input_size, top=True)
    for layer in whole.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.set_weights([*map(np.float32, PUBLISHED_NORMALIZATION), np.int32(0)])  # as in the published files
    last = keras_zoo.our_names(name, architecture.input_size, top=False)[-1]
    for kind, network, model in (
        ("whole", whole, Classifier(architecture)),
        ("base", keras.Model(whole.input, whole.get_layer(last).output), headless_model(architecture)),
    ):
        source, output = save(network, tmp_path / f"{kind}.h5"), tmp_path / f"{kind}.safetensors"
        convert_weights_file(name, source, output)
        expected = expected_shapes(model)
        told = load_weights(output, expected)  # nothing is optional: one layer more or less would be an error
        np.testing.assert_equal(told.params, load_weights(source, expected, optional_layers(architecture)).params)
        assert {leaf for leaves in told.params.values() for leaf in leaves} >= {"mean", "var"}
