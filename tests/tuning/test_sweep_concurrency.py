"""Sweeps in one directory at the same time, with a fake for the runs."""

import shutil
from contextlib import ExitStack

import pytest
from helpers.sweeps import FAKE_TRAIN, Sweeps, grid

from flaxtl import fileio
from flaxtl.train import run_dir
from flaxtl.tuning import sweep, sweep_grid


@pytest.fixture
def sweeps(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "FLAXTL", FAKE_TRAIN)
    return Sweeps(tmp_path, capsys)


def on_waiting(monkeypatch, action):
    """Call `action` once the sweep says that it waits for another process."""
    show, waited = sweep.message, []

    def message(console, text):
        show(console, text)
        if "waiting" in text:
            waited.append(text)
            action()

    monkeypatch.setattr(sweep, "message", message)
    return waited


def test_sweep_waits_for_a_run_that_another_process_trains(sweeps, monkeypatch):
    """The run of a sweep that was killed goes on."""
    with ExitStack() as other:
        other.enter_context(run_dir.run_dir_lock(sweeps.workdir / "runs" / "head.units=20"))
        waited = on_waiting(monkeypatch, other.close)
        assert sweeps.run(grid(20, 30))[0] == 0
    assert waited == ["head.units=20 is trained by another process; waiting for it."]
    assert sweeps.trained() == ["head.units=20", "head.units=30"]


def test_sweep_table_has_the_runs_that_another_call_has_added(sweeps, monkeypatch):
    with ExitStack() as other:
        other.enter_context(run_dir.run_dir_lock(sweeps.workdir / "runs" / "head.units=20"))

        def add_runs():
            plan = sweep_grid.read_plan(sweeps.workdir / "sweep.json")
            added = plan.runs[0].replace(name="head.units=30", point={"head.units": [30]})
            plan.replace(runs=[*plan.runs, added]).write(sweeps.workdir / "sweep.json")
            other.close()

        on_waiting(monkeypatch, add_runs)
        assert sweeps.run(grid(20))[0] == 0
    assert [row.split(",")[0] for row in (sweeps.workdir / "sweep.csv").read_text().splitlines()[1:]] == ["20", "30"]


def test_sweep_waits_for_a_shard_that_prepares_it(sweeps, monkeypatch, tmp_path):
    assert sweeps.run(grid(20), "--kfold=2")[0] == 0
    prepared = sweeps.workdir.rename(tmp_path / "prepared")
    sweeps.workdir.mkdir()
    with ExitStack() as other:
        other.enter_context(fileio.exclusive_lock(sweeps.workdir / ".preparation"))

        def prepare():
            for name in ("sweep.json", "development.csv", "test.csv"):
                shutil.copy2(prepared / name, sweeps.workdir / name)
            shutil.copytree(prepared / "folds", sweeps.workdir / "folds")
            other.close()

        waited = on_waiting(monkeypatch, prepare)
        assert sweeps.run(grid(20), "--kfold=2", "--shard=1/2")[0] == 0
    assert waited == ["Another process prepares the sweep; waiting for it."]
    assert sweeps.trained() == ["head.units=20,fold=1"]
    for name in ("development.csv", "folds/fold-1.csv"):
        assert (sweeps.workdir / name).stat().st_mtime_ns == (prepared / name).stat().st_mtime_ns
