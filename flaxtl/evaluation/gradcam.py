"""Grad-CAM heatmaps: which image regions support a class (Selvaraju et al. 2017, arXiv:1610.02391, section 3).

The score of a class is its logit, not its probability: the gradient of the probability is that of the logits times
p * (1 - p), which vanishes for confident predictions, and a region that supports another class would count as evidence
against this one.

The heatmaps of a run are stored in DIR/report/gradcam.json, so that the report can be written without the model.
"""

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from flaxtl.data.decode import CROP_PCT, Resize, decode
from flaxtl.data.loaders import Mask
from flaxtl.data.sampler import padded_batches
from flaxtl.errors import UserError, unknown
from flaxtl.evaluation import classification, run_files
from flaxtl.evaluation.predictor import TrainedRun
from flaxtl.evaluation.run_files import RunRecord
from flaxtl.fileio import atomic_write_text
from flaxtl.models.classifier import Classifier, Params, forward, unflatten_params
from flaxtl.models.tracer import Layer, cut_points
from flaxtl.train.eval_loop import collect
from flaxtl.train.run_records import Count, Record, load_json

MAX_ERRORS, MAX_CORRECT = 12, 6
"""Maximum number of misclassified and of correctly classified images with heatmaps."""

MAX_BATCH_PIXELS = 8 * 224 * 224
"""Maximum number of pixels in a batch; smaller than in training, as the backward pass starts at a single layer."""

KINDS_WITHOUT_FEATURES = frozenset({"max pool", "average pool", "pad", "crop"})
"""Layer kinds that only resample the features of the layer before them."""

Heatmap = npt.NDArray[np.uint8]
"""uint8 [rows, columns]: 255 where the evidence for the class is strongest, 0 where there is none."""

ClassPair = tuple[str, str]
"""The predicted class and the true class of an image."""


@dataclass(frozen=True)
class HeatmapSet:
    """The heatmaps of a run.

    Attributes:
      layer: name of the layer that they were computed at.
      rows: height of the layer's output, and so of each heatmap.
      columns: width of the layer's output.
      resize: how images were resized; a heatmap covers the part of the image that this leaves.
      maps: image path -> class name -> heatmap.
    """

    layer: str
    rows: int
    columns: int
    resize: Resize
    maps: Mapping[str, Mapping[str, Heatmap]]


def update_heatmaps(
    workdir: Path, load_run: Callable[[], TrainedRun], notify: Callable[[str], None], layer: str | None = None
) -> None:
    """Compute and store the heatmaps of the run in `workdir`, unless they are there already.

    Without predictions nothing is done. If heatmaps cannot be computed because checkpoints or images are missing, the
    reason is reported, because a report does not require them; with `layer` it is an error.

    Args:
      workdir: run directory.
      load_run: called only if the model is needed.
      notify: called with a message if there are no heatmaps.
      layer: layer name; None keeps the layer of the stored heatmaps, or else takes `default_layer`.

    Raises:
      UserError: `layer` is unknown, or the heatmaps at `layer` cannot be computed.
    """
    targets, stored = heatmap_targets(run_files.read_run(workdir)), read_heatmaps(workdir)
    if stored and layer in (None, stored.layer) and _has_targets(stored, targets):
        return
    try:
        if targets:
            heatmaps = compute_heatmaps(load_run(), targets, layer or (stored.layer if stored else None))
            write_heatmaps(workdir, heatmaps)
        elif layer:
            raise UserError(
                f"The run in {workdir} has no predictions to explain yet. Leave out --gradcam until it has."
            )
    except UserError as error:
        if layer:
            raise
        notify(f"The report has no heatmaps: {error}")


def _has_targets(stored: HeatmapSet, targets: Mapping[str, ClassPair]) -> bool:
    return all(set(classes) <= stored.maps.get(path, {}).keys() for path, classes in targets.items())


def heatmap_targets(run: RunRecord) -> dict[str, ClassPair]:
    """Return the images that the report shows with heatmaps, errors first: path -> classes to explain."""
    predictions = run.calibrated_eval_predictions
    if predictions is None:
        return {}
    labels, classes = predictions.labels, predictions.classes
    rows = [
        *predictions.error_rows[:MAX_ERRORS],
        *classification.typical_correct(predictions.probabilities, labels, MAX_CORRECT),
    ]
    return {predictions.paths[row]: (classes[predictions.predicted[row]], classes[labels[row]]) for row in rows}


def compute_heatmaps(run: TrainedRun, targets: Mapping[str, ClassPair], layer: str | None) -> HeatmapSet:
    """Compute heatmaps of images for their classes; unreadable images are left out.

    Args:
      run: the model, and how it decodes images.
      targets: image path -> classes.
      layer: name of a layer with spatial output; None takes `default_layer`.

    Raises:
      UserError: `layer` is unknown or has no spatial output, or none of the images can be read.
    """
    setup = run.setup
    layers = setup.model_info.layers
    target_layer = check_layer(layers, layer or default_layer(layers))
    images = _readable_images(list(targets), setup.resize)
    if not images:
        raise UserError(
            f"None of the {len(targets)} images can be read. Restore them to the paths listed in manifest.csv."
        )
    class_index = {name: index for index, name in enumerate(setup.manifest.classes)}
    classes = np.array([[class_index[name] for name in targets[path]] for path in images], np.int32)
    heatmaps = _compute_in_batches(run, np.stack(list(images.values())), classes, target_layer)
    maps = {path: dict(zip(targets[path], pair, strict=True)) for path, pair in zip(images, heatmaps, strict=True)}
    rows, columns, _ = target_layer.shape
    return HeatmapSet(target_layer.name, rows, columns, setup.resize, maps)


def _readable_images(paths: Sequence[str], resize: Resize) -> dict[str, npt.NDArray[np.uint8]]:
    """Decode images as for prediction: path -> uint8 [height, width, 3]; unreadable ones are left out."""
    images = {}
    for path in paths:
        try:
            images[path] = decode(Path(path), resize)
        except UserError:
            continue
    return images


def _compute_in_batches(
    run: TrainedRun, images: npt.NDArray[np.uint8], classes: npt.NDArray[np.int32], layer: Layer
) -> Heatmap:
    """Return uint8 [n, 2, rows, columns]. The batches have one size, as little padded as possible: one compilation."""
    n, height, width, _ = images.shape
    num_batches = math.ceil(n / max(1, MAX_BATCH_PIXELS // (height * width)))
    # After a distributed run only this process is left: move the params from the mesh to its default device.
    params = jax.device_put(jax.device_get(unflatten_params(run.params)))

    @jax.jit
    def step(params: Params, batch: tuple[jax.Array, jax.Array], mask: Mask) -> jax.Array:
        return gradcam_maps(run.setup.model_info.model, params, *batch, layer)

    batches = (((images[rows], classes[rows]), mask) for rows, mask in padded_batches(n, math.ceil(n / num_batches)))
    heatmaps: npt.NDArray[np.float32] = collect(step, params, batches)
    return (255 * heatmaps).round().astype(np.uint8)


def gradcam_maps(model: Classifier, params: Params, images: jax.Array, classes: jax.Array, layer: Layer) -> jax.Array:
    """Compute Grad-CAM heatmaps of several classes for each image.

    The weight of a channel is the spatial mean of the gradient of the class's logit; the heatmap is the ReLU of the
    weighted sum of channels. Everything is computed in float32, also for a model that runs in bfloat16; batch norm and
    dropout run in inference mode.

    Args:
      model: a classifier with logits.
      params: its parameters.
      images: RGB, values 0..255, [batch, height, width, 3].
      classes: class indices, int32 [batch, n].
      layer: as `check_layer` returns it for images of this size; it may be inside a branch.

    Returns:
      float32 [batch, n, rows, columns] in 0..1: each heatmap is divided by its maximum; 0 without positive evidence.
    """
    model = model.clone(dtype=jnp.float32)

    def logits_and_features(perturbation: jax.Array) -> tuple[jax.Array, jax.Array]:
        output = forward(model, params, images, taps=(layer.name,), perturbations={layer.name: perturbation})
        assert output.logits is not None, "the whole model was run"
        return output.logits, output.taps[layer.name]

    output = jax.eval_shape(lambda: forward(model, params, images, taps=(layer.name,)).taps[layer.name])
    zeros = jnp.zeros(output.shape, output.dtype)  # adding zeros gives the gradient at the layer's output
    logits, gradient, features = jax.vjp(logits_and_features, zeros, has_aux=True)

    def patches(values: jax.Array) -> jax.Array:
        """[batch, rows, columns, channels], without the class token."""
        return values if values.ndim == 4 else values[:, 1:].reshape(-1, *layer.shape)

    def heatmap(class_index: jax.Array) -> jax.Array:
        """[batch] -> [batch, rows, columns]; images are independent, so one backward pass serves the batch."""
        (feature_gradient,) = gradient(jax.nn.one_hot(class_index, logits.shape[1], dtype=logits.dtype))
        channel_weights = patches(feature_gradient).mean((1, 2), keepdims=True)
        return jax.nn.relu((channel_weights * patches(features)).sum(-1))

    heatmaps = jax.vmap(heatmap, in_axes=1, out_axes=1)(classes)
    maximum = heatmaps.max((2, 3), keepdims=True)
    return heatmaps / jnp.where(maximum > 0, maximum, 1)


def default_layer(layers: Sequence[Layer]) -> str:
    """Return the last layer of the backbone with features and a spatial output that is not inside a branch.

    Of a network that ends with its class token it is below the last attention: above, no patch has an effect.

    For VGG16 this is block5_conv3, for ResNet50 conv5_block3_out, for a backbone cut at block3_pool block3_conv3: the
    deepest features at the highest resolution they exist in.

    Args:
      layers: as `classifier.list_layers` returns them.

    Raises:
      UserError: there is no such layer.
    """
    backbone = [layer for layer in layers if layer.section == "backbone"]
    unbranched = set(cut_points(backbone))
    if backbone[-1].kind == "first token":
        last_attention = max(index for index, layer in enumerate(backbone) if layer.kind == "attention")
        backbone = backbone[:last_attention]
    candidates = [
        layer.name
        for layer in backbone
        if layer.name in unbranched and layer.kind not in KINDS_WITHOUT_FEATURES and _grid(layers, layer)
    ]
    if not candidates:
        raise UserError("No layer of the backbone has a spatial output. Use larger images.")
    return candidates[-1]


def check_layer(layers: Sequence[Layer], name: str) -> Layer:
    """Return the layer called `name`, with shape (rows, columns, channels).

    Of the tokens of a ViT this is the shape of its patches: the class token has no place in a heatmap.

    Raises:
      UserError: there is none, or its output is not spatial.
    """
    by_name = {layer.name: layer for layer in layers}
    if name not in by_name:
        raise unknown("layer", name, by_name)
    grid = _grid(layers, by_name[name])
    if grid is None:
        shape = "x".join(str(size) for size in by_name[name].shape)
        raise UserError(
            f"Layer {name!r} has output shape {shape}; a heatmap needs height and width. "
            f"Choose a layer before the pooling, such as {default_layer(layers)!r}."
        )
    return by_name[name]._replace(shape=(*grid, by_name[name].shape[-1]))


def _grid(layers: Sequence[Layer], layer: Layer) -> tuple[int, int] | None:
    """Return rows and columns of the output: its own, or those of the patches that its tokens are of; None if 1 x 1."""
    grid = layer.shape[:2] if len(layer.shape) == 3 else (0, 0)
    if len(layer.shape) == 2:
        grids = (other.shape[:2] for other in layers if len(other.shape) == 3)
        grid = next((found for found in grids if 1 + math.prod(found) == layer.shape[0]), grid)
    rows, columns = grid
    return (rows, columns) if rows * columns > 1 else None


class HeatmapResize(Record, frozen=True):
    """The settings of `Resize` that differ between runs."""

    height: Count
    width: Count
    policy: str
    interpolation: str
    crop_pct: float = CROP_PCT
    bit_depth: Count = 0


class HeatmapFile(Record, frozen=True):
    """report/gradcam.json: `maps` is image path -> class name -> base64 of the bytes of the heatmap."""

    layer: str
    rows: Count
    columns: Count
    resize: HeatmapResize
    maps: dict[str, dict[str, str]]


def write_heatmaps(workdir: Path, heatmaps: HeatmapSet) -> None:
    """Store heatmaps in the run directory, replacing any others."""
    maps = {
        path: {name: base64.b64encode(heatmap.tobytes()).decode("ascii") for name, heatmap in by_class.items()}
        for path, by_class in heatmaps.maps.items()
    }
    resize = heatmaps.resize
    stored_resize = HeatmapResize(
        resize.height, resize.width, resize.policy, resize.interpolation, resize.crop_pct, resize.bit_depth
    )
    values = HeatmapFile(heatmaps.layer, heatmaps.rows, heatmaps.columns, stored_resize, maps).to_json()
    file = _heatmap_file(workdir)
    file.parent.mkdir(exist_ok=True)
    atomic_write_text(file, json.dumps(values, indent=1) + "\n")


def read_heatmaps(workdir: Path) -> HeatmapSet | None:
    """Read the stored heatmaps; None if there are none or the file is damaged, as they can be computed again."""
    file = _heatmap_file(workdir)
    try:
        stored = HeatmapFile.from_json(load_json(file), file)
        maps = {
            path: {name: _decode_heatmap(text, stored.rows, stored.columns) for name, text in by_class.items()}
            for path, by_class in stored.maps.items()
        }
        return HeatmapSet(stored.layer, stored.rows, stored.columns, Resize(**stored.resize.to_json()), maps)
    except (ValueError, UserError):
        return None


def _decode_heatmap(text: str, rows: int, columns: int) -> Heatmap:
    """Decode base64; raises ValueError unless it holds rows x columns bytes."""
    return np.frombuffer(base64.b64decode(text, validate=True), np.uint8).reshape(rows, columns)


def _heatmap_file(workdir: Path) -> Path:
    return workdir / "report" / "gradcam.json"
