"""The manifest of a config: settings are applied, invalid data is rejected."""

import re
import shutil

import pytest
from helpers import tiny_run
from helpers.image_folders import paint

from flaxtl.config import load_config
from flaxtl.errors import UserError
from flaxtl.train.setup import build_manifest, check_config


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


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"precision": "hihg"}, r"'hihg'.*'high'"),
        ({"dtype": "float23"}, r"'float23'.*'float32'"),
        ({"augmentation": {"fill": "mirror"}}, r"'mirror'.*\breflect\b"),
        ({"head": {"normalize": "l3"}}, r"'l3'.*\bl2\b"),
        ({"optimizer": {"name": "nadam", "weight_decay": -1.0}}, r"optimizer\.weight_decay\b.*-1\b"),
        ({"finetune": {"clip_norm": -1.0}}, r"finetune\.clip_norm\b.*-1\b"),
        ({"finetune": {"min_steps": -1}}, r"finetune\.min_steps\b.*-1\b"),
        ({"finetune": {"lr": tiny_run.FROZEN | {"blok2": 0.1}}}, r"finetune\.lr.*'blok2'.*'block2'"),
        ({"finetune": {"lr": tiny_run.FROZEN | {"head": -0.1}}}, r"finetune\.lr\.head\b.*-0\.1\b"),
        ({"finetune": {"lr": {"head": 0.1, "block2": 0.1}}}, r"finetune\.lr\b.*\bbase\b"),
        ({"finetune": {"steps_per_epoch": 2, "warmup_steps": 9}}, r"finetune\.warmup_steps\b.*\b9\b.*\b4\b"),
        ({"model": {"name": "vgg16", "output_layer": "blok2_pool"}}, r"'blok2_pool'.*'block2_pool'"),
        ({"param_groups": (("head", "head/.*"), ("block2", ".*"), ("base", ".*"))}, r"'base'.*\bmatches no\b"),
        ({"data": {"height": 8}}, r"\b8x"),
        ({"data": {"crop_pct": 0.0}}, r"crop_pct\b.*\b0\b"),
        ({"weights": {"path": "/no/weights.h5"}}, r"'/no/weights\.h5' does not exist"),
        ({"weights": {"skip_layers": "("}}, r"skip_layers\b.*'\('"),
    ],
)
def test_build_manifest_invalid_value_is_rejected_before_images_are_read(changes, facts):
    with pytest.raises(UserError, match=facts):
        build_manifest(tiny_run.config("/does/not/exist", **changes), None, tiny_run.quiet())


def test_build_manifest_unknown_class_weight_reads_no_images(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "no_image.png").write_bytes(b"")
    console = tiny_run.quiet()
    config = tiny_run.config(tmp_path, class_weights="{'c': 2.0}")
    with pytest.raises(UserError, match=r"class_weights 'c'\. Available: a, b"):
        build_manifest(config, tmp_path.parent / "run", console)
    assert tiny_run.texts(console) == ""


def test_check_config_misspelt_last_block_is_suggested():
    config = load_config("folder", ["--config.finetune.lr.topp=1e-5"])
    with pytest.raises(UserError, match=r"'topp'.*'top'"):
        check_config(config)
