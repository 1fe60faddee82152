"""`flaxtl sweep` on the command line, with a fake for the runs; and slowly, with real ones."""

import csv
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import tiny_run
from helpers.sweeps import FAKE_TRAIN, Sweeps, grid

from flaxtl.data.sources.csv_file import scan_csv
from flaxtl.train import run_dir, setup
from flaxtl.tuning import sweep

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sweeps(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "FLAXTL", FAKE_TRAIN)
    return Sweeps(tmp_path, capsys)


def rows(out):
    """Return the rows of the table, with its header."""
    cells = [re.split(r"\s{2,}", line.strip()) for line in out if line.startswith("  ")]
    return [row for row in cells if len(row) > 3]


def best_points(out):
    """Return the points that the output names as the best on validation."""
    matches = [re.search(r"\bbest on validation: (head\.units=.+)$", line) for line in out]
    return [match[1] for match in matches if match]


def test_sweep_trains_every_point_and_tests_only_the_best(sweeps):
    code, out, err = sweeps.run(grid(20, "(40,)", 30), "--config.batch_size=2")
    assert (code, err) == (0, [])
    commands = sweeps.commands()
    assert [(command, run) for command, run, _ in commands] == [
        ("train", "head.units=20"),
        ("train", "head.units=40"),
        ("train", "head.units=30"),
        ("evaluate", "head.units=40"),
    ]
    workdir = sweeps.workdir
    assert commands[0][2] == [
        f"--config={sweeps.folder / 'config.py'}",
        f"--workdir={workdir / 'runs' / 'head.units=20'}",
        "--config.batch_size=2",
        "--config.head.units=20",
        f"--config.data.source=csv:{workdir / 'development.csv'}",
        "--config.data.near_duplicates=-1",
        f"--config.feature_cache.dir={workdir / 'features'}",
    ]
    assert f"--data=csv:{workdir / 'test.csv'}" in commands[3][2]
    assert [row[:3] for row in rows(out)[1:]] == [
        ["40", "40 %", "0.6000"],
        ["30", "30 %", "0.7000"],
        ["20", "20 %", "0.8000"],
    ]
    assert best_points(out) == ["head.units=40"]
    assert any(re.search(r"\btest\b.*\b50 %$", line) for line in out)
    assert (workdir / "sweep.html").is_file()
    assert not (workdir / run_dir.LOCK_NAME).exists()
    development, test = scan_csv(workdir / "development.csv"), scan_csv(workdir / "test.csv")
    assert (len(development.images), development.splits, len(test.images)) == (18, ("train", "validation"), 6)


def test_sweep_uses_the_feature_cache_of_the_config(sweeps):
    sweeps.run(grid(20), "--config.feature_cache.dir=elsewhere")
    (train, _, flags), _ = sweeps.commands()
    assert [flag for flag in flags if flag.startswith("--config.feature_cache")] == [
        "--config.feature_cache.dir=elsewhere"
    ]
    assert train == "train"


def test_sweep_again_trains_only_what_is_new(sweeps):
    sweeps.run(grid(20, 40))
    before = (sweeps.workdir / "development.csv").stat().st_mtime_ns
    sweeps.commands()
    code, out, _ = sweeps.run(grid(20, 40))
    assert (code, sweeps.commands()) == (0, [])
    assert any(re.search(r"\b2 of 2\b", line) for line in out)
    code, out, _ = sweeps.run(grid(30, 50))
    assert (code, [run for _, run, _ in sweeps.commands()]) == (
        0,
        ["head.units=30", "head.units=50", "head.units=50"],
    )
    assert [row[0] for row in rows(out)[1:]] == ["50", "40", "30", "20"]
    assert (sweeps.workdir / "development.csv").stat().st_mtime_ns == before


def test_sweep_goes_on_after_an_error_and_retries_later(sweeps):
    code, out, _ = sweeps.run(grid(13, 14, 20))
    assert code == 1
    assert sweeps.trained() == ["head.units=13", "head.units=14", "head.units=20"]
    log = sweeps.workdir / "logs" / "head.units=14.log"
    for name, *facts in (("head.units=13", "thirteen is too few; take more"), ("head.units=14", "SIGKILL", str(log))):
        lines = [line for line in out if line.startswith(f"{name} ") and all(fact in line for fact in facts)]
        assert len(lines) == 2  # at once, and below the table
    assert [row[:2] for row in rows(out)[1:]] == [["20", "20 %"], ["13", "failed"], ["14", "failed"]]
    assert best_points(out) == ["head.units=20"]
    (sweeps.workdir / "runs" / "mended").touch()
    code, out, _ = sweeps.run(grid(13, 14, 20))
    assert (code, sweeps.trained()) == (0, ["head.units=13", "head.units=14"])
    assert "failed" not in "\n".join(out)


def test_sweep_with_a_run_that_fails_after_its_result_exits_with_1(sweeps):
    code, out, _ = sweeps.run(grid(16))
    assert code == 1
    assert "head.units=16 failed: no space for the report" in out
    assert [row[:2] for row in rows(out)[1:]] == [["16", "16 %"]]
    assert sweeps.run(grid(16))[0] == 0


@pytest.mark.slow
def test_sweep_with_seeds_and_folds_reports_mean_and_std(sweeps):
    code, out, _ = sweeps.run(grid(20, 40), "--seeds=0,2", "--kfold=2")
    assert code == 0
    commands = sweeps.commands()
    names = [f"seed={seed},fold={fold}" for seed in (0, 2) for fold in (1, 2)]
    assert [run for command, run, _ in commands if command == "train"] == [
        f"head.units={units},{name}" for units in (20, 40) for name in names
    ]
    assert [run for command, run, _ in commands if command == "evaluate"] == [f"head.units=40,{name}" for name in names]
    assert f"--config.data.source=csv:{sweeps.workdir}/folds/fold-2.csv" in commands[3][2]
    # Of 0.39, 0.38, 0.37 and 0.36: their squared distances to 0.375 sum to 5e-4, of which a third is the variance.
    assert rows(out)[1][:2] == ["40", "38 % ± 1"]
    assert rows(out)[1][-2:] == ["4", "50 % ± 0"]


def test_sweep_shards_together_are_complete(sweeps):
    everything = grid(20, 30, 40)
    code, out, _ = sweeps.run(everything, "--shard=1/2")
    assert (code, [run for _, run, _ in sweeps.commands()]) == (0, ["head.units=20", "head.units=40"])
    assert "Not trained yet: 1 of 3 runs. To train them, run the command without --collect, for every --shard." in out
    assert best_points(out) == []
    code, out, _ = sweeps.run(everything, "--shard=2/2")
    assert [(command, run) for command, run, _ in sweeps.commands()] == [
        ("train", "head.units=30"),
        ("evaluate", "head.units=40"),
    ]
    assert best_points(out) == ["head.units=40"]
    assert not (sweeps.workdir / "shards").exists()


def test_sweep_collect_trains_nothing(sweeps):
    code, _, (err,) = sweeps.run(grid(20, 30), "--collect")
    assert code == 2
    assert re.match(rf"flaxtl: .*{re.escape(str(sweeps.workdir))}\b.*--collect\b", err)
    assert not sweeps.workdir.exists()
    sweeps.run(grid(20, 30), "--shard=1/2")
    sweeps.commands()
    code, out, _ = sweeps.run(grid(20, 30), "--collect")
    assert (code, sweeps.commands()) == (0, [])
    assert [row[:2] for row in rows(out)[1:]] == [["20", "20 %"], ["30", "–"]]


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ([grid(8), "--grid=config.head.dropot=0.1"], r"\bhead\.dropot\b.*\bhead\.dropout\b"),
        ([grid(8), "--grid=config.head.dropout=0.1,1.5"], r"\bhead\.units=8,head\.dropout=1\.5:"),
        (
            ["--grid=config.model.output_layer=block1_pool,block2_pol"],
            r"\bmodel\.output_layer=block2_pol:.*'block2_pol'",
        ),
        ([grid(8, "(x,)")], r"'head\.units' contains 'x'"),
        (["--grid=config.frozen.lr.head=1e-3", "--grid=config.frozen.monitor=loss"], r"\bfrozen\.monitor\b.*'loss'"),
        (["--grid=config.weights.path=random,none.h5"], r"\bweights\.path=none\.h5:.*'none\.h5'"),
        ([grid(8), "--kfold=7"], r"'blue'.*\b7\b"),
        ([grid(8), "--shard=3/2"], r"--shard=3/2\b.*--shard="),
        ([], r"--grid\b.*--seeds\b.*--kfold\b"),
    ],
)
def test_sweep_with_invalid_input_trains_and_writes_nothing(sweeps, options, facts):
    code, _, err = sweeps.run(*options)
    assert code == 2
    assert re.search(facts, err[-1])
    assert not sweeps.workdir.exists()


def test_sweep_with_an_invalid_point_is_refused_before_images_are_read(sweeps):
    options = [grid(8), "--grid=config.frozen.clip_norm=0.0,-1.0", "--config.data.source=folder:/no/images"]
    code, _, err = sweeps.run(*options)
    assert code == 2
    assert re.search(r"head\.units=8,frozen\.clip_norm=-1\.0: frozen\.clip_norm is -1;", err[-1])


def test_sweep_checks_each_combination_of_weights_and_skipped_layers_once(sweeps, monkeypatch, tmp_path):
    (file := tmp_path / "weights.h5").touch()
    checked = []
    monkeypatch.setattr(sweep, "load_backbone", lambda model, path, notify, **options: checked.append(options))
    grids = ["--grid=config.weights.skip_layers=head.*,top.*", grid(20, 30)]
    sweeps.run(*grids, f"--config.weights.path={file}")
    assert checked == [{"skip_layers": "head.*"}, {"skip_layers": "top.*"}]


def test_sweep_again_checks_a_config_once(sweeps, monkeypatch):
    assert sweeps.run(grid(20))[0] == 0
    build, checked = setup.build_model, []
    monkeypatch.setattr(
        setup, "build_model", lambda config, n: checked.append(tuple(config.head.units)) or build(config, n)
    )
    assert sweeps.run(grid(20, 30))[0] == 0
    assert checked == [(30,)]


@pytest.mark.parametrize("name", ["development.csv", "test.csv", "sweep.html"])
def test_sweep_in_a_folder_with_files_of_those_names_is_refused(sweeps, name):
    sweeps.workdir.mkdir()
    (sweeps.workdir / name).write_text("path,label\na.jpg,a\n")
    code, _, err = sweeps.run("--seeds=0")
    assert code == 2
    assert re.search(rf"{re.escape(str(sweeps.workdir))}\b.*\b{name}\b.*--workdir", err[-1])
    assert [(path.name, path.read_text()) for path in sweeps.workdir.iterdir()] == [(name, "path,label\na.jpg,a\n")]


def test_sweep_in_the_directory_of_another_is_refused(sweeps):
    with run_dir.run_dir_lock(sweeps.workdir):
        code, _, err = sweeps.run(grid(8))
    assert code == 2
    assert str(sweeps.workdir) in err[0]
    assert f"process {os.getpid()} on " in err[0]
    sweeps.run(grid(8))
    code, _, (err,) = sweeps.run("--grid=config.head.dropout=0,0.1")
    assert code == 2
    assert re.match(rf"flaxtl: .*{re.escape(str(sweeps.workdir))}\b.*\bhead\.units\b.*--workdir\b", err)


WRAPPED = """
import sys
from flaxtl.tuning import sweep
sweep.FLAXTL = (sys.executable, sys.argv[1])
from flaxtl.cli.main import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.exhaustive("processes")),
    ],
)
def test_sweep_after_a_signal_resumes(sweeps, number, code):
    everything = grid(20, 15, 30)
    command = [sys.executable, "-c", WRAPPED, FAKE_TRAIN[1], *sweeps.arguments(everything)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = sweeps.workdir / "logs" / "head.units=15.log"
    while not log.exists() or "waiting" not in log.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert re.fullmatch(r"flaxtl: .*\bRun the same command\b.*\n", err)
    assert not (sweeps.workdir / run_dir.LOCK_NAME).exists()
    assert sweeps.trained() == ["head.units=20", "head.units=15"]
    (sweeps.workdir / "runs" / "mended").touch()
    assert sweeps.run(everything)[0] == 0
    assert sweeps.trained() == ["head.units=15", "head.units=30"]


SLURM = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_JOB_ID": "77"}


@pytest.mark.parametrize(("code", "requeued"), [(0, []), (1, []), (143, ["requeue 77_2"])])
def test_slurm_script_requeues_a_stopped_task(tmp_path, code, requeued):
    for name in ("flaxtl", "scontrol"):
        (tmp_path / name).write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/{name}.txt\nexit {code}\n')
        (tmp_path / name).chmod(0o755)
    environment = os.environ | SLURM | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = ROOT / "tools" / "launch_sweep_slurm.sh"
    done = subprocess.run([script, "--config=a b", "--workdir=w"], env=environment, check=False, capture_output=True)
    assert done.returncode == code
    assert (tmp_path / "flaxtl.txt").read_text() == "sweep --shard=2/3 --config=a b --workdir=w\n"
    calls = tmp_path / "scontrol.txt"
    assert (calls.read_text().splitlines() if calls.exists() else []) == requeued


def run_flaxtl(*arguments):
    """Run flaxtl in its own process, which must succeed; return its output."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "flaxtl", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("quick_processes")
def test_sweep_of_real_runs_shares_their_features(tmp_path, capsys):
    sweeps = Sweeps(tmp_path, capsys)
    out = run_flaxtl(*sweeps.arguments(grid(8, "(8,4)"), "--seeds=0,1"))
    names = [f"head.units={units},seed={seed}" for units in ("8", "8-4") for seed in (0, 1)]
    runs = [sweeps.workdir / "runs" / name for name in names]
    logs = [(sweeps.workdir / "logs" / f"{name}.log").read_text() for name in names]
    assert ["Computing features" in log for log in logs] == [True, True, False, False]  # random bases differ by seed
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    assert all(summary["complete"] and "test" not in summary["phases"]["frozen"] for summary in summaries)
    best = max((0, 2), key=lambda first: sum(_measured(summary) for summary in summaries[first : first + 2]))
    accuracy, loss = (
        [summary["phases"]["frozen"]["validation"][name] for summary in summaries] for name in ("accuracy", "loss")
    )
    assert best_points(out.splitlines()) == [f"head.units={('8', None, '(8, 4)')[best]}"]
    with (sweeps.workdir / "sweep.csv").open(newline="") as file:
        rows = {row["head.units"]: row for row in csv.DictReader(file)}
    for units, first in (("8", 0), ("(8, 4)", 2)):
        assert float(rows[units]["validation_accuracy"]) == statistics.fmean(accuracy[first : first + 2])
        assert float(rows[units]["validation_loss_std"]) == statistics.stdev(loss[first : first + 2])
    metrics = json.loads((sweeps.workdir / "test" / f"{names[best]}.json").read_text())
    assert (metrics["n"], metrics["seen_in_training"]) == (6, 0)
    assert sorted(path.name for path in (sweeps.workdir / "test").iterdir()) == [
        f"{n}.json" for n in names[best : best + 2]
    ]
    assert all((run / "report" / "index.html").is_file() for run in runs)


def _measured(summary):
    """Return a number that orders points as the sweep does."""
    measures = summary["phases"]["frozen"]["validation"]
    return measures["accuracy"] - 1e-9 * measures["loss"]


@pytest.mark.exhaustive("runs")
def test_sweep_run_equals_flaxtl_train(tmp_path, capsys):
    """On the same images in the same splits, except that a run of a sweep has no test images."""
    sweeps = Sweeps(tmp_path, capsys)
    run_flaxtl(*sweeps.arguments(grid(8), "--seeds=3"))  # the seed of the config, which also splits the images
    run_flaxtl("train", *sweeps.arguments("--config.head.units=8")[1:2], f"--workdir={tmp_path / 'one'}",
         f"--config.data.source=folder:{tmp_path / 'images'}", "--config.head.units=8")  # fmt: skip
    assert tiny_run.results(sweeps.workdir / "runs" / "head.units=8,seed=3")[0] == tiny_run.results(tmp_path / "one")[0]
    metrics = json.loads((sweeps.workdir / "test" / "head.units=8,seed=3.json").read_text())
    expected = json.loads((tmp_path / "one" / "summary.json").read_text())["phases"]["frozen"]["test"]
    assert metrics["accuracy"] == expected["accuracy"]
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-6)  # sums over images and over features
