"""All models by name. The entries are at the end of each family's module."""

import re

from flaxtl.errors import unknown
from flaxtl.models import (
    alexnet,
    convnext,
    densenet,
    efficientnet,
    efficientnet_v2,
    googlenet,
    inception,
    mobilenet,
    mobilenet_v2,
    mobilenet_v3,
    nasnet,
    resnet,
    vgg,
    xception,
)
from flaxtl.models.spec import ModelSpec

FAMILIES = (
    alexnet,
    vgg,
    googlenet,
    resnet,
    densenet,
    inception,
    xception,
    mobilenet,
    mobilenet_v2,
    mobilenet_v3,
    nasnet,
    efficientnet,
    efficientnet_v2,
    convnext,
)

MODELS: dict[str, ModelSpec] = {spec.name: spec for family in FAMILIES for spec in family.MODELS}


def get_spec(name: str) -> ModelSpec:
    """Return the model called `name`, ignoring case, hyphens and underscores ('EfficientNetV2B0').

    Raises:
      UserError: there is no such model; the message suggests similar names.
    """
    for spec in MODELS.values():
        if _normalize(spec.name) == _normalize(name):
            return spec
    raise unknown("model", name, MODELS)


def _normalize(name: str) -> str:
    return re.sub("[-_]", "", name.lower())
