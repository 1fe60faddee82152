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


def test_leaks_are_an_error_unless_the_recipe_allows_them(leaking, tmp_path_factory):
    config, console = small.config(leaking), small.quiet()
    with pytest.raises(UserError, match=r"1 picture\(s\) of .* lie in more than one split"):
        manifest_of(config, tmp_path_factory.getbasetemp() / "run", console)
    config.data.allow_leaks = True
    assert len(manifest_of(config, tmp_path_factory.getbasetemp() / "run", console).examples) == 13
    assert "measures on these are flattered" in small.texts(console)
    assert "looking for duplicates" in small.texts(console)


def test_the_threshold_is_the_recipe_s(leaking, tmp_path_factory):
    config = small.config(leaking)
    config.data.near_duplicates = 99
    with pytest.raises(UserError, match="near-duplicates cannot differ by 99 bits"):
        manifest_of(config, tmp_path_factory.getbasetemp() / "run", small.quiet())


def test_other_classes_than_expected_are_told_before_pictures_are_read(leaking, tmp_path_factory):
    config, console = small.config(leaking), small.quiet()
    config.data.classes = ("a", "c")
    with pytest.raises(UserError, match="holds the classes a and b, but the recipe expects a and c; correct"):
        manifest_of(config, tmp_path_factory.getbasetemp() / "run", console)
    assert small.texts(console) == ""


def test_a_run_among_its_pictures_is_refused(leaking):
    with pytest.raises(UserError, match=r"lies within the source .* and would become a part of it; choose another"):
        manifest_of(small.config(leaking), leaking / "train" / "run", small.quiet())
