"""The splits of a manifest as decoded images, in memory or in a file."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console

from flaxtl import __version__
from flaxtl.console import make_progress
from flaxtl.data import array_store, loaders
from flaxtl.data.array_store import ArrayStore
from flaxtl.data.decode import ImageSink, Resize, decode_into, raise_unreadable
from flaxtl.data.loaders import ImagePixels, ImageSet, MemoryImages, StoredImages
from flaxtl.data.manifest import Example
from flaxtl.parallel import devices
from flaxtl.train.feature_cache import VIEWS_DTYPE, AugmentedViews, CutLayers, SplitData
from flaxtl.train.setup import RunSetup, build_setup

_LISTED = 10  # left-out images that are named on the console; summary.json names all


class DecodedSplits(NamedTuple):
    """A setup whose manifest lists readable images only, these by split, and path -> reason of those left out."""

    setup: RunSetup
    inputs: dict[str, SplitData]
    skipped: dict[str, str]


def load_splits(setup: RunSetup, splits: Sequence[str], console: Console, *, may_skip: bool) -> DecodedSplits:
    """Decode every image of `splits`.

    One error lists every image, of all splits, that cannot be read; unless the config says that they be skipped and
    it `may_skip`: then they leave the manifest, before any step is made.
    """
    examples = [example for split in splits for example in setup.manifest.of_split(split)]
    decoded, bad = _decode(setup, examples, console, skip=may_skip and setup.config.data.on_error == "skip")
    skipped = {examples[index].path: reason for index, reason in bad.items()}
    if skipped:
        _tell(skipped, len(examples), console)
        setup = build_setup(setup.config, setup.workdir, setup.manifest.without(skipped))
    inputs, first = {}, 0
    for split in splits:
        members = setup.manifest.of_split(split)
        part = slice(first, first + len(members))
        inputs[split] = _inputs(setup, split, _images(setup, members, decoded, part))
        first = part.stop
    return DecodedSplits(setup, inputs, skipped)


def decode_examples(setup: RunSetup, examples: Sequence[Example], console: Console) -> ImageSet:
    """Decode images that need not be the run's own; one error lists those that cannot be read."""
    decoded, _ = _decode(setup, examples, console, skip=False)
    return _images(setup, examples, decoded, slice(None))


def features_directory(setup: RunSetup) -> Path:
    """Where the outputs of frozen layers are kept: the config's folder, or one in the run directory."""
    return Path(setup.config.feature_cache.dir or setup.workdir / "features")


def tidy(setup: RunSetup) -> None:
    """Remove what only a resume could use: decoded images, and features that are the run's own."""
    shutil.rmtree(_store_directory(setup).parent, ignore_errors=True)
    if not setup.config.feature_cache.dir:
        shutil.rmtree(features_directory(setup), ignore_errors=True)


def _store_directory(setup: RunSetup) -> Path:
    """Each process has its own: it waits for no other, and what it needs may lie on a disk of its own."""
    return setup.workdir / "images" / str(jax.process_index())


def _tell(skipped: Mapping[str, str], n: int, console: Console) -> None:
    named = ", ".join(f"{path} ({reason})" for path, reason in list(skipped.items())[:_LISTED])
    more = f" and {len(skipped) - _LISTED} more (all in summary.json)" if len(skipped) > _LISTED else ""
    console.print(
        f"{len(skipped)} of {n} images cannot be read and are left out: {named}{more}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _decode(
    setup: RunSetup, examples: Sequence[Example], console: Console, *, skip: bool
) -> tuple[ImagePixels | ArrayStore, dict[int, str]]:
    """The readable images in their order, and why the others, by index, are not; these are an error unless `skip`."""
    n, height, width = len(examples), setup.resize.height, setup.resize.width
    way = setup.config.data.pipeline
    if way == "auto":
        way, why = loaders.choose_loader(3 * n * height * width, *devices.device_memory(setup.mesh))
        console.print(why, highlight=False, markup=False, soft_wrap=True)
    if way == "stream":
        return _decode_to_file(setup, examples, console, skip=skip)
    pixels: ImagePixels = np.empty((n, height, width, 3), np.uint8)
    bad = _fill(pixels, setup, examples, console, skip=skip)
    return (np.delete(pixels, list(bad), axis=0) if bad else pixels), bad


def _decode_to_file(
    setup: RunSetup, examples: Sequence[Example], console: Console, *, skip: bool
) -> tuple[ArrayStore, dict[int, str]]:
    """As `_decode`; the file is named after its images, and read again by a resumed run."""
    if (kept := _stored(setup, examples)) is not None:
        return kept, {}
    shutil.rmtree(_store_directory(setup), ignore_errors=True)  # images of another manifest
    with _new_store(setup, examples) as fresh:
        bad = _fill(fresh, setup, examples, console, skip=skip)
        readable = [example for index, example in enumerate(examples) if index not in bad]
        if bad:
            with _new_store(setup, readable) as compact:
                for new, old in enumerate(np.delete(np.arange(len(examples)), list(bad))):
                    compact[new] = fresh.read([old])[0]
    if bad:
        _file(setup, examples).unlink()
    found = _stored(setup, readable)
    assert found is not None, "it was just written"
    return found, bad


def _fill(
    rows: ImageSink, setup: RunSetup, examples: Sequence[Example], console: Console, *, skip: bool
) -> dict[int, str]:
    paths = [Path(example.path) for example in examples]
    with make_progress(console) as progress:
        task = progress.add_task("decoding images", total=len(paths))
        bad = decode_into(rows, paths, setup.resize, lambda done: progress.update(task, completed=done))
    if not skip:
        raise_unreadable(paths, bad)
    return bad


def _stored(setup: RunSetup, examples: Sequence[Example]) -> ArrayStore | None:
    return array_store.open_store(_file(setup, examples), len(examples), setup.resize.height, setup.resize.width)


def _new_store(setup: RunSetup, examples: Sequence[Example]) -> AbstractContextManager[ArrayStore]:
    return array_store.create_store(_file(setup, examples), len(examples), setup.resize.height, setup.resize.width)


def _file(setup: RunSetup, examples: Sequence[Example]) -> Path:
    return _store_directory(setup) / f"{_digest(setup.resize, examples)[:20]}.u8"


def _digest(resize: Resize, examples: Sequence[Example]) -> str:
    """Tells the decoded images of these files from all others."""
    parts = [__version__, str(resize), *(example.sha256 for example in examples)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _images(setup: RunSetup, examples: Sequence[Example], decoded: ImagePixels | ArrayStore, part: slice) -> ImageSet:
    labels = setup.manifest.labels(examples)
    if isinstance(decoded, ArrayStore):
        return StoredImages(decoded.part(part), labels, _digest(setup.resize, examples))
    return MemoryImages(decoded[part], labels)


def _inputs(setup: RunSetup, split: str, images: ImageSet) -> SplitData:
    """Training images are needed from the cuts of phases, augmented or not; the others, clean, from every cut."""
    config = setup.config
    views = AugmentedViews(VIEWS_DTYPE, config.feature_cache.views, config.seed, setup.augmentation)
    augmented = [phase for phase in setup.phases if split == "train" and phase.augment]
    clean = [phase for phase in setup.phases if phase not in augmented]
    return SplitData(
        model=setup.network.model,
        layers=setup.network.layers,
        mesh=setup.mesh,
        images=images,
        cuts=[phase.cut for phase in clean if phase.cut],
        directory=features_directory(setup),
        batch=config.batch_size,
        augmented=CutLayers([phase.cut for phase in augmented if phase.cut], views) if views.n else None,
    )
