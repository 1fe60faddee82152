"""A model as one function of images: preprocessing, backbone and head."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cache, lru_cache, partial
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

Leaf = TypeVar("Leaf")
NestedParams = dict[str, dict[str, dict[str, Leaf]]]
"""section ('backbone' or 'head') -> layer name -> leaf name -> value."""

Params = NestedParams[jax.Array]
"""All variables of a model: parameters and the batch statistics of its batch norms, float32."""

FlatParams = dict[str, jax.Array]
"""'section/layer/leaf' -> array, such as 'backbone/block5_conv3/kernel'."""

BATCH_STATS = frozenset({"mean", "var"})
"""Names of the leaves that are batch statistics, updated by batch norms and not by gradients."""

LEAF_ORDER = (
    *("depthwise_kernel", "pointwise_kernel", "kernel", "scale", "bias", "mean", "var"),
    *("token", "pos_embedding"),
)
"""Order of a layer's leaves in Keras' weight files; the last two are those of a ViT."""

NO_PERTURBATIONS: Mapping[str, jax.Array] = MappingProxyType({})


class ModelOutput(NamedTuple):
    """Result of a forward pass.

    Attributes:
      output: output of the last layer that ran.
      logits: float32 [batch, classes]; None if the softmax was not reached.
      taps: layer name -> output.
      batch_stats: updated batch statistics of all batch norms; empty in inference.
    """

    output: jax.Array
    logits: jax.Array | None
    taps: dict[str, jax.Array]
    batch_stats: Params = {}  # noqa: RUF012 - never written to


class Backbone(nn.Module):
    """The pretrained network without its top, or with `include_top` the whole published network.

    Layers after `output_layer` do not exist.
    """

    spec: ModelSpec
    include_top: bool
    output_layer: str | None

    @nn.compact
    def __call__(self, net: Net, x: Value) -> Value:
        """Run the layers; returns the output of the last one that ran, the input of a head."""
        net.begin_section("backbone", self.output_layer)
        self.spec.build(net, x, self.include_top)
        if self.output_layer:
            net.check_names([self.output_layer])  # before those of the head
        return SKIPPED if net.stopped else net.output


class HeadModule(nn.Module):
    """Module that owns the parameters of a head."""

    head: Head

    @nn.compact
    def __call__(self, net: Net, x: Value) -> None:
        """Run the layers of the head on features [batch, height, width, channels]."""
        net.begin_section("head")
        self.head.build(net, x)


class Classifier(nn.Module):
    """An image classifier: a backbone, cut after `output_layer` (None: not cut), and a new `head`.

    Without a head it is the published network with its 1,000 ImageNet classes. `precision` is that of all products, in
    the gradient too: 'default' (see `jax.default_matmul_precision`), 'high' or 'highest'.
    """

    spec: ModelSpec
    head: Head | None = None
    output_layer: str | None = None
    dtype: Any = jnp.float32
    precision: str = "default"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train_layers: frozenset[str] = frozenset(),
        dropout_keys: jax.Array | None = None,
        start: str | None = None,
        stop: str | None = None,
        taps: tuple[str, ...] = (),
        perturbations: Mapping[str, jax.Array] = NO_PERTURBATIONS,
        num_chunks: int = 1,
        trace: list[Layer] | None = None,
    ) -> ModelOutput:
        """Run the model, or a part of it.

        Args:
          x: RGB images [batch, height, width, 3] with values 0..255 (uint8 or float), or the output of layer `start`.
          train_layers: names of the layers in train mode. Their batch norms normalize by the batch, and dropout is
            active after them.
          dropout_keys: random keys [batch], one per example; may be None if no dropout layer is in train mode.
          start: backbone layer whose output is `x`; it and the layers below it are skipped.
          stop: last layer to run.
          taps: names of the layers whose outputs are returned.
          perturbations: layer name -> array that is added to the output of the layer.
          num_chunks: number of batches like `x` that the program runs; more of them repay a longer compilation.
          trace: list that every layer that runs is appended to, in Keras' order.

        Raises:
          UserError: a layer does not exist, or is not part of what runs; or dropout in train mode without keys.
        """
        net = Net(
            dtype=self.dtype,
            train_layers=train_layers,
            dropout_keys=dropout_keys,
            start=start,
            start_value=None if start is None else x.astype(self.dtype),
            stop=stop,
            taps=taps,
            perturbations=perturbations,
            num_chunks=num_chunks,
        )
        pixels = PREPROCESSING[self.spec.preprocessing](x) if start is None else SKIPPED
        with nullcontext() if self.precision == "default" else jax.default_matmul_precision(self.precision):
            features = Backbone(self.spec, self.head is None, self.output_layer, name="backbone")(net, pixels)
            if self.head is not None:
                HeadModule(self.head, name="head")(net, features)
        self._check_layers(net)
        if trace is not None:
            trace.extend(keras_order(net.layers))
        assert not isinstance(net.output, Skipped)
        return ModelOutput(net.output, net.logits, net.tapped)

    def _check_layers(self, net: Net) -> None:
        """Raise UserError if a layer that the caller named does not exist or did not run."""
        named = [name for name in (net.start, net.stop, *net.taps, *net.perturbations) if name]
        net.check_names(named)
        executed = {layer.name for layer in net.layers}
        if missing := [name for name in named if name not in executed]:
            raise UserError(
                f"Layer {missing[0]!r} is not part of the network that runs "
                f"(start={net.start}, stop={net.stop}, backbone up to {self.output_layer or 'its last layer'})."
            )


def forward(
    model: Classifier,
    params: Params,
    x: jax.Array,
    *,
    start: str | None = None,
    stop: str | None = None,
    taps: tuple[str, ...] = (),
    perturbations: Mapping[str, jax.Array] = NO_PERTURBATIONS,
    train_layers: frozenset[str] = frozenset(),
    dropout_keys: jax.Array | None = None,
) -> ModelOutput:
    """Run `model` (see `Classifier.__call__`); with `dropout_keys` as in training, with updated batch statistics."""
    apply = partial(
        model.apply,
        to_variables(params),
        x,
        train_layers=train_layers,
        dropout_keys=dropout_keys,
        start=start,
        stop=stop,
        taps=taps,
        perturbations=perturbations,
    )
    if dropout_keys is None:
        return cast(ModelOutput, apply())
    result, updates = apply(mutable=["batch_stats"])
    return cast(ModelOutput, result)._replace(batch_stats=updates.get("batch_stats", {}))


def forward_logits(model: Classifier, params: Params, x: jax.Array, *, start: str | None = None) -> jax.Array:
    """Return the float32 logits [batch, classes] in inference mode."""
    logits = forward(model, params, x, start=start).logits
    assert logits is not None, "without `stop` the softmax is reached"
    return logits


def list_layers(model: Classifier, height: int, width: int) -> list[Layer]:
    """Return the layers of `model` for images of that size, in Keras' order. Nothing is computed."""
    check_input_size(model.spec, height, width)
    return list(_trace(model, height, width).layers)


def param_shapes(model: Classifier, height: int, width: int) -> NestedParams[tuple[int, ...]]:
    """Return the shape of every parameter, in the order of Keras' weight files. Nothing is computed.

    Raises:
      UserError: the backbone ends before its first parameter, or inside a branch, so that the output of another branch
        would be unused.
    """
    check_input_size(model.spec, height, width)
    layers, shapes = _trace(model, height, width)
    if "backbone" not in shapes:
        raise UserError(f"No layer up to {model.output_layer!r} has parameters. Choose a later model.output_layer.")
    ordered: NestedParams[tuple[int, ...]] = {section: {} for section in shapes}
    for layer in layers:
        if layer.name in shapes[layer.section]:
            ordered[layer.section][layer.name] = dict(shapes[layer.section][layer.name])
    if unused := [name for name in shapes["backbone"] if name not in ordered["backbone"]]:
        below = {layer.name for layer in layers if layer.section == "backbone"}
        whole = list_layers(model.clone(output_layer=None), height, width)
        suggestion = [name for name in cut_points(whole) if name in below][-1]
        raise UserError(
            f"The backbone cannot end at layer {model.output_layer!r}: layer {unused[0]!r}, in another branch, would "
            f"be unused. Set model.output_layer to a layer that all paths pass through, such as {suggestion!r}."
        )
    return ordered


class _Trace(NamedTuple):
    layers: tuple[Layer, ...]
    shapes: NestedParams[tuple[int, ...]]  # in any order, and also of layers that nothing reads


@lru_cache(maxsize=32)  # every command needs the result several times, and a deep network takes seconds
def _trace(model: Classifier, height: int, width: int) -> _Trace:
    layers: list[Layer] = []
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.uint8)
    variables = jax.eval_shape(lambda key, x: model.init(key, x, trace=layers), jax.random.key(0), images)
    return _Trace(tuple(layers), _from_variables(jax.tree.map(lambda leaf: tuple(leaf.shape), variables)))


def init_params(model: Classifier, height: int, width: int, key: jax.Array, *, head_only: bool) -> Params:
    """Return new float32 parameters, of the head only or of the whole model."""
    if not head_only:
        return _from_variables(_make_init(model)(key, jnp.zeros((1, height, width, 3), jnp.uint8)))
    last = [layer for layer in list_layers(model, height, width) if layer.section == "backbone"][-1]
    return _from_variables(_make_init(model, last.name)(key, jnp.zeros((1, *last.shape), jnp.float32)))


@cache
def _make_init(model: Classifier, start: str | None = None) -> Callable[[jax.Array, jax.Array], Any]:
    """Return the jitted (key, input) -> Flax variables of the layers above `start`; None: of all layers.

    One program of all layers drops the forward pass, which is unused. It takes seconds to compile, so it is kept.
    """
    return jax.jit(partial(model.init, start=start))


def check_input_size(spec: ModelSpec, height: int, width: int) -> None:
    """Raise UserError if images of that size are too small for the model."""
    if min(height, width) < spec.min_input_size:
        raise UserError(
            f"Images of {height}x{width} are too small for {spec.name}. "
            f"Height and width (data.height and data.width in a config) must be at least {spec.min_input_size}."
        )


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


def cast_for_compute(params: FlatParams, model: Classifier) -> FlatParams:
    """Return all parameters in the dtype that the model converts them to, so that no step has to do it again.

    Batch norms, layer norms and the last layer compute in float32, so theirs stay as they are.
    """
    leaves: dict[str, set[str]] = {}
    for path in params:
        layer, _, leaf = path.rpartition("/")
        leaves.setdefault(layer, set()).add(leaf)
    in_float32 = {layer for layer, names in leaves.items() if names & BATCH_STATS or {"scale", "bias"} <= names}
    in_float32.add("head/predictions")
    return {
        path: value if path.rpartition("/")[0] in in_float32 else value.astype(model.dtype)
        for path, value in params.items()
    }


def to_variables(params: Params) -> dict[str, Params]:
    """Split the leaves into Flax's collections `params` and `batch_stats`."""
    flat = flatten_params(params)
    batch_stats = {path: value for path, value in flat.items() if path.rsplit("/", 1)[1] in BATCH_STATS}
    trainable = {path: value for path, value in flat.items() if path not in batch_stats}
    return {"params": unflatten_params(trainable), "batch_stats": unflatten_params(batch_stats)}


def _from_variables(variables: Any) -> NestedParams[Any]:
    """Merge Flax's collections `params` and `batch_stats`; the leaves of a layer are in LEAF_ORDER."""
    merged: NestedParams[Any] = {}
    for collection in ("params", "batch_stats"):
        for section, layers in variables.get(collection, {}).items():
            for layer, leaves in layers.items():
                merged.setdefault(section, {}).setdefault(layer, {}).update(leaves)
    return {
        section: {
            layer: dict(sorted(leaves.items(), key=lambda leaf: LEAF_ORDER.index(leaf[0])))
            for layer, leaves in layers.items()
        }
        for section, layers in merged.items()
    }
