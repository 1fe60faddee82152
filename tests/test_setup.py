"""The pictures of a recipe: its settings reach the manifest, and what is odd is said."""

import re
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
    pair = r"train/a/0\.png.*validation/a/same\.png"
    with pytest.raises(UserError, match=rf"\b1 .*{pair}.*\bdata\.allow_leaks\b"):
        manifest_of(config, tmp_path_factory.getbasetemp() / "run", console)
    config.data.allow_leaks = True
    assert len(manifest_of(config, tmp_path_factory.getbasetemp() / "run", console).examples) == 13
    assert re.search(rf"\b1 .*{pair}", small.texts(console))
    assert re.search(r"(?i)\bduplicates\b", small.texts(console))


def test_the_threshold_is_the_recipe_s(leaking, tmp_path_factory):
    config = small.config(leaking)
    config.data.near_duplicates = 99
    with pytest.raises(UserError, match=r"\b99\b"):
        manifest_of(config, tmp_path_factory.getbasetemp() / "run", small.quiet())


def test_other_classes_than_expected_are_told_before_pictures_are_read(leaking, tmp_path_factory):
    config, console = small.config(leaking), small.quiet()
    config.data.classes = ("a", "c")
    with pytest.raises(UserError, match=r"\ba and b\b.*\ba and c\b"):
        manifest_of(config, tmp_path_factory.getbasetemp() / "run", console)
    assert small.texts(console) == ""


def test_a_run_among_its_pictures_is_refused(leaking):
    workdir = leaking / "train" / "run"
    with pytest.raises(UserError, match=rf"--workdir={re.escape(str(workdir))}\b.*{re.escape(str(leaking))}\b"):
        manifest_of(small.config(leaking), workdir, small.quiet())
