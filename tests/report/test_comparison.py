import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from helpers import finished_run

from flaxtl.cli.main import main
from flaxtl.errors import UserError
from flaxtl.evaluation import predictions, run_files
from flaxtl.report import comparison
from flaxtl.train import run_dir


@pytest.fixture
def runs(tmp_path):
    """Two runs on the same images; the second predicts everything correctly and lacks two test images."""
    first = finished_run.write_run(tmp_path)
    second = tmp_path / "<b>better"
    shutil.copytree(first, second)
    stored = run_files.read_run(second).predictions
    one_hot = np.eye(len(stored.classes), dtype=np.float32)[stored.labels]
    rows = [row for row, split in enumerate(stored.splits) if split != "test"]
    rows += [row for row, split in enumerate(stored.splits) if split == "test"][2:]
    predictions.write_predictions(
        second / "predictions.csv",
        replace(
            stored,
            paths=tuple(stored.paths[row] for row in rows),
            splits=tuple(stored.splits[row] for row in rows),
            labels=stored.labels[rows],
            probabilities=one_hot[rows],
            log_softmax=None,
        ),
    )
    return first, second


def test_compare_runs_uses_common_images(runs):
    first, second = comparison.compare_runs([run_files.read_run(run) for run in runs]).runs
    correct = run_files.read_run(runs[0]).predictions.of_split("test").correct[2:]
    assert (first.num_images, second.num_images) == (len(correct), len(correct))
    assert (first.num_correct, second.num_correct) == (correct.sum(), len(correct))
    assert (first.only_first, first.only_this, first.p_value) == (0, 0, 1.0)
    assert (second.only_first, second.only_this) == (0, (~correct).sum())
    assert second.p_value == pytest.approx(2 / 2 ** int((~correct).sum()), rel=1e-12)


def test_compare_runs_finds_images_that_were_copied(runs):
    first, second = (run_files.read_run(run) for run in runs)
    rows = [tuple(pair) for pair in zip(first.manifest.examples, range(99), strict=False)]
    assert len({example.sha256 for example, _ in rows}) == len(rows)
    expected = comparison.compare_runs([first, second])
    moved = {example.path: f"/elsewhere/{number}.jpg" for example, number in rows}
    examples = tuple(replace(example, path=moved[example.path]) for example in second.manifest.examples)
    run_dir.write_manifest(second.workdir, replace(second.manifest, examples=examples, root=None))
    paths = tuple(moved[path] for path in second.predictions.paths)
    predictions.write_predictions(second.workdir / "predictions.csv", replace(second.predictions, paths=paths))
    assert comparison.compare_runs([first, run_files.read_run(second.workdir)]) == expected


def test_report_command_compares_runs(runs, capsys):
    main(["report", *(f"--workdir={run}" for run in runs)])
    out = capsys.readouterr().out
    file = runs[0] / "report" / "comparison.html"
    assert str(file) in out
    assert re.search(r" 100 % +\d+ to 100 % ", out)
    assert out.startswith("14 test images; left out: 2 that not all runs have with the same label")
    html = file.read_text()
    page = finished_run.Page(html)
    assert "<b>better" in page.text
    assert "script" not in page.tags
    assert page.tags.count("svg") == 4  # loss and accuracy of each run
    assert "Left out: 2 that not all runs have with the same label." in page.text


def test_comparison_names_the_images_of_the_phases(runs):
    first, second = (run_files.read_run(run) for run in runs)
    note = "The accuracies of the phases are measured on all images of each run."
    assert note in comparison.render_comparison([first, second], comparison.compare_runs([first, second]))
    assert note not in comparison.render_comparison([first, first], comparison.compare_runs([first, first]))


def test_write_comparison_wrong_arguments_raise(runs, tmp_path, capsys):
    with pytest.raises(UserError, match="--output="):
        run_report(["report", f"--workdir={runs[0]}", f"--output={tmp_path / 'x.html'}"])
    with pytest.raises(UserError, match=f"{re.escape(str(runs[0]))}.*" * 2):
        comparison.write_comparison([runs[0], runs[0]], None)
    (runs[1] / "predictions.csv").unlink()
    with pytest.raises(UserError, match=rf"(?=.*{re.escape(str(runs[1]))})(?=.*\btest\b)(?=.*\bflaxtl train\b)"):
        comparison.write_comparison(runs, None)
    assert not (runs[0] / "report" / "comparison.html").exists()


def run_report(arguments):
    from flaxtl.cli import commands
    from flaxtl.cli.parser import make_parser

    commands.report(make_parser().parse_args(arguments))


def test_write_comparison_without_common_images_raises(runs, tmp_path):
    file = runs[1] / "predictions.csv"
    file.write_text(file.read_text().replace("images/", "elsewhere/"))
    with pytest.raises(UserError, match="".join(f"(?=.*{re.escape(str(run))})" for run in runs)):
        comparison.write_comparison(runs, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
