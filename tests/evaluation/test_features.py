"""Features of many images: one result for arrays and files, in any batch size."""

import re
from collections import UserList
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import flaxtl
from flaxtl.errors import UserError
from flaxtl.evaluation import features


class Shuffled(UserList):
    """As a shuffled pandas.Series: its order is that of the iteration, and [0] is the value with the label 0."""

    def __getitem__(self, label):
        return self.data[(label + 1) % len(self)]

    def __iter__(self):
        return iter(self.data)


@pytest.fixture(scope="module")
def created():
    return flaxtl.create_model("vgg16", weights="builtin", input_size=32)


def test_extract_features_reads_files_in_order(created, tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)).save(path)
    images = flaxtl.load_images(iter(paths), 32)
    assert (images.shape, images.dtype) == ((3, 32, 32, 3), np.uint8)
    of_files = flaxtl.extract_features(*created, iter(paths), batch_size=2)
    of_array = flaxtl.extract_features(*created, images, batch_size=2)
    assert (of_files.shape, of_files.dtype) == ((3, 512), np.float32)
    np.testing.assert_array_equal(of_files, of_array)
    assert len(np.unique(of_files, axis=0)) == 3
    layer = flaxtl.extract_features(*created, images, layer="block1_conv1", batch_size=3)
    assert (layer.shape, layer.dtype) == ((3, 32, 32, 64), np.float32)
    of_series = flaxtl.extract_features(*created, Shuffled(paths), batch_size=2)
    np.testing.assert_array_equal(of_series, of_files)


def test_extract_features_twice_compiles_once(created):
    step = features._make_feature_step(created[0], "block2_pool")
    for _ in range(2):
        flaxtl.extract_features(*created, np.zeros((2, 32, 32, 3), np.uint8), layer="block2_pool")
    assert step._cache_size() == 1


def test_extract_features_mistakes_are_user_errors(created, tmp_path):
    with pytest.raises(UserError, match=r"missing\.png"):
        flaxtl.extract_features(*created, [tmp_path / "missing.png"])
    with pytest.raises(UserError, match=r"batches of '8'"):
        flaxtl.extract_features(*created, np.zeros((1, 32, 32, 3), np.uint8), batch_size="8")
    with pytest.raises(UserError, match=r"\b0 images"):
        flaxtl.extract_features(*created, np.zeros((0, 32, 32, 3), np.uint8))
    with pytest.raises(UserError, match=r"Give a list of image files.*not \[\]"):
        flaxtl.extract_features(*created, [])
    with pytest.raises(UserError, match=r"'block1_convv1'.*'block1_conv1'"):
        flaxtl.extract_features(*created, np.zeros((1, 32, 32, 3), np.uint8), layer="block1_convv1")
    with pytest.raises(UserError, match=r"'flowers'"):
        flaxtl.load_images("flowers", 32)
    with pytest.raises(UserError, match=r"Give a list of image files.*not \[\]"):
        flaxtl.load_images(tmp_path.glob("*.jpg"), 32)
    with pytest.raises(UserError, match=r"'flowers'"):
        flaxtl.extract_features(*created, "flowers")
    with pytest.raises(UserError, match=r"not Image objects"):
        flaxtl.load_images([Image.new("RGB", (32, 32))], 32)
    with pytest.raises(UserError, match=r"Path\('flowers'\)"):
        flaxtl.extract_features(*created, Path("flowers"))


@pytest.mark.parametrize("size", ["8", 8.0, (8,), (8, 8, 3), None])
def test_load_images_size_mistake_is_a_user_error(size, tmp_path):
    with pytest.raises(UserError, match=f"size is {re.escape(repr(size))}.*integer or \\(height, width\\)"):
        flaxtl.load_images([tmp_path / "a.png"], size)
