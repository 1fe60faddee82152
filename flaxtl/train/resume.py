"""Continue the run in a directory: with the same config, and with its images, perhaps at another place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flaxtl import fileio
from flaxtl.config import config_to_json
from flaxtl.data import duplicates
from flaxtl.data.manifest import Manifest, relocate
from flaxtl.data.record_files import image_exists
from flaxtl.data.sources import base
from flaxtl.errors import UserError
from flaxtl.parallel import processes
from flaxtl.train import run_dir


def check_resumable(workdir: Path, config: Any, notify: Callable[[str], None]) -> None:
    """Raise UserError unless the run in `workdir` has this config, perhaps with its images at another place.

    If they are, manifest.csv and config.json of an unfinished run are updated.
    """
    manifest = locate_images(workdir, config)
    if manifest == run_dir.read_manifest(workdir) or run_dir.is_complete(workdir):
        return
    images = f"all {len(manifest.examples):,} images of the run"
    notify(f"{config.data.source} has {images}: continuing with them and their former labels.")
    # All processes have read the old files before process 0 replaces them, and read the new ones afterwards.
    processes.barrier("the images are found")
    if processes.is_main_process():
        run_dir.replace_source(workdir, config_to_json(config), manifest)
    processes.barrier("the images are replaced")


def locate_images(workdir: Path, config: Any, num_phases: int | None = None) -> Manifest:
    """Return the manifest of the run in `workdir`, with the paths of its images in `data.source`, by their SHA-256.

    Args:
      workdir: a run directory.
      config: the config of the run, perhaps with another data source, in which all images of the run are.
      num_phases: compare only the settings of that many phases, and those that all phases share.

    Raises:
      UserError: the run has another config, or `data.source` is another one that lacks some of the images.
    """
    values, saved = config_to_json(config), run_dir.load_config(workdir)
    source, saved_source = config.data.source, saved.data.source
    run_dir.check_config(workdir, values | {"data": values["data"] | {"source": saved_source}}, num_phases)
    manifest = run_dir.read_manifest(workdir)
    if source == saved_source and all(image_exists(Path(example.path)) for example in manifest.examples):
        return manifest
    listing = base.open_source(source, fileio.cache_dir("data"), loader=config.data.loader)
    moved, missing = relocate(manifest, listing)
    if missing and source == saved_source:
        return manifest  # check_images lists them
    if missing:
        raise UserError(
            f"{workdir} has a run with another config (data.source: {saved_source} -> {source}), and {source} lacks "
            f"{len(missing):,} of its {len(manifest.examples):,} images, such as {missing[0].path}. Use another "
            "--workdir, or the settings that the run was started with."
        )
    return moved


def check_images(workdir: Path, manifest: Manifest) -> Manifest:
    """Return the manifest of the run in `workdir`, once its images are verified to be those of its start.

    Raises:
      UserError: images have changed since, or are missing.
    """
    paths = [Path(example.path) for example in manifest.examples]
    fingerprints = duplicates.fingerprint_files(paths, perceptual=False, strict=False)
    changed = [
        example.path
        for example, fingerprint in zip(manifest.examples, fingerprints, strict=True)
        if example.sha256 != fingerprint.sha256
    ]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"{len(changed):,} of the {len(paths):,} images of the run in {workdir} changed or disappeared since its "
            f"start: {', '.join(changed[:5])}{more}. Restore them, or start a new --workdir."
        )
    return manifest


def describe_growth(workdir: Path, source: str) -> str | None:
    """Return a sentence on the images of a folder or CSV file that came after the run was started; None without any."""
    if not source.startswith(("folder:", "csv:")):
        return None
    try:
        listing = base.open_source(source, fileio.cache_dir("data"))
    except UserError:
        return None  # a complete run does not need its images
    known = {example.path for example in run_dir.read_manifest(workdir).examples}
    num_new = len({str(image.path) for image in listing.images} - known - run_dir.read_summary(workdir).skipped.keys())
    if not num_new or num_new == len(listing.images):  # the latter: a copy at another place
        return None
    return f"{source} has {num_new:,} new image{'s' if num_new > 1 else ''}, which the run does not use."
