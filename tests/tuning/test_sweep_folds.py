"""A sweep's images: dealt out once, folds of what is learned from, and test images that no run is given."""

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
from flaxtl.tuning import sweep

CONSOLE = Console(file=io.StringIO())
PARTS = {"train": 0.5, "validation": 0.25, "test": 0.25}


@pytest.fixture
def manifest(tmp_path):
    paint(tmp_path / "set" / "ants", range(16))
    paint(tmp_path / "set" / "bees", range(100, 116))
    shutil.copy(tmp_path / "set" / "ants" / "0.png", tmp_path / "set" / "ants" / "copy.png")
    return make_manifest(scan_folder(tmp_path / "set"), PARTS, 0)


def paths(source):
    return {str(found.path) for found in scan_csv(source).images}


def test_runs_are_given_all_but_the_test_images(manifest, tmp_path):
    assert sweep.kept_images(tmp_path) is None
    sweep.write_fold_lists(tmp_path, manifest, 0, 0, 4, CONSOLE)
    assert sweep.kept_images(tmp_path) == sweep.development_images(manifest)
    source = sweep.fold_source(tmp_path, 0)
    assert source == f"csv:{tmp_path}/development.csv"
    listing = scan_csv(tmp_path / "development.csv")
    assert {(str(f.path), f.label, f.split, f.sha256) for f in listing.images} == {
        (e.path, e.label, e.split, e.sha256) for e in manifest.examples if e.split != "test"
    }
    assert paths(tmp_path / "test.csv") == {example.path for example in manifest.of_split("test")}
    assert scan_csv(tmp_path / "test.csv").splits == ("test",)


def test_folds_are_of_the_same_images_and_keep_like_ones_together(manifest, tmp_path):
    sweep.write_fold_lists(tmp_path, manifest, 4, 0, 4, CONSOLE)
    learned_from, validated = paths(tmp_path / "development.csv"), Counter()
    (twice,) = (sha256 for sha256, n in Counter(e.sha256 for e in manifest.examples).items() if n > 1)
    for fold in (1, 2, 3, 4):
        assert sweep.fold_source(tmp_path, fold) == f"csv:{tmp_path}/folds/fold-{fold}.csv"
        listing = scan_csv(tmp_path / "folds" / f"fold-{fold}.csv")
        assert {str(found.path) for found in listing.images} == learned_from
        validation = [found for found in listing.images if found.split == "validation"]
        validated.update(str(found.path) for found in validation)
        assert {found.label for found in validation} == {"ants", "bees"}
        assert len({found.split for found in listing.images if found.sha256 == twice}) <= 1
    assert set(validated.values()) == {1}
    assert set(validated) == learned_from
    assert learned_from.isdisjoint(paths(tmp_path / "test.csv"))


def test_a_class_too_small_for_the_folds_leaves_nothing_behind(manifest, tmp_path):
    with pytest.raises(UserError, match=r"'(ants|bees)'.*\b1\d\b"):
        sweep.write_fold_lists(tmp_path / "sweep", manifest, 15, 0, 4, CONSOLE)
    assert not (tmp_path / "sweep").exists()
