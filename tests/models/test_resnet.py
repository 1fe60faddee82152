"""What is particular about ResNet and ResNetV2; they are compared with Keras in test_keras_parity.py."""

import h5py
import numpy as np
import pytest

from flaxtl.errors import UserError
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier
from flaxtl.pretrained.backbone import expected_shapes
from flaxtl.pretrained.loader import load_weights


def conv_sides(name):
    layers = classifier.list_layers(Classifier(registry.get_spec(name)), 64, 64)
    return {layer.name: layer.shape[0] for layer in layers if len(layer.shape) == 3}


def test_resnet_strides_are_on_the_first_convolution_of_a_stage():
    """Not on the 3x3 convolution, as in "v1.5"."""
    sides = conv_sides("resnet50")
    first = [f"conv{stage}_block1_{layer}_conv" for stage in (2, 3, 4, 5) for layer in (1, 2)]
    assert [sides[name] for name in first] == [16, 16, 8, 8, 4, 4, 2, 2]


def test_resnet_v2_strides_are_on_the_3x3_of_the_last_block():
    sides = conv_sides("resnet50v2")
    last = [f"{block}_{layer}_conv" for block in ("conv2_block3", "conv3_block4", "conv4_block6") for layer in (1, 2)]
    assert [sides[name] for name in last] == [16, 8, 8, 4, 4, 2]
    assert sides["conv5_block3_1_conv"] == sides["conv5_block3_2_conv"] == 2


def test_resnet_convolutions_have_biases():
    shapes = expected_shapes(Classifier(registry.get_spec("resnet50")))
    assert all(set(leaves) == {"kernel", "bias"} for leaves in shapes.values() if "kernel" in leaves)


def test_resnet_v2_convolutions_before_a_batch_norm_have_no_bias():
    shapes = expected_shapes(Classifier(registry.get_spec("resnet50v2")))
    for name, leaves in shapes.items():
        if "kernel" in leaves:
            assert ("bias" in leaves) is not name.endswith(("_1_conv", "_2_conv")), name


def test_resnet_layers_are_in_file_order():
    """By depth: the projection is listed among the layers parallel to it."""
    shapes = expected_shapes(Classifier(registry.get_spec("resnet50")))
    block = [name.removeprefix("conv3_block1_") for name in shapes if name.startswith("conv3_block1_")]
    assert block == ["1_conv", "1_bn", "2_conv", "2_bn", "0_conv", "3_conv", "0_bn", "3_bn"]


def test_resnet50_of_old_keras_is_refused(tmp_path):
    """It has the same file name and shapes, but other layer names and another epsilon."""
    path = tmp_path / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
    kernels = {"conv1": (7, 7, 3, 64), "res2a_branch2a": (1, 1, 64, 64)}
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in kernels]
        for name, shape in kernels.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}_W:0".encode()]
            group[f"{name}_W:0"] = np.zeros(shape, np.float32)
    with pytest.raises(UserError, match=r"\bResNet50\b.*\b0\.001\b.*\bweights\.path=imagenet\b") as error:
        load_weights(path, expected_shapes(Classifier(registry.get_spec("resnet50"))))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
