import json
import re

import pytest

from flaxtl.config import config_from_json, config_to_json
from flaxtl.data.manifest import Example, Manifest
from flaxtl.errors import UserError
from flaxtl.train import run_dir

CONFIG = {"seed": 3, "data": {"source": "synthetic"}, "phases": ["frozen"], "frozen": {"lr": {"head": 0.001}}}
MANIFEST = Manifest(
    ("a", "b"), (Example("/x/1.png", "a", "train", "0" * 64), Example("/x/2.png", "b", "test", "1" * 64))
)


@pytest.fixture
def workdir(tmp_path):
    run_dir.create_run_dir(tmp_path, CONFIG, MANIFEST, [{"layer": "conv"}])
    return tmp_path


def test_a_directory_that_does_not_exist_is_no_run(tmp_path):
    assert not run_dir.is_run(tmp_path / "runs" / "new")
    assert list(tmp_path.iterdir()) == []


def test_what_is_created_is_a_run(workdir):
    assert run_dir.is_run(workdir)
    assert Manifest.read(workdir / "manifest.csv") == MANIFEST
    assert json.loads((workdir / "layers.json").read_text()) == [{"layer": "conv"}]
    assert json.loads((workdir / "config.json").read_text()) == CONFIG
    assert run_dir.load_config(workdir).frozen.lr.head == 0.001
    summary = run_dir.read_summary(workdir)
    assert (summary["seed"], summary["classes"], summary["phases"]) == (3, ["a", "b"], {})
    assert set(summary["versions"]) == {"python", *run_dir.PACKAGES}


def test_a_start_that_was_cut_short_is_no_run(workdir):
    (workdir / "config.json").unlink()
    assert not run_dir.is_run(workdir)


def test_checkpoints_without_their_config_are_not_overwritten(workdir):
    (workdir / "checkpoints" / "phases" / "0").mkdir(parents=True)
    assert run_dir.is_run(workdir)
    (workdir / "config.json").unlink()
    with pytest.raises(UserError, match=r"(?i)(?=.*\bcheckpoints?\b)(?=.*\bconfig\.json\b)(?=.*--workdir\b)"):
        run_dir.is_run(workdir)


def test_the_same_config_may_go_on_and_another_may_not(workdir):
    whole = config_to_json(config_from_json(CONFIG))  # the run was begun without settings that have a default now
    run_dir.check_config(workdir, whole)
    other = whole | {"seed": 4, "frozen": whole["frozen"] | {"lr": {"head": 0.1}}, "new": 1}
    changes = r"[(:] ?seed: 3 \S+ 4; frozen\.lr\.head: 0\.001 \S+ 0\.1; new: [^;]* 1\b(?!; \S+: )"
    with pytest.raises(UserError, match=changes):
        run_dir.check_config(workdir, other)


def test_notes_are_added_up(workdir):
    run_dir.update_summary(workdir, timings={"decode": 1.0}, command="first")
    run_dir.update_summary(workdir, timings={"weights": 2.0}, command="second")
    run_dir.update_phase_summary(workdir, "frozen", epochs=2, train={"loss": 1.0})
    run_dir.update_phase_summary(workdir, "frozen", test={"loss": 2.0})
    run_dir.update_phase_summary(workdir, "finetune", epochs=1)
    summary = run_dir.read_summary(workdir)
    assert summary["timings"] == {"decode": 1.0, "weights": 2.0}
    assert summary["command"] == "second"
    frozen = {"epochs": 2, "train": {"loss": 1.0}, "test": {"loss": 2.0}}
    assert summary["phases"] == {"frozen": frozen, "finetune": {"epochs": 1}}


def test_a_folder_that_is_no_run(tmp_path):
    assert run_dir.read_summary(tmp_path) == {}
    with pytest.raises(UserError, match=rf"(?=.*{re.escape(str(tmp_path))})(?=.*\bconfig\.json\b)(?=.*--workdir\b)"):
        run_dir.load_config(tmp_path)


def test_damaged_json_is_named(workdir):
    (workdir / "config.json").write_text("{")
    with pytest.raises(UserError, match=rf"(?=.*{re.escape(str(workdir / 'config.json'))})(?=.*\bJSON\b)"):
        run_dir.load_config(workdir)


@pytest.mark.parametrize("text", ["[]", "7", "[" * 100_000, '"x"'])
def test_json_that_is_no_object_is_told(workdir, text):
    for name, read in (("config.json", run_dir.load_config), ("summary.json", run_dir.read_summary)):
        (workdir / name).write_text(text)
        with pytest.raises(UserError, match=rf"(?=.*{re.escape(str(workdir / name))})(?=.*\bJSON\b)"):
            read(workdir)


def test_names_need_not_be_unicode(workdir):
    run_dir.update_summary(workdir, command="flaxtl train --workdir=\udcff")
    assert run_dir.read_summary(workdir)["command"].endswith("\udcff")
