"""Against keras.applications' own preprocess_input, bit for bit: the same float32 subtraction of the same constants."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from flaxtl.models.catalog import ARCHITECTURES
from flaxtl.models.preprocess import MEAN_BGR, PREPROCESSING, caffe


@pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_equals_keras(row, dtype):
    pictures = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype(dtype)
    expected = getattr(keras.applications, row.name).preprocess_input(pictures.astype("float32"))
    got = jax.jit(PREPROCESSING[row.preprocessing])(pictures)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, expected)


def test_caffe_swaps_red_and_blue():
    red = jnp.array([255, 0, 0], jnp.uint8).reshape(1, 1, 1, 3)
    expected = np.float32([0, 0, 255]) - np.float32(MEAN_BGR)
    np.testing.assert_array_equal(caffe(red).ravel(), expected)
