"""What the catalog says, against Keras' own source."""

import keras
import numpy as np
import pytest
from helpers import keras_zoo

from flaxtl.errors import UserError
from flaxtl.models import registry
from flaxtl.models.imagenet import PREPROCESSING
from flaxtl.models.registry import MODELS

every_architecture = pytest.mark.parametrize("row", MODELS.values(), ids=MODELS)


class _AskedError(Exception):
    """Raised in place of a download."""


def _asked_of(name, monkeypatch, **settings):
    """(file name, address, hash) that Keras asks for."""

    def get_file(fname, origin, *, file_hash="", **_):
        raise _AskedError(fname, origin, file_hash or "")

    def zeros(self, shape, dtype=None):  # quick; Keras compiles an initializer for each shape
        return np.zeros(shape, "float32")

    monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", zeros)
    monkeypatch.setattr(keras.src.utils.file_utils, "get_file", get_file)
    with pytest.raises(_AskedError) as asked:
        keras_zoo.KERAS[name](weights="imagenet", **settings)
    return asked.value.args


@pytest.mark.parametrize(
    "name", ["vgg16", *(pytest.param(name, marks=pytest.mark.slow) for name in keras_zoo.KERAS if name != "vgg16")]
)
def test_weight_files_are_those_that_keras_asks_for(name, monkeypatch):
    row = registry.get_spec(name)
    assert _asked_of(name, monkeypatch) == tuple(vars(row.weights).values())
    shape = (row.input_size, row.input_size, 3)
    assert _asked_of(name, monkeypatch, include_top=False, input_shape=shape) == tuple(
        vars(row.weights_no_top).values()
    )


@pytest.mark.parametrize("name", keras_zoo.KERAS)
def test_minimum_size_is_that_of_keras(name):
    row = registry.get_spec(name)
    side = row.min_input_size - 1
    with pytest.raises(ValueError, match=f"at least {row.min_input_size}x{row.min_input_size}"):
        keras_zoo.KERAS[name](weights=None, include_top=False, input_shape=(side, side, 3))


@every_architecture
def test_a_row_is_complete(row):
    assert row.preprocessing in PREPROCESSING
    assert 0 < row.num_params_no_top < row.num_params
    assert 50 < row.top1 < row.top5 < 100
    assert row.license
    assert row.paper.startswith(("arXiv:", "doi:"))
    assert row.groups[0][0] == "head"


def test_find_suggests():
    assert registry.get_spec("vgg16").name == "vgg16"
    with pytest.raises(UserError, match=r"'vgg'.*'vgg1[69]'"):
        registry.get_spec("vgg")
