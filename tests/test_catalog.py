"""What the catalog says, against Keras' own source."""

import importlib
import inspect

import pytest

from flaxtl.errors import UserError
from flaxtl.models import catalog
from flaxtl.models.catalog import ARCHITECTURES
from flaxtl.models.preprocess import PREPROCESSING

every_architecture = pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=ARCHITECTURES)


@every_architecture
def test_weight_files_are_those_of_keras(row):
    source = inspect.getsource(importlib.import_module(f"keras.src.applications.{row.name}"))
    joined = source.replace('"\n    "', "")
    for file in (row.file_with_top, row.file_base):
        assert file.url.endswith(f"/{row.name}/{file.name}")
        assert f'"{file.url}"' in joined
        assert f'"{file.name}"' in source
        assert f'file_hash="{file.md5}"' in source


@every_architecture
def test_size_and_minimum_size_are_those_of_keras(row):
    source = inspect.getsource(importlib.import_module(f"keras.src.applications.{row.name}"))
    assert f"default_size={row.size}," in source
    assert f"min_size={row.minimum_size}," in source


@every_architecture
def test_a_row_is_complete(row):
    assert row.preprocessing in PREPROCESSING
    assert 0 < row.parameters_base < row.parameters_with_top
    assert 50 < row.top1 < row.top5 < 100
    assert row.licence
    assert row.paper.startswith("arXiv:")
    assert row.groups[0][0] == "head"


def test_find_suggests():
    assert catalog.find("vgg16").name == "vgg16"
    with pytest.raises(UserError, match=r"no network 'vgg'; did you mean 'vgg1[69]'"):
        catalog.find("vgg")
