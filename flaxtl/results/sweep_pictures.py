"""The pictures of a sweep, dealt out once: what all its runs learn from, and the test pictures, which none of them has.

Each run is given the development pictures only, as a list of training and validation pictures; whatever a run does
with its test split, it has none. With folds, each has a list of its own of the same pictures.
"""

from functools import partial
from pathlib import Path

from rich.console import Console

from flaxtl.data import split_files
from flaxtl.data.listing import Found, Listing
from flaxtl.data.manifest import Manifest
from flaxtl.terminal import advancing

DEVELOPMENT, TEST, FOLDS = "development.csv", "test.csv", "folds"
"""Files of a sweep's directory, which are csv: sources, and the folder of fold-1.csv, fold-2.csv, ..."""


def kept(workdir: Path) -> Manifest | None:
    """The development pictures that were written here before."""
    file = workdir / DEVELOPMENT
    return Manifest.read(file) if file.is_file() else None


def development(manifest: Manifest) -> Manifest:
    """All but the test pictures."""
    return Manifest(manifest.classes, tuple(example for example in manifest.examples if example.split != "test"))


def write(workdir: Path, manifest: Manifest, folds: int, seed: int, near_duplicates: int, console: Console) -> None:
    """Write the lists; that of development, the sign that the others are there, last.

    Of `folds`, if there are any, each deals the development pictures out to training and validation: stratified, and
    pictures that differ in at most `near_duplicates` bits together. Raises UserError where a class is too small.
    """
    learned_from = development(manifest)
    if folds and not (workdir / FOLDS).is_dir():
        _write_folds(workdir, learned_from, folds, seed, near_duplicates, console)
    if "test" in manifest.splits:
        Manifest(manifest.classes, manifest.of_split("test")).write(workdir / TEST)
    learned_from.write(workdir / DEVELOPMENT)


def source(workdir: Path, fold: int) -> str:
    """The source of a run; `fold` counts from 1, 0 without folds."""
    return f"csv:{workdir.resolve() / (f'{FOLDS}/fold-{fold}.csv' if fold else DEVELOPMENT)}"


def _write_folds(workdir: Path, pictures: Manifest, k: int, seed: int, near_duplicates: int, console: Console) -> None:
    found = tuple(Found(Path(example.path), example.label, None, example.sha256) for example in pictures.examples)
    with advancing(console, f"dealing out {k} folds", len(found)) as advance:
        split_files.write_folds(
            Listing(found, str(workdir / DEVELOPMENT)),
            workdir / FOLDS,
            k,
            seed,
            near_duplicates=near_duplicates,
            say=partial(console.print, highlight=False, markup=False, soft_wrap=True),
            on_progress=lambda done: advance(1),
        )
