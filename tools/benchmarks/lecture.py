"""The lecture's phase without augmentation as its own script had it, on the images of a run of ours.

Keras' ImageDataGenerator decodes every batch anew, the frozen base sees every image in every epoch, and validation
follows each epoch.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import median
from benchmarks.turns import ENVIRONMENT
from flaxtl.data.manifest import Manifest
from flaxtl.models import registry
from flaxtl.train import run_dir


def measure(workdir: Path, epochs: int) -> dict[str, Any]:
    """Run `epochs` epochs in a process of its own; the rest of the run's epochs are extrapolated.

    'seconds' is from start to end: what was measured, and the median of the epochs after the first, which compiles,
    for each epoch that was left out.
    """
    config = run_dir.load_config(workdir)
    phase = config[config.phases[0]]
    manifest = Manifest.read(workdir / "manifest.csv")
    steps = phase.steps_per_epoch or -(-len(manifest.of_split("train")) // config.batch_size)
    with TemporaryDirectory() as place:
        _link(manifest, Path(place))
        settings = _settings(config) | {"epochs": min(epochs, phase.epochs), "steps": steps}
        settings |= {"train": f"{place}/train", "validation": f"{place}/validation", "classes": len(manifest.classes)}
        seconds, told = _run(settings, Path(place) / "told.json")
    later = median(told["epoch_seconds"][1:])
    left = phase.epochs - settings["epochs"]
    whole = {"seconds": seconds + left * later, "epochs": phase.epochs, "later_epoch": later, "measured": seconds}
    return whole | told


def _link(manifest: Manifest, place: Path) -> None:
    """PLACE/{train,validation}/CLASS/ with links to the run's images."""
    for split in ("train", "validation"):
        for number, example in enumerate(manifest.of_split(split)):
            link = place / split / example.label / f"{number}{Path(example.path).suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(example.path)


def _settings(config: Any) -> dict[str, Any]:
    weights = str(config.weights.path)
    architecture = registry.get_spec(config.model.name)
    return {
        "model": architecture.name,
        "preprocessing": architecture.preprocessing,
        "weights": str(Path(weights).resolve()) if weights.endswith(".h5") else None,
        "top": False,
        "size": config.data.height,
        "batch": config.batch_size,
    }


def _run(settings: dict[str, Any], answer: Path) -> tuple[float, dict[str, Any]]:
    environment = {**os.environ, **ENVIRONMENT, "KERAS_BACKEND": "tensorflow"}
    command = [sys.executable, "-m", "benchmarks.lecture_keras", json.dumps(settings), str(answer)]
    started = time.perf_counter()
    subprocess.run(command, env=environment, stdout=sys.stderr, check=True)
    return time.perf_counter() - started, json.loads(answer.read_text(encoding="utf-8"))
