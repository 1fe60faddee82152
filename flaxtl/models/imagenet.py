"""The 1,000 classes of ImageNet (ILSVRC 2012) in the order in which every network of the catalog tells them."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

INDEX = Path(__file__).with_name("imagenet_classes.txt")
"""A line a class: what Keras downloads as imagenet_class_index.json, and decode_predictions reads, without the JSON."""


class ImageNetClass(NamedTuple):
    """A class by its WordNet id, which is unique, and its name, which is not: there are two cranes, two maillots."""

    wordnet_id: str
    name: str


@cache
def classes() -> tuple[ImageNetClass, ...]:
    """All of them, in order."""
    lines = INDEX.read_text(encoding="ascii").splitlines()
    return tuple(ImageNetClass(*line.split(" ")) for line in lines)
