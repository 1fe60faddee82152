import csv
import hashlib
import math
import re
import shutil

import numpy as np
import pytest
from helpers.train_process import Place

from flaxtl.cli.main import main
from flaxtl.config import load_config
from flaxtl.defaults import LAST_BLOCK
from flaxtl.report.templating import round_lr
from flaxtl.train import run_dir
from flaxtl.train.feature_cache import FeatureExtractor
from flaxtl.train.lr_range_test import LrCurve, LrPoint, LrRange
from flaxtl.tuning import lr_finder
from flaxtl.tuning.lr_finder import LrFinderResult, suggest_lrs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with images/ and config.py."""
    return Place(tmp_path_factory.mktemp("user"), {"epochs": 1}, {"epochs": 1}).folder


def command(place, name, workdir, *more):
    source = f"--config.data.source=folder:{place / 'images'}"
    return [name, f"--config={place / 'config.py'}", f"--workdir={workdir}", source, *more]


def file_hashes(folder):
    """Return path -> hash of every file below a folder, except those that the command writes."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.parent.name != lr_finder.FOLDER_NAME
    }


def rows(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def fresh(place):
    """Run the command in a new directory; return the names of what it wrote."""
    workdir = place / "new" / "run"
    main(command(place, "lr-find", workdir, "--steps=12", "--min-lr=1e-4", "--max-lr=1e30"))
    return {file.name for file in workdir.iterdir()}


@pytest.fixture(scope="module")
def run(place, fresh):
    """Train a run in the same directory; return it, and of how many images features were computed each time."""
    num_images, extract = [], FeatureExtractor.extract
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractor, "extract", lambda *args: num_images.append(len(args[2])) or extract(*args))
        main(command(place, "train", place / "new" / "run"))
    return place / "new" / "run", num_images


def test_lr_find_without_a_run_writes_curve_and_page(place, fresh):
    assert fresh == {"learning_rate", "features"}
    folder = place / "new" / "run" / "learning_rate"
    assert {file.name for file in folder.iterdir()} == {"frozen.csv", "frozen.html"}
    steps = rows(folder / "frozen.csv")
    assert len(steps) < 12  # it diverged
    assert [float(step["lr"]) for step in steps] == np.geomspace(1e-4, 1e30, 12)[: len(steps)].tolist()
    page = (folder / "frozen.html").read_text()
    assert page.count("<svg") == 1  # the curve
    assert 'src="http' not in page


@pytest.mark.slow
def test_train_uses_the_features_that_lr_find_has_cached(run):
    _, num_images = run
    assert num_images == [6, 6]  # validation and test, but not the 12 of training


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["frozen", "finetune"])
def test_lr_find_leaves_a_complete_run_unchanged(place, run, capsys, phase):
    workdir, _ = run
    before = file_hashes(workdir)
    main(command(place, "lr-find", workdir, f"--phase={phase}", "--steps=12", "--min-lr=1e-6", "--max-lr=1e-2"))
    page = str(workdir / "learning_rate" / f"{phase}.html")
    assert any(line.endswith(f" {page}") for line in capsys.readouterr().out.splitlines())
    assert file_hashes(workdir) == before
    assert not (workdir / "features").exists()
    assert len(rows(workdir / "learning_rate" / f"{phase}.csv")) == 12


@pytest.mark.slow
def test_lr_find_leaves_an_unfinished_run_unchanged(place, run, tmp_path):
    """The run was stopped after its first phase; settings of its second phase may still change."""
    workdir = shutil.copytree(run[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "phases" / "2")
    run_dir.update_summary(workdir, complete=False)
    before = file_hashes(workdir)
    main(command(place, "lr-find", workdir, "--phase=finetune", "--steps=12", "--config.finetune.lr.head=0.5"))
    assert file_hashes(workdir) == before


@pytest.mark.parametrize(
    ("more", "facts"),
    [
        (["--min-lr=1", "--max-lr=1e-3"], r"\b1\b.*\b0\.001\b.*--min-lr\b.*--max-lr\b"),
        (["--steps=3"], r"--steps=3 .*\b10\b"),
        (["--steps=many"], "--steps: .*'many'"),
        (["--min-lr=low"], "--min-lr: .*'low'"),
        (["--phase=fintune"], "'fintune'.*'finetune'"),
        (["--phase=finetune"], r"\bfinetune\b.*\bfrozen\b.*flaxtl train\b"),
        (["--config.frozen.lr.head=0"], r"'frozen'.*\bfrozen\.lr\b"),
        (["--config.batch_size=0"], r"\bbatch\w*\b.* 0\b"),
        (["--config.accum_steps=0"], r"\baccum_steps\b.* 0\b"),
        (["--config.data.source=folder:nowhere"], r"\bnowhere\b"),
        (["--config.optimizer.name=adm"], "'adm'.*'adam'"),
        (["--resume"], "'--resume'.*--help"),
    ],
)
def test_lr_find_with_invalid_input_fails_and_writes_nothing(place, tmp_path, capsys, more, facts):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(command(place, "lr-find", tmp_path / "run", *more))
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1)
    assert re.search(facts, error)
    assert list(tmp_path.iterdir()) == []


def result_of(losses, batch_losses=None):
    lr_range = LrRange(1e-6, 1.0, len(losses))
    values = zip(lr_range.lrs().tolist(), losses if batch_losses is None else batch_losses, losses, strict=True)
    points = tuple(LrPoint(lr, batch_loss, loss) for lr, batch_loss, loss in values)
    curve = LrCurve(points, lr_range.num_skipped)
    return LrFinderResult("finetune", lr_range, curve, {"head": 1.0, LAST_BLOCK: 0.1}, suggest_lrs(curve))


FALLING = [*np.linspace(2, 1, 20), *np.linspace(1.1, 3, 10)]


def test_overrides_set_the_suggested_rate_for_all_trained_groups():
    result = result_of(FALLING)
    assert re.fullmatch(r"--config\.finetune\.lr\.head=\S+ --config\.finetune\.lr\.top=\S+", result.overrides)
    config = load_config("configs/folder.py", result.overrides.split())
    assert config.finetune.lr.head == result.suggested_lr
    assert config.finetune.lr.top == pytest.approx(result.suggested_lr / 10, rel=1e-15)
    assert result.warning == ""


def test_warning_of_learned_batches_asks_for_no_higher_rate():
    warning = result_of(np.linspace(2, 1, 30), [1.0] * 20 + [0.0] * 10).warning
    assert warning.startswith("All batches are learned before the highest learning rate")
    assert "--max-lr" in result_of(np.linspace(2, 1, 30), [1.0] * 20 + [0.0] * 9 + [0.1]).warning


@pytest.mark.parametrize(
    ("losses", "suggests", "option"),
    [
        (np.linspace(2, 1, 30), True, "--max-lr"),
        (np.linspace(1, 2, 30), False, "--max-lr"),
        ([1.0, 1.1, 9.0], False, "--min-lr"),
    ],
)
def test_warning_names_the_option_that_extends_the_curve(losses, suggests, option):
    result = result_of(losses)
    assert (result.suggested_lr is not None) == suggests
    assert option in result.warning


@pytest.mark.parametrize("losses", [FALLING, [1.0, 1.1, 9.0], [float("nan")], [1.0, float("inf")], [0.0, 0.0]])
def test_render_lr_page_works_for_every_curve(losses):
    result = result_of(losses)
    page = lr_finder.render_lr_page(result, load_config("configs/demo.py"))
    assert ("--config.finetune.lr.head=" in page) == (result.suggested_lr is not None)
    assert 'src="http' not in page
    assert 'href="http' not in page


@pytest.mark.exhaustive("runs")
def test_lr_find_on_the_demo_suggests_a_usual_rate(tmp_path, capsys):
    """configs/demo.py at 64x64, with the default learning rates of the test."""
    size = ["--config.data.height=64", "--config.data.width=64"]
    main(["lr-find", "--config=configs/demo.py", f"--workdir={tmp_path}", *size])
    output = capsys.readouterr().out
    (lr,) = re.findall(r"--config\.frozen\.lr\.head=(\S+)$", output, re.MULTILINE)
    assert 1e-4 < float(lr) < 1e-2  # the config has 1e-3


LRS = LrRange(1e-7, 1.0, 100).lrs()


def suggested_lrs(losses):
    curve = LrCurve(tuple(LrPoint(lr, loss, loss) for lr, loss in zip(LRS, losses, strict=False)), 10)
    return {suggestion.rule: suggestion.lr for suggestion in suggest_lrs(curve)}


def valley():
    """Constant to point 39, down to point 79 with the largest drop after point 55, and up again."""
    drops = np.full(40, 0.01)
    drops[55 - 39] = 0.05
    down = 1 - np.cumsum(drops)
    return [1.0] * 40 + down.tolist() + np.linspace(down[-1], 2.0, 21)[1:].tolist()


def test_suggest_lrs_finds_the_point_of_each_rule():
    lrs = suggested_lrs(valley())
    assert list(lrs) == ["valley", "steepest", "minimum / 10"]
    assert lrs["valley"] == round_lr(LRS[79 - 41 // 2])  # the constant part counts as one
    assert lrs["steepest"] == round_lr(LRS[55])
    assert lrs["minimum / 10"] == round_lr(LRS[79] / 10)


def test_suggest_lrs_valley_agrees_with_fastai():
    """fastai/callback/schedule.py, valley(): start = end - length; start + length / 3 + length / 6."""
    end, length = 79, 41
    theirs = end - length + int(length / 3) + int(int(length / 3) / 2)
    ours = list(map(round_lr, LRS)).index(suggested_lrs(valley())["valley"])
    assert abs(ours - theirs) <= 2  # they round half of a third down


def test_suggest_lrs_ignores_the_first_tenth():
    early = valley()
    early[:10] = np.linspace(9, 0.1, 10)
    assert suggested_lrs(early) == suggested_lrs(valley())


def test_suggest_lrs_ignores_the_diverged_point():
    before = valley()[:90]
    assert suggested_lrs([*before, math.nan]) == suggested_lrs([*before, 90.0]) == suggested_lrs(valley())


@pytest.mark.parametrize("losses", [np.linspace(1, 2, 100), [1.0] * 100, [1.0] * 12, [1.0, math.nan]])
def test_suggest_lrs_of_a_loss_that_never_falls_is_empty(losses):
    assert suggested_lrs(losses) == {}


def longest_descent(values):
    """Find it by comparing all pairs."""
    lengths = []
    for index, value in enumerate(values):
        lengths.append(1 + max((lengths[k] for k in range(index) if values[k] > value), default=0))
    return lengths.index(max(lengths)), max(lengths)


@pytest.mark.parametrize("seed", range(5))
def test_longest_descent_agrees_with_brute_force(seed):
    values = np.random.default_rng(seed).integers(0, 12, 40).tolist()  # some of them equal
    assert lr_finder._longest_descent(values) == longest_descent(values)
