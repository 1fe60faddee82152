"""The layer that EfficientNet's files hold beside its parameters; the files are written by Keras itself."""

import re

import keras
import numpy as np
import pytest
from helpers import keras_zoo

from flaxtl.errors import UserError
from flaxtl.models.imagenet import MEAN_RGB, STD_RGB, TORCH
from flaxtl.pretrained.keras_layers import PUBLISHED_NORMALIZATION
from flaxtl.pretrained.loader import load_weights

EXPECTED = {"stem_conv": {"kernel": (3, 3, 3, 4), "bias": (4,)}}
SQUARES = tuple(deviation**2 for deviation in STD_RGB)


def network(mean, variance, name=None):
    """The first layers of an EfficientNet."""
    keras.backend.clear_session()
    inputs = keras.Input((8, 8, 3))
    normalization = keras.layers.Normalization(name=name)
    x = normalization(keras.layers.Rescaling(1 / 255)(inputs))
    normalization.set_weights([np.float32(mean), np.float32(variance), np.int32(0)])
    convolution = keras.layers.Conv2D(4, 3, kernel_initializer="zeros", name="stem_conv")
    return keras.Model(inputs, convolution(x))


@pytest.mark.parametrize("save", [keras_zoo.save_legacy, keras_zoo.save_keras3])
@pytest.mark.parametrize("name", ["normalization", "normalization_3"])
def test_the_published_numbers_are_left_out(save, name, tmp_path):
    loaded = load_weights(save(network(*PUBLISHED_NORMALIZATION, name), tmp_path / "x.h5"), EXPECTED)
    assert [row.layer for row in loaded.rows] == ["stem_conv", "stem_conv"]


@pytest.mark.parametrize("save", [keras_zoo.save_legacy, keras_zoo.save_keras3])
@pytest.mark.parametrize(
    "numbers",
    [
        (np.zeros(3), np.ones(3)),
        (PUBLISHED_NORMALIZATION[0], SQUARES),
        (PUBLISHED_NORMALIZATION[0][::-1], PUBLISHED_NORMALIZATION[1]),
    ],
    ids=str,
)
def test_other_numbers_are_an_error(save, numbers, tmp_path):
    """Unadapted, true variances, or channels reversed: preprocessing is not what the network was trained with."""
    file = save(network(*numbers), tmp_path / "x.h5")
    known = ".*".join(re.escape(str(list(part))) for part in PUBLISHED_NORMALIZATION)
    with pytest.raises(UserError, match=rf"{re.escape(file.name)}\b.*'normalization(_\d+)?'.*{known}"):
        load_weights(file, EXPECTED)


def test_preprocessing_is_what_keras_computes_with_them():
    """Of three layers: the last mends that the second divides by the root of a deviation."""
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype(np.uint8)
    mend = keras.layers.Rescaling([1 / deviation**0.5 for deviation in STD_RGB])
    normalization = keras.layers.Normalization(mean=PUBLISHED_NORMALIZATION[0], variance=PUBLISHED_NORMALIZATION[1])
    expected = mend(normalization(keras.layers.Rescaling(1 / 255)(images.astype(np.float32))))
    # Five roundings there, three here, of numbers up to 1, divided by 0.22.
    np.testing.assert_allclose(TORCH(images), expected, rtol=0, atol=8 * 2**-24 / 0.22)
    assert PUBLISHED_NORMALIZATION == (MEAN_RGB, STD_RGB)
