"""`flaxtl lr` as a user gives it: what it says and writes, and what it leaves alone."""

import csv
import hashlib
import re
import shutil

import numpy as np
import pytest
from helpers.train_process import Place

from flaxtl.cli.main import main
from flaxtl.config import TOP_GROUP, load_config
from flaxtl.train.feature_cache import FeatureExtractor
from flaxtl.train.lr_range_test import LrCurve, LrPoint, LrRange
from flaxtl.tuning import lr_finder
from flaxtl.tuning.lr_finder import LrSuggestions, suggestions

pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with images/ and config.py."""
    return Place(tmp_path_factory.mktemp("user"), "epochs=1", "epochs=1").folder


def command(place, name, workdir, *more):
    source = f"--config.data.source=folder:{place / 'images'}"
    return [name, f"--config={place / 'config.py'}", f"--workdir={workdir}", source, *more]


def files(folder):
    """path -> hash of every file below a folder, but for what the command writes."""
    found = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in found
        if file.parent.name != lr_finder.FOLDER_NAME
    }


def rows(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def fresh(place):
    """Where the command is the first to write."""
    workdir = place / "new" / "run"
    main(command(place, "lr", workdir, "--steps=30", "--lowest=1e-4", "--highest=1e30"))
    return {file.name for file in workdir.iterdir()}


@pytest.fixture(scope="module")
def run(place, fresh):
    """A run that went through in the same place, and how many images passed its frozen layers."""
    passed, fill = [], FeatureExtractor.fill
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractor, "fill", lambda *given: passed.append(len(given[2])) or fill(*given))
        main(command(place, "train", place / "new" / "run"))
    return place / "new" / "run", passed


def test_before_there_is_a_run(place, fresh):
    assert fresh == {"learning_rate", "features"}
    found = place / "new" / "run" / "learning_rate"
    assert {file.name for file in found.iterdir()} == {"frozen.csv", "frozen.html"}
    steps = rows(found / "frozen.csv")
    assert len(steps) < 30  # it diverged
    assert [float(step["rate"]) for step in steps] == np.geomspace(1e-4, 1e30, 30)[: len(steps)].tolist()
    page = (found / "frozen.html").read_text()
    assert page.count("<svg") == 1  # the curve
    assert 'src="http' not in page


def test_a_run_finds_what_the_frozen_layers_made_of_the_images(run):
    _, passed = run
    assert passed == [6, 6]  # those of validation and test, not the 12 of training


@pytest.mark.parametrize("phase", ["frozen", "finetune"])
def test_a_complete_run_stays_what_it_is(place, run, capsys, phase):
    workdir, _ = run
    before = files(workdir)
    main(command(place, "lr", workdir, f"--phase={phase}", "--steps=12", "--lowest=1e-6", "--highest=1e-2"))
    page = str(workdir / "learning_rate" / f"{phase}.html")
    assert any(line.endswith(f" {page}") for line in capsys.readouterr().out.splitlines())
    assert files(workdir) == before
    assert not (workdir / "features").exists()
    assert len(rows(workdir / "learning_rate" / f"{phase}.csv")) == 12


@pytest.mark.slow
def test_a_run_on_its_way_stays_what_it_is(place, run, tmp_path):
    """As one that was stopped after its first phase, of a config whose later phase may still be tried otherwise."""
    workdir = shutil.copytree(run[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "phases" / "2")
    (workdir / "summary.json").write_text((workdir / "summary.json").read_text().replace("complete", "incomplete"))
    before = files(workdir)
    main(command(place, "lr", workdir, "--phase=finetune", "--steps=12", "--config.finetune.lr.head=0.5"))
    assert files(workdir) == before


@pytest.mark.parametrize(
    ("more", "facts"),
    [
        (["--lowest=1", "--highest=1e-3"], r"\b1\b.*\b0\.001\b.*--lowest\b.*--highest\b"),
        (["--steps=3"], r"--steps=3 .*\b10\b"),
        (["--steps=many"], "--steps: .*'many'"),
        (["--lowest=low"], "--lowest: .*'low'"),
        (["--phase=fintune"], "'fintune'.*'finetune'"),
        (["--phase=finetune"], r"\bfinetune\b.*\bfrozen\b.*flaxtl train\b"),
        (["--config.frozen.lr.head=0"], r"'frozen'.*\bfrozen\.lr\b"),
        (["--config.batch_size=0"], r"\bbatch\w*\b.* 0\b"),
        (["--config.data.source=folder:nowhere"], r"\bnowhere\b"),
        (["--config.optimizer.name=adm"], "'adm'.*'adam'"),
        (["--resume"], "'--resume'.*--help"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(place, tmp_path, capsys, more, facts):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(command(place, "lr", tmp_path / "run", *more))
    told = capsys.readouterr().err
    assert (stop.value.code, told.count("\n")) == (2, 1)
    assert re.search(facts, told)
    assert list(tmp_path.iterdir()) == []


def found(smoothed, shares=None):
    rates = LrRange(1e-6, 1.0, len(smoothed))
    points = (LrPoint(*each) for each in zip(rates.all().tolist(), smoothed, smoothed, strict=True))
    curve = LrCurve(tuple(points), rates.unsettled)
    return LrSuggestions("finetune", rates, curve, shares or {"head": 1.0, TOP_GROUP: 0.1}, suggestions(curve))


FALLING = [*np.linspace(2, 1, 20), *np.linspace(1.1, 3, 10)]


def test_the_proposal_is_one_for_the_config(tmp_path):
    """Of all groups that learn, under the names that the config has for them."""
    proposed = found(FALLING)
    assert re.fullmatch(r"--config\.finetune\.lr\.head=\S+ --config\.finetune\.lr\.top=\S+", proposed.options)
    config = load_config("configs/folder.py", proposed.options.split())
    assert config.finetune.lr.head == proposed.proposed
    assert config.finetune.lr.top == pytest.approx(proposed.proposed / 10, rel=1e-15)
    assert proposed.remark == ""


@pytest.mark.parametrize(
    ("smoothed", "proposes", "option"),
    [
        (np.linspace(2, 1, 30), True, "--highest"),
        (np.linspace(1, 2, 30), False, "--highest"),
        ([1.0, 1.1, 9.0], False, "--lowest"),
    ],
)
def test_what_a_curve_does_not_show_is_said(smoothed, proposes, option):
    shown = found(smoothed)
    assert (shown.proposed is not None) == proposes
    assert option in shown.remark


@pytest.mark.parametrize("smoothed", [FALLING, [1.0, 1.1, 9.0], [float("nan")], [1.0, float("inf")], [0.0, 0.0]])
def test_every_curve_has_a_page(smoothed):
    shown = found(smoothed)
    page = lr_finder.render_lr_page(shown, load_config("configs/demo.py"))
    assert ("--config.finetune.lr.head=" in page) == (shown.proposed is not None)
    assert 'src="http' not in page
    assert 'href="http' not in page


@pytest.mark.slow
def test_the_garden(tmp_path, capsys):
    """The demo's config at 64x64, over the usual rates."""
    size = ["--config.data.height=64", "--config.data.width=64"]
    main(["lr", "--config=configs/demo.py", f"--workdir={tmp_path}", *size])
    said = capsys.readouterr().out
    (rate,) = re.findall(r"--config\.frozen\.lr\.head=(\S+)$", said, re.MULTILINE)
    assert 1e-4 < float(rate) < 1e-2  # the config's own is 1e-3
