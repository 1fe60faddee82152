import re

from helpers import tiny_run
from rich.console import Console

from flaxtl.train import logger


def shown(prepared):
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        console.print(logger.group_table(prepared.model_info, prepared.phases, "a file"))
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in capture.get().splitlines()]


def test_rates_and_how_they_change_are_told(folder, tmp_path):
    settings = {"schedule": "plateau", "warmup_steps": 2, "ema": 0.9, "layer_decay": 0.5}
    rows = shown(tiny_run.setup(folder, tmp_path, finetune=settings))
    (head,) = (row for row in rows if row[:1] == ["head"])
    assert head[:-1] == ["head", "2", "1,059", "0.01", "0.001"]
    assert "Glorot" in head[-1]
    assert ["block2", "2", "221,440", "frozen", "5e-05 - 2.5e-05", "a file"] in rows
    assert ["base", "2", "38,720", "frozen", "frozen", "a file"] in rows
    (schedule,) = (row for row in rows if row[:1] == ["schedule"])
    assert schedule[1] == "constant"
    assert re.fullmatch(r"plateau\b.*\b0\.1\b.*\b10\b.*\b2\b.*(?i:\bema\b).* 0\.9", schedule[2])
