"""A run that was trained before, opened to be looked at."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import glob, has_magic
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from flaxtl.data.decode import EXTENSIONS, Resize, decode
from flaxtl.data.manifest import Manifest
from flaxtl.errors import UserError, unknown
from flaxtl.evaluation import run_files
from flaxtl.evaluation.predictions import ImagePredictions
from flaxtl.models import classifier, imagenet, registry
from flaxtl.models.classifier import Classifier, FlatParams, Parameters, forward, unflatten_params
from flaxtl.models.spec import ModelSpec
from flaxtl.parallel import devices
from flaxtl.pretrained.backbone import headless_model, load_backbone
from flaxtl.train import run_dir
from flaxtl.train.checkpoints import Checkpoints
from flaxtl.train.setup import RunSetup, build_setup


class TrainedRun(NamedTuple):
    """The setup of a run and its parameters after the last phase that ended, and that phase's name."""

    setup: RunSetup
    parameters: FlatParams
    phase: str


def setup_of(workdir: Path) -> RunSetup:
    """The setup of the run in `workdir`, from its own config and manifest."""
    return build_setup(run_dir.load_config(workdir), workdir, Manifest.read(workdir / "manifest.csv"))


def temperature_of(workdir: Path) -> float:
    """The temperature of the finished run in `workdir`; raises UserError, saying why, if it has none."""
    summary = run_files.summary_of_run(workdir)
    if reason := run_files.reason(summary):
        raise UserError(f"{reason}; leave --calibrated out")
    return float(summary["calibration"]["temperature"])


def load_trained_run(workdir: Path) -> TrainedRun:
    """The run in `workdir`; raises UserError if no phase of it has ended."""
    devices.enable_compilation_cache()
    setup = setup_of(workdir)
    with Checkpoints(workdir) as checkpoints:
        done = checkpoints.phases_done()
        if not done:
            raise UserError(f"no phase of the run in {workdir} has ended yet; start the same flaxtl train again")
        parameters = checkpoints.restore_phase(done, setup.abstract_parameters())
        return TrainedRun(setup, parameters, setup.phases[done - 1].name)


PIXELS = 32 * 224 * 224
"""Of all images that pass the network together, at most: many small ones or few large ones."""


class Predictor(NamedTuple):
    """A network ready for images of any size.

    `classes` are what its layer 'predictions' tells, with their WordNet ids where they are ImageNet's; without classes
    it runs no further than layer `stop`.
    """

    model: Classifier
    parameters: Parameters
    resize: Resize
    classes: tuple[str, ...]
    wordnet_ids: tuple[str, ...] = ()
    stop: str | None = None


def run_predictor(run: TrainedRun) -> Predictor:
    """A trained run's network."""
    setup = run.setup
    return Predictor(setup.network.model, unflatten_params(run.parameters), setup.resize, setup.manifest.classes)


def find_images(inputs: Sequence[str]) -> list[Path]:
    """Files as given, all images below folders, and what globs match; sorted within each, without doubles."""
    found: dict[Path, None] = {}
    for text in inputs:
        path = Path(text).expanduser()
        if path.is_dir():
            matches = sorted(file for file in path.rglob("*") if _is_image(file.relative_to(path), file))
        elif has_magic(text) and not path.exists():
            matches = [Path(match) for match in sorted(glob(str(path), recursive=True)) if Path(match).is_file()]  # noqa: PTH207
        else:
            matches = [path] if path.is_file() else []
        if not matches:
            raise UserError(f"no images at {text!r}; give image files, folders or globs to --input")
        found.update(dict.fromkeys(matches))
    return list(found)


def _is_image(inner: Path, file: Path) -> bool:
    hidden = any(part.startswith(".") for part in inner.parts)
    return file.suffix.lower() in EXTENSIONS and not hidden and file.is_file()


def predict(predictor: Predictor, paths: Sequence[Path], taps: Sequence[str]) -> ImagePredictions:
    """Run the network on every readable image; `taps` names layers whose outputs are wanted too."""
    wanted = tuple(dict.fromkeys((*taps, *(["predictions"] if predictor.classes else []))))

    @jax.jit
    def outputs(parameters: Parameters, images: jax.Array) -> dict[str, jax.Array]:
        return forward(predictor.model, parameters, images, taps=wanted, stop=predictor.stop).taps

    unreadable: list[str] = []
    kept: list[str] = []
    parts: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in wanted}
    for names, images in _batches(paths, predictor.resize, unreadable):
        for name, value in outputs(predictor.parameters, images).items():
            parts[name].append(np.asarray(value, np.float32)[: len(names)])
        kept += names
    if not kept:
        raise UserError("none of the images can be read: " + "; ".join(unreadable[:10]))
    arrays = {name: np.concatenate(values) for name, values in parts.items()}
    probabilities = arrays["predictions"] if predictor.classes else np.zeros((len(kept), 0), np.float32)
    return ImagePredictions(
        paths=tuple(kept),
        probabilities=probabilities,
        taps={name: arrays[name] for name in taps},
        classes=predictor.classes,
        wordnet_ids=predictor.wordnet_ids,
        unreadable=tuple(unreadable),
    )


def _batches(
    paths: Sequence[Path], resize: Resize, unreadable: list[str]
) -> Iterator[tuple[list[str], npt.NDArray[np.uint8]]]:
    """(paths, uint8 [size, height, width, 3]) of one size, so that the step is compiled once."""
    size = min(max(1, PIXELS // (resize.height * resize.width)), len(paths))

    def read(path: Path) -> npt.NDArray[np.uint8] | str:
        try:
            return decode(path, resize)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        for first in range(0, len(paths), size):
            names: list[str] = []
            images = np.zeros((size, resize.height, resize.width, 3), np.uint8)
            some = paths[first : first + size]
            for path, found in zip(some, pool.map(read, some), strict=True):
                if isinstance(found, str):
                    unreadable.append(found)
                else:
                    images[len(names)] = found
                    names.append(str(path))
            if names:
                yield names, images


class PretrainedModel(NamedTuple):
    """A published network and, in words, which weights it has."""

    predictor: Predictor
    origin: str


def load_pretrained(
    name: str, request: str, taps: Sequence[str], classify: bool, say: Callable[[str], None]
) -> PretrainedModel:
    """The network `name` of the catalog with weights from `request`: 'imagenet', 'builtin' or a file.

    Where `classify` is false and every layer of `taps` lies in the base, the base alone is loaded and run.
    Raises UserError for unknown layers, and where there are no weights that fit.
    """
    if request == "random":
        raise UserError("random weights know no classes; leave --weights out for the published ones, or give a file")
    architecture = registry.get_spec(name)
    whole, base = Classifier(architecture), headless_model(architecture)
    layers, inner = _backbone(whole), _backbone(base)
    for tap in taps:
        if tap not in layers:
            raise unknown("layer", tap, layers)
    alone = not classify and set(taps) <= set(inner)
    model = base if alone else whole
    devices.enable_compilation_cache()
    loaded = load_backbone(model, request, say, option="--weights")
    classes = () if alone else imagenet.imagenet_classes()
    predictor = Predictor(
        model,
        {"backbone": jax.tree.map(jnp.asarray, loaded.tree)},
        eval_resize(architecture),
        classes=tuple(each.name for each in classes),
        wordnet_ids=tuple(each.wordnet_id for each in classes),
        stop=inner[-1] if alone else None,
    )
    return PretrainedModel(predictor, loaded.origin)


def _backbone(model: Classifier) -> list[str]:
    """The names of the backbone's layers, the one that gives its output last."""
    size = model.architecture.size
    return [layer.name for layer in classifier.list_layers(model, size, size) if layer.section == "backbone"]


def eval_resize(architecture: ModelSpec) -> Resize:
    """How images come to the network's own size, as where its published accuracy was measured.

    The shorter side to 8/7 of it (256 for 224), bicubic, then the centre crop: taehoonlee in
    github.com/keras-team/keras-applications/issues/99. A squash with Keras' default, nearest, costs VGG16 some points.
    """
    return Resize(architecture.size, architecture.size, policy="crop", filter="bicubic")
