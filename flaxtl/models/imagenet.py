"""ImageNet (ILSVRC 2012): the 1,000 classes and the preprocessing that published weights were trained with."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

CLASSES_FILE = Path(__file__).with_name("imagenet_classes.txt")
"""One class per line: the content of Keras' imagenet_class_index.json (used by `decode_predictions`)."""

ColorValues = tuple[float, float, float]
"""One number per channel."""

MEAN_BGR = (103.939, 116.779, 123.68)
"""Mean color of the ImageNet training images, 0..255, in Caffe's channel order (blue, green, red)."""

MEAN_RGB: ColorValues = (0.485, 0.456, 0.406)
STD_RGB: ColorValues = (0.229, 0.224, 0.225)
"""Mean and standard deviation of the colors of the ImageNet training images, 0..1, as published by torchvision."""


class ImageNetClass(NamedTuple):
    """A class: its WordNet id, which is unique, and its name, which is not ("crane" and "maillot" occur twice)."""

    wordnet_id: str
    name: str


@cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """Return the 1,000 classes in the output order of every model in the registry."""
    lines = CLASSES_FILE.read_text(encoding="ascii").splitlines()
    return tuple(ImageNetClass(*line.split(" ")) for line in lines)


@dataclass(frozen=True)
class Preprocessing:
    """A function of RGB images: `(pixel / scale - mean) / std` per channel, with the channels in the order `channels`.

    The numbers are exported with a model, so that other programs can preprocess images in the same way.
    """

    channels: str
    scale: float
    mean: ColorValues
    std: ColorValues = (1.0, 1.0, 1.0)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Preprocess RGB images [..., 3] with values 0..255 (uint8 or float); returns float32 [..., 3]."""
        pixels = images.astype(jnp.float32)
        if self.channels == "BGR":
            pixels = jnp.flip(pixels, -1)
        if self.scale != 1:
            pixels = pixels / self.scale
        pixels = pixels - _channel_values(self.mean, pixels.ndim)
        return pixels if self.std == (1, 1, 1) else pixels / _channel_values(self.std, pixels.ndim)


def _channel_values(values: ColorValues, ndim: int) -> jax.Array:
    """Return the values of the channels, float32 [1, ..., 3], for an array of `ndim` axes."""
    return lax.broadcast_to_rank(jnp.array(values, jnp.float32), ndim)


# The modes "caffe", "tf" and "torch" of keras/src/applications/imagenet_utils.py; "tf_128" is the first layer of
# EfficientNetV2 S, M and L in keras/src/applications/efficientnet_v2.py.
CAFFE = Preprocessing("BGR", 1.0, MEAN_BGR)
TF = Preprocessing("RGB", 127.5, (1.0, 1.0, 1.0))
TF_128 = Preprocessing("RGB", 128.0, (1.0, 1.0, 1.0))
TORCH = Preprocessing("RGB", 255.0, MEAN_RGB, STD_RGB)

PREPROCESSING = {"caffe": CAFFE, "tf": TF, "tf_128": TF_128, "torch": TORCH}
"""All preprocessing functions, by the name that `ModelSpec.preprocessing` refers to."""
