"""A small run directory, a config and lists of images, and what reads them: report, evaluate, predict and train."""

import ast
import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image

from flaxtl.config import config_to_json, load_config
from flaxtl.data.manifest import Manifest, make_manifest
from flaxtl.data.sources import base
from flaxtl.data.sources.image_folder import scan_folder
from flaxtl.evaluation import predictions as predictions_file
from flaxtl.evaluation.predictor import load_setup
from flaxtl.report import report
from flaxtl.report.report import augmented_samples
from flaxtl.train import logger, run_dir
from flaxtl.train.checkpoints import Checkpoints
from flaxtl.train.logger import layer_records
from flaxtl.train.run_records import EpochMetrics, RunSummary, SplitMetrics, TemperatureFit, WeightsSource
from flaxtl.train.setup import RunSetup, build_setup
from fuzzing.subject import Subject

CLASSES, EACH, SIDE = ("blue", "red"), 6, 32
PHASES = ("frozen", "finetune")
CONFIG = """from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.seed = 3
    c.batch_size = 4
    c.data = dict(source="synthetic", height=32, width=32, fractions=dict(train=0.5, validation=0.25, test=0.25))
    c.model = dict(name="vgg16", output_layer="block1_pool")
    c.weights = dict(path="random")
    c.head = dict(pooling="global_average", units=(4,), dropout=0.4)
    c.augmentation = dict(rotation=20.0, horizontal_flip=True, fill="reflect")
    c.optimizer = dict(name="nadam", b1=0.9, b2=0.99)
    c.class_weights = dict(red=2.0)
    c.param_groups = (("head", "head/.*"), ("base", "backbone/.*"))
    c.phases = ("frozen", "finetune")
    c.frozen = dict(epochs=2, augment=False, lr=dict(head=1e-2, base=0.0))
    c.finetune = dict(epochs=1, augment=True, lr=dict(head=1e-3, base=1e-4), schedule="cosine", warmup_steps=1)
    return c
"""


def config(folder: Path) -> list[Subject]:
    """The files of a run directory as `report`, `evaluate` and `predict` read them, and the text of a config."""
    _run(folder / "run", _paint(folder / "images"))
    (folder / "config").mkdir()
    (folder / "config/config.py").write_text(CONFIG)
    (folder / "config/manifest.csv").write_bytes((folder / "run/manifest.csv").read_bytes())
    files = ("config.json", "summary.json", "layers.json", "metrics.jsonl", "predictions.csv")
    return [
        *(Subject(folder / "run", (file,), _report, text=True) for file in files),
        Subject(folder / "run", ("config.json", "summary.json", "metrics.jsonl"), _resume, text=True),
        Subject(folder / "config", ("config.py",), _config, text=True),
    ]


def manifest(folder: Path) -> list[Subject]:
    """A run's manifest.csv, and lists of images for csv:FILE."""
    _run(folder / "run", _paint(folder / "images"))
    rows = [f"../valid/manifest/images/{label}/{number}.png" for label in CLASSES for number in range(EACH)]
    (folder / "lists").mkdir()
    listed = "".join(f"{row},{Path(row).parent.name},{split}\n" for row, split in zip(rows, ["train", "val"] * EACH))  # noqa: B905
    (folder / "lists/splits.csv").write_text("path,label,split\n" + listed, encoding="utf-8-sig")
    (folder / "lists/plain.csv").write_text(
        "label,path\r\n" + "".join(f'"{Path(row).parent.name}",{row}\r\n' for row in rows)
    )
    return [
        Subject(folder / "run", ("manifest.csv",), _report, text=True),
        *(Subject(folder / "lists", (file,), _list, text=True) for file in ("splits.csv", "plain.csv")),
    ]


def checkpoint(folder: Path) -> list[Subject]:
    """Every file of a checkpoint."""
    _run(folder / "run", _paint(folder / "images"))
    setup = load_setup(folder / "run")
    like = setup.abstract_params()
    with Checkpoints(folder / "run") as checkpoints:
        checkpoints.save_phase(1, {path: jnp.ones(leaf.shape, leaf.dtype) for path, leaf in like.items()})
    found = (file for file in (folder / "run/checkpoints").rglob("*") if file.is_file() and file.stat().st_size)
    files = sorted((str(file.relative_to(folder / "run")) for file in found), key=_without_chance)

    def restore(case: Path, file: str) -> None:
        with Checkpoints(case) as checkpoints:
            done = checkpoints.num_phases()
            if done is not None:
                checkpoints.restore_phase(done, like)

    return [Subject(folder / "run", (file,), restore) for file in files]


def _without_chance(name: str) -> str:
    """The name of a checkpoint's file less what orbax draws at random, so that the order is the same in every run."""
    return re.sub("[0-9a-f]{32}", "", name)


def _paint(folder: Path) -> Path:
    """FOLDER/CLASS/NUMBER.png of noise."""
    for label in CLASSES:
        (folder / label).mkdir(parents=True)
        for number in range(EACH):
            noise = np.random.default_rng([len(label), number]).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / label / f"{number}.png")
    return folder


def _run(workdir: Path, images: Path) -> None:
    """What a finished run of two phases leaves, but for its checkpoints."""
    workdir.mkdir()
    (workdir / "config.py").write_text(CONFIG.replace("synthetic", f"folder:{images}"))
    made = load_config(str(workdir / "config.py"))
    listed = make_manifest(scan_folder(images), made.data.fractions.to_dict(), made.seed)
    setup = build_setup(made, workdir, listed)
    summary = RunSummary(
        command="flaxtl train",
        weights=WeightsSource(path="random", source="random"),
        wall_seconds=3.0,
        complete=True,
        skipped={"x.png": "empty"},
        timings={"frozen: features": 0.5},
        calibration=TemperatureFit(temperature=1.5, n=4),
    )
    layers = layer_records(setup.model_info, setup.phases, "random")
    run_dir.create_run_dir(workdir, config_to_json(made), listed, layers, summary)
    _measure(workdir, setup)
    _predict(workdir, setup)


def _measure(workdir: Path, setup: RunSetup) -> None:
    lines = []
    for phase in PHASES:
        metrics = SplitMetrics(accuracy=0.75, loss=0.5, n=4)
        run_dir.update_phase_summary(
            workdir, phase, lrs={"head": 1e-3, "base": 0.0}, augment=False, epochs=1, steps=1, best_epoch=1,
            trainable_params=30, frozen_arrays_verified=4, wall_seconds=1.5, train=metrics, validation=metrics,
            test=metrics,
        )  # fmt: skip
        epoch = EpochMetrics(
            phase=phase, epoch=1, step=len(lines) + 1, seconds=0.5, lrs={"head": 1e-3}, train_loss=0.5,
            train_accuracy=0.75, validation_loss=0.5, validation_accuracy=0.75, validation_balanced_accuracy=0.75,
        )  # fmt: skip
        lines.append(json.dumps(epoch.to_json()) + "\n")
    (workdir / "metrics.jsonl").write_text("".join(lines))


def _predict(workdir: Path, setup: RunSetup) -> None:
    examples = [example for split in ("validation", "test") for example in setup.manifest.of_split(split)]
    shares = np.linspace(0.1, 0.9, len(examples), dtype=np.float32)
    predictions = predictions_file.Predictions(
        paths=tuple(example.path for example in examples),
        splits=tuple(example.split for example in examples),
        labels=setup.manifest.labels(examples),
        probabilities=np.stack([shares, 1 - shares], axis=1),
        classes=CLASSES,
    )
    predictions_file.write_predictions(workdir / "predictions.csv", predictions)


def _report(case: Path, file: str) -> None:
    """As `report` reads a run directory, and before it `evaluate` and `predict`."""
    setup = load_setup(case)
    setup.abstract_params()
    report.write_report(case, augmented=augmented_samples(setup))


def _resume(case: Path, file: str) -> None:
    """As `train` reads a run directory that is there already."""
    config = load_config(str(case / "config.py"))
    run_dir.check_config(case, config_to_json(config))
    run_dir.read_summary(case)
    [row.step for row in logger.read_metrics(case)]
    build_setup(config, case, Manifest.read(case / "manifest.csv"))


def _config(case: Path, file: str) -> None:
    """As `train` reads a config; one that is other code may do anything, and is not run."""
    text = (case / file).read_bytes()
    if _skeleton(text) in (None, _skeleton(CONFIG.encode())):
        config = load_config(str(case / file))
        config_to_json(config)
        build_setup(config, case, Manifest.read(case / "manifest.csv"))


def _skeleton(text: bytes) -> str | None:
    """The code without its constants; None where it is no Python."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            node.value = 0
        elif isinstance(node, ast.keyword):
            node.arg = "key"
    return ast.dump(tree)


def _list(case: Path, file: str) -> None:
    """As `doctor` and `train` read a list of images."""
    source = f"csv:{case / file}"
    base.inspect_source(source, case)
    make_manifest(base.open_source(source, case), {"train": 0.5, "validation": 0.25, "test": 0.25}, seed=0)
