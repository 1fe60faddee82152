import json
import re

import pytest
from helpers import finished_run

from flaxtl.errors import UserError
from flaxtl.evaluation.evaluate import EvaluationResult
from flaxtl.evaluation.predictions import write_predictions
from flaxtl.evaluation.run_files import read_run
from flaxtl.train.run_records import SplitMetrics


@pytest.fixture
def workdir(tmp_path):
    return finished_run.write_run(tmp_path)


def test_run_record_finished_run_reads_all_files(workdir):
    run = read_run(workdir)
    assert run.config.model.name == "vgg16"
    assert list(run.summary.phases) == ["frozen", "finetune"]
    assert [epoch.epoch for epoch in run.epochs] == [1, 2, 1, 2, 3]
    assert [layer.layer for layer in run.layers] == ["block5_conv1", "flatten"]
    assert len(run.manifest.examples) == 36
    assert tuple(run.classes) == finished_run.CLASSES
    assert (run.eval_split, len(run.eval_predictions.paths)) == ("test", 16)
    assert (run.calibration.temperature, run.calibration.num_fitted) == (2.0, 8)


def test_run_record_config_alone_gives_empty_values(workdir):
    for path in workdir.glob("*.*"):
        if path.name != "config.json":
            path.unlink()
    run = read_run(workdir)
    assert (run.epochs, run.layers, run.classes, run.predictions, run.calibration) == ([], [], [], None, None)
    assert not run.summary.complete
    assert run.eval_split == "validation"


@pytest.mark.parametrize(("uses", "n"), [(1088, 12), (8, 8)])
def test_train_metrics_have_at_most_the_training_images(workdir, uses, n):
    summary = json.loads((workdir / "summary.json").read_text())
    summary["phases"]["frozen"]["train"]["n"] = uses
    (workdir / "summary.json").write_text(json.dumps(summary))
    assert read_run(workdir).train_metrics("frozen") == SplitMetrics(0.75, n, 0.5)
    (workdir / "manifest.csv").unlink()
    assert read_run(workdir).train_metrics("frozen") == SplitMetrics(0.75, uses, 0.5)


def test_eval_split_without_test_predictions_is_validation(workdir):
    predictions = read_run(workdir).predictions
    write_predictions(workdir / "predictions.csv", predictions.of_split("validation"))
    assert read_run(workdir).eval_split == "validation"


def test_epochs_unfinished_last_line_is_left_out(workdir):
    file = workdir / "metrics.jsonl"
    file.write_text(file.read_text()[:-20])
    assert len(read_run(workdir).epochs) == 4


@pytest.mark.parametrize("values", [{}, {"batch": 32}, {"format_version": 99}])
def test_read_run_other_version_names_directory(workdir, values):
    (workdir / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"{re.escape(str(workdir))}.*version"):
        read_run(workdir)


@pytest.mark.parametrize(
    ("values", "key"),
    [({"phases": {"frozen": {"epochs": -1}}}, "epochs"), ({"seeds": 1}, "seeds"), ({"complete": "yes"}, "complete")],
)
def test_summary_invalid_value_names_file_and_key(workdir, values, key):
    file = workdir / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    with pytest.raises(UserError, match=f"summary.json.*{key}"):
        _ = read_run(workdir).summary


EPOCH = json.dumps(
    {"phase": "a", "epoch": 1, "step": 1, "train_loss": 0.5, "train_accuracy": 0.5, "validation_loss": 0.5,
     "validation_accuracy": 0.5, "validation_balanced_accuracy": 0.5, "lrs": {}, "seconds": 1.0}
)  # fmt: skip


def read_all(workdir):
    run = read_run(workdir)
    return run.summary, run.epochs, run.layers, run.manifest, run.predictions


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        ("config.json", "[" * 100_000, "recursion"),
        ("metrics.jsonl", b"\xff\n", "codec can't decode"),
        ("metrics.jsonl", "1\n", "object"),
        ("metrics.jsonl", "{}\n", "phase"),
        ("metrics.jsonl", EPOCH.replace('"train_loss": 0.5', '"train_loss": "x"') + "\n", "train_loss"),
        ("metrics.jsonl", EPOCH.replace('"seconds": 1.0', '"seconds": 1' + "0" * 400) + "\n", "seconds"),
        ("layers.json", "[{}]", "layer"),
        ("summary.json", '{"format_version": 2, "devices": [["cpu"]]}', "devices"),
        ("summary.json", '{"format_version": 2, "phases": {"a": {"test": {}}}}', "phases"),
        ("summary.json", '{"format_version": 2, "wall_seconds": Infinity}', "wall_seconds"),
        ("manifest.csv", "path,label,split,sha256\n" + "x" * 200_000 + ",a,train,0\n", "field larger"),
        ("manifest.csv", "path,label,split,sha256\n\0,a,train,0\n", ""),
    ],
)
def test_run_record_damaged_file_names_file_and_fact(workdir, name, content, fact):
    (workdir / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        read_all(workdir)
    assert name in str(error.value)
    assert fact in str(error.value)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"accuracy": "high"}'])
def test_evaluation_result_read_other_file_names_it(tmp_path, content):
    file = tmp_path / "test.json"
    file.write_text(content)
    with pytest.raises(UserError, match=re.escape(str(file))):
        EvaluationResult.read(file)
