"""What is particular about DenseNet; it is compared with Keras in test_keras_parity.py."""

import h5py
import numpy as np
from helpers import keras_zoo

from flaxtl.models import registry
from flaxtl.models.classifier import Classifier
from flaxtl.pretrained.backbone import expected_shapes
from flaxtl.pretrained.loader import load_weights

OLD_NAMES = {"conv1_conv": "conv1/conv", "conv1_bn": "conv1/bn", "predictions": "fc1000"}
"""Layer name -> name in the files that Keras downloads."""


def use_old_names(path):
    """Rename layers in a file; a slash in the name of a layer makes nested groups."""
    with h5py.File(path, "r+") as file:
        for name, old_name in OLD_NAMES.items():
            group = file[name]
            group.move(name, old_name)
            group.attrs["weight_names"] = [weight.replace(name, old_name) for weight in group.attrs["weight_names"]]
            file.move(name, old_name)
        file.attrs["layer_names"] = [OLD_NAMES.get(name, name) for name in file.attrs["layer_names"]]


def test_densenet_file_with_old_layer_names_loads(tmp_path):
    network = keras_zoo.keras_network("densenet121", 64, include_top=True)
    path = keras_zoo.save_legacy(network, tmp_path / "weights.h5")
    expected = expected_shapes(Classifier(registry.get_spec("densenet121")))
    tree = load_weights(path, expected).params
    use_old_names(path)
    np.testing.assert_equal(load_weights(path, expected).params, tree)


def test_densenet_convolutions_have_no_bias():
    shapes = expected_shapes(Classifier(registry.get_spec("densenet121")))
    assert [name for name, leaves in shapes.items() if "kernel" in leaves and "bias" in leaves] == ["predictions"]
