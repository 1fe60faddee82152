"""Pretrained weights of a backbone: find and load them, and convert a weight file."""

from collections.abc import Callable, Collection, KeysView
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from flaxtl.console import make_table
from flaxtl.errors import UserError, join_names
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier, FlatParams, NestedParams
from flaxtl.models.head import Head
from flaxtl.models.spec import ModelSpec
from flaxtl.pretrained import download, hub, safetensors_io
from flaxtl.pretrained.convert import adapt_preprocessing
from flaxtl.pretrained.download import ResolvedWeights
from flaxtl.pretrained.loader import (
    LoadedWeights,
    load_timm_weights,
    load_weights,
    load_weights_with_head,
    skip_pattern,
)
from flaxtl.pretrained.merge import ExpectedShapes, ParamTree
from flaxtl.pretrained.timm import pytorch_preprocessing

BUILTIN_DIR = Path(__file__).parent / "builtin"

PUBLISHED = ("imagenet", "builtin")
"""Values of `weights.path` that stand for a published file of the model."""

OTHER_SUFFIXES = (".h5", ".keras", ".npz", ".onnx")
"""Suffixes of files of weights that `flaxtl convert` reads and does not write."""


class InitialParams(NamedTuple):
    """The parameters that a run starts from, and where those of the backbone came from."""

    params: FlatParams
    source: str


def initial_params(config: Any, model: Classifier, notify: Callable[[str], None]) -> InitialParams:
    """Return a pretrained (or, with weights.path=random, random) backbone under a new head.

    All parameters are float32, on the default device, and a function of the config alone. `notify` receives messages
    about downloads.
    """
    height, width = config.data.height, config.data.width
    key = jax.random.key(config.seed)
    weights = str(config.weights.path)
    if weights == "random":
        params = classifier.init_params(model, height, width, key, head_only=False)
        return InitialParams(classifier.flatten_params(params), "random")
    loaded, source = load_backbone(model, weights, notify, skip_layers=config.weights.skip_layers)
    backbone = jax.device_put(loaded, may_alias=False)  # jnp.asarray would compile a copy for each shape
    head = classifier.init_params(model, height, width, key, head_only=True)
    return InitialParams(classifier.flatten_params({"backbone": backbone, **head}), source)


def check_weights(model: Classifier, weights: str, skip_layers: str = "") -> None:
    """Raise UserError for a file that does not exist, `builtin` weights of a model without any, or a wrong pattern.

    Arguments are those of `load_backbone`. Nothing is read or downloaded.
    """
    skip_pattern(skip_layers)
    if weights not in ("random", "imagenet") and not hub.is_hub_reference(weights):
        _find_file(model, weights, notify=lambda text: None, option="--config.weights.path")


def load_backbone(
    model: Classifier,
    weights: str,
    notify: Callable[[str], None],
    option: str = "--config.weights.path",
    *,
    skip_layers: str = "",
) -> tuple[ParamTree, str]:
    """Load the weights of the model's backbone.

    The published file with the top contains the base as well. It is used if only that one is in a cache.

    Args:
      model: the model. Without a head, it is loaded with its own ImageNet top.
      weights: 'imagenet', 'builtin' or the path of a file.
      notify: receives messages about downloads, and about layers of the user's file that the model does not have.
      option: the command-line option that `weights` comes from, for error messages.
      skip_layers: a regular expression for layers of the file that are left out; see `load_weights`.

    Returns:
      The parameters, and where they came from.
    """
    resolved = _find_file(model, weights, notify, option)
    loaded = load_weights(
        resolved.path,
        expected_shapes(model),
        optional_layers(model.spec),
        skip_layers=skip_layers,
        trusted=resolved.trusted,
    )
    skipped = dict.fromkeys(row.layer for row in loaded.rows if row.status == "skipped")
    if skipped and weights not in PUBLISHED:  # flaxtl chooses a published file, and may leave its top out
        notify(f"{resolved.path.name}: {join_names(skipped)} not loaded; the model does not have these layers.")
    return loaded.params, f"{resolved.path.name} ({resolved.source})"


def load_params(
    model: Classifier,
    weights: str,
    notify: Callable[[str], None],
    *,
    head: ExpectedShapes,
    skip_layers: str = "",
) -> NestedParams[NDArray[np.float32]]:
    """Load the weights of the model's backbone and, from a file that holds one of these shapes, a trained head.

    Args:
      model: the model. Without a head, it is loaded with its own ImageNet top.
      weights: as in `load_backbone`; 'imagenet' and 'builtin' have no trained head.
      notify: receives messages about downloads.
      head: the parameters of the model's head; empty if it has none, or none is to be loaded.
      skip_layers: a regular expression for layers of the file that are left out; see `load_weights`.

    Returns:
      Section -> layer -> leaf -> array; section 'head' only if the file holds it.

    Raises:
      UserError: the file does not fit the backbone, or holds another head than the model.
    """
    resolved = _find_file(model, weights, notify, option="weights")
    backbone, is_published = expected_shapes(model), weights in PUBLISHED
    loaded = load_weights_with_head(
        resolved.path,
        backbone,
        {} if is_published else head,
        published=expected_shapes(Classifier(model.spec)),
        skip_layers=skip_layers,
        trusted=resolved.trusted,
    )
    sections: NestedParams[NDArray[np.float32]] = {}
    for layer, leaves in loaded.items():
        sections.setdefault("backbone" if layer in backbone else "head", {})[layer] = leaves
    return sections


def _find_file(model: Classifier, weights: str, notify: Callable[[str], None], option: str) -> ResolvedWeights:
    spec = model.spec
    file, builtin = spec.weights_no_top, BUILTIN_DIR / spec.builtin if spec.builtin else None
    if model.head is None:
        file, builtin = spec.weights, None
    elif download.cached_files(spec.weights.name) and not download.cached_files(file.name):
        file = spec.weights
    return download.resolve_weights(
        weights, filename=file.name, url=file.url, hash=file.hash, builtin=builtin, notify=notify, option=option
    )


def expected_shapes(model: Classifier) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return layer -> leaf -> shape of the backbone at the published image size, which decides the shape of a top."""
    size = model.spec.input_size
    return classifier.param_shapes(model, size, size)["backbone"]


def optional_layers(spec: ModelSpec) -> KeysView[str]:
    """Return all layers of the published model, in Keras' order: a file may hold more of them than a base needs."""
    return expected_shapes(Classifier(spec)).keys()


def headless_model(spec: ModelSpec) -> Classifier:
    """Return the published model without its top; its head is a placeholder."""
    return Classifier(spec, Head(num_classes=1, pooling="global_average", units=()))


def convert_weights_file(name: str, source: Path, output: Path, *, timm: bool = False, skip_layers: str = "") -> Table:
    """Convert a weight file to flaxtl's safetensors format. The ImageNet top is kept if the file has it.

    Args:
      name: the model that the weights belong to.
      source: a file in any format that `load_weights` reads.
      output: the safetensors file to write.
      timm: whether `source` has the layer names of timm or torchvision. Then its first layer is adapted from PyTorch's
        preprocessing to the model's.
      skip_layers: a regular expression for layers of the file that are left out; see `load_weights`.

    Raises:
      UserError: among others, `output` has the suffix of another format, or `skip_layers` is given for a file with the
        names of timm.

    Returns:
      A table with one row per array of the file.
    """
    spec = registry.get_spec(name)
    if output.suffix in OTHER_SUFFIXES:
        raise UserError(f"--output={output} would hold safetensors. Give a name that ends in .safetensors.")
    if output.resolve() == source.resolve():
        raise UserError(f"--output={output} is the file that is read. Choose another file.")
    if timm and skip_layers:
        raise UserError("--skip-layers applies to files with Keras' layer names. Leave it out, or omit --layout=timm.")

    def load(expected: ExpectedShapes, optional: Collection[str] = frozenset()) -> LoadedWeights:
        if timm:
            return load_timm_weights(source, spec.name, expected, optional)
        return load_weights(source, expected, optional, skip_layers=skip_layers)

    with_top = expected_shapes(Classifier(spec))
    loaded = load(expected_shapes(headless_model(spec)), with_top.keys())
    if any(row.status == "skipped" for row in loaded.rows):
        loaded = load(with_top)
    trained_with = pytorch_preprocessing(spec.name) if timm else spec.preprocessing
    params = adapt_preprocessing(loaded.params, trained_with, spec.preprocessing)
    _write_converted(output, params, {"architecture": spec.name, "source": source.name, "license": spec.license})
    columns = ("layer", "parameter", "shape", "stored as", "dtype")
    cells = [(row.layer, row.leaf, "x".join(map(str, row.shape)), row.stored_as, row.dtype) for row in loaded.rows]
    count = sum(array.size for leaves in params.values() for array in leaves.values())
    return make_table(f"{source} ({loaded.format}) -> {output}: {count:,} parameters", columns, cells)


def _write_converted(output: Path, params: ParamTree, metadata: dict[str, str]) -> None:
    try:
        safetensors_io.write_safetensors(output, params, metadata)
    except OSError as error:
        raise UserError(f"Cannot write {output} ({error.strerror}). Choose another --output.") from error
