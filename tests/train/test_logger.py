import json
import re

import pytest
from helpers import tiny_run

from flaxtl.train.logger import MetricLogger, read_metrics


def row(phase, epoch, step):
    return {
        "phase": phase,
        "epoch": epoch,
        "step": step,
        "train_loss": 0.5,
        "train_accuracy": 0.75,
        "validation_loss": 0.625,
        "validation_accuracy": 0.5,
        "seconds": 0.1,
        "rates": {"head": 0.001},
    }


ROWS = [row("frozen", 1, 3), row("frozen", 2, 6), row("finetune", 1, 9)]


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in ROWS))
    return tmp_path


def test_there_are_no_rows_before_the_first(tmp_path):
    assert read_metrics(tmp_path) == []


def test_rows_are_read_back(workdir):
    assert read_metrics(workdir) == ROWS


@pytest.mark.parametrize("rest", ["{", '{"phase": "fine', json.dumps(row("finetune", 2, 12))[:-1], "\0\0\0\0"])
def test_a_half_written_last_line_is_dropped(workdir, rest):
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(rest)
    assert read_metrics(workdir) == ROWS
    with MetricLogger(workdir, tiny_run.quiet()) as log:
        log.truncate_after(9)
        with log.phase("finetune", epochs=2, done=1) as report:
            report(row("finetune", 2, 12))
    assert read_metrics(workdir) == [*ROWS, row("finetune", 2, 12)]


def test_rows_after_the_checkpoint_are_dropped(workdir):
    with MetricLogger(workdir, tiny_run.quiet()) as log:
        log.truncate_after(6)
        assert log.phase_rows("frozen") == ROWS[:2]
        assert log.phase_rows("finetune") == []
    assert (workdir / "metrics.jsonl").read_text().count("\n") == 2


def test_an_epoch_is_told_and_written(tmp_path):
    console = tiny_run.quiet()
    with MetricLogger(tmp_path, console) as log:
        log.truncate_after(0)
        with log.phase("frozen", epochs=2, done=0) as report:
            report(ROWS[0])
    assert read_metrics(tmp_path) == ROWS[:1]
    facts = r"\bfrozen 1/2\b\D*\b0\.500\b\D*\b75\.0%\D*\bvalidation\b\D*\b0\.625\b\D*\b50\.0%"
    assert re.search(facts, tiny_run.texts(console))
    (file,) = (tmp_path / "tensorboard").iterdir()
    events = file.read_bytes()
    assert b"train_loss" in events
    assert b"rate/head" in events


@pytest.mark.parametrize(
    "harm", [b"\xff\xfe", b"[" * 100_000, b"7", b"[]", b'{"phase": "frozen"}', b'{"phase": 1, "epoch": 2}']
)
def test_rows_end_where_something_else_begins(tmp_path, harm):
    row = {"phase": "frozen", "epoch": 1, "step": 3, "seconds": 0.5}
    line = json.dumps(row).encode()
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([line, harm, line]))
    assert read_metrics(tmp_path) == [row]
