"""The splits of a manifest as decoded pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from flaxtl.data.decode import Resize, decode_all
from flaxtl.data.manifest import Example
from flaxtl.terminal import bar
from flaxtl.train.features import Inputs, Pixels
from flaxtl.train.setup import Setup


def decode_splits(setup: Setup, splits: Sequence[str], console: Console) -> dict[str, Inputs]:
    """split -> its pictures, decoded; one error lists every picture, of all splits, that cannot be."""
    examples = {split: setup.manifest.of_split(split) for split in splits}
    paths = [Path(example.path) for split in splits for example in examples[split]]
    pictures = decode(paths, setup.resize, console)
    ends = np.cumsum([len(examples[split]) for split in splits])
    parts = np.split(pictures, ends[:-1])
    return {split: _inputs(setup, split, examples[split], part) for split, part in zip(splits, parts, strict=True)}


def decode(paths: Sequence[Path], resize: Resize, console: Console) -> Pixels:
    """uint8 [n, height, width, 3] under a progress bar."""
    with bar(console) as progress:
        task = progress.add_task("decoding pictures", total=len(paths))
        return decode_all(paths, resize, lambda done: progress.update(task, completed=done))


def _inputs(setup: Setup, split: str, examples: Sequence[Example], pictures: Pixels) -> Inputs:
    """Training pictures are needed from the cuts of phases without augmentation; the others from every cut."""
    phases = [phase for phase in setup.phases if not (split == "train" and phase.augment)]
    return Inputs(
        model=setup.network.model,
        layers=setup.network.layers,
        mesh=setup.mesh,
        pictures=pictures,
        labels=setup.manifest.labels(examples),
        cuts=[phase.cut for phase in phases if phase.cut],
        directory=features_directory(setup),
        batch=setup.config.batch,
    )


def features_directory(setup: Setup) -> Path:
    """Where the outputs of frozen layers are kept: the recipe's folder, or one in the run directory."""
    return Path(setup.config.features.directory or setup.workdir / "features")
