"""The ImageNet classes, and preprocessing compared with keras.applications' own `preprocess_input`.

Compiled, a division by a constant is a product with its reciprocal, which is rounded too: an error of up to 2**-23 of
the quotient (at most 2), in "torch" divided by 0.225 again. A subtraction alone is bit-identical.
"""

import hashlib
import json

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from flaxtl.models.imagenet import CAFFE, MEAN_BGR, PREPROCESSING, imagenet_classes

KERAS = {
    "caffe": keras.applications.vgg16,
    "tf": keras.applications.resnet_v2,
    "torch": keras.applications.densenet,
}
"""Preprocessing -> a Keras module that uses it. Which model has which is tested in test_keras_parity.py."""

ATOL = {"caffe": 0.0, "tf": 1e-6, "tf_128": 1e-6, "torch": 1e-6}


def test_classes_match_keras_index():
    """The MD5 of imagenet_class_index.json in keras/src/applications/imagenet_utils.py."""
    index = {str(number): list(label) for number, label in enumerate(imagenet_classes())}
    assert hashlib.md5(json.dumps(index).encode()).hexdigest() == "c2c37ea517e94d9795004a39431a14cb"


def test_class_ids_are_unique_and_names_are_not():
    classes = imagenet_classes()
    assert classes[0] == ("n01440764", "tench")
    assert len({label.wordnet_id for label in classes}) == 1000
    names = [label.name for label in classes]
    assert sorted({name for name in names if names.count(name) > 1}) == ["crane", "maillot"]


def random_images(dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype(dtype)


@pytest.mark.parametrize("name", KERAS)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_preprocessing_equals_keras(name, dtype):
    images = random_images(dtype)
    expected = KERAS[name].preprocess_input(images.astype("float32"))
    pixels = jax.jit(PREPROCESSING[name])(images)
    assert pixels.dtype == jnp.float32
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=ATOL[name])


def test_tf_128_equals_keras_rescaling():
    expected = keras.layers.Rescaling(1 / 128, offset=-1)(random_images(np.float32))
    np.testing.assert_array_equal(PREPROCESSING["tf_128"](random_images()), expected)  # exact: 128 is a power of 2


def test_caffe_swaps_red_and_blue():
    red = jnp.array([255, 0, 0], jnp.uint8).reshape(1, 1, 1, 3)
    expected = np.float32([0, 0, 255]) - np.float32(MEAN_BGR)
    np.testing.assert_array_equal(CAFFE(red).ravel(), expected)


@pytest.mark.parametrize("name", PREPROCESSING)
def test_preprocessing_is_described_by_its_numbers(name):
    images, preprocessing = random_images(), PREPROCESSING[name]
    ordered = images[..., ["RGB".index(channel) for channel in preprocessing.channels]].astype(np.float32)
    scale, mean, std = (np.float32(value) for value in (preprocessing.scale, preprocessing.mean, preprocessing.std))
    np.testing.assert_allclose(preprocessing(images), (ordered / scale - mean) / std, rtol=0, atol=ATOL[name])
