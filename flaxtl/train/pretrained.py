"""The first parameters of a run: a pretrained base, checked leaf by leaf, under a fresh head."""

from collections.abc import Callable, KeysView
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxtl import weights
from flaxtl.models import classifier
from flaxtl.models.architecture import Architecture
from flaxtl.models.classifier import Classifier
from flaxtl.models.head import Head
from flaxtl.train import groups
from flaxtl.train.groups import Flat
from flaxtl.train.setup import Network
from flaxtl.weights import fetch
from flaxtl.weights.load import Loaded, load

BUILTIN = Path(weights.__file__).parent / "builtin"


class Start(NamedTuple):
    """Parameters by path, and where the base's values came from."""

    parameters: Flat
    origin: str


def parameters(config: Any, network: Network, say: Callable[[str], None]) -> Start:
    """The parameters a run starts from: float32, on the default device."""
    data, model = config.data, network.model
    key = jax.random.key(config.seed)
    request = str(config.weights.path)
    if request == "random":
        fresh = classifier.initialise(model, data.height, data.width, key, head_only=False)
        return Start(groups.flatten(fresh), "random")
    found = load_base(model, request, say)
    head = classifier.initialise(model, data.height, data.width, key, head_only=True)
    base = {layer: {leaf: jnp.asarray(array) for leaf, array in leaves.items()} for layer, leaves in found.tree.items()}
    return Start(groups.flatten({"backbone": base, **head}), found.origin)


def load_base(
    model: Classifier, request: str, say: Callable[[str], None], option: str = "--config.weights.path"
) -> Loaded:
    """Weights for the model's backbone from `request`, which was given by `option`: imagenet, builtin or a file.

    A base is in the published file with the top too: that one is taken where a cache has it and not the smaller one.
    """
    architecture = model.architecture
    base, top = architecture.file_base, architecture.file_with_top
    if model.head is None or (fetch.cached(top.name) and not fetch.cached(base.name)):
        base = top
    builtin = BUILTIN / architecture.builtin_base if model.head is not None and architecture.builtin_base else None
    located = fetch.locate(
        request, filename=base.name, url=base.url, hash=base.hash, builtin=builtin, say=say, option=option
    )
    loaded = load(located.path, expected_shapes(model), optional_layers(architecture), trusted=located.trusted)
    return replace(loaded, origin=f"{located.path.name} ({located.origin})")


def base_of(architecture: Architecture) -> Classifier:
    """The published network without its own top, under a head that only pools."""
    return Classifier(architecture, Head(classes=1, pooling="global_average", units=()))


def expected_shapes(model: Classifier) -> dict[str, dict[str, tuple[int, ...]]]:
    """layer -> leaf -> shape of the backbone; a classifier's own top has the shape for the published picture size."""
    size = model.architecture.size
    return classifier.shapes(model, size, size)["backbone"]


def optional_layers(architecture: Architecture) -> KeysView[str]:
    """Every layer of the whole published network, in Keras' order: a file may hold more of them than a base needs."""
    return expected_shapes(Classifier(architecture)).keys()
