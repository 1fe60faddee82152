"""A run directory of a finished run without its checkpoints, and a parser for its report."""

import csv
import hashlib
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from flaxtl.evaluation.predictions import Predictions, write_predictions

# the second name is an HTML injection, the third would be math to matplotlib
CLASSES = ("daisy", "<script>alert(1)</script>", "$x_{", "tulips")
VOID_TAGS = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """Text, tags and attributes of an HTML page; fails if tags are not properly nested."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.pieces, self.open = [], [], [], []
        self.feed(html)
        assert self.open == []
        self.text = " ".join(" ".join(self.pieces).split()).replace("\N{NARROW NO-BREAK SPACE}", " ")

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend((tag, name, value or "") for name, value in attrs)
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend((tag, name, value or "") for name, value in attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.pieces.append(data)


def draw_image(path, index):
    image = Image.new("RGB", (60, 40), (40 * index, 120, 200 - 40 * index))
    ImageDraw.Draw(image).ellipse((20, 10, 40, 30), fill="white")
    image.save(path, "PNG")


def lrs(head, top):
    return {"head": head, "top": top, "base": 0.0}


def write_run(root):
    """Write a run of 2 phases with 4 x (3 train, 2 validation, 4 test) images; 3 of 16 test predictions are wrong."""
    workdir, images = root / 'my "run" & <co>', root / "images"
    workdir.mkdir()
    images.mkdir()
    rows = []
    for index, name in enumerate(CLASSES):
        for i, split in enumerate(["train"] * 3 + ["validation"] * 2 + ["test"] * 4):
            path = images / f"{index}_{i}&<b>.png"
            draw_image(path, index)
            rows.append((str(path), name, split))
    with (workdir / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerow(("path", "label", "split", "sha256"))
        csv.writer(file).writerows((*row, hashlib.sha256(row[0].encode()).hexdigest()) for row in rows)

    evaluated = [row for row in rows if row[2] != "train"]
    labels = np.array([CLASSES.index(row[1]) for row in evaluated])
    predicted, confidence = labels.copy(), np.full(len(labels), 0.94)
    predicted[2:5], confidence[2:5] = (1, 1, 3), (0.64, 0.79, 0.55)  # three test images of class daisy
    probabilities = np.tile(((1 - confidence) / 3)[:, None], (1, 4))
    probabilities[np.arange(len(labels)), predicted] = confidence
    paths, splits = tuple(row[0] for row in evaluated), tuple(row[2] for row in evaluated)
    write_predictions(
        workdir / "predictions.csv", Predictions(paths, splits, labels, probabilities.astype(np.float32), CLASSES)
    )
    Path(paths[3]).unlink()  # the most confident error
    Path(paths[4]).write_bytes(b"not an image")

    phases = {"frozen": (2, False, lrs(1e-3, 0.0)), "finetune": (3, True, lrs(1e-6, 1e-6))}
    config = {
        "seed": 7,
        "data": {"source": "folder:/p", "height": 200, "width": 180},
        "model": {"name": "vgg16", "output_layer": ""},
        "weights": {"path": "imagenet"},
        "phases": list(phases),
    } | {name: {"epochs": n, "augment": augment, "lr": lr} for name, (n, augment, lr) in phases.items()}
    (workdir / "config.json").write_text(json.dumps({"format_version": 2, **config}))
    with (workdir / "metrics.jsonl").open("w") as file:
        for name, (n, _, lr) in phases.items():
            for epoch in range(n):
                line = {"phase": name, "epoch": epoch + 1, "step": 5, "train_loss": 0.5, "train_accuracy": 0.75}
                line |= {
                    "validation_loss": 0.6,
                    "validation_accuracy": 0.625,
                    "validation_balanced_accuracy": 0.625,
                    "seconds": 1.5,
                    "lrs": lr,
                }
                file.write(json.dumps(line) + "\n")
    layers = [
        {"layer": "block5_conv1", "kind": "conv", "shape": [12, 12, 512], "params": 2359808, "group": "top",
         "trained_in": ["finetune"], "source": "imagenet: vgg16.h5"},
        {"layer": "flatten", "kind": "flatten", "shape": [73728], "params": 0, "group": "", "trained_in": [],
         "source": ""},
    ]  # fmt: skip
    (workdir / "layers.json").write_text(json.dumps(layers))
    results = {split: {"accuracy": 0.75, "loss": 0.5, "n": n} for split, n in (("train", 12), ("validation", 8))}
    summary = {
        "classes": CLASSES,
        "phases": {
            name: {"epochs": n, "steps": n, "best_epoch": n, "wall_seconds": 61.0, "trainable_params": 590597,
                   "frozen_arrays_verified": 26, "lrs": lr, "augment": augment, **results,
                   "test": {"accuracy": accuracy, "loss": 0.5, "n": 16}}
            for (name, (n, augment, lr)), accuracy in zip(phases.items(), (0.75, 0.8125), strict=True)
        },
        "seed": 7, "wall_seconds": 3725.0, "timings": {"decode": 0.25}, "devices": ["H200", "H200"],
        "weights": {"path": "imagenet", "source": "vgg16.h5"}, "complete": True,
        "calibration": {"temperature": 2.0, "n": 8},
        "versions": {"jax": "0.10.0"}, "command": "flaxtl train --config=a.py --workdir='<b>'",
    }  # fmt: skip
    (workdir / "summary.json").write_text(json.dumps({"format_version": 2, **summary}))
    return workdir
