"""Trained runs and pretrained models, loaded for inference, and prediction on image files."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from flaxtl.data.decode import ImageSource, Resize, decode
from flaxtl.data.loaders import Mask
from flaxtl.errors import UserError, unknown
from flaxtl.evaluation.calibration import missing_temperature_reason
from flaxtl.evaluation.predictions import UNLABELED, Predictions
from flaxtl.models import classifier, imagenet, registry
from flaxtl.models.classifier import Classifier, FlatParams, Params, unflatten_params
from flaxtl.models.inference import infer
from flaxtl.models.spec import ModelSpec
from flaxtl.parallel import devices
from flaxtl.pretrained.backbone import headless_model, load_backbone
from flaxtl.train import run_dir
from flaxtl.train.checkpoints import Checkpoints
from flaxtl.train.eval_loop import collect
from flaxtl.train.setup import RunSetup, build_setup

MAX_BATCH_PIXELS = 32 * 224 * 224
"""Maximum number of pixels of a device's part of a batch: many small images or a few large ones."""


class Predictor(NamedTuple):
    """A model and its params, ready to predict images of any size.

    Attributes:
      model: the network.
      params: its parameters.
      resize: how images are resized to the input size.
      classes: what the outputs of layer 'predictions' stand for; () if the model is run for layer outputs only.
      wordnet_ids: WordNet IDs of `classes` if these are ImageNet's, else ().
      mesh: the devices that hold `params`; each batch is split over them.
      output_layer: the last layer to run; None runs the whole network.
    """

    model: Classifier
    params: Params
    resize: Resize
    classes: tuple[str, ...]
    mesh: Mesh
    wordnet_ids: tuple[str, ...] = ()
    output_layer: str | None = None

    def predict(self, images: Sequence[ImageSource], taps: Sequence[str] = ()) -> Predictions:
        """Predict every readable image.

        Args:
          images: files, or images in memory.
          taps: names of layers to return the outputs of, too.

        Raises:
          UserError: none of the images can be read.
        """
        layers = tuple(dict.fromkeys((*taps, *(["predictions"] if self.classes else []))))
        step = _make_predict_step(self.model, self.mesh, layers, self.output_layer)
        batches = ImageBatches(images, self.resize, self.mesh.size)
        outputs, log_softmax = collect(step, self.params, batches)
        n = len(batches.decoded)
        return Predictions(
            paths=tuple(map(str, batches.decoded)),
            splits=("",) * n,
            labels=np.full(n, UNLABELED),
            probabilities=outputs["predictions"] if self.classes else np.zeros((n, 0), np.float32),
            classes=self.classes,
            log_softmax=log_softmax if self.classes else None,
            wordnet_ids=self.wordnet_ids,
            taps={layer: outputs[layer] for layer in taps},
            unreadable=tuple(batches.unreadable),
        )


@cache
def _make_predict_step(
    model: Classifier, mesh: Mesh, layers: tuple[str, ...], stop: str | None
) -> Callable[..., tuple[dict[str, jax.Array], jax.Array | None]]:
    """Return the jitted (params, images, mask) -> (outputs by layer, log probabilities)."""

    def step(params: Params, images: jax.Array, mask: Mask) -> tuple[dict[str, jax.Array], jax.Array | None]:
        result = infer(model, params, images, in_chunks=devices.is_one_cpu(mesh), stop=stop, taps=layers)
        outputs = {layer: output.astype(jnp.float32) for layer, output in result.taps.items()}
        return outputs, None if result.logits is None else jax.nn.log_softmax(result.logits)

    replicated = devices.replicated_sharding(mesh)
    shardings = (replicated, devices.batch_sharding(mesh), replicated)
    return jax.jit(step, in_shardings=shardings, out_shardings=replicated)


class ImageBatches:
    """Images as batches for `collect`, decoded while they are consumed; unreadable ones are left out.

    Args:
      sources: the images, at least one.
      resize: how they are resized.
      num_devices: the size of a batch is a multiple of it.

    Attributes:
      batch_size: images in a batch, with the padding of the last one.
      decoded: images decoded so far, in the order of the batches.
      unreadable: one message for each unreadable image so far.
    """

    def __init__(self, sources: Sequence[ImageSource], resize: Resize, num_devices: int) -> None:
        self._sources, self._resize = sources, resize
        per_device = max(1, MAX_BATCH_PIXELS // (resize.height * resize.width))
        self.batch_size = num_devices * min(per_device, math.ceil(len(sources) / num_devices))
        self.decoded: list[ImageSource] = []
        self.unreadable: list[str] = []

    def __iter__(self) -> Iterator[tuple[npt.NDArray[np.uint8], Mask]]:
        """Yield uint8 images [batch, height, width, 3] and mask [batch]; all batches have one size: one compilation.

        Raises:
          UserError: none of the images can be read.
        """
        size = self.batch_size
        with ThreadPoolExecutor() as pool:
            for first in range(0, len(self._sources), size):
                images = np.zeros((size, self._resize.height, self._resize.width, 3), np.uint8)
                chunk = self._sources[first : first + size]
                count = 0
                for source, image in zip(chunk, pool.map(self._decode, chunk), strict=True):
                    if isinstance(image, str):
                        self.unreadable.append(image)
                    else:
                        images[count] = image
                        self.decoded.append(source)
                        count += 1
                if count:
                    yield images, np.arange(size) < count
        if not self.decoded:
            raise UserError(" ".join(("None of the images can be read.", *self.unreadable[:10])))

    def _decode(self, source: ImageSource) -> npt.NDArray[np.uint8] | str:
        """Return the image, or why it cannot be read."""
        try:
            return decode(source, self._resize)
        except UserError as error:
            return str(error)


class TrainedRun(NamedTuple):
    """The setup of a run, its params after the last finished phase, and the name of that phase."""

    setup: RunSetup
    params: FlatParams
    phase: str

    def predictor(self) -> Predictor:
        """Return a predictor with the run's model."""
        setup, params = self.setup, unflatten_params(self.params)
        return Predictor(setup.model_info.model, params, setup.resize, setup.manifest.classes, setup.mesh)


def load_run(workdir: Path) -> TrainedRun:
    """Load the run in `workdir`.

    Raises:
      UserError: no phase of it has finished.
    """
    devices.enable_compilation_cache()
    setup = load_setup(workdir)
    with Checkpoints(workdir) as checkpoints:
        num_phases = checkpoints.num_phases()
        if not num_phases:
            raise UserError(f"No phase of the run in {workdir} has finished yet. Run flaxtl train again to resume it.")
        params = checkpoints.restore_phase(num_phases, setup.abstract_params())
        return TrainedRun(setup, params, setup.phases[num_phases - 1].name)


def load_setup(workdir: Path) -> RunSetup:
    """Build the setup of the run in `workdir` from its own config and manifest."""
    return build_setup(run_dir.load_config(workdir), workdir, run_dir.read_manifest(workdir))


def calibrate(predictions: Predictions, workdir: Path) -> Predictions:
    """Return predictions of the run in `workdir` at its temperature.

    Raises:
      UserError: the run has none.
    """
    fit = run_dir.read_summary(workdir).calibration
    if fit is None or fit.temperature is None:
        raise UserError(f"{missing_temperature_reason(fit)}. Its probabilities cannot be calibrated.")
    return predictions.at_temperature(fit.temperature)


def load_pretrained(
    name: str,
    weights: str,
    taps: Sequence[str],
    classify: bool,
    notify: Callable[[str], None],
    *,
    skip_layers: str = "",
) -> tuple[Predictor, str]:
    """Load a model of the registry with pretrained weights.

    Args:
      name: model name.
      weights: 'imagenet', 'builtin' or a weights file.
      taps: names of layers to return the outputs of.
      classify: whether class probabilities are needed. If not, and all `taps` are layers of the headless model, that
        is loaded, and weights without the top are enough.
      notify: called with messages about the download.
      skip_layers: a regular expression for layers of the file that are left out; see `load_weights`.

    Returns:
      The predictor, and a description of where its weights come from.

    Raises:
      UserError: a layer is unknown, or no matching weights are found.
    """
    if weights == "random":
        raise UserError("Random weights cannot classify. Leave out --weights for pretrained weights, or give a file.")
    spec = registry.get_spec(name)
    full, headless = Classifier(spec), headless_model(spec)
    full_layers, headless_layers = _backbone_layers(full), _backbone_layers(headless)
    for tap in taps:
        if tap not in full_layers:
            raise unknown("layer", tap, full_layers)
    use_headless = not classify and set(taps) <= set(headless_layers)
    model = headless if use_headless else full
    devices.enable_compilation_cache()
    params, source = load_backbone(model, weights, notify, option="--weights", skip_layers=skip_layers)
    classes = () if use_headless else imagenet.imagenet_classes()
    mesh = devices.make_mesh(jax.device_count())
    predictor = Predictor(
        model,
        {"backbone": jax.device_put(params, devices.replicated_sharding(mesh))},
        eval_resize(spec),
        classes=tuple(entry.name for entry in classes),
        mesh=mesh,
        wordnet_ids=tuple(entry.wordnet_id for entry in classes),
        output_layer=headless_layers[-1] if use_headless else None,
    )
    return predictor, source


def _backbone_layers(model: Classifier) -> list[str]:
    """Return the names of the backbone's layers in order; the last one is its output."""
    size = model.spec.input_size
    return [layer.name for layer in classifier.list_layers(model, size, size) if layer.section == "backbone"]


def eval_resize(spec: ModelSpec) -> Resize:
    """Return the resizing that the model's published accuracy was measured with.

    Shorter side to 8/7 of the input size (256 for 224), bicubic, then a center crop: taehoonlee in
    github.com/keras-team/keras-applications/issues/99. Squashing with Keras' default, nearest, costs VGG16 accuracy.
    """
    return Resize(spec.input_size, spec.input_size, policy="crop", interpolation="bicubic")
