"""All models by name. The entries are at the end of each family's module.

Names are in snake_case, with the version and the variant as words of their own (`resnet50_v2`, `efficientnet_b0`), and
a width in percent, as in timm (`mobilenet_v2_035`).
"""

import re

from flaxtl.errors import UserError, unknown
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
    vit,
    xception,
)
from flaxtl.models.spec import ModelSpec

FULL_WIDTH = "100"
"""End of the names of MobileNets with all their channels: timm's suffix, the width in percent."""

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
    vit,
)

MODELS: dict[str, ModelSpec] = {spec.name: spec for family in FAMILIES for spec in family.MODELS}


def get_spec(name: str) -> ModelSpec:
    """Return the model called `name`.

    Case, hyphens and underscores are ignored, and a width may be a decimal or be left out if it is 1. So Keras' names
    work ('EfficientNetV2B0', 'MobileNetV2', 'mobilenet_0.25'), as do timm's of the same networks
    ('tf_efficientnet_b0', 'mobilenetv2_100').

    Raises:
      UserError: there is no such model; the message suggests a similar name.
    """
    key = _normalize(name)
    for spec in MODELS.values():
        if _normalize(spec.name) in (key, key + FULL_WIDTH):
            return spec
    raise unknown("model", name, MODELS)


def canonical_name(name: str) -> str:
    """Return the name in the registry of the model called `name`; an unknown name is returned as it is."""
    try:
        return get_spec(name).name
    except UserError:
        return name


def _normalize(name: str) -> str:
    """Return what all spellings of a name share: 'MobileNet_V2-0.35' and 'mobilenet_v2_035' -> 'mobilenetv2035'."""
    name = re.sub(r"\d\.\d+", lambda width: f"{round(100 * float(width[0])):03}", name.lower())
    return re.sub("[-_]", "", name.removeprefix("tf_"))
