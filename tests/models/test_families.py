"""What is particular about a family, beyond what test_keras_parity.py compares for all."""

import re

import h5py
import jax
import keras
import numpy as np
import pytest
from flax import linen as nn
from helpers import keras_zoo
from PIL import Image

from flaxtl.errors import UserError
from flaxtl.models import classifier, efficientnet, registry
from flaxtl.models.classifier import Classifier, forward
from flaxtl.models.efficientnet import Block
from flaxtl.models.net import Net
from flaxtl.pretrained.backbone import expected_shapes
from flaxtl.pretrained.loader import load_weights


def layers_of(name):
    return classifier.list_layers(Classifier(keras_zoo.get_spec(name)), 43, 43)


def shapes_of(name):
    return classifier.param_shapes(Classifier(keras_zoo.get_spec(name)), 43, 43)["backbone"]


@pytest.mark.slow
def test_vgg16_with_real_weights_equals_keras_on_a_real_image(shared):
    with pytest.MonkeyPatch.context() as patch:
        keras_zoo.without_initializers(patch)
        network = keras.applications.VGG16(weights=None, include_top=False, input_shape=(224, 224, 3))
    path = shared / "weights/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    network.load_weights(path)
    image = min((shared / "data/flowers/validation/daisy").iterdir())
    images = np.asarray(Image.open(image).convert("RGB").resize((224, 224)))[None]
    expected = network.predict(keras.applications.vgg16.preprocess_input(images.astype("float32")), verbose=0)
    assert expected.max() > 10
    model = keras_zoo.flaxtl_model("vgg16", include_top=False)
    params = keras_zoo.load_params("vgg16", path, 224, include_top=False)
    run = jax.jit(lambda params, images: forward(model, params, images, stop="block5_pool").output)
    outputs = {"block5_pool": run(params, images)}
    keras_zoo.assert_outputs_close(outputs, {"block5_pool": expected}, 5e-6)  # see test_keras_parity.py


def test_resnet_strides_are_on_the_first_convolution_of_a_stage():
    """Not on the 3x3 convolution, as in "v1.5"."""
    sides = {layer.name: layer.shape[0] for layer in layers_of("short_resnet")}
    first = [f"conv{stage}_block1_{layer}_conv" for stage in (2, 3, 4, 5) for layer in (1, 2)]
    assert [sides[name] for name in first] == [11, 11, 6, 6, 3, 3, 2, 2]


def test_resnet_v2_strides_are_on_the_3x3_of_the_last_block():
    sides = {layer.name: layer.shape[0] for layer in layers_of("short_resnet_v2")}
    last = [f"{block}_{layer}_conv" for block in ("conv2_block3", "conv3_block2", "conv4_block2") for layer in (1, 2)]
    assert [sides[name] for name in last] == [11, 6, 6, 3, 3, 2]
    assert sides["conv5_block2_1_conv"] == sides["conv5_block2_2_conv"] == 2


@pytest.mark.parametrize(
    ("name", "with_bias"),
    [("short_resnet", ".*"), ("short_resnet_v2", ".*(?<!_[12])_conv|predictions"), ("short_densenet", "predictions")],
)
def test_convolutions_with_a_bias_are_those_of_keras(name, with_bias):
    """ResNet: all. ResNetV2: those that are not followed by a batch norm. DenseNet: none."""
    for layer, leaves in shapes_of(name).items():
        if "kernel" in leaves:
            assert ("bias" in leaves) is bool(re.fullmatch(with_bias, layer)), layer


def test_resnet_layers_are_in_file_order():
    """By depth: the projection is listed among the layers parallel to it."""
    block = [
        name.removeprefix("conv3_block1_") for name in shapes_of("short_resnet") if name.startswith("conv3_block1_")
    ]
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
    network = keras_zoo.keras_network("short_densenet", 43, include_top=True)
    path = keras_zoo.save_legacy(network, tmp_path / "weights.h5")
    expected = shapes_of("short_densenet")
    params = load_weights(path, expected, trusted=True).params
    use_old_names(path)
    np.testing.assert_equal(load_weights(path, expected, trusted=True).params, params)


@pytest.mark.slow
def test_inception_built_after_others_loads_by_layer_order(tmp_path, monkeypatch):
    """The automatic names of a network count on from those of the networks before it in the same process."""
    first = keras_zoo.keras_network("inception_v3", 75, include_top=False)
    monkeypatch.setattr(keras.backend, "clear_session", lambda free_memory: None)
    keras_zoo.keras_network("xception", 75, include_top=False)
    later = keras_zoo.keras_network("inception_v3", 75, include_top=False)
    assert {"conv2d_98", "batch_normalization_98"} <= {layer.name for layer in later.layers[:4]}
    trees = [
        keras_zoo.load_params("inception_v3", save(network, tmp_path / "x.h5"), 75, include_top=False)
        for network in (first, later)
        for save in (keras_zoo.save_legacy, keras_zoo.save_keras3)
    ]
    for tree in trees[1:]:
        np.testing.assert_equal(tree, trees[0])  # the same random weights: those of `first` are compared with Keras


def test_convnext_base_reads_its_norm_from_files_with_and_without_top(tmp_path):
    """In both of Keras' layouts."""
    network = keras_zoo.keras_network("short_convnext", 43, include_top=True)
    base = keras_zoo.without_top("short_convnext", network, 43)
    whole, *others = (
        keras_zoo.load_params("short_convnext", save(model, tmp_path / f"{model.name}.h5"), 43, include_top=False)
        for model in (network, base)
        for save in (keras_zoo.save_legacy, keras_zoo.save_keras3)
    )
    for tree in others:
        np.testing.assert_equal(tree, whole)
    scale, bias = network.layers[-2].get_weights()
    np.testing.assert_equal(whole["backbone"]["layer_normalization"], {"scale": scale, "bias": bias})


CELLS = {"nasnet_mobile": 4, "nasnet_large": 6}
"""Normal cells per stage."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "read"), [("nasnet_mobile", "normal_concat_3"), ("nasnet_large", "normal_concat_4")])
def test_nasnet_large_skips_a_reduction(name, read):
    reader = f"adjust_relu_1_{CELLS[name] + 1}"
    layers = classifier.list_layers(Classifier(registry.get_spec(name), output_layer=reader), 32, 32)
    assert layers[-1].name == reader
    assert layers[-1].inputs == (read,)


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_nasnet_last_block_is_the_last_reduction_and_stage(name):
    spec, num_cells = registry.get_spec(name), CELLS[name]
    layers = list(classifier.param_shapes(Classifier(spec), 32, 32)["backbone"])
    top = [layer for layer in layers if re.fullmatch(dict(spec.groups)["last_stage"], f"backbone/{layer}/kernel")]
    cells = (f"_reduce_{2 * num_cells}", *(f"_{number}" for number in range(2 * num_cells + 1, 3 * num_cells + 1)))
    assert top == [layer for layer in layers if layer.endswith(cells)]
    assert {next(cell for cell in cells if layer.endswith(cell)) for layer in top} == set(cells)


class OneBlock(nn.Module):
    """A residual block with a DropConnect rate of 0.5."""

    @nn.compact
    def __call__(self, net, x):
        net.begin_section("backbone")
        return efficientnet.mbconv(net, x, Block(1, "block", 3, 4, 4, 6, 1, drop_rate=0.5))


def test_drop_connect_drops_whole_examples_in_train_mode_only():
    x = np.random.default_rng(0).normal(size=(32, 5, 5, 4)).astype(np.float32)
    variables = jax.jit(lambda x: OneBlock().init(jax.random.key(0), Net(), x))(x)

    def run(*train_layers):
        keys = jax.random.split(jax.random.key(1), len(x))

        @jax.jit
        def outputs(variables, keys):
            net = Net(train_layers=frozenset(train_layers), dropout_keys=keys, taps=("block_project_bn",))
            y, _ = OneBlock().apply(variables, net, x, mutable=["batch_stats"])
            return y, net.tapped["block_project_bn"]

        return map(np.asarray, outputs(variables, keys))

    frozen, inside = run("head")
    # The sum, or one behind a product with 2, may be contracted with the last product of the batch norm: two float32
    # roundings of numbers below 8, or twice that.
    np.testing.assert_allclose(frozen, x + inside, rtol=0, atol=2 * 8 * 2.0**-24)
    trained, inside = run("block_project_bn")
    dropped = np.all(trained == x, axis=(1, 2, 3))
    assert 4 < dropped.sum() < 28  # of 32 at a rate of 0.5; one random key in 50,000 is beyond
    np.testing.assert_allclose(trained[~dropped], x[~dropped] + 2 * inside[~dropped], rtol=0, atol=4 * 8 * 2.0**-24)


@pytest.mark.slow
def test_efficientnetv2_b3_exceeds_the_drop_connect_rate():
    """Keras divides by the number of B0's blocks in B1 to B3 too."""
    model = Classifier(registry.get_spec("efficientnet_v2_b3"))
    _, dropouts = keras_zoo.batch_norms_and_dropouts(model, 43, 43)
    assert max(rate for rate, per_example in dropouts.values() if per_example) > efficientnet.DROP_CONNECT_RATE


def test_efficientnetv2_preprocessing_depends_on_the_variant():
    variants = ("b0", "b1", "b2", "b3", "s", "m", "l")
    preprocessings = [registry.get_spec(f"efficientnetv2-{variant}").preprocessing for variant in variants]
    assert preprocessings == ["torch"] * 4 + ["tf_128"] * 3
