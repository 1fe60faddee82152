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
    resnet_v2,
    vgg,
    xception,
)
from flaxtl.models.architecture import Architecture

FAMILIES = (
    alexnet,
    vgg,
    googlenet,
    resnet,
    resnet_v2,
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

ARCHITECTURES: dict[str, Architecture] = {row.name: row for family in FAMILIES for row in family.NETWORKS}


def find(name: str) -> Architecture:
    """The architecture called `name`, whatever its capitals, hyphens and underscores ('EfficientNetV2B0').

    A misspelt name is an error that suggests the right one.
    """
    for row in ARCHITECTURES.values():
        if _bare(row.name) == _bare(name):
            return row
    raise unknown("network", name, ARCHITECTURES)


def _bare(name: str) -> str:
    return re.sub("[-_]", "", name.lower())
