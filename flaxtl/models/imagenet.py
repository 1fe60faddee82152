"""The 1,000 classes of ImageNet (ILSVRC 2012) in the order in which every network of the catalog tells them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

INDEX = Path(__file__).with_name("imagenet_classes.txt")
"""A line a class: what Keras downloads as imagenet_class_index.json, and decode_predictions reads, without the JSON."""


class ImageNetClass(NamedTuple):
    """A class by its WordNet id, which is unique, and its name, which is not: there are two cranes, two maillots."""

    wordnet_id: str
    name: str


@cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """All of them, in order."""
    lines = INDEX.read_text(encoding="ascii").splitlines()
    return tuple(ImageNetClass(*line.split(" ")) for line in lines)


MEAN_BGR = (103.939, 116.779, 123.68)
"""Mean colour of ImageNet's training images in Caffe's channel order (blue, green, red)."""

MEAN_RGB, DEVIATION_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of their colours, 0..1, as Torch has them."""


def caffe(images: jax.Array) -> jax.Array:
    """RGB -> BGR, ImageNet's mean subtracted, not scaled: AlexNet, GoogLeNet, VGG and ResNet."""
    return jnp.flip(images.astype(jnp.float32), -1) - jnp.array(MEAN_BGR, jnp.float32)


def tf(images: jax.Array) -> jax.Array:
    """-1..1: all networks trained in TensorFlow that do not preprocess themselves, ResNetV2 the first of them."""
    return images.astype(jnp.float32) / 127.5 - 1


def tf_128(images: jax.Array) -> jax.Array:
    """-1 to a little below 1: EfficientNetV2 S, M and L."""
    return images.astype(jnp.float32) / 128 - 1


def torch(images: jax.Array) -> jax.Array:
    """0..1, ImageNet's mean subtracted, divided by its deviation, channel by channel: DenseNet, EfficientNet."""
    return (images.astype(jnp.float32) / 255 - jnp.array(MEAN_RGB)) / jnp.array(DEVIATION_RGB)


PREPROCESSING: dict[str, Callable[[jax.Array], jax.Array]] = {
    "caffe": caffe,
    "tf": tf,
    "tf_128": tf_128,
    "torch": torch,
}


class Steps(NamedTuple):
    """A preprocessing in numbers: (pixel / scale - subtract) / divide, its channels in the order `channels`."""

    channels: str
    scale: float
    subtract: tuple[float, float, float]
    divide: tuple[float, float, float] = (1.0, 1.0, 1.0)


STEPS = {
    "caffe": Steps("BGR", 1.0, MEAN_BGR),
    "tf": Steps("RGB", 127.5, (1.0, 1.0, 1.0)),
    "tf_128": Steps("RGB", 128.0, (1.0, 1.0, 1.0)),
    "torch": Steps("RGB", 255.0, MEAN_RGB, DEVIATION_RGB),
}
"""What the functions of PREPROCESSING compute, for who uses a network elsewhere."""
