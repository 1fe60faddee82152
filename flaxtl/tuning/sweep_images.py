"""The lists of images of a sweep: for development, for the test, and for each fold of a cross-validation."""

from functools import partial
from pathlib import Path

from rich.console import Console

from flaxtl.console import message, progress_bar
from flaxtl.data.manifest import Manifest
from flaxtl.data.sources.image_folder import DatasetIndex, SourceImage
from flaxtl.data.split_writer import write_folds

DEVELOPMENT_NAME, TEST_NAME = "development.csv", "test.csv"

FOLDS = "folds"
"""Folder with a list for each fold."""


def read_development_images(workdir: Path) -> Manifest | None:
    """Return the development images of a sweep; None before they are written."""
    file = workdir / DEVELOPMENT_NAME
    return Manifest.read(file) if file.is_file() else None


def without_test_images(manifest: Manifest) -> Manifest:
    """Return the development images: all that are not in the test split."""
    return Manifest(manifest.classes, tuple(example for example in manifest.examples if example.split != "test"))


def write_image_lists(
    workdir: Path, manifest: Manifest, folds: int, seed: int, near_duplicates: int, console: Console
) -> None:
    """Write the lists of development and test images, and of the folds.

    The folds are stratified; images with hashes that differ in at most `near_duplicates` bits are in the same fold. The
    development images are written last: if their list exists, the others do.

    Raises:
      UserError: a class has too few images for the folds.
    """
    development = without_test_images(manifest)
    if folds and not (workdir / FOLDS).is_dir():
        _write_fold_lists(workdir, development, folds, seed, near_duplicates, console)
    if "test" in manifest.splits:
        Manifest(manifest.classes, manifest.of_split("test")).write(workdir / TEST_NAME)
    development.write(workdir / DEVELOPMENT_NAME)


def image_list_source(workdir: Path, fold: int) -> str:
    """Return the value of data.source for a run of fold `fold`, from 1; 0 without folds."""
    return f"csv:{workdir.resolve() / (f'{FOLDS}/fold-{fold}.csv' if fold else DEVELOPMENT_NAME)}"


def _write_fold_lists(
    workdir: Path, images: Manifest, folds: int, seed: int, near_duplicates: int, console: Console
) -> None:
    index = DatasetIndex(
        tuple(SourceImage(Path(example.path), example.label, None, example.sha256) for example in images.examples),
        str(workdir / DEVELOPMENT_NAME),
    )
    with progress_bar(console, f"Splitting into {folds} folds", len(index.images)) as advance:
        write_folds(
            index,
            workdir / FOLDS,
            folds,
            seed,
            near_duplicates=near_duplicates,
            notify=partial(message, console),
            on_progress=lambda done: advance(1),
        )
