import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import tiny_run

from flaxtl import fileio
from flaxtl.config import config_from_json, config_to_json
from flaxtl.data import manifest as manifest_module
from flaxtl.data.manifest import Example, Manifest
from flaxtl.errors import UserError
from flaxtl.train import run_dir
from flaxtl.train.run_records import FORMAT_VERSION, LayerRecord, RunSummary, SplitMetrics

CONFIG = {
    "seed": 3,
    "dtype": "bfloat16",
    "precision": "high",
    "data": {"source": "synthetic"},
    "phases": ["frozen"],
    "frozen": {"lr": {"head": 0.001}},
}
MANIFEST = Manifest(
    ("a", "b"), (Example("/x/1.png", "a", "train", "0" * 64), Example("/x/2.png", "b", "test", "1" * 64))
)
LAYER = LayerRecord(layer="conv", kind="conv", shape=[4, 4, 8], params=9, group="base", trained_in=[], source="file")
METRICS = SplitMetrics(accuracy=0.5, loss=1.0, n=4)
PHASE = {
    "epochs": 2, "steps": 6, "best_epoch": 1, "lrs": {"head": 0.01}, "augment": False, "trainable_params": 30,
    "frozen_arrays_verified": 4, "wall_seconds": 1.5, "train": METRICS, "validation": METRICS,
}  # fmt: skip

HOLD = """
import sys, time
from pathlib import Path
from flaxtl.train.run_dir import run_dir_lock
with run_dir_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def workdir(tmp_path):
    run_dir.create_run_dir(tmp_path, CONFIG, MANIFEST, [LAYER], RunSummary(command="flaxtl train"))
    return tmp_path


# ---------------------------------------------------------------------- files


def test_is_run_of_missing_directory_is_false(tmp_path):
    assert not run_dir.is_run(tmp_path / "runs" / "new")
    assert list(tmp_path.iterdir()) == []


def test_create_run_dir_writes_all_files(workdir):
    assert run_dir.is_run(workdir)
    assert Manifest.read(workdir / "manifest.csv") == MANIFEST
    assert json.loads((workdir / "layers.json").read_text()) == [LAYER.to_json()]
    assert json.loads((workdir / "config.json").read_text()) == {"format_version": FORMAT_VERSION, **CONFIG}
    assert run_dir.load_config(workdir).frozen.lr.head == 0.001
    summary = run_dir.read_summary(workdir)
    assert (summary.command, summary.seed, summary.classes, summary.phases) == ("flaxtl train", 3, ["a", "b"], {})
    assert (summary.dtype, summary.precision) == ("bfloat16", "high")
    assert set(summary.versions) == {"python", *run_dir.PACKAGES}


def test_create_run_dir_again_interrupted_keeps_the_manifest(tmp_path, monkeypatch):
    manifest = replace(MANIFEST, root=Path("/x"))

    def create():
        run_dir.create_run_dir(tmp_path, CONFIG, manifest, [LAYER], RunSummary(command="flaxtl train"))

    create()
    assert "1.png,a," in (tmp_path / "manifest.csv").read_text().splitlines()[1]
    tiny_run.stop_at(monkeypatch, run_dir, "_write_json", 2)  # in a run that was killed before its first checkpoint
    with pytest.raises(KeyboardInterrupt):
        create()
    assert run_dir.read_manifest(tmp_path) == MANIFEST


def test_is_run_without_config_is_false(workdir):
    (workdir / "config.json").unlink()
    assert not run_dir.is_run(workdir)


def test_is_run_with_checkpoints_but_no_config_raises(workdir):
    (workdir / "checkpoints" / "phases" / "0").mkdir(parents=True)
    assert run_dir.is_run(workdir)
    (workdir / "config.json").unlink()
    with pytest.raises(UserError, match=r"(?i)(?=.*\bcheckpoints?\b)(?=.*\bconfig\.json\b)(?=.*--workdir\b)"):
        run_dir.is_run(workdir)


def test_check_config_lists_differences(workdir):
    config = config_to_json(config_from_json(CONFIG))  # with the defaults of all settings
    run_dir.check_config(workdir, config)
    other = config | {"seed": 4, "frozen": config["frozen"] | {"lr": {"head": 0.1}}, "new": 1}
    differences = r"[(:] ?seed: 3 \S+ 4; frozen\.lr\.head: 0\.001 \S+ 0\.1; new: [^;]* 1\b(?!; \S+: )"
    with pytest.raises(UserError, match=differences):
        run_dir.check_config(workdir, other)


def test_check_config_accepts_run_without_a_setting_that_came_later(tmp_path):
    former = CONFIG | {"optimizer": {"name": "nadam", "b1": 0.9, "b2": 0.99}}  # no eps, and no head.normalize
    run_dir.create_run_dir(tmp_path, former, MANIFEST, [LAYER], RunSummary(command="flaxtl train"))
    config = config_to_json(config_from_json(former))
    run_dir.check_config(tmp_path, config | {"optimizer": former["optimizer"] | {"eps": 1e-7}})
    with pytest.raises(UserError, match=r"\(optimizer\.eps: 1e-07 -> 1e-05\)"):
        run_dir.check_config(tmp_path, config | {"optimizer": former["optimizer"] | {"eps": 1e-5}})
    adam = {"name": "adam"}  # its eps without a value is that of Optax
    with pytest.raises(UserError, match=r"optimizer\.eps: 1e-07 -> \(absent\)"):
        run_dir.check_config(tmp_path, config | {"optimizer": adam})


def test_check_config_accepts_run_with_a_former_model_name(tmp_path):
    former = CONFIG | {"model": {"name": "efficientnetv2-b0"}}
    run_dir.create_run_dir(tmp_path, former, MANIFEST, [LAYER], RunSummary(command="flaxtl train"))
    config = run_dir.with_canonical_name(config_from_json(CONFIG | {"model": {"name": "EfficientNetV2B0"}}))
    assert config.model.name == run_dir.load_config(tmp_path).model.name == "efficientnet_v2_b0"
    run_dir.check_config(tmp_path, config_to_json(config))


def test_load_config_keeps_an_unknown_model_name(tmp_path):
    config = CONFIG | {"model": {"name": "Net-9"}}
    run_dir.create_run_dir(tmp_path, config, MANIFEST, [LAYER], RunSummary(command="flaxtl train"))
    assert run_dir.load_config(tmp_path).model.name == "Net-9"


def test_update_summary_merges_dicts(workdir):
    run_dir.update_summary(workdir, timings={"decode": 1.0}, command="first")
    run_dir.update_summary(workdir, timings={"weights": 2.0}, command="second")
    summary = run_dir.read_summary(workdir)
    assert summary.timings == {"decode": 1.0, "weights": 2.0}
    assert summary.command == "second"


def test_update_phase_summary_adds_to_the_phase(workdir):
    run_dir.update_phase_summary(workdir, "frozen", **PHASE)
    run_dir.update_phase_summary(workdir, "finetune", **PHASE | {"epochs": 1})
    run_dir.update_phase_summary(workdir, "frozen", test=METRICS)
    phases = run_dir.read_summary(workdir).phases
    assert (phases["frozen"].epochs, phases["frozen"].test) == (2, METRICS)
    assert (phases["finetune"].epochs, phases["finetune"].test) == (1, None)


def test_read_of_missing_files(tmp_path):
    assert run_dir.read_summary(tmp_path) == RunSummary()
    with pytest.raises(UserError, match=rf"(?=.*{re.escape(str(tmp_path))})(?=.*\bconfig\.json\b)(?=.*--workdir\b)"):
        run_dir.load_config(tmp_path)


def test_read_manifest_of_a_run_without_summary_names_it(workdir):
    assert run_dir.read_manifest(workdir) == MANIFEST
    (workdir / "summary.json").unlink()
    with pytest.raises(UserError, match=rf"^{re.escape(str(workdir))} has no summary\.json\."):
        run_dir.read_manifest(workdir)


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_write_manifest_interrupted_leaves_one_of_both_places(tmp_path, monkeypatch, writes):
    old = replace(MANIFEST, root=Path("/x"))
    run_dir.create_run_dir(tmp_path, CONFIG, old, [LAYER], RunSummary(command="flaxtl train"))
    moved = tuple(replace(example, path=f"/y/z{example.path[2:]}") for example in old.examples)
    new = replace(old, examples=moved, root=Path("/y"))
    left, write = list(range(writes)), fileio.atomic_write

    def write_or_die(*arguments, **options):
        left.pop()  # IndexError
        return write(*arguments, **options)

    for module in (fileio, manifest_module):
        monkeypatch.setattr(module, "atomic_write", write_or_die)
    with suppress(IndexError):
        run_dir.write_manifest(tmp_path, new)
    assert run_dir.read_manifest(tmp_path) == (new if writes else old)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_read_of_invalid_json_names_the_file(workdir, text):
    for name, read in (("config.json", run_dir.load_config), ("summary.json", run_dir.read_summary)):
        (workdir / name).write_text(text)
        with pytest.raises(UserError, match=rf"(?=.*{re.escape(str(workdir / name))})(?=.*\bJSON\b)"):
            read(workdir)


def test_first_edition_run_is_refused(workdir):
    (workdir / "config.json").write_text(json.dumps({"batch": 32, "phases": []}))
    for read in (run_dir.load_config, lambda folder: run_dir.check_config(folder, CONFIG)):
        with pytest.raises(UserError, match=rf"{re.escape(str(workdir))}\b.*flaxtl 0\.1\b.*--workdir"):
            read(workdir)


def test_summary_keeps_paths_that_are_not_unicode(workdir):
    run_dir.update_summary(workdir, command="flaxtl train --workdir=\udcff")
    assert run_dir.read_summary(workdir).command.endswith("\udcff")


# ---------------------------------------------------------------------- lock


def test_lock_refuses_second_process_until_first_dies(tmp_path):
    workdir = tmp_path / "runs" / "one"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(workdir)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"{re.escape(str(workdir))} .*\b{holder.pid}\b"):
            run_dir.run_dir_lock(workdir).__enter__()
        assert (workdir / run_dir.LOCK_NAME).exists()  # a refused process removes nothing
    finally:
        holder.kill()
        holder.wait()
    with run_dir.run_dir_lock(workdir):
        pass
    assert not (workdir / run_dir.LOCK_NAME).exists()


def test_lock_refuses_the_same_process_twice(tmp_path):
    holder = rf"{re.escape(str(tmp_path))} .*\b{os.getpid()}\b"
    with run_dir.run_dir_lock(tmp_path), pytest.raises(UserError, match=holder), run_dir.run_dir_lock(tmp_path):
        pass


def test_lock_removes_new_directories_if_nothing_was_written(tmp_path):
    with run_dir.run_dir_lock(tmp_path / "runs" / "new"):
        assert (tmp_path / "runs" / "new").is_dir()
    assert list(tmp_path.iterdir()) == []
    with run_dir.run_dir_lock(tmp_path / "runs" / "new"):
        (tmp_path / "runs" / "new" / "file").touch()
    assert [path.name for path in (tmp_path / "runs" / "new").iterdir()] == ["file"]


def test_lock_keeps_existing_directory(tmp_path):
    (tmp_path / "empty").mkdir()
    with run_dir.run_dir_lock(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir()


@pytest.mark.parametrize("below", ["", "below"])
def test_lock_of_a_file_names_it(tmp_path, below):
    (tmp_path / "file").touch()
    workdir = tmp_path / "file" / below
    refused = rf"{re.escape(str(workdir))} .*(File exists|Not a directory)"
    with pytest.raises(UserError, match=refused), run_dir.run_dir_lock(workdir):
        pass


def test_lock_whose_holder_has_just_ended_is_refused_without_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(fileio, "file_lock", lambda path, wait: None)
    with pytest.raises(UserError, match=r"in use \(another process\)"):
        run_dir.run_dir_lock(tmp_path).__enter__()
