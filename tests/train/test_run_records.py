import json
import math
import re

import pytest

from flaxtl.errors import UserError
from flaxtl.train.run_records import (
    FORMAT_VERSION,
    EpochMetrics,
    PhaseSummary,
    RunSummary,
    SplitMetrics,
    load_versioned,
    with_version,
)

PHASE = {
    "epochs": 2, "steps": 6, "best_epoch": 1, "lrs": {"head": 0.01, "base": 0}, "augment": False,
    "trainable_params": 30, "frozen_arrays_verified": 4, "wall_seconds": 1.5,
    "train": {"accuracy": 0.75, "loss": 0.5, "n": 12}, "validation": {"accuracy": 1, "loss": 0.25, "n": 6},
}  # fmt: skip


def test_record_json_round_trip_keeps_values(tmp_path):
    summary = RunSummary.from_json({"seed": 3, "phases": {"frozen": PHASE}, "command": "x \udcff"}, tmp_path / "s.json")
    assert summary.phases["frozen"].validation == SplitMetrics(accuracy=1.0, loss=0.25, n=6)
    assert summary.to_json() == {"command": "x \udcff", "seed": 3, "phases": {"frozen": PHASE}}
    assert RunSummary().to_json() == {}


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({name: value for name, value in PHASE.items() if name != "epochs"}, r"\bepochs\b"),
        (PHASE | {"epoch": 2}, r"\bepoch\b"),
        (PHASE | {"epochs": "2"}, r"\bepochs\b"),
        (PHASE | {"epochs": -1}, r"\bepochs\b"),
        (PHASE | {"train": {"accuracy": 1.5, "n": 1}}, r"\btrain\.accuracy\b"),
        (PHASE | {"train": {"accuracy": math.nan, "n": 1}}, r"\btrain\.accuracy\b"),
        (PHASE | {"lrs": {"head": None}}, r"\blrs\b"),
        ([], r"\barray\b"),
    ],
)
def test_record_from_invalid_json_names_file_and_key(tmp_path, values, facts):
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path / 'summary.json'))}.*{facts}"):
        PhaseSummary.from_json(values, tmp_path / "summary.json")


def test_epoch_metrics_keep_a_diverged_loss(tmp_path):
    names = ("train_accuracy", "validation_loss", "validation_accuracy", "validation_balanced_accuracy", "seconds")
    values = {"phase": "frozen", "epoch": 1, "step": 3, "train_loss": math.inf, "lrs": {}} | dict.fromkeys(names, 0.5)
    line = json.dumps(EpochMetrics.from_json(values, tmp_path / "metrics.jsonl").to_json())
    assert EpochMetrics.from_json(json.loads(line), tmp_path / "metrics.jsonl").train_loss == math.inf


def test_load_versioned_returns_what_was_written(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(with_version({"seed": 1})))
    assert json.loads((tmp_path / "config.json").read_text())["format_version"] == FORMAT_VERSION
    assert load_versioned(tmp_path / "config.json") == {"seed": 1}


@pytest.mark.parametrize(("values", "facts"), [({"batch": 32}, r"flaxtl 0\.1"), ({"format_version": 3}, r"\b3\b")])
def test_load_versioned_refuses_other_versions(tmp_path, values, facts):
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path))}\b.*{facts}.*--workdir"):
        load_versioned(tmp_path / "config.json")


@pytest.mark.parametrize("text", ["{", "[]", "7", "[" * 100_000, '"x"'])
def test_load_versioned_of_invalid_json_names_the_file(tmp_path, text):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path / 'summary.json'))}\b.*\bJSON\b"):
        load_versioned(tmp_path / "summary.json")
