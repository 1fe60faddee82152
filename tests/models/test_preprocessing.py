"""Against keras.applications' own preprocess_input.

Compiled, a division by a constant is a product with its reciprocal, which is rounded too: up to 2**-23 of the quotient,
which is at most 2, and in 'torch' divided by 0.225 again. Subtraction alone is bit for bit.
"""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from flaxtl.models.imagenet import MEAN_BGR, PREPROCESSING, STEPS, caffe

KERAS = {
    "caffe": keras.applications.vgg16,
    "tf": keras.applications.resnet_v2,
    "torch": keras.applications.densenet,
}
"""Ours -> who does it in Keras; which network has which is tested with the networks."""


@pytest.mark.parametrize("name", KERAS)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_equals_keras(name, dtype):
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype(dtype)
    expected = KERAS[name].preprocess_input(images.astype("float32"))
    got = jax.jit(PREPROCESSING[name])(images)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=0 if name == "caffe" else 1e-6)


def test_caffe_swaps_red_and_blue():
    red = jnp.array([255, 0, 0], jnp.uint8).reshape(1, 1, 1, 3)
    expected = np.float32([0, 0, 255]) - np.float32(MEAN_BGR)
    np.testing.assert_array_equal(caffe(red).ravel(), expected)


@pytest.mark.parametrize("name", PREPROCESSING)
def test_steps_tell_what_the_function_computes(name):
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    channels, *numbers = STEPS[name]
    scale, subtract, divide = (np.float32(number) for number in numbers)
    ordered = images[..., ["RGB".index(channel) for channel in channels]].astype(np.float32)
    expected, atol = (ordered / scale - subtract) / divide, 0 if name == "caffe" else 1e-6
    np.testing.assert_allclose(PREPROCESSING[name](images), expected, rtol=0, atol=atol)
