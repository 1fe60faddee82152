"""The evaluation at the end of a run, which shares programs with training, and that of a run directory; its table."""

import shutil

import pytest
from helpers import tiny_run
from helpers.fake_train import EVALUATION

from flaxtl.data.array_store import DIGEST_LENGTH
from flaxtl.evaluation.evaluate import EvaluationResult, evaluate_run, evaluate_workdir, metrics_table
from flaxtl.parallel import devices
from flaxtl.report.report import write_report
from flaxtl.train import eval_steps, trainer
from flaxtl.train.run_dir import has_report, is_complete, read_summary


@pytest.mark.slow
def test_evaluate_run_in_bfloat16_compiles_no_step_again(folder, tmp_path, monkeypatch):
    make, steps = eval_steps.make_eval_step, []
    monkeypatch.setattr(eval_steps, "make_eval_step", lambda *given: steps.append(make(*given)) or steps[-1])
    config = tiny_run.config(folder, dtype="bfloat16")
    result = trainer.train(config, tmp_path / "run", tiny_run.quiet(), "flaxtl train")
    evaluate_run(result, tiny_run.quiet())
    assert len(steps) > len(set(steps))  # training and evaluation share one
    assert {step._cache_size() for step in steps} == {1}


def test_evaluate_streamed_images_keeps_those_of_training(folder, tmp_path):
    results = []
    for pipeline in ("resident", "stream"):
        data = tiny_run.config(folder).data.to_dict() | {"pipeline": pipeline}
        workdir = tiny_run.untrained(folder, tmp_path / pipeline, data=data)
        image_file = workdir / "images" / "0" / f"{'a' * DIGEST_LENGTH}.npy"  # the run may be in training
        image_file.parent.mkdir(parents=True)
        image_file.touch()
        result = evaluate_workdir(workdir, None, "validation", tiny_run.quiet())
        assert list(image_file.parent.iterdir()) == [image_file]
        results.append(result.replace(workdir=""))
    assert results[0] == results[1]


def test_evaluate_run_removes_the_report_of_the_run_in_training(folder, tmp_path):
    config, console = tiny_run.config(folder, phases=("frozen",), frozen={"epochs": 1}), tiny_run.quiet()
    result = trainer.train(config, tmp_path, console, "flaxtl train")
    write_report(tmp_path)
    assert has_report(tmp_path)
    evaluate_run(result, console)
    assert is_complete(tmp_path)
    assert not has_report(tmp_path)  # if the run is killed now, the same command writes the final one


def test_evaluate_run_reads_features_without_room_from_a_file(folder, tmp_path, monkeypatch):
    config, console = tiny_run.config(folder, phases=("frozen",), frozen={"epochs": 1}), tiny_run.quiet()
    result = trainer.train(config, tmp_path, console, "flaxtl train")
    held = sum(data.device_bytes for data in result.splits.values())  # of 12 training and 6 validation images
    monkeypatch.setattr(devices, "device_memory", lambda mesh: (2 * held, "memory"))  # half of it is for data
    evaluate_run(result, console)
    assert result.splits["test"].device_bytes == 0
    assert read_summary(tmp_path).phases["frozen"].test.n == 6


def test_metrics_table_has_the_digits_that_the_images_support():
    matrix = [[650, 84, 0], [2, 1, 0], [0, 0, 0]]  # accuracy 651 / 737, balanced accuracy (650 / 734 + 1 / 3) / 2
    changes = {"accuracy": 651 / 737, "balanced_accuracy": 0.6094, "n": 737, "errors": 86, "classes": ["a", "b", "c"]}
    result = EvaluationResult(**EVALUATION | {"workdir": "run", "confusion_matrix": matrix} | changes)
    names, values = (map(str, column.cells) for column in metrics_table(result).columns)
    assert dict(zip(names, values, strict=True)) == {
        "accuracy": "88.3 % (95 % interval 85.8 to 90.5 %)",
        "balanced accuracy": "60.9 %",
        "loss": "1.000",
        "misclassified": "86 of 737",
        "recall of a": "88.6 % (650 of 734)",
        "recall of b": "33 % (1 of 3)",
    }


@pytest.mark.slow
def test_evaluate_run_without_test_images_needs_the_last_phase_only(folder, tmp_path):
    phase, fractions = {"epochs": 1, "steps_per_epoch": 1}, {"train": 0.5, "validation": 0.5, "test": 0.0}
    data = tiny_run.config(folder).data.to_dict() | {"fractions": fractions}
    config, console = tiny_run.config(folder, frozen=phase, finetune=phase, data=data), tiny_run.quiet()
    result = trainer.train(config, tmp_path, console, "flaxtl train")
    shutil.rmtree(tmp_path / "checkpoints" / "phases" / "1")
    evaluate_run(result, console)
    assert read_summary(tmp_path).complete
    assert "no test accuracy" not in tiny_run.texts(console)


@pytest.mark.slow
def test_evaluate_run_leaves_out_a_phase_whose_checkpoint_is_lost(folder, tmp_path):
    phase = {"epochs": 1, "steps_per_epoch": 1}
    config, console = tiny_run.config(folder, frozen=phase, finetune=phase), tiny_run.quiet()
    result = trainer.train(config, tmp_path, console, "flaxtl train")
    shutil.rmtree(tmp_path / "checkpoints" / "phases" / "1")
    evaluate_run(result, console)
    summary = read_summary(tmp_path)
    assert summary.complete
    assert [phase.test is None for phase in summary.phases.values()] == [True, False]
    assert "frozen: no test accuracy" in tiny_run.texts(console)
