"""Fake of `flaxtl train` and `flaxtl evaluate` for tests of sweeps, which start it as a process.

The validation accuracy of a run is (units - seed - fold) / 100, its test accuracy 0.5.
A run with 13 units fails, one with 14 crashes and one with 15 waits for a signal, unless a file 'mended' exists.
One with 16 fails after it has written its result.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

EVALUATION = {
    "data": "folder:images", "split": "test", "phase": "frozen", "seen_in_training": 0, "loss": 1.0, "accuracy": 0.5,
    "balanced_accuracy": 0.5, "n": 6, "errors": 3, "classes": ["a", "b"], "confusion_matrix": [[3, 0], [3, 0]],
}  # fmt: skip

PHASE = {
    "epochs": 1, "steps": 2, "best_epoch": 1, "lrs": {"head": 1e-3}, "augment": False, "frozen_arrays_verified": 4,
    "wall_seconds": 1.0,
}  # fmt: skip


def main():
    command, *flags = sys.argv[1:]
    settings = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    workdir = Path(settings["workdir"])
    with (workdir.parent / "commands.txt").open("a") as file:
        file.write(json.dumps([command, *flags]) + "\n")
    if command == "evaluate":
        Path(settings["json"]).write_text(json.dumps(EVALUATION | {"workdir": settings["workdir"]}))
        return
    units = int(settings.get("config.head.units", "8").strip("(,)"))
    if not (workdir.parent / "mended").exists():
        misbehave(units)
    source = settings["config.data.source"]
    fold = int(source.rpartition("fold-")[2].removesuffix(".csv")) if "fold-" in source else 0
    accuracy = units / 100 - (int(settings.get("config.seed", "0")) + fold) / 100
    metrics = {"accuracy": accuracy, "loss": 1 - accuracy, "n": 6}
    phase = PHASE | {"trainable_params": 7 * units, "train": metrics, "validation": metrics}
    summary = {"format_version": 2, "complete": True, "wall_seconds": 2.0, "phases": {"frozen": phase}}
    (workdir / "summary.json").write_text(json.dumps(summary))
    if units == 16:
        print("flaxtl: no space for the report", file=sys.stderr)
        sys.exit(2)


def misbehave(units):
    if units == 13:
        print("a word\nflaxtl: thirteen is too few; take more", file=sys.stderr)
        sys.exit(2)
    if units == 14:
        os.kill(os.getpid(), signal.SIGKILL)
    if units == 15:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        print("waiting", flush=True)
        time.sleep(60)


if __name__ == "__main__":
    settings = [flag.removeprefix("--workdir=") for flag in sys.argv if flag.startswith("--workdir=")]
    Path(settings[0]).mkdir(parents=True, exist_ok=True)
    main()
