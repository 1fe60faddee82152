import io
import shutil
from collections import Counter

import pytest
from helpers.image_folders import paint
from rich.console import Console

from flaxtl.data.manifest import make_manifest
from flaxtl.data.sources.csv_file import scan_csv
from flaxtl.data.sources.image_folder import scan_folder
from flaxtl.errors import UserError
from flaxtl.tuning import sweep_images

CONSOLE = Console(file=io.StringIO())
FRACTIONS = {"train": 0.5, "validation": 0.25, "test": 0.25}


@pytest.fixture
def manifest(tmp_path):
    paint(tmp_path / "set" / "ants", range(16))
    paint(tmp_path / "set" / "bees", range(100, 116))
    shutil.copy(tmp_path / "set" / "ants" / "0.png", tmp_path / "set" / "ants" / "copy.png")
    return make_manifest(scan_folder(tmp_path / "set"), FRACTIONS, 0)


def paths(file):
    return {str(image.path) for image in scan_csv(file).images}


def test_development_list_has_all_but_the_test_images(manifest, tmp_path):
    assert sweep_images.read_development_images(tmp_path) is None
    sweep_images.write_image_lists(tmp_path, manifest, 0, 0, 4, CONSOLE)
    assert sweep_images.read_development_images(tmp_path) == sweep_images.without_test_images(manifest)
    source = sweep_images.image_list_source(tmp_path, 0)
    assert source == f"csv:{tmp_path}/development.csv"
    images = scan_csv(tmp_path / "development.csv").images
    assert {(str(i.path), i.label, i.split, i.sha256) for i in images} == {
        (e.path, e.label, e.split, e.sha256) for e in manifest.examples if e.split != "test"
    }
    assert paths(tmp_path / "test.csv") == {example.path for example in manifest.of_split("test")}
    assert scan_csv(tmp_path / "test.csv").splits == ("test",)


def test_folds_have_the_same_images_and_keep_duplicates_together(manifest, tmp_path):
    sweep_images.write_image_lists(tmp_path, manifest, 4, 0, 4, CONSOLE)
    development, num_validated = paths(tmp_path / "development.csv"), Counter()
    (duplicate,) = (sha256 for sha256, n in Counter(e.sha256 for e in manifest.examples).items() if n > 1)
    for fold in (1, 2, 3, 4):
        assert sweep_images.image_list_source(tmp_path, fold) == f"csv:{tmp_path}/folds/fold-{fold}.csv"
        images = scan_csv(tmp_path / "folds" / f"fold-{fold}.csv").images
        assert {str(image.path) for image in images} == development
        validation = [image for image in images if image.split == "validation"]
        num_validated.update(str(image.path) for image in validation)
        assert {image.label for image in validation} == {"ants", "bees"}
        assert len({image.split for image in images if image.sha256 == duplicate}) <= 1
    assert set(num_validated.values()) == {1}
    assert set(num_validated) == development
    assert development.isdisjoint(paths(tmp_path / "test.csv"))


def test_folds_of_a_class_too_small_leave_nothing_behind(manifest, tmp_path):
    with pytest.raises(UserError, match=r"'(ants|bees)'.*\b1\d\b"):
        sweep_images.write_image_lists(tmp_path / "sweep", manifest, 15, 0, 4, CONSOLE)
    assert not (tmp_path / "sweep").exists()
