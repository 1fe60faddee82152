"""Features: the outputs of one layer for many images, for other libraries such as scikit-learn."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from flaxtl.data.decode import list_image_files, load_images
from flaxtl.data.loaders import Mask
from flaxtl.data.sampler import padded_batches
from flaxtl.errors import UserError
from flaxtl.models.image_classifier import ImageClassifier
from flaxtl.train.eval_loop import collect

Images: TypeAlias = npt.NDArray[np.uint8] | jax.Array | Sequence[str | Path]


def extract_features(
    model: ImageClassifier,
    variables: Mapping[str, Any],
    images: Images | Iterable[str | Path],
    *,
    layer: str | None = None,
    batch_size: int = 32,
) -> npt.NDArray[np.float32]:
    """Return the features of many images, computed batch by batch in inference mode by one compiled function.

        model, variables = flaxtl.create_model("vgg16")
        features = flaxtl.extract_features(model, variables, paths)    # float32 [n, 512]

    Args:
      model: a model of `flaxtl.create_model`.
      variables: its variables.
      images: uint8 RGB [n, height, width, 3], or image files, which are read batch by batch at `model.input_size`.
      layer: name of the layer to return the output of; None: the output of the model, which is its features if it was
        created without `num_classes`.
      batch_size: images per call; at least 1.

    Returns:
      float32 [n, ...], in the order of `images`.

    Raises:
      UserError: no images, an image that cannot be read, an unknown layer, or an impossible batch size.
    """
    if not isinstance(images, np.ndarray | jax.Array):
        images = list_image_files(images)  # by position: a pandas.Series has an index of its own
    if not isinstance(batch_size, int | np.integer) or batch_size < 1 or not len(images):
        raise UserError(
            f"Cannot compute features of {len(images)} images in batches of {batch_size!r}. Give 1 or more."
        )
    step = _make_feature_step(model, layer)
    features = collect(step, dict(variables), _batches(model, images, min(batch_size, len(images))))
    return cast(npt.NDArray[np.float32], features)


@cache
def _make_feature_step(model: ImageClassifier, layer: str | None) -> Callable[..., jax.Array]:
    """Return the jitted (variables, images, mask) -> outputs of the layer, float32."""

    def step(variables: Mapping[str, Any], batch: jax.Array, mask: Mask) -> jax.Array:
        if layer is None:
            return cast(jax.Array, model.apply(variables, batch))
        _, captured = model.apply(variables, batch, capture=(layer,))
        return cast(jax.Array, captured[layer].astype(jnp.float32))

    return jax.jit(step)


def _batches(model: ImageClassifier, images: Images, batch_size: int) -> Iterator[tuple[Any, Mask]]:
    """Yield batches of one size, so that one program serves all, and their masks."""
    for indices, mask in padded_batches(len(images), batch_size):
        if isinstance(images, np.ndarray | jax.Array):
            yield images[indices], mask
        else:
            yield load_images([images[index] for index in indices], model.input_size), mask
