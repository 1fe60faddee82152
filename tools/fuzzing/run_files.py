"""A valid run directory, config, lists of images and images, and their readers."""

import ast
import json
import re
from contextlib import suppress
from itertools import product
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from fuzzing.worker import Sample
from PIL import Image

from flaxtl.config import config_to_json, load_config
from flaxtl.data import doctor, duplicates
from flaxtl.data.decode import Resize, decode
from flaxtl.data.image_file import UnreadableError
from flaxtl.data.manifest import Manifest, make_manifest
from flaxtl.data.sources import base
from flaxtl.data.sources.image_folder import scan_folder
from flaxtl.evaluation import predictions as predictions_file
from flaxtl.evaluation.predictor import load_setup
from flaxtl.report import galleries, report
from flaxtl.report.report import augmented_samples
from flaxtl.train import logger, run_dir
from flaxtl.train.checkpoints import Checkpoints
from flaxtl.train.logger import layer_records
from flaxtl.train.run_records import EpochMetrics, RunSummary, SplitMetrics, TemperatureFit, WeightsSource
from flaxtl.train.setup import RunSetup, build_setup

CLASSES, IMAGES_PER_CLASS, SIDE = ("blue", "red"), 6, 32
IMAGE_SIZE = (24, 20)  # width, height
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


def config(folder: Path) -> list[Sample]:
    """Write the files of a run directory, which `report` and `train` read, and a config file."""
    _write_run(folder / "run", _write_images(folder / "images"))
    (folder / "config").mkdir()
    (folder / "config/config.py").write_text(CONFIG)
    (folder / "config/manifest.csv").write_bytes((folder / "run/manifest.csv").read_bytes())
    files = ("config.json", "summary.json", "layers.json", "metrics.jsonl", "predictions.csv")
    return [
        *(Sample(folder / "run", (file,), _read_run, text=True) for file in files),
        Sample(folder / "run", ("config.json", "summary.json", "metrics.jsonl"), _resume_run, text=True),
        Sample(folder / "config", ("config.py",), _read_config, text=True),
    ]


def manifest(folder: Path) -> list[Sample]:
    """Write a run's manifest.csv, and lists of images as `csv:FILE` takes them."""
    _write_run(folder / "run", _write_images(folder / "images"))
    (folder / "lists").mkdir()
    splits, plain = "path,label,split\n", "label,path\r\n"
    for index, (label, number) in enumerate(product(CLASSES, range(IMAGES_PER_CLASS))):
        path = f"../valid/manifest/images/{label}/{number}.png"
        splits += f"{path},{label},{('train', 'val')[index % 2]}\n"
        plain += f'"{label}",{path}\r\n'
    (folder / "lists/splits.csv").write_text(splits, encoding="utf-8-sig")
    (folder / "lists/plain.csv").write_text(plain)
    return [
        Sample(folder / "run", ("manifest.csv",), _read_run, text=True),
        *(Sample(folder / "lists", (file,), _read_list, text=True) for file in ("splits.csv", "plain.csv")),
    ]


def checkpoint(folder: Path) -> list[Sample]:
    """Write a checkpoint, of which every file is damaged."""
    _write_run(folder / "run", _write_images(folder / "images"))
    setup = load_setup(folder / "run")
    like = setup.abstract_params()
    with Checkpoints(folder / "run") as checkpoints:
        checkpoints.save_phase(1, {path: jnp.ones(leaf.shape, leaf.dtype) for path, leaf in like.items()})
    written = (file for file in (folder / "run/checkpoints").rglob("*") if file.is_file() and file.stat().st_size)
    files = sorted((str(file.relative_to(folder / "run")) for file in written), key=_without_random_part)

    def restore(case: Path, file: str) -> None:
        with Checkpoints(case) as checkpoints:
            num_phases = checkpoints.num_phases()
            if num_phases is not None:
                checkpoints.restore_phase(num_phases, like)

    return [Sample(folder / "run", (file,), restore) for file in files]


def _without_random_part(name: str) -> str:
    """Remove the random part of the names of orbax' files, so that their order is the same in every run."""
    return re.sub("[0-9a-f]{32}", "", name)


def _write_images(folder: Path) -> Path:
    """Write noise to FOLDER/CLASS/NUMBER.png."""
    for label in CLASSES:
        (folder / label).mkdir(parents=True)
        for number in range(IMAGES_PER_CLASS):
            noise = np.random.default_rng([len(label), number]).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / label / f"{number}.png")
    return folder


def _write_run(workdir: Path, images: Path) -> None:
    """Write a finished run of two phases, without checkpoints."""
    workdir.mkdir()
    (workdir / "config.py").write_text(CONFIG.replace("synthetic", f"folder:{images}"))
    run_config = load_config(str(workdir / "config.py"))
    run_manifest = make_manifest(scan_folder(images), run_config.data.fractions.to_dict(), run_config.seed)
    setup = build_setup(run_config, workdir, run_manifest)
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
    run_dir.create_run_dir(workdir, config_to_json(run_config), run_manifest, layers, summary)
    _write_metrics(workdir, setup)
    _write_predictions(workdir, setup)


def _write_metrics(workdir: Path, setup: RunSetup) -> None:
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


def _write_predictions(workdir: Path, setup: RunSetup) -> None:
    examples = [example for split in ("validation", "test") for example in setup.manifest.of_split(split)]
    scores = np.linspace(0.1, 0.9, len(examples), dtype=np.float32)
    predictions = predictions_file.Predictions(
        paths=tuple(example.path for example in examples),
        splits=tuple(example.split for example in examples),
        labels=setup.manifest.labels(examples),
        probabilities=np.stack([scores, 1 - scores], axis=1),
        classes=CLASSES,
    )
    predictions_file.write_predictions(workdir / "predictions.csv", predictions)


def _read_run(case: Path, file: str) -> None:
    """Read a run directory like `report`, which reads all that `evaluate` and `predict` read."""
    setup = load_setup(case)
    setup.abstract_params()
    report.write_report(case, augmented=augmented_samples(setup))


def _resume_run(case: Path, file: str) -> None:
    """Read a run directory like `train` when it resumes."""
    config = load_config(str(case / "config.py"))
    run_dir.check_config(case, config_to_json(config))
    run_dir.read_summary(case)
    [row.step for row in logger.read_metrics(case)]
    build_setup(config, case, Manifest.read(case / "manifest.csv"))


def _read_config(case: Path, file: str) -> None:
    """Read a config like `train`, unless its code was changed: other code may do anything."""
    text = (case / file).read_bytes()
    if _skeleton(text) in (None, _skeleton(CONFIG.encode())):
        config = load_config(str(case / file))
        config_to_json(config)
        build_setup(config, case, Manifest.read(case / "manifest.csv"))


def _skeleton(text: bytes) -> str | None:
    """Return the code without its constants, or None if it is not valid Python."""
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


def _read_list(case: Path, file: str) -> None:
    """Read a list of images like `doctor` and `train`."""
    source = f"csv:{case / file}"
    base.inspect_source(source, case)
    make_manifest(base.open_source(source, case), {"train": 0.5, "validation": 0.25, "test": 0.25}, seed=0)


def images(folder: Path) -> list[Sample]:
    """Write images of every format, in several modes, with metadata, and with several frames."""
    noise = np.random.default_rng(0).integers(0, 256, (IMAGE_SIZE[1], IMAGE_SIZE[0], 4), dtype=np.uint8)
    rgba = Image.fromarray(noise)
    rgb, cmyk = rgba.convert("RGB"), Image.fromarray(noise, "CMYK")
    deep = Image.fromarray(np.arange(IMAGE_SIZE[0] * IMAGE_SIZE[1], dtype=np.uint16).reshape(IMAGE_SIZE[::-1]) * 100)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "an image"  # Orientation, ImageDescription
    for name, image, options in (
        ("exif.jpg", rgb, {"exif": exif, "quality": 90}),
        ("progressive.jpg", rgb, {"progressive": True, "icc_profile": b"profile" * 20}),
        ("cmyk.jpg", cmyk, {}),
        ("gray.jpg", rgb.convert("L"), {}),
        ("rgb.png", rgb, {"exif": exif}),
        ("rgba.png", rgba, {}),
        ("palette.png", rgb.convert("P"), {"transparency": 3}),
        ("gray-alpha.png", rgba.convert("LA"), {}),
        ("deep.png", deep, {}),
        ("bits.png", rgb.convert("1"), {}),
        ("frames.gif", rgb, {"save_all": True, "append_images": [rgb.rotate(90)] * 2}),
        ("frames.png", rgb, {"save_all": True, "append_images": [rgb.rotate(90)]}),
        ("lossy.webp", rgb, {"exif": exif}),
        ("lossless.webp", rgba, {"lossless": True}),
        ("frames.webp", rgb, {"save_all": True, "append_images": [rgb.rotate(90)]}),
        ("rgb.bmp", rgb, {}),
        ("palette.bmp", rgb.convert("P"), {}),
        ("rgb.tif", rgb, {"exif": exif}),
        ("deflate.tif", rgba, {"compression": "tiff_deflate"}),
        ("lzw.tif", cmyk, {"compression": "tiff_lzw"}),
        ("jpeg.tif", rgb, {"compression": "jpeg"}),
        ("group4.tif", rgb.convert("1"), {"compression": "group4"}),
        ("deep.tif", deep, {"compression": "tiff_lzw"}),
        ("rgb.ppm", rgb, {}),
        ("lossy.avif", rgb, {}),
    ):
        image.save(folder / name, **options)
    return [Sample(folder, (file.name,), _read_image) for file in sorted(folder.iterdir())]


def _read_image(folder: Path, file: str) -> None:
    """Read an image like `flaxtl report`, `doctor`, `train` and `predict`."""
    path = folder / file
    with suppress(UnreadableError):
        galleries.thumbnail_uri(path, max_side=240, quality=80)
    doctor.inspect_images([path])
    duplicates.fingerprint_files([path], strict=False)
    for policy in ("crop", "squash"):
        decode(path, Resize(32, 32, policy))
