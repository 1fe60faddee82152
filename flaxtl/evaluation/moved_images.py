"""Images of a run that are no longer where manifest.csv lists them: find them in a data source by their SHA-256."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from flaxtl import fileio
from flaxtl.data.manifest import Manifest, relocate
from flaxtl.data.sources import base
from flaxtl.errors import UserError
from flaxtl.evaluation import gradcam
from flaxtl.evaluation.predictions import read_predictions, write_predictions
from flaxtl.evaluation.predictor import TrainedRun
from flaxtl.train import run_dir


def relocate_run(workdir: Path, source: str, notify: Callable[[str], None]) -> None:
    """Write the paths of the images in `source` into the files of a run: predictions, heat maps and, last, manifest.

    Raises:
      UserError: none of the run's images is in `source`, or the run directory is in use or cannot be written.
    """
    with run_dir.run_dir_lock(workdir):
        manifest = run_dir.read_manifest(workdir)
        moved = find_moved_images(manifest, source, run_dir.load_config(workdir).data.loader, notify)
        new_path = {old.path: new.path for old, new in zip(manifest.examples, moved.examples, strict=True)}
        if (workdir / "predictions.csv").is_file():
            predictions = read_predictions(workdir / "predictions.csv")
            paths = tuple(new_path.get(path, path) for path in predictions.paths)
            write_predictions(workdir / "predictions.csv", replace(predictions, paths=paths))
        if heatmaps := gradcam.read_heatmaps(workdir):
            maps = {new_path.get(path, path): by_class for path, by_class in heatmaps.maps.items()}
            gradcam.write_heatmaps(workdir, replace(heatmaps, maps=maps))
        run_dir.write_manifest(workdir, moved)


def relocate_loaded(run: TrainedRun, source: str, notify: Callable[[str], None]) -> TrainedRun:
    """Return the run with the paths of its images in `source`; its files stay as they are."""
    setup = run.setup
    moved = find_moved_images(setup.manifest, source, setup.config.data.loader, notify)
    return run._replace(setup=replace(setup, manifest=moved))


def find_moved_images(manifest: Manifest, source: str, loader: str, notify: Callable[[str], None]) -> Manifest:
    """Return the manifest with the paths of its images in `source`, read as `data.loader` does, if they are there."""
    listing = base.open_source(source, fileio.cache_dir("data"), loader=loader)
    moved, missing = relocate(manifest, listing)
    total = len(manifest.examples)
    if len(missing) == total:
        raise UserError(f"{source} has none of the {total:,} images of the run, which are compared by SHA-256.")
    notify(f"{source} has {total - len(missing):,} of the {total:,} images of the run.")
    return moved
