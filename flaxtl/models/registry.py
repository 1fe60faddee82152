"""Every architecture by its name; what is true of each stands at the end of its family's file."""

import re

from flaxtl.errors import unknown
from flaxtl.models import (
    alexnet,
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
)

MODELS: dict[str, ModelSpec] = {row.name: row for family in FAMILIES for row in family.NETWORKS}


def get_spec(name: str) -> ModelSpec:
    """The architecture called `name`, whatever its capitals, hyphens and underscores ('EfficientNetV2B0').

    A misspelt name is an error that suggests the right one.
    """
    for row in MODELS.values():
        if _bare(row.name) == _bare(name):
            return row
    raise unknown("model", name, MODELS)


def _bare(name: str) -> str:
    return re.sub("[-_]", "", name.lower())
