"""The pictures of a recipe: its settings reach the manifest, and what is odd is said."""

import shutil

import pytest
import small
from folders import paint

from flaxtl.errors import UserError
from flaxtl.train.setup import manifest_of


@pytest.fixture
def leaking(tmp_path):
    for number, split in enumerate(("train", "validation")):
        paint(tmp_path / split / "a", range(100 * number, 100 * number + 3))
        paint(tmp_path / split / "b", range(100 * number + 50, 100 * number + 53))
    shutil.copy(tmp_path / "train" / "a" / "0.png", tmp_path / "validation" / "a" / "same.png")
    return tmp_path


def test_leaks_are_an_error_unless_the_recipe_allows_them(leaking):
    config, console = small.config(leaking), small.quiet()
    with pytest.raises(UserError, match=r"1 picture\(s\) of .* lie in more than one split"):
        manifest_of(config, console)
    config.data.allow_leaks = True
    assert len(manifest_of(config, console).examples) == 13
    assert "measures on these are flattered" in small.texts(console)
    assert "looking for duplicates" in small.texts(console)


def test_the_threshold_is_the_recipe_s(leaking):
    config = small.config(leaking)
    config.data.near_duplicates = 99
    with pytest.raises(UserError, match="near-duplicates cannot differ by 99 bits"):
        manifest_of(config, small.quiet())


def test_other_classes_than_expected_are_told_before_pictures_are_read(leaking):
    config, console = small.config(leaking), small.quiet()
    config.data.classes = ("a", "c")
    with pytest.raises(UserError, match="holds the classes a, b, but the recipe expects a, c; correct"):
        manifest_of(config, console)
    assert small.texts(console) == ""
