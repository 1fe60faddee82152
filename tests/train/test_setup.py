"""The manifest of a config: settings are applied, invalid data is rejected."""

import re
import shutil

import pytest
from helpers import tiny_run
from helpers.image_folders import paint

from flaxtl.errors import UserError
from flaxtl.train.setup import build_manifest


@pytest.fixture
def leaking(tmp_path):
    for number, split in enumerate(("train", "validation")):
        paint(tmp_path / split / "a", range(100 * number, 100 * number + 3))
        paint(tmp_path / split / "b", range(100 * number + 50, 100 * number + 53))
    shutil.copy(tmp_path / "train" / "a" / "0.png", tmp_path / "validation" / "a" / "same.png")
    return tmp_path


def test_build_manifest_leaks_are_rejected_unless_allowed(leaking, tmp_path_factory):
    config, console = tiny_run.config(leaking), tiny_run.quiet()
    pair = r"train/a/0\.png.*validation/a/same\.png"
    with pytest.raises(UserError, match=rf"\b1 .*{pair}.*\bdata\.allow_leaks\b"):
        build_manifest(config, tmp_path_factory.getbasetemp() / "run", console)
    config.data.allow_leaks = True
    assert len(build_manifest(config, tmp_path_factory.getbasetemp() / "run", console).examples) == 13
    assert re.search(rf"\b1 .*{pair}", tiny_run.texts(console))
    assert re.search(r"(?i)\bduplicates\b", tiny_run.texts(console))


def test_build_manifest_invalid_near_duplicates_is_rejected(leaking, tmp_path_factory):
    config = tiny_run.config(leaking)
    config.data.near_duplicates = 99
    with pytest.raises(UserError, match=r"\b99\b"):
        build_manifest(config, tmp_path_factory.getbasetemp() / "run", tiny_run.quiet())


def test_build_manifest_unexpected_classes_are_rejected_first(leaking, tmp_path_factory):
    config, console = tiny_run.config(leaking), tiny_run.quiet()
    config.data.classes = ("a", "c")
    with pytest.raises(UserError, match=r"\ba and b\b.*\ba and c\b"):
        build_manifest(config, tmp_path_factory.getbasetemp() / "run", console)
    assert tiny_run.texts(console) == ""


def test_build_manifest_workdir_inside_source_is_rejected(leaking):
    workdir = leaking / "train" / "run"
    with pytest.raises(UserError, match=rf"--workdir={re.escape(str(workdir))}\b.*{re.escape(str(leaking))}\b"):
        build_manifest(tiny_run.config(leaking), workdir, tiny_run.quiet())


@pytest.mark.parametrize(("key", "value"), [("precision", "hihg"), ("dtype", "float23")])
def test_build_manifest_misspelt_arithmetic_is_rejected_before_images_are_read(key, value):
    config = tiny_run.config("/does/not/exist")
    config[key] = value
    with pytest.raises(UserError, match=f"'{value}'.*'{'high' if key == 'precision' else 'float32'}'"):
        build_manifest(config, None, tiny_run.quiet())


@pytest.mark.parametrize(
    ("section", "key", "value", "known"),
    [("augmentation", "fill", "mirror", "reflect"), ("head", "normalize", "l3", "l2")],
)
def test_build_manifest_invalid_value_is_rejected_before_images_are_read(section, key, value, known):
    config = tiny_run.config("/does/not/exist")
    config[section][key] = value
    with pytest.raises(UserError, match=rf"'{value}'.*\b{known}\b"):
        build_manifest(config, None, tiny_run.quiet())


def test_build_manifest_misspelt_group_is_rejected_before_images_are_read():
    config = tiny_run.config("/does/not/exist")
    with config.unlocked():
        config.finetune.lr["blok2"] = 0.1
    with pytest.raises(UserError, match=r"finetune\.lr.*'blok2'.*'block2'"):
        build_manifest(config, None, tiny_run.quiet())
