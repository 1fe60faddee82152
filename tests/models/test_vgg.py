"""VGG at its published size; smaller sizes are in test_keras_parity.py."""

import keras
import numpy as np
import pytest
from helpers import keras_zoo
from PIL import Image

from flaxtl.models import classifier
from flaxtl.models.classifier import forward

BOUND = 5e-6  # see test_keras_parity.py
TAPS = ("block1_conv2", "block2_pool", "block4_conv1", "block5_conv3", "block5_pool")


def weights_of(network):
    layers = [layer for layer in network.layers if layer.weights]
    return {layer.name: dict(zip(("kernel", "bias"), layer.get_weights(), strict=True)) for layer in layers}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_vgg_equals_keras_at_input_size(name):
    network = keras_zoo.keras_network(name, 224, include_top=True, classifier_activation=None)
    model = keras_zoo.flaxtl_model(name, include_top=True)
    pair = keras_zoo.Pair(network, model, {"backbone": weights_of(network)}, keras_zoo.random_images(224, 224))
    keras_zoo.compare_outputs(pair, (*TAPS, "fc1"), BOUND, keras_zoo.preprocessing(name))


@pytest.mark.parametrize(("name", "num_convs"), [("vgg16", 13), ("vgg19", 16)])
def test_vgg_layer_shapes_equal_keras(name, num_convs):
    network = keras_zoo.keras_network(name, 64, include_top=True)
    layers = classifier.list_layers(keras_zoo.flaxtl_model(name, include_top=True), 64, 64)
    assert [layer.shape for layer in layers] == [layer.output.shape[1:] for layer in network.layers[1:]]
    assert sum(layer.kind == "conv" for layer in layers) == num_convs


def test_vgg16_with_real_weights_equals_keras_on_a_real_image(shared):
    network = keras.applications.VGG16(weights=None, include_top=False, input_shape=(224, 224, 3))
    network.load_weights(shared / "weights/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5")
    path = min((shared / "data/flowers/validation/daisy").iterdir())
    images = np.asarray(Image.open(path).convert("RGB").resize((224, 224)))[None]
    expected = network.predict(keras.applications.vgg16.preprocess_input(images.astype("float32")), verbose=0)
    assert expected.max() > 10
    model = keras_zoo.flaxtl_model("vgg16", include_top=False)
    features = forward(model, {"backbone": weights_of(network)}, images, stop="block5_pool").output
    keras_zoo.assert_outputs_close({"block5_pool": features}, {"block5_pool": expected}, BOUND)
