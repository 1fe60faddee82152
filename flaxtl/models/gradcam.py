"""Grad-CAM: which places of a picture speak for a class (Selvaraju et al. 2017, arXiv:1610.02391, section 3).

The score of a class is its logit. The probability would not do: its gradient is the logits' times p * (1 - p), which
vanishes where the network is sure, and it falls where another class gains, so that a place which speaks for that one
would count as speaking against this one.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from flaxtl.errors import UserError, unknown
from flaxtl.models.classifier import Classifier, Parameters, forward
from flaxtl.models.graph import passages
from flaxtl.models.trace import Layer

FEATURELESS = frozenset({"max pool", "average pool", "pad", "crop"})
"""Kinds of layers that make no features: they have those of the layer before them, at fewer or other places."""


def heat_maps(
    model: Classifier, parameters: Parameters, pictures: jax.Array, classes: jax.Array, layer: Layer
) -> jax.Array:
    """The heat maps of some classes over every picture, at the places of a layer.

    The weight of a channel is the mean over all places of the gradient of the class's logit with respect to it; the
    map is the weighted sum of the channels where it is positive. All is computed in float32, also of a network that
    runs in bfloat16; batch norms go by their statistics and nothing is dropped, as in prediction.

    Args:
        model: any network, with its classes on top.
        parameters: its parameters.
        pictures: RGB, values 0..255 [batch, height, width, 3].
        classes: indices, int32 [batch, n].
        layer: as `checked` gives it for pictures of that size; within a branch, too.

    Returns:
        float32 [batch, n, rows, columns], each map divided by its largest value, so that it lies in 0..1; where no
        place speaks for the class, it is 0 everywhere.
    """
    model = model.clone(dtype=jnp.float32)

    def scores(added: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The logits, and the layer's output; for zeros these are as they are."""
        result = forward(model, parameters, pictures, taps=(layer.name,), perturbations={layer.name: added})
        assert result.logits is not None, "a pass without `stop` reaches the softmax"
        return result.logits, result.taps[layer.name]

    logits, gradient, output = jax.vjp(scores, jnp.zeros((len(pictures), *layer.shape)), has_aux=True)

    def of_one(indices: jax.Array) -> jax.Array:
        """[batch] class indices -> [batch, rows, columns]. Pictures do not mix, so that one pass serves them all."""
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
    through = set(passages(base))
    fit = [
        layer.name for layer in base if layer.name in through and layer.kind not in FEATURELESS and _has_places(layer)
    ]
    if not fit:
        raise UserError("no layer of the base has a height and a width left; choose larger pictures")
    return fit[-1]


def checked(layers: Sequence[Layer], name: str) -> Layer:
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
