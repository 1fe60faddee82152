"""Models as Flax modules with pretrained weights: the entry point for training loops other than flaxtl's own."""

import operator
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from flaxtl.data.decode import height_and_width
from flaxtl.errors import UserError, unknown
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier, Params
from flaxtl.models.head import Head
from flaxtl.models.image_classifier import ImageClassifier
from flaxtl.models.imagenet import imagenet_classes
from flaxtl.models.spec import ModelSpec
from flaxtl.pretrained import backbone

DTYPES = ("float32", "bfloat16")


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of the models that match a pattern, ignoring case and underscores.

    >>> flaxtl.list_models("vgg*")
    ['vgg16', 'vgg19']
    """
    pattern = pattern.lower().replace("_", "")
    return [name for name in registry.MODELS if fnmatchcase(name.replace("_", ""), pattern)]


def create_model(
    name: str | ModelSpec,
    num_classes: int | None = None,
    weights: str | Path | None = "imagenet",
    *,
    skip_layers: str = "",
    input_size: int | tuple[int, int] | None = None,
    include_top: bool = False,
    pooling: str = "global_average",
    units: Sequence[int] = (),
    dropout: float = 0.0,
    normalize: str = "none",
    dtype: Any = "float32",
    seed: int = 0,
    notify: Callable[[str], None] = print,
) -> tuple[ImageClassifier, dict[str, Any]]:
    """Create a model with pretrained weights, as a Flax module and its variables, for your own training loop.

    With `num_classes`, a head follows the backbone and the model returns logits. Without, it returns features. With
    `include_top`, it is the published network, which returns the logits of the 1,000 ImageNet classes.

    The head is new, with random parameters, unless `weights` is a file with a trained head of the same layers and
    shapes, such as the safetensors export of a run: then its parameters are those of the file.

        model, variables = flaxtl.create_model("vgg16", num_classes=5)
        logits = model.apply(variables, images)    # uint8 [n, height, width, 3] -> float32 [n, 5]
        logits, captured = model.apply(variables, images, capture=("block4_pool",))
        logits, updates = model.apply(
            variables, images, train=True, trainable=("head",), mutable=["batch_stats"], rngs={"dropout": key}
        )

    On CPU, large 3x3 convolutions have no forward-mode derivatives (`jax.jvp`, `jax.hessian`); `jax.grad` of `jax.grad`
    works.

    Args:
      name: model name, see `list_models`; Keras' and timm's spellings work too, see `registry.get_spec`. Or the
        `ModelSpec` of a network of your own.
      num_classes: number of classes of the head, at least 1; None: no head.
      weights: 'imagenet' (published; downloaded once), 'builtin' (come with flaxtl), a weight file
        in any format that flaxtl reads, `hf:ORG/REPO[/FILE][@REVISION]` (a safetensors file on the Hugging Face Hub),
        or None (as in a config: 'random') for random weights.
      skip_layers: layers of the weight file to leave out, such as a head that is not to be loaded: a regular
        expression for their names.
      input_size: height and width of the images in pixels, one number if they are equal; None: the size that the
        weights were published for. Only the shape of the head depends on it.
      include_top: whether to create the published network with its own classifier; excludes `num_classes`.
      pooling: of the backbone's features: 'global_average', 'global_max', 'average_2x2' (2x2 windows) or 'none'.
      units: units of the head's hidden layers, with relu.
      dropout: dropout rate after each hidden layer or, without hidden layers, of the features, in [0, 1).
      normalize: of the pooled features, before the head's dense layers: 'none', 'l2', 'layer_norm', 'standardize' or
        'batch_norm', see `flaxtl.models.head.Head`. The statistics of 'standardize' are for you to set, see below.
      dtype: 'float32' or 'bfloat16': dtype of the layers. Parameters, batch norms and logits are always float32.
      seed: seed of the random parameters, 0 to 2**63 - 1.
      notify: called with messages about downloads.

    Returns:
      The module and its variables, `{"params": ..., "batch_stats": ...}`, float32, nested by section ('backbone',
      'head'), layer name and leaf name. `model.apply(variables, images)` takes RGB images [n, height, width, 3] with
      values 0..255, uint8 or float, and preprocesses them itself. It returns logits, float32 [n, num_classes], or
      features, float32: [n, channels] after global pooling, else [n, rows, columns, channels].
      With `normalize="standardize"`, `variables["batch_stats"]["head"]["normalize"]` holds `mean` and `var` of the
      features, 0 and 1 at first: set them to those of `extract_features(model, variables, images, layer="flatten")`.
      `model.default_groups` are rules for `flaxtl.param_groups`, `model.input_size` is (height, width).
      For the other arguments of the call, see `flaxtl.models.image_classifier.ImageClassifier`.

    Raises:
      UserError: an unknown model, pooling or dtype; an argument of another type; weights that do not exist or do not
        fit; a weight file with a trained head that does not fit; images too small for the model; `include_top` with
        another number of classes than 1,000; `units`, `dropout` or `normalize` for a model without a head; or `pooling`
        with `include_top`.
    """
    spec = name if isinstance(name, ModelSpec) else registry.get_spec(str(name))
    size = _image_size(spec, input_size)
    num_classes = None if num_classes is None else _integer("num_classes", num_classes)
    units = _head_units(units)
    if include_top or num_classes is None:
        _check_no_head({"units": (units, ()), "dropout": (dropout, 0), "normalize": (normalize, "none")})
    if include_top:  # features are pooled, too
        _check_no_head({"pooling": (pooling, "global_average")})
    network = Classifier(
        spec,
        None if include_top else Head(num_classes or 1, pooling, units, dropout, normalize),
        dtype=jnp.dtype(_dtype_name(dtype)),
    )
    if include_top:
        _check_top(network, num_classes, size)
    output_layer = None
    if num_classes is None and not include_top:
        output_layer = _feature_layer(network, size)
    elif num_classes is not None and num_classes < 1:
        raise UserError(f"num_classes is {num_classes}. Give 1 or more, or None for a model without a head.")
    model = ImageClassifier(network, size, output_layer)
    key = jax.random.key(_seed(seed))
    if weights in (None, "random"):
        if skip_layers:
            raise UserError(f"skip_layers={skip_layers!r} leaves out layers of a weight file. Give one as weights.")
        params = classifier.init_params(network, *size, key, head_only=False)
    else:
        params = _load_params(model, str(weights), key, skip_layers, notify)
    if output_layer:  # the head is a placeholder
        params = {"backbone": params["backbone"]}
    return model, classifier.to_variables(params)


def _load_params(
    model: ImageClassifier, weights: str, key: jax.Array, skip_layers: str, notify: Callable[[str], None]
) -> Params:
    """Return pretrained parameters; those of a head are random if the weights have none."""
    network, size = model.classifier, model.input_size
    head = {} if model.output_layer else classifier.param_shapes(network, *size).get("head", {})
    loaded = backbone.load_params(network, weights, notify, head=head, skip_layers=skip_layers)
    params: Params = _copy_to_device(loaded)
    if head and "head" not in params:
        params |= classifier.init_params(network, *size, key, head_only=True)
    return params


@jax.jit
def _copy_to_device(params: Any) -> Any:
    """Copy arrays to where random parameters are created, in one program; jnp.asarray compiles one for each shape."""
    return jax.tree.map(jnp.copy, params)


def _integer(argument: str, value: Any) -> int:
    """Return an integer of Python or NumPy as an int. Raises UserError for anything else."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise UserError(f"{argument} is {value!r}. Give an integer.") from error


def _seed(value: Any) -> int:
    seed = _integer("seed", value)
    if not 0 <= seed < 2**63:
        raise UserError(f"seed is {seed}. Give an integer from 0 to 2**63 - 1.")
    return seed


def _check_no_head(arguments: Mapping[str, tuple[Any, Any]]) -> None:
    """Raise UserError if an argument of the head is given for a model without one, where it would have no effect.

    Args:
      arguments: name -> value, default.
    """
    for name, (value, default) in arguments.items():
        if value != default:
            raise UserError(
                f"{name}={value!r} is an argument of the head, and the model has none. Leave it out, or give "
                "num_classes, without include_top, for a new head."
            )


def _head_units(units: Any) -> tuple[int, ...]:
    try:
        return tuple(map(operator.index, units))
    except TypeError as error:
        raise UserError(f"units is {units!r}. Give a sequence of integers, such as (128,), or () for none.") from error


def _image_size(spec: ModelSpec, input_size: Any) -> tuple[int, int]:
    """Return height and width. Raises UserError if `input_size` is neither, or too small."""
    height, width = height_and_width("input_size", spec.input_size if input_size is None else input_size)
    classifier.check_input_size(spec, height, width)
    return height, width


def _dtype_name(dtype: Any) -> str:
    try:
        name = "None" if dtype is None else str(jnp.dtype(dtype))  # NumPy takes None for float64
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    return name


def _check_top(network: Classifier, num_classes: int | None, size: tuple[int, int]) -> None:
    """Raise UserError if the published network has another number of classes, or accepts no images of that size."""
    published = len(imagenet_classes())
    if num_classes not in (None, published):
        raise UserError(
            f"include_top=True is the published network with its {published:,} classes, not {num_classes}. Leave out "
            "include_top for a new head."
        )
    side = network.spec.input_size
    if classifier.param_shapes(network, *size) != classifier.param_shapes(network, side, side):
        raise UserError(
            f"With its top, {network.spec.name} accepts only images of {side}x{side}. Leave out input_size={size}."
        )


def _feature_layer(network: Classifier, size: tuple[int, int]) -> str:
    """Return the layer that the head's dense layers would read: its pooling, or else the last of the backbone."""
    layers = classifier.list_layers(network, *size)
    pools = [layer.name for layer in layers if (layer.section, layer.name) == ("head", "pool")]
    return pools[0] if pools else [layer.name for layer in layers if layer.section == "backbone"][-1]
