"""A network as one function of images: preprocessing, backbone, head."""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxtl.errors import UserError
from flaxtl.models.head import Head
from flaxtl.models.imagenet import PREPROCESSING
from flaxtl.models.net import Net
from flaxtl.models.spec import ModelSpec
from flaxtl.models.tracer import SKIPPED, Layer, Skipped, Value, cut_points, keras_order

Parameters = dict[str, dict[str, dict[str, jax.Array]]]
"""section ('backbone', 'head') -> layer name -> leaf name -> array, the statistics of batch norms among them."""

FlatParams = dict[str, jax.Array]
"""'section/layer/leaf' -> array, such as 'backbone/block5_conv3/kernel'."""

Leaf = TypeVar("Leaf")
NestedParams = dict[str, dict[str, dict[str, Leaf]]]

BATCH_STATS = frozenset({"mean", "var"})
"""Names of the leaves that no gradient moves: what a batch norm remembers of the batches it saw."""

NOTHING: Mapping[str, jax.Array] = MappingProxyType({})
"""Added to no layer."""


def flatten_params(tree: NestedParams[Leaf]) -> dict[str, Leaf]:
    """Convert section -> layer -> leaf -> value to 'section/layer/leaf' -> value."""
    return {
        f"{section}/{layer}/{leaf}": value
        for section, layers in tree.items()
        for layer, leaves in layers.items()
        for leaf, value in leaves.items()
    }


def unflatten_params(flat: Mapping[str, Leaf]) -> NestedParams[Leaf]:
    """Invert `flatten_params`."""
    tree: NestedParams[Leaf] = {}
    for path, value in flat.items():
        section, layer, leaf = path.split("/")
        tree.setdefault(section, {}).setdefault(layer, {})[leaf] = value
    return tree


class ModelOutput(NamedTuple):
    """Of one pass: the last output that was asked for, the logits if they were reached, and the taps.

    `statistics`: of all batch norms, as a pass with a key for dropout left them; section -> layer -> leaf -> array.
    """

    output: jax.Array
    logits: jax.Array | None
    taps: dict[str, jax.Array]
    statistics: Parameters = {}  # noqa: RUF012 - nobody writes to it


class Backbone(nn.Module):
    """The pretrained base, or with `top` the whole published network; layers after `last` do not exist."""

    architecture: ModelSpec
    top: bool
    last: str | None

    @nn.compact
    def __call__(self, net: Net, x: Value) -> Value:
        """Run the architecture's layers; returns the output of the last one that ran, for a head to go on with."""
        net.section("backbone", self.last)
        self.architecture.build(net, x, self.top)
        return SKIPPED if net.stopped else net.output


class NewHead(nn.Module):
    """Holds the head's parameters under one name."""

    head: Head

    @nn.compact
    def __call__(self, net: Net, x: Value) -> None:
        """Run the head's layers."""
        net.section("head")
        self.head.build(net, x)


class Classifier(nn.Module):
    """Images to classes: `architecture` cut after layer `last` (None: whole base) under a new `head`.

    Without a head it is the published network with its own 1,000 ImageNet classes.
    """

    architecture: ModelSpec
    head: Head | None = None
    last: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        learning: frozenset[str] = frozenset(),
        dropout: jax.Array | None = None,
        start: str | None = None,
        stop: str | None = None,
        taps: tuple[str, ...] = (),
        perturbations: Mapping[str, jax.Array] = NOTHING,
        trace: list[Layer] | None = None,
    ) -> ModelOutput:
        """Run the network, or a part of it.

        `x` is RGB [batch, height, width, 3] with values 0..255 (uint8 or float), or with `start` the output of that
        backbone layer. `stop` ends after a layer, `taps` hands out the outputs of named layers, `perturbations` are
        added to them; `trace` collects every layer that ran, in Keras' order. `learning` names the layers that learn:
        batch norms among them go by the batch, and dropout acts behind them by `dropout`, a random key an example
        [batch]. Unknown layer names raise UserError.
        """
        given = None if start is None else x.astype(self.dtype)
        net = Net(
            dtype=self.dtype,
            learning=learning,
            keys=dropout,
            start=start,
            given=given,
            stop=stop,
            taps=taps,
            perturbations=perturbations,
        )
        pixels = PREPROCESSING[self.architecture.preprocessing](x) if start is None else SKIPPED
        features = Backbone(self.architecture, self.head is None, self.last, name="backbone")(net, pixels)
        if self.head is not None:
            NewHead(self.head, name="head")(net, features)
        asked = [name for name in (start, stop, *taps, *perturbations) if name]
        net.require([*asked, *([self.last] if self.last else [])])
        if trace is not None:
            trace.extend(keras_order(net.layers))
        ran = {layer.name for layer in net.layers}
        lost = [name for name in asked if name not in ran]
        if lost or isinstance(net.output, Skipped):
            raise UserError(
                f"layer {lost[0]!r} is not part of the network that runs "
                f"(start={start}, stop={stop}, the base up to {self.last or 'its end'})"
            )
        return ModelOutput(net.output, net.logits, net.tapped)


def forward(
    model: Classifier,
    parameters: Parameters,
    x: jax.Array,
    *,
    start: str | None = None,
    stop: str | None = None,
    taps: tuple[str, ...] = (),
    perturbations: Mapping[str, jax.Array] = NOTHING,
    learning: frozenset[str] = frozenset(),
    dropout: jax.Array | None = None,
) -> ModelOutput:
    """Run `model` (see Classifier.__call__); with `dropout`, a random key an example, it runs as in training."""
    run = partial(
        model.apply,
        _collections(parameters),
        x,
        learning=learning,
        dropout=dropout,
        start=start,
        stop=stop,
        taps=taps,
        perturbations=perturbations,
    )
    if dropout is None:
        return cast(ModelOutput, run())
    result, changed = run(mutable=["batch_stats"])
    return cast(ModelOutput, result)._replace(statistics=changed.get("batch_stats", {}))


def _collections(parameters: Parameters) -> dict[str, Parameters]:
    """The leaves as Flax keeps them, in collections: params, and batch_stats."""

    def having(wanted: bool) -> Parameters:
        return {
            section: {
                layer: {leaf: value for leaf, value in leaves.items() if (leaf in BATCH_STATS) is wanted}
                for layer, leaves in layers.items()
                if any((leaf in BATCH_STATS) is wanted for leaf in leaves)
            }
            for section, layers in parameters.items()
        }

    return {"params": having(False), "batch_stats": having(True)}


def _merged(variables: Any) -> dict[str, dict[str, dict[str, Any]]]:
    """The inverse of `_collections`; leaves in their order in Keras' files."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for collection in ("params", "batch_stats"):
        for section, layers in variables.get(collection, {}).items():
            for layer, leaves in layers.items():
                found.setdefault(section, {}).setdefault(layer, {}).update(leaves)
    return {
        section: {layer: dict(sorted(leaves.items(), key=_file_order)) for layer, leaves in layers.items()}
        for section, layers in found.items()
    }


_LEAVES = ("depthwise_kernel", "pointwise_kernel", "kernel", "scale", "bias", "mean", "var")


def _file_order(item: tuple[str, Any]) -> int:
    return _LEAVES.index(item[0])


def logits_of(model: Classifier, parameters: Parameters, x: jax.Array, *, start: str | None = None) -> jax.Array:
    """Float32 logits [batch, classes]."""
    logits = forward(model, parameters, x, start=start).logits
    assert logits is not None, "a pass without `stop` reaches the softmax"
    return logits


def list_layers(model: Classifier, height: int, width: int) -> list[Layer]:
    """Every layer of `model` for images of that size, in order; nothing is computed."""
    check_input_size(model.architecture, height, width)
    found: list[Layer] = []
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8)
    jax.eval_shape(lambda key, x: model.init(key, x, trace=found), jax.random.key(0), images)
    return found


def param_shapes(model: Classifier, height: int, width: int) -> dict[str, dict[str, dict[str, tuple[int, ...]]]]:
    """section -> layer -> leaf -> shape of every parameter, in the order of Keras' files; nothing is computed.

    Raises UserError if the base ends within a branch, so that another one would lead nowhere.
    """
    check_input_size(model.architecture, height, width)
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    found = _merged(jax.tree.map(lambda leaf: tuple(leaf.shape), variables))
    ordered: dict[str, dict[str, dict[str, tuple[int, ...]]]] = {section: {} for section in found}
    for layer in list_layers(model, height, width):
        if layer.name in found[layer.section]:
            ordered[layer.section][layer.name] = found[layer.section][layer.name]
    if idle := [layer for layer in found["backbone"] if layer not in ordered["backbone"]]:
        raise _within_a_branch(model, idle[0], height, width)
    return ordered


def _within_a_branch(model: Classifier, idle: str, height: int, width: int) -> UserError:
    kept = {layer.name for layer in list_layers(model, height, width) if layer.section == "backbone"}
    clean = [name for name in cut_points(list_layers(model.clone(last=None), height, width)) if name in kept]
    return UserError(
        f"the base cannot end at {model.last!r}, beside which {idle!r} would lead nowhere; set model.output_layer to "
        f"a layer that everything passes through, such as {clean[-1]!r}"
    )


def init_params(model: Classifier, height: int, width: int, key: jax.Array, *, head_only: bool) -> Parameters:
    """Fresh parameters, float32. With `head_only` the base has no part in it: its layers are never created."""
    if not head_only:
        images = jnp.zeros((1, height, width, 3), jnp.uint8)
        return _merged(jax.jit(model.init)(key, images))  # compiled, the forward pass falls away
    base = [layer for layer in list_layers(model, height, width) if layer.section == "backbone"][-1]
    features = jnp.zeros((1, *base.shape), jnp.float32)
    return _merged(jax.jit(partial(model.init, start=base.name))(key, features))


def check_input_size(architecture: ModelSpec, height: int, width: int) -> None:
    """Raise if images of that size are too small for the architecture."""
    if min(height, width) < architecture.minimum_size:
        raise UserError(
            f"images of {height}x{width} are too small for {architecture.name}: "
            f"set data.height and data.width to at least {architecture.minimum_size}"
        )
