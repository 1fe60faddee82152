"""Grad-CAM: which places of an image speak for a class (Selvaraju et al. 2017, arXiv:1610.02391, section 3).

The score of a class is its logit. The probability would not do: its gradient is the logits' times p * (1 - p), which
vanishes where the network is sure, and it falls where another class gains, so that a place which speaks for that one
would count as speaking against this one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from flaxtl.data.decode import decode
from flaxtl.errors import UserError, unknown
from flaxtl.evaluation import classification, heatmaps, run_files
from flaxtl.evaluation.heatmaps import Heatmap, HeatmapSet
from flaxtl.evaluation.predictor import TrainedRun
from flaxtl.evaluation.run_files import RunRecord
from flaxtl.models.classifier import Classifier, Params, forward, unflatten_params
from flaxtl.models.tracer import Layer, cut_points

FEATURELESS = frozenset({"max pool", "average pool", "pad", "crop"})
"""Kinds of layers that make no features: they have those of the layer before them, at fewer or other places."""


def gradcam_maps(
    model: Classifier, parameters: Params, images: jax.Array, classes: jax.Array, layer: Layer
) -> jax.Array:
    """The heat maps of some classes over every image, at the places of a layer.

    The weight of a channel is the mean over all places of the gradient of the class's logit with respect to it; the
    map is the weighted sum of the channels where it is positive. All is computed in float32, also of a network that
    runs in bfloat16; batch norms go by their statistics and nothing is dropped, as in prediction.

    Args:
        model: any network, with its classes on top.
        parameters: its parameters.
        images: RGB, values 0..255 [batch, height, width, 3].
        classes: indices, int32 [batch, n].
        layer: as `checked` gives it for images of that size; within a branch, too.

    Returns:
        float32 [batch, n, rows, columns], each map divided by its largest value, so that it lies in 0..1; where no
        place speaks for the class, it is 0 everywhere.
    """
    model = model.clone(dtype=jnp.float32)

    def scores(added: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The logits, and the layer's output; for zeros these are as they are."""
        result = forward(model, parameters, images, taps=(layer.name,), perturbations={layer.name: added})
        assert result.logits is not None, "a pass without `stop` reaches the softmax"
        return result.logits, result.taps[layer.name]

    logits, gradient, output = jax.vjp(scores, jnp.zeros((len(images), *layer.shape)), has_aux=True)

    def of_one(indices: jax.Array) -> jax.Array:
        """[batch] class indices -> [batch, rows, columns]. Images do not mix, so that one pass serves them all."""
        (slope,) = gradient(jax.nn.one_hot(indices, logits.shape[1]))
        return jax.nn.relu((slope.mean((1, 2), keepdims=True) * output).sum(-1))

    maps = jax.vmap(of_one, in_axes=1, out_axes=1)(classes)
    largest = maps.max((2, 3), keepdims=True)
    return maps / jnp.where(largest > 0, largest, 1)


def default_layer(layers: Sequence[Layer]) -> str:
    """The last layer of the base that everything passes through, that has places and makes features.

    That is the last convolution of VGG16, block5_conv3, the end of the last residual block of ResNet50,
    conv5_block3_out, and of a base that ends at block3_pool the layer block3_conv3: the deepest features, at the most
    places that they are known at. `layers` as `classifier.layers` gives them.

    Raises UserError if there is none.
    """
    base = [layer for layer in layers if layer.section == "backbone"]
    through = set(cut_points(base))
    fit = [
        layer.name for layer in base if layer.name in through and layer.kind not in FEATURELESS and _has_places(layer)
    ]
    if not fit:
        raise UserError("no layer of the base has a height and a width left; choose larger images")
    return fit[-1]


def check_layer(layers: Sequence[Layer], name: str) -> Layer:
    """The layer called `name`; raises UserError if there is none, or it has no places that a map could show."""
    known = {layer.name: layer for layer in layers}
    if name not in known:
        raise unknown("layer", name, known)
    if not _has_places(known[name]):
        shape = "x".join(str(size) for size in known[name].shape)
        raise UserError(
            f"the output of layer {name!r} is {shape}, without the height and width that a heat map needs; "
            f"choose a layer before the pooling, such as {default_layer(layers)!r}"
        )
    return known[name]


def _has_places(layer: Layer) -> bool:
    """Whether its output is [rows, columns, channels] of more than one place."""
    return len(layer.shape) == 3 and layer.shape[0] * layer.shape[1] > 1


ERRORS, RIGHT_ANSWERS = 12, 6
"""Images that are shown with heat maps, at most."""

MAX_BATCH_PIXELS = 8 * 224 * 224
"""Of the images that pass the network together, at most: fewer than in training, which needs more memory too."""

ClassPair = tuple[str, str]
"""The class that was answered, and that of the label; the same where the answer is right."""


def update_heatmaps(
    workdir: Path, opened: Callable[[], TrainedRun], say: Callable[[str], None], layer: str | None = None
) -> None:
    """Have the heat maps of the run in `workdir` kept there: at `layer`, or unless told at any.

    Where they are, and before there are predictions, nothing is done; else the network that is `opened` makes them.
    Where that cannot be, because checkpoints or images are gone, a sentence is said, for a report does without;
    if `layer` is given, it is a UserError, and so is a layer that the network does not have.
    """
    wanted, kept = heatmap_pairs(run_files.read_run(workdir)), heatmaps.read_heatmaps(workdir)
    if (
        kept
        and layer in (None, kept.layer)
        and all(set(pair) <= kept.maps.get(path, {}).keys() for path, pair in wanted.items())
    ):
        return
    try:
        if wanted:
            heatmaps.write_heatmaps(
                workdir, compute_heatmaps(opened(), wanted, layer or (kept.layer if kept else None))
            )
        elif layer:
            raise UserError(f"the run in {workdir} has no predictions to explain yet; leave --gradcam out until it has")
    except UserError as error:
        if layer:
            raise
        say(f"the report has no heat maps: {error}")


def heatmap_pairs(run: RunRecord) -> dict[str, ClassPair]:
    """The images that are shown with heat maps, errors first, and the classes that are asked about; by path."""
    if not run.predictions or run.eval_split not in run.predictions.splits:
        return {}
    judged = run.predictions.of_split(run.eval_split)
    errors = classification.largest_loss_errors(judged.probabilities, judged.labels, ERRORS)
    rows = [*errors, *classification.typical_correct(judged.probabilities, judged.labels, RIGHT_ANSWERS)]
    return {
        judged.paths[row]: (judged.classes[judged.predicted[row]], judged.classes[judged.labels[row]]) for row in rows
    }


def compute_heatmaps(run: TrainedRun, wanted: Mapping[str, ClassPair], layer: str | None) -> HeatmapSet:
    """The heat maps of the classes in `wanted` over its images, those that cannot be read left out.

    `layer` is the name of any layer that has places; None takes the network's default (models/gradcam.py). Raises
    UserError for another name, and where no image can be read.
    """
    setup = run.setup
    layers = setup.model_info.layers
    at = check_layer(layers, layer or default_layer(layers))
    images = _readable(run, list(wanted))
    if not images:
        raise UserError(f"none of its {len(wanted)} images can be read; bring them back to where manifest.csv has them")
    paths = list(images)
    indices = {name: index for index, name in enumerate(setup.manifest.classes)}
    classes = np.array([[indices[name] for name in wanted[path]] for path in paths], np.int32)
    found = _in_batches(run, np.stack(list(images.values())), classes, at)
    maps = {path: dict(zip(wanted[path], heats, strict=True)) for path, heats in zip(paths, found, strict=True)}
    rows, columns, _ = at.shape
    return HeatmapSet(at.name, rows, columns, setup.resize, maps)


def _readable(run: TrainedRun, paths: Sequence[str]) -> dict[str, npt.NDArray[np.uint8]]:
    """Path -> uint8 [height, width, 3] as the network saw it, of the images that can be read."""
    found = {}
    for path in paths:
        try:
            found[path] = decode(Path(path), run.setup.resize)
        except UserError:
            continue
    return found


def _in_batches(run: TrainedRun, images: npt.NDArray[np.uint8], classes: npt.NDArray[np.int32], at: Layer) -> Heatmap:
    """uint8 [n, 2, rows, columns]; batches are of one size, the last one filled up, so that one program serves all."""
    n, height, width, _ = images.shape
    batches = math.ceil(n / max(1, MAX_BATCH_PIXELS // (height * width)))
    size = math.ceil(n / batches)
    filled = [np.resize(array, (batches * size, *array.shape[1:])) for array in (images, classes)]
    # Of a run of many processes only this one is left: parameters go to its own device.
    parameters = jax.device_put(jax.device_get(unflatten_params(run.params)))

    @jax.jit
    def maps(parameters: Params, images: jax.Array, classes: jax.Array) -> jax.Array:
        return gradcam_maps(run.setup.model_info.model, parameters, images, classes, at)

    parts = [
        np.asarray(maps(parameters, *(array[first : first + size] for array in filled)))
        for first in range(0, batches * size, size)
    ]
    return (255 * np.concatenate(parts)[:n]).round().astype(np.uint8)
