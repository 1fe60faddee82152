import json
import re

import pytest
from helpers import finished_run

from flaxtl.errors import UserError
from flaxtl.evaluation.evaluate import EvaluationResult
from flaxtl.evaluation.predictions import write_predictions
from flaxtl.evaluation.run_files import read_run


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


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"accuracy": "high"}'])
def test_evaluation_result_read_other_file_names_it(tmp_path, content):
    file = tmp_path / "test.json"
    file.write_text(content)
    with pytest.raises(UserError, match=re.escape(str(file))):
        EvaluationResult.read(file)
