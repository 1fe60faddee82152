"""A valid run directory, lists of images and images, and their readers, for fuzz.py."""

import re
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
from fuzz import Sample
from PIL import Image

import flaxtl
from flaxtl.config import config_to_json
from flaxtl.data import doctor, duplicates
from flaxtl.data.decode import Resize, decode
from flaxtl.data.image_file import UnreadableError
from flaxtl.data.manifest import make_manifest
from flaxtl.data.sources import base
from flaxtl.evaluation.predictor import load_setup
from flaxtl.report import photos, report
from flaxtl.report.report import augmented_samples
from flaxtl.train import run_dir, run_records
from flaxtl.train.checkpoints import Checkpoints
from flaxtl.train.setup import build_setup

SETTINGS = (
    "data.height=32", "data.width=32", "model.output_layer=block1_pool", "weights.path=random", "head.units=(4,)",
    "batch_size=4", "class_weights=balanced", "phases=('frozen','finetune')", "frozen.epochs=2", "finetune.epochs=1",
    "finetune.schedule=cosine",
)  # fmt: skip
"""Settings of a run of two phases on one block of VGG16."""


def run(folder: Path) -> list[Sample]:
    """Write a run directory, of which `report` and `train` read every file."""
    run = _finished_run(folder)
    config = config_to_json(run_dir.load_config(run))

    def resume(case: Path, file: str) -> None:
        """Read a run directory like `train` when it resumes."""
        run_dir.check_config(case, config)
        run_dir.read_summary(case)
        [row.step for row in run_records.read_metrics(case)]
        build_setup(run_dir.load_config(case), case, run_dir.read_manifest(case))

    files = ("config.json", "summary.json", "layers.json", "metrics.jsonl", "predictions.csv", "manifest.csv")
    reports = (Sample(run, (file,), _read_run, text=True) for file in files)
    return [*reports, Sample(run, ("config.json", "summary.json", "metrics.jsonl"), resume, text=True)]


def _read_run(case: Path, file: str) -> None:
    """Read a run directory like `report`, which reads all that `evaluate` and `predict` read."""
    setup = load_setup(case)
    setup.abstract_params()
    report.write_report(case, augmented=augmented_samples(setup))


def lists(folder: Path) -> list[Sample]:
    """Write lists of images as `csv:FILE` takes them."""
    splits, plain = "path,label,split\n", "label,path\r\n"
    for index, file in enumerate(sorted(_write_images(folder / "images").glob("*/*"))):
        splits += f"{file},{file.parent.name},{('train', 'val')[index % 2]}\n"
        plain += f'"{file.parent.name}",{file}\r\n'
    (folder / "splits.csv").write_text(splits, encoding="utf-8-sig")
    (folder / "plain.csv").write_text(plain)
    return [Sample(folder, (file,), _read_list, text=True) for file in ("splits.csv", "plain.csv")]


def _read_list(case: Path, file: str) -> None:
    """Read a list of images like `doctor` and `train`."""
    source = f"csv:{case / file}"
    base.inspect_source(source, case)
    make_manifest(base.open_source(source, case), {"train": 0.5, "validation": 0.25, "test": 0.25}, seed=0)


def checkpoint(folder: Path) -> list[Sample]:
    """Write the checkpoint of a run, of which every file is damaged."""
    run = _finished_run(folder, "checkpoints")
    like = load_setup(run).abstract_params()
    with Checkpoints(run) as checkpoints:
        last = checkpoints.num_phases()
    written = (file for file in (run / f"checkpoints/phases/{last}").rglob("*") if file.is_file())
    files = (str(file.relative_to(run)) for file in written if file.stat().st_size)

    def restore(case: Path, file: str) -> None:
        with Checkpoints(case) as checkpoints:
            num_phases = checkpoints.num_phases()
            if num_phases is not None:
                checkpoints.restore_phase(num_phases, like)

    return [Sample(run, (file,), restore) for file in sorted(files, key=_without_random_part)]


def _without_random_part(name: str) -> str:
    """Remove the random part of the names of orbax' files, so that their order is the same in every run."""
    return re.sub("[0-9a-f]{32}", "", name)


def _finished_run(folder: Path, *parts: str) -> Path:
    """Copy the files of a tiny run, and some of its folders; the first call of a session trains it."""
    original, copy = folder.parent / "run", folder / "run"
    if not (original / "report").exists():
        images = _write_images(folder.parent / "images")
        flaxtl.train(flaxtl.load_config("folder", f"data.source=folder:{images}", *SETTINGS), original)
    copy.mkdir()
    for path in original.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
        elif path.name in parts:
            shutil.copytree(path, copy / path.name)
    return copy


def _write_images(folder: Path) -> Path:
    """Write six images of noise for each of two classes."""
    for label in ("blue", "red"):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(6):
            noise = np.random.default_rng([len(label), number]).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / label / f"{number}.png")
    return folder


def images(folder: Path) -> list[Sample]:
    """Write images of every format, in several modes, with metadata, and with several frames."""
    width, height = 24, 20
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
    rgba, cmyk = Image.fromarray(noise), Image.fromarray(noise, "CMYK")
    rgb, gray, bits = rgba.convert("RGB"), rgba.convert("L"), rgba.convert("1")
    deep = Image.fromarray(np.arange(width * height, dtype=np.uint16).reshape(height, width) * 100)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "an image"  # Orientation, ImageDescription
    frames = {"save_all": True, "append_images": [rgb.rotate(90)]}
    formats = [
        ("exif.jpg", rgb, {"exif": exif}), ("progressive.jpg", rgb, {"progressive": True, "icc_profile": b"a" * 99}),
        ("cmyk.jpg", cmyk, {}), ("gray.jpg", gray, {}), ("rgba.png", rgba, {"exif": exif}), ("deep.png", deep, {}),
        ("palette.png", rgb.convert("P"), {"transparency": 3}), ("frames.png", rgb, frames), ("bits.png", bits, {}),
        ("frames.gif", rgb, frames), ("lossy.webp", rgb, {"exif": exif}), ("lossless.webp", rgba, {"lossless": True}),
        ("palette.bmp", rgb.convert("P"), {}), ("deflate.tif", rgba, {"compression": "tiff_deflate", "exif": exif}),
        ("lzw.tif", cmyk, {"compression": "tiff_lzw"}), ("jpeg.tif", rgb, {"compression": "jpeg"}),
        ("group4.tif", bits, {"compression": "group4"}), ("rgb.ppm", rgb, {}), ("lossy.avif", rgb, {}),
    ]  # fmt: skip
    for name, image, options in formats:
        image.save(folder / name, **options)
    return [Sample(folder, (file.name,), _read_image) for file in sorted(folder.iterdir())]


def _read_image(folder: Path, file: str) -> None:
    """Read an image like `flaxtl report`, `doctor`, `train` and `predict`."""
    path = folder / file
    with suppress(UnreadableError):
        photos.thumbnail_uri(path, max_side=240, quality=80)
    doctor.inspect_images([path])
    duplicates.fingerprint_files([path], strict=False)
    for policy in ("crop", "squash"):
        decode(path, Resize(32, 32, policy))
