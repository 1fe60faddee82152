"""Stands for `flaxtl train` and `flaxtl evaluate` where a sweep starts them: it is quick, and does what it is told to.

A run's validation accuracy is units / 100, less a hundredth of seed and fold; on the test images it is 0.5.
13 units fail, 14 crash, 15 wait for a signal, unless the folder of all runs holds a file 'mended'.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main():
    command, *flags = sys.argv[1:]
    settings = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    workdir = Path(settings["workdir"])
    with (workdir.parent / "commands.txt").open("a") as file:
        file.write(json.dumps([command, *flags]) + "\n")
    if command == "evaluate":
        Path(settings["json"]).write_text(json.dumps({"accuracy": 0.5, "n": 6, "loss": 1.0}))
        return
    units = int(settings.get("config.head.units", "8").strip("(,)"))
    if not (workdir.parent / "mended").exists():
        misbehave(units)
    source = settings["config.data.source"]
    fold = int(source.rpartition("fold-")[2].removesuffix(".csv")) if "fold-" in source else 0
    accuracy = units / 100 - (int(settings.get("config.seed", "0")) + fold) / 100
    measures = {"accuracy": accuracy, "loss": 1 - accuracy, "n": 6}
    summary = {"complete": True, "wall_seconds": 2.0, "phases": {}}
    summary["phases"] = {"frozen": {"trainable_params": 7 * units, "validation": measures}}
    (workdir / "summary.json").write_text(json.dumps(summary))


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
