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


@pytest.fixture
def runs(tmp_path):
    """Two runs of the same images; the second has every answer right that it gives, and two images less."""
    first = finished_run.write(tmp_path)
    second = tmp_path / "<b>better"
    shutil.copytree(first, second)
    (second / "report" / "comparison.html").unlink(missing_ok=True)
    answers = run_files.read_run(second).predictions
    truth = np.eye(len(answers.classes), dtype=np.float32)[answers.labels]
    kept = [row for row, split in enumerate(answers.splits) if split != "test"]
    test = [row for row, split in enumerate(answers.splits) if split == "test"][2:]
    rows = kept + test
    predictions.write_predictions(
        second / "predictions.csv",
        replace(
            answers,
            paths=tuple(answers.paths[row] for row in rows),
            splits=tuple(answers.splits[row] for row in rows),
            labels=answers.labels[rows],
            probabilities=truth[rows],
        ),
    )
    return first, second


def test_runs_are_compared_on_the_images_they_share(runs):
    first, second = comparison.compare([run_files.read_run(run) for run in runs]).rows
    answers = run_files.read_run(runs[0]).predictions.of_split("test")
    right = (answers.predicted == answers.labels)[2:]
    assert (first.n, second.n) == (len(right), len(right))
    assert (first.right, second.right) == (right.sum(), len(right))
    assert (first.only_first, first.only_this, first.p) == (0, 0, 1.0)
    assert (second.only_first, second.only_this) == (0, (~right).sum())
    assert second.p == 2 / 2 ** int((~right).sum())


def test_the_command_prints_a_table_and_writes_a_page_of_any_names(runs, capsys):
    main(["report", *(f"--workdir={run}" for run in runs)])
    out = capsys.readouterr().out
    file = runs[0] / "report" / "comparison.html"
    assert str(file) in out
    assert "100.00" in out
    html = file.read_text()
    page = finished_run.Page(html)
    assert "<b>better" in page.text
    assert "script" not in page.tags
    assert page.tags.count("svg") == 4  # loss and accuracy of each
    assert re.search(r'class="notice"[^>]*>[^<]*\b2\b', html)


def test_mistakes(runs, tmp_path, capsys):
    with pytest.raises(UserError, match="--output="):
        raise_of(["report", f"--workdir={runs[0]}", f"--output={tmp_path / 'x.html'}"])
    with pytest.raises(UserError, match=f"{re.escape(str(runs[0]))}.*" * 2):
        comparison.write_comparison([runs[0], runs[0]], None)
    (runs[1] / "predictions.csv").unlink()
    with pytest.raises(UserError, match=rf"(?=.*{re.escape(str(runs[1]))})(?=.*\btest\b)(?=.*\bflaxtl train\b)"):
        comparison.write_comparison(runs, None)
    assert not (runs[0] / "report" / "comparison.html").exists()


def raise_of(arguments):
    from flaxtl.cli import main as cli
    from flaxtl.cli.parser import make_parser

    cli.report(make_parser().parse_args(arguments))


def test_runs_of_other_images_cannot_be_compared(runs, tmp_path):
    file = runs[1] / "predictions.csv"
    file.write_text(file.read_text().replace("images/", "elsewhere/"))
    with pytest.raises(UserError, match="".join(f"(?=.*{re.escape(str(run))})" for run in runs)):
        comparison.write_comparison(runs, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
