import json
import os
import re
from functools import partial
from pathlib import Path

import pytest
from helpers import tiny_run
from tensorboardX import record_writer
from tensorboardX.proto.event_pb2 import Event, SessionLog

from flaxtl.errors import UserError
from flaxtl.train import logger
from flaxtl.train.logger import MetricLogger, param_group_table
from flaxtl.train.run_records import EpochMetrics, read_metrics


def epoch_metrics(phase, epoch, step):
    values = {
        "phase": phase,
        "epoch": epoch,
        "step": step,
        "train_loss": 0.5,
        "train_accuracy": 0.75,
        "validation_loss": 0.625,
        "validation_accuracy": 0.5,
        "validation_balanced_accuracy": 0.5,
        "lrs": {"head": 0.001},
        "seconds": 0.1,
    }
    return EpochMetrics.from_json(values, Path("metrics.jsonl"))


def line(metrics):
    return json.dumps(metrics.to_json())


EPOCHS = [epoch_metrics("frozen", 1, 3), epoch_metrics("frozen", 2, 6), epoch_metrics("finetune", 1, 9)]


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(line(metrics) + "\n" for metrics in EPOCHS))
    return tmp_path


def test_read_metrics_without_file_is_empty(tmp_path):
    assert read_metrics(tmp_path) == []


def test_read_metrics_returns_what_was_written(workdir):
    assert read_metrics(workdir) == EPOCHS


@pytest.mark.parametrize("rest", ["{", '{"phase": "fine', line(epoch_metrics("finetune", 2, 12))[:-1], "\0\0\0\0"])
def test_logger_drops_half_written_last_line(workdir, rest):
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(rest)
    assert read_metrics(workdir) == EPOCHS
    with MetricLogger(workdir, tiny_run.quiet()) as logger:
        logger.truncate_after(9)
        with logger.log_phase("finetune", num_epochs=2, steps_per_epoch=3, steps_done=3) as log:
            log.epoch(epoch_metrics("finetune", 2, 12))
    assert read_metrics(workdir) == [*EPOCHS, epoch_metrics("finetune", 2, 12)]


def test_logger_truncate_after_drops_later_epochs(workdir):
    with MetricLogger(workdir, tiny_run.quiet()) as logger:
        logger.truncate_after(6)
        assert logger.phase_epochs("frozen") == EPOCHS[:2]
        assert logger.phase_epochs("finetune") == []
    assert (workdir / "metrics.jsonl").read_text().count("\n") == 2


def test_logger_epoch_goes_to_console_file_and_tensorboard(tmp_path):
    console = tiny_run.quiet()
    with MetricLogger(tmp_path, console) as logger:
        logger.truncate_after(0)
        with logger.log_phase("frozen", num_epochs=2, steps_per_epoch=3) as log:
            log.epoch(EPOCHS[0])
    assert read_metrics(tmp_path) == EPOCHS[:1]
    facts = r"\bfrozen 1/2\b\D*\b0\.500\b\D*\b75\.0%\D*\bvalidation\b\D*\b0\.625\b\D*\b50\.0%"
    assert re.search(facts, tiny_run.texts(console))
    scalars = {
        (event.step, value.tag): value.simple_value for event in events(tmp_path) for value in event.summary.value
    }
    expected = {name: value for name, value in EPOCHS[0].to_json().items() if isinstance(value, float)}
    assert scalars == pytest.approx({(3, name): value for name, value in expected.items()} | {(3, "lr/head"): 0.001})


def events(workdir):
    """Return the events of the only event file: length, its checksum, event, its checksum."""
    (file,) = (workdir / "tensorboard").iterdir()
    data, parsed = file.read_bytes(), []
    while data:
        end = 12 + int.from_bytes(data[:8], "little")
        parsed.append(Event.FromString(data[12:end]))
        data = data[end + 4 :]
    return parsed


def test_resumed_logger_hides_later_events_of_earlier_files(workdir):
    with MetricLogger(workdir, tiny_run.quiet()) as logger:
        logger.truncate_after(6)
    version, start = events(workdir)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (7, SessionLog.START)


def test_logger_with_a_full_disk_for_events_raises_and_does_not_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(record_writer, "open_file", lambda path: os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb"))
    logger = MetricLogger(tmp_path, tiny_run.quiet())
    logger.truncate_after(0)
    for stop in (partial(logger.record, EPOCHS[0]), partial(logger.__exit__, None, None, None)):
        with pytest.raises(OSError, match=rf"No space left.*{re.escape(str(tmp_path / 'tensorboard'))}"):
            stop()
    assert read_metrics(tmp_path) == EPOCHS[:1]


@pytest.mark.parametrize(
    "damage", [b"\xff\xfe", b"[" * 100_000, b"7", b"[]", b'{"phase": "frozen"}', b'{"phase": 1, "epoch": 2}', b""]
)
def test_logger_invalid_line_raises_and_keeps_the_file(tmp_path, damage):
    content = b"\n".join([line(EPOCHS[0]).encode(), damage, line(EPOCHS[1]).encode(), b""])
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "metrics.jsonl"))):
        MetricLogger(tmp_path, tiny_run.quiet())
    assert (tmp_path / "metrics.jsonl").read_bytes() == content


def test_forecast_waits_until_steps_are_computed(tmp_path, monkeypatch):
    """Compiling takes 100 s; then steps are dispatched at once, before a call takes 5 s."""
    now, messages = [0.0], []
    monkeypatch.setattr(logger.time, "monotonic", lambda: now[0])
    metric_logger = MetricLogger(tmp_path, tiny_run.quiet())
    with metric_logger.log_phase("frozen", 1, 100, forecast=lambda *arguments: messages.append(arguments)) as log:
        now[0] = 100.0
        for step in range(1, logger.FORECAST_CALLS + 1):
            log.steps(step)
        now[0] = 111.0
        assert messages == []
        log.steps(logger.FORECAST_CALLS + 1)
        assert len(messages) == 1


def table_rows(prepared):
    """The rows of the table of param groups, as lists of the cells with text."""
    console = tiny_run.quiet()
    console.print(param_group_table(prepared.model_info, prepared.phases, prepared.config.optimizer, "a file"))
    lines = tiny_run.texts(console).splitlines()
    return [[cell.strip() for cell in text.split("  ") if cell.strip()] for text in lines]


def test_param_group_table_shows_rates_and_schedules(folder, tmp_path):
    settings = {"schedule": "plateau", "warmup_steps": 2, "ema": 0.9, "layer_decay": 0.5}
    prepared = tiny_run.setup(folder, tmp_path, finetune=settings)
    rows = table_rows(prepared)
    (head,) = (row for row in rows if row[:1] == ["head"])
    assert head[:-1] == ["head", "2", "1,059", "0.01", "0.001"]
    assert "Glorot" in head[-1]
    assert ["block2", "2", "221,440", "frozen", "5e-05", "a file"] in rows
    assert ["base", "2", "38,720", "frozen", "frozen", "a file"] in rows
    (schedule,) = (row for row in rows if row[:1] == ["schedule"])
    assert schedule[1] == "constant"
    assert re.fullmatch(r"plateau\b.*\b0\.1\b.*\b10\b.*\b2\b.*(?i:\bema\b).* 0\.9", schedule[2])


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ({"name": "nadam"}, []),
        ({"name": "sgd"}, []),
        ({"name": "nadam", "weight_decay": 0.01}, ["0.01 on 2 of 4 arrays", "0.01 on 4 of 8 arrays"]),
        ({"name": "adamw"}, ["0.0001 on 2 of 4 arrays", "0.0001 on 4 of 8 arrays"]),  # optax' default
    ],
)
def test_param_group_table_shows_weight_decay(folder, tmp_path, optimizer, expected):
    rows = table_rows(tiny_run.setup(folder, tmp_path, optimizer=optimizer))
    assert [row[1:] for row in rows if row[:1] == ["weight decay"]] == ([expected] if expected else [])


def test_param_group_table_shows_batch_norms_that_train(folder, tmp_path):
    groups = (("head", "head/.*"), ("block2", "backbone/conv_.._2.*"), ("base", "backbone/.*"))
    model = {"name": "mobilenet_025", "output_layer": "conv_pw_2_relu"}
    rows = table_rows(tiny_run.setup(folder, tmp_path, model=model, param_groups=groups))
    assert [row for row in rows if row[:1] == ["batch norm"]] == [["batch norm", "5", "frozen", "2 trained"]]


def test_param_group_table_without_batch_norms_has_no_row_for_them(folder, tmp_path):
    head = {"pooling": "global_average", "normalize": "standardize", "units": ()}  # whose statistics are fixed
    rows = table_rows(tiny_run.setup(folder, tmp_path, head=head))
    assert [row for row in rows if row[:1] == ["batch norm"]] == []
