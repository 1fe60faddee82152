import json
import re
import signal
from pathlib import Path

import pytest
from helpers import finished_run
from helpers.train_process import Place

from flaxtl import api
from flaxtl.errors import UserError


@pytest.mark.usefixtures("compile_once")
def test_four_lines_train_and_show_a_run(tmp_path):
    place = Place(tmp_path / "user", "epochs=1", "epochs=1")
    config = api.load_run(str(place.folder / "config.py"), f"data.source=folder:{place.folder / 'images'}")
    config.phases = ("frozen",)
    config.frozen.epochs = 2
    result = api.train(config, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["complete"]
    assert [row["epoch"] for row in result.epochs] == [1, 2]
    accuracy = summary["phases"]["frozen"]["test"]["accuracy"]
    assert f"{100 * accuracy:.2f}" in repr(result)
    assert repr(result).endswith(str(result.page))
    before = result.page.stat().st_mtime_ns
    assert repr(api.train(config, tmp_path / "run")) == repr(result)  # complete: nothing is done again
    assert result.page.stat().st_mtime_ns == before


def test_a_signal_within_a_run_interrupts_the_cell(monkeypatch, tmp_path):
    configs = Path(__file__).parents[2] / "configs"

    def stopped(*_):
        raise api.Stopped(signal.SIGINT)

    monkeypatch.setattr(api, "whole_run", stopped)
    with pytest.raises(KeyboardInterrupt):
        api.train(api.load_run(str(configs / "demo.py")), tmp_path)


def test_a_notebook_is_shown_phases_curves_and_matrix_of_any_names(tmp_path):
    run = finished_run.write_run(tmp_path)
    shown = finished_run.Page(api.RunResult(run)._repr_html_())
    assert shown.tags.count("svg") == 3  # loss, accuracy, confusion matrix
    assert "script" not in shown.tags
    rows = [phase for phase in json.loads((run / "config.json").read_text())["phases"] if phase in shown.text]
    assert len(rows) == 2


def test_a_run_under_way_has_little_to_show(tmp_path):
    run = finished_run.write_run(tmp_path)
    for name in ("predictions.csv", "metrics.jsonl", "summary.json"):
        (run / name).unlink()
    result = api.RunResult(run)
    assert repr(result).startswith(f"{run}: ")
    assert not re.search(r"\d|%", repr(result).removeprefix(f"{run}: "))
    assert result.epochs == []
    assert finished_run.Page(result._repr_html_()).tags.count("svg") == 0


def test_mistakes_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path)) + r"\b.*\bconfig\.json"):
        api.RunResult(tmp_path)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "config.py"))):
        api.load_run(str(tmp_path / "config.py"))
    Place(tmp_path / "user", "epochs=1", "epochs=1")
    with pytest.raises(UserError, match=r"'frozen\.epoch'.*'frozen\.epochs'"):
        api.load_run(str(tmp_path / "user" / "config.py"), "frozen.epoch=3")
