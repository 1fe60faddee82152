"""A published network, opened to look at pictures: with its 1,000 ImageNet classes, or its base alone for features."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxtl.data.decode import Resize
from flaxtl.errors import UserError, unknown
from flaxtl.models import catalog, classifier, imagenet
from flaxtl.models.architecture import Architecture
from flaxtl.models.classifier import Classifier
from flaxtl.results.predict import Predictor
from flaxtl.train import compiled
from flaxtl.train.pretrained import base_of, load_base


class Published(NamedTuple):
    """A published network and, in words, which weights it has."""

    predictor: Predictor
    origin: str


def open_network(name: str, request: str, taps: Sequence[str], classify: bool, say: Callable[[str], None]) -> Published:
    """The network `name` of the catalog with weights from `request`: 'imagenet', 'builtin' or a file.

    Where `classify` is false and every layer of `taps` lies in the base, the base alone is loaded and run.
    Raises UserError for unknown layers, and where there are no weights that fit.
    """
    if request == "random":
        raise UserError("random weights know no classes; leave --weights out for the published ones, or give a file")
    architecture = catalog.find(name)
    whole, base = Classifier(architecture), base_of(architecture)
    layers, inner = _backbone(whole), _backbone(base)
    for tap in taps:
        if tap not in layers:
            raise unknown("layer", tap, layers)
    alone = not classify and set(taps) <= set(inner)
    model = base if alone else whole
    compiled.keep()
    loaded = load_base(model, request, say, option="--weights")
    classes = () if alone else imagenet.classes()
    predictor = Predictor(
        model,
        {"backbone": jax.tree.map(jnp.asarray, loaded.tree)},
        evaluation(architecture),
        classes=tuple(each.name for each in classes),
        wordnet_ids=tuple(each.wordnet_id for each in classes),
        stop=inner[-1] if alone else None,
    )
    return Published(predictor, loaded.origin)


def _backbone(model: Classifier) -> list[str]:
    """The names of the backbone's layers, the one that gives its output last."""
    size = model.architecture.size
    return [layer.name for layer in classifier.layers(model, size, size) if layer.section == "backbone"]


def evaluation(architecture: Architecture) -> Resize:
    """How pictures come to the network's own size, as where its published accuracy was measured.

    The shorter side to 8/7 of it (256 for 224), bicubic, then the centre crop: taehoonlee in
    github.com/keras-team/keras-applications/issues/99. A squash with Keras' default, nearest, costs VGG16 some points.
    """
    return Resize(architecture.size, architecture.size, policy="crop", filter="bicubic")
