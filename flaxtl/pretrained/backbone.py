"""The first parameters of a run: a pretrained base, checked leaf by leaf, under a fresh head."""

from collections.abc import Callable, Collection, KeysView
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.table import Table

from flaxtl import pretrained
from flaxtl.console import make_table
from flaxtl.errors import UserError
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier, FlatParams
from flaxtl.models.head import Head
from flaxtl.models.spec import ModelSpec
from flaxtl.pretrained import download, safetensors_io
from flaxtl.pretrained.convert import adapt_preprocessing
from flaxtl.pretrained.loader import LoadedWeights, load_timm_weights, load_weights
from flaxtl.pretrained.merge import ExpectedShapes

BUILTIN = Path(pretrained.__file__).parent / "builtin"


class InitialParams(NamedTuple):
    """Parameters by path, and where the base's values came from."""

    parameters: FlatParams
    origin: str


def initial_params(config: Any, model: Classifier, say: Callable[[str], None]) -> InitialParams:
    """The parameters a run starts from: float32, on the default device."""
    data = config.data
    key = jax.random.key(config.seed)
    request = str(config.weights.path)
    if request == "random":
        fresh = classifier.init_params(model, data.height, data.width, key, head_only=False)
        return InitialParams(classifier.flatten_params(fresh), "random")
    found = load_backbone(model, request, say)
    head = classifier.init_params(model, data.height, data.width, key, head_only=True)
    base = {layer: {leaf: jnp.asarray(array) for leaf, array in leaves.items()} for layer, leaves in found.tree.items()}
    return InitialParams(classifier.flatten_params({"backbone": base, **head}), found.origin)


def load_backbone(
    model: Classifier, request: str, say: Callable[[str], None], option: str = "--config.weights.path"
) -> LoadedWeights:
    """Weights for the model's backbone from `request`, which was given by `option`: imagenet, builtin or a file.

    A base is in the published file with the top too: that one is taken where a cache has it and not the smaller one.
    """
    architecture = model.spec
    base, top = architecture.weights_no_top, architecture.weights
    if model.head is None or (download.is_cached(top.name) and not download.is_cached(base.name)):
        base = top
    builtin = BUILTIN / architecture.builtin if model.head is not None and architecture.builtin else None
    located = download.resolve_weights(
        request, filename=base.name, url=base.url, hash=base.hash, builtin=builtin, say=say, option=option
    )
    loaded = load_weights(located.path, expected_shapes(model), optional_layers(architecture), trusted=located.trusted)
    return replace(loaded, origin=f"{located.path.name} ({located.origin})")


def headless_model(architecture: ModelSpec) -> Classifier:
    """The published network without its own top, under a head that only pools."""
    return Classifier(architecture, Head(num_classes=1, pooling="global_average", units=()))


def expected_shapes(model: Classifier) -> dict[str, dict[str, tuple[int, ...]]]:
    """layer -> leaf -> shape of the backbone; a classifier's own top has the shape for the published image size."""
    size = model.spec.input_size
    return classifier.param_shapes(model, size, size)["backbone"]


def optional_layers(architecture: ModelSpec) -> KeysView[str]:
    """Every layer of the whole published network, in Keras' order: a file may hold more of them than a base needs."""
    return expected_shapes(Classifier(architecture)).keys()


def convert_weights_file(name: str, source: Path, output: Path, *, timm: bool = False) -> Table:
    """Write `source` to `output`, with the network's own top if the file holds it; returns what went where.

    With `timm` it is a file of PyTorch's, made for its preprocessing: the first layer takes on the difference.
    """
    architecture = registry.get_spec(name)

    def read(expected: ExpectedShapes, optional: Collection[str] = frozenset()) -> LoadedWeights:
        if not timm:
            return load_weights(source, expected, optional)
        loaded = load_timm_weights(source, architecture.name, expected, optional)
        return replace(loaded, tree=adapt_preprocessing(loaded.tree, "torch", architecture.preprocessing))

    whole = Classifier(architecture)
    loaded = read(expected_shapes(headless_model(architecture)), optional_layers(architecture))
    if any(row.fate == "skipped" for row in loaded.rows):
        loaded = read(expected_shapes(whole))
    _write_converted(output, loaded, {"architecture": name, "source": source.name, "licence": architecture.license})
    columns = ("layer", "weight", "shape", "in the file as", "type")
    cells = [(row.layer, row.leaf, "x".join(map(str, row.shape)), row.stored_as, row.dtype) for row in loaded.rows]
    count = sum(array.size for leaves in loaded.tree.values() for array in leaves.values())
    return make_table(f"{source} ({loaded.origin}) -> {output}: {count:,} parameters", columns, cells)


def _write_converted(output: Path, loaded: LoadedWeights, metadata: dict[str, str]) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        safetensors_io.write_safetensors(output, loaded.tree, metadata)
    except OSError as error:
        raise UserError(f"cannot write {output} ({error.strerror}); choose another --output") from error
