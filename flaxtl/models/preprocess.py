"""What a network's authors did to pixels, as part of the model function: it runs on the device.

Input: RGB [batch, height, width, 3], values 0..255, any dtype; output float32. From Keras' imagenet_utils.py.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

MEAN_BGR = (103.939, 116.779, 123.68)
"""Mean colour of ImageNet's training pictures in Caffe's channel order (blue, green, red)."""


def caffe(pictures: jax.Array) -> jax.Array:
    """RGB -> BGR, ImageNet's mean subtracted, not scaled: VGG16, VGG19."""
    return pictures.astype(jnp.float32)[..., ::-1] - jnp.array(MEAN_BGR, jnp.float32)


PREPROCESSING: dict[str, Callable[[jax.Array], jax.Array]] = {"caffe": caffe}
