"""The tf.data pipeline: read and augment images on the host while the previous step is computed.

The only module that imports TensorFlow; it hides all accelerators from TensorFlow, because their memory belongs to JAX.
Import it only where it is used; without TensorFlow the import raises a UserError with the install command.

Augmentation uses the draws of augment/config.py, and the constants and shared formulas of augment/ops.py and
augment/randaugment.py, which document the operations. It is compiled by XLA for the CPU, one program per batch.
Coordinates are the same fixed-point numbers, so both implementations read the same pixels; weights and colors are
float32 in both, summed in an order that XLA chooses.
"""

from collections.abc import Callable, Generator, Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from flaxtl.data.array_store import ArrayStore
from flaxtl.data.augment import ops
from flaxtl.data.augment.config import AugmentConfig, AugmentParams, example_keys, sample_params
from flaxtl.data.augment.randaugment import Operation, rounded_mean, smooth_inside, stretch, to_gray
from flaxtl.data.decode import EncodedImages
from flaxtl.data.sampler import EpochSampler, Indices, process_slice
from flaxtl.data.sources.tfds import silence_tensorflow
from flaxtl.errors import UserError, missing_package

silence_tensorflow()
try:
    import tensorflow as tf
except ImportError as error:
    raise missing_package("Reading or augmenting images by tf.data", "TensorFlow", "stream") from error
tf.config.set_visible_devices([], "GPU")

PREFETCH = 2
"""Finished batches that wait for the training step, in addition to those in progress (at most one per core)."""

Arrays = tuple[npt.NDArray[Any], ...]


def train_batches(
    store: ArrayStore | EncodedImages,
    labels: Indices,
    order: EpochSampler,
    first_step: int,
    last_step: int,
    augmentation: AugmentConfig | None,
    shard: tuple[int, int] = (0, 1),
) -> Generator[Arrays, None, None]:
    """Yield the batch of each training step, `first_step` to `last_step` - 1: (images, labels, indices, epochs).

    Images are uint8, or float32 if they are augmented, [batch, height, width, 3], 0..255. The rest are int32 [batch]:
    class indices, and what `sampler.BatchIndices` describes.

    Encoded images are decoded one by one, in parallel, by flaxtl's own decoder, so that their pixels do not depend on
    the loader: TensorFlow decodes JPEG files to the same values, but its resize changes a sixth of them by 1.

    Augmentation is a function of (seed, epoch, index), the same as for images in device memory, so a stream that starts
    at a later step continues the uninterrupted one. Closing the generator stops reading ahead.

    Args:
      store: the images, decoded or not.
      labels: their class indices, int32 [n].
      order: selects the examples of each step.
      first_step: the first step.
      last_step: the end of the steps, exclusive.
      augmentation: None yields the images unchanged.
      shard: (process, number of processes); only this slice of each batch is read.
    """
    _, height, width, _ = store.shape
    decode = store.decode if isinstance(store, EncodedImages) else None

    def read(step: int) -> Arrays:
        indices, epochs = (process_slice(part, *shard) for part in order.batch(step))
        params = [] if augmentation is None else _sampler(order.seed, augmentation, height, width)(epochs, indices)
        images = indices if decode else store.read(indices)
        return images, labels[indices], indices, epochs, *params

    def finish(images: Any, labels: Any, indices: Any, epochs: Any, *params: Any) -> tuple[Any, ...]:
        if augmentation is not None:
            images = apply_params(images, AugmentParams(*params), augmentation)
        return images, labels, indices, epochs

    yield from _map_batches(range(first_step, last_step), read, finish, decode)


@lru_cache(maxsize=4)
def _sampler(
    seed: int, augmentation: AugmentConfig, height: int, width: int
) -> Callable[[Indices, Indices], Sequence[npt.NDArray[Any]]]:
    """Return a function (epochs, indices) -> fields of `AugmentParams`, sampled by JAX on the CPU of this host."""
    host = _cpu_device()
    compiled = jax.jit(
        lambda epochs, indices: sample_params(example_keys(seed, epochs, indices), augmentation, height, width)
    )

    def sample(epochs: Indices, indices: Indices) -> Sequence[npt.NDArray[Any]]:
        with jax.default_device(host):
            return [np.asarray(field) for field in compiled(epochs, indices)]

    return sample


def _cpu_device() -> jax.Device:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise UserError(
            "Augmentation of streamed images needs JAX's CPU backend, which JAX_PLATFORMS disables. Add ',cpu' to it."
        ) from error


def _map_batches(
    numbers: range,
    read: Callable[[int], Arrays],
    finish: Callable[..., tuple[Any, ...]],
    decode: Callable[[int], npt.NDArray[np.uint8]] | None,
) -> Generator[Arrays, None, None]:
    """Yield finish(*read(number)) for every number in order: `read` in Python, `finish` in TensorFlow, in parallel.

    With `decode`, the first array that `read` returns are rows, and `finish` gets the images that they decode to.
    """
    if not numbers:
        return
    calls = _HostCalls()
    first = read(numbers[0])
    arrays = calls.add(read, first)  # all batches have its shapes and dtypes
    parallel: dict[str, Any] = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
    steps = tf.data.Dataset.range(numbers.start, numbers.stop)
    if decode is None:
        dataset = steps.map(lambda number: finish(*arrays(number)), **parallel)
    else:
        rows = first[0]
        image = calls.add(lambda row: (decode(row),), (decode(rows[0]),))
        batches = steps.map(arrays)
        decoded = batches.map(lambda rows, *_: rows).unbatch().map(lambda row: image(row)[0], **parallel)
        others = batches.map(lambda _, *others: others)
        dataset = tf.data.Dataset.zip((decoded.batch(len(rows), drop_remainder=True), others))
        dataset = dataset.map(lambda images, others: finish(images, *others), **parallel)
    try:
        for parts in dataset.prefetch(PREFETCH).as_numpy_iterator():
            if calls.errors:
                raise calls.errors[0]
            yield parts
    finally:
        calls.clear()


class _HostCalls:
    """The Python functions that a pipeline calls. After an error they return zeros.

    Attributes:
      errors: what they raised; TensorFlow would print a traceback and raise an error of its own.
    """

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self._functions: list[Callable[[int], Arrays]] = []

    def add(self, function: Callable[[int], Arrays], example: Arrays) -> Callable[[Any], tuple[Any, ...]]:
        """Return `function` for tensors; `example` has the shapes and dtypes of all that it returns."""
        number = len(self._functions)
        self._functions.append(function)
        kinds = [(array.shape, array.dtype) for array in example]

        def call(argument: Any) -> Arrays:
            try:
                return self._functions[number](int(argument))
            except Exception as error:
                self.errors.append(error)
                return tuple(np.zeros(*kind) for kind in kinds)

        def tensors(argument: Any) -> tuple[Any, ...]:
            parts = tf.numpy_function(call, [argument], [dtype for _, dtype in kinds])
            return tuple(tf.ensure_shape(part, shape) for part, (shape, _) in zip(parts, kinds, strict=True))

        return tensors

    def clear(self) -> None:
        """Forget the functions: TensorFlow keeps `call` until the process ends, and thereby all they refer to."""
        self._functions.clear()


TF = SimpleNamespace(
    arange=tf.range,
    astype=tf.cast,
    bitwise_and=tf.bitwise.bitwise_and,
    clip=tf.clip_by_value,
    float32=tf.float32,
    int32=tf.int32,
    maximum=tf.maximum,
    minimum=tf.minimum,
    right_shift=tf.bitwise.right_shift,
    round=tf.round,
    where=tf.where,
)
"""What augment/ops.py and augment/randaugment.py call `xp`."""


def apply_params(images: Any, params: AugmentParams, augmentation: AugmentConfig) -> Any:
    """Apply `params` to every image: float32 [batch, height, width, 3], 0..255; see `ops.apply_params`.

    Args:
      images: uint8 [batch, height, width, 3] with static height and width.
      params: tensors [batch, ...].
      augmentation: static; disabled operations are not compiled.
    """
    return _compiled(augmentation)(images, params)


@lru_cache(maxsize=8)
def _compiled(augmentation: AugmentConfig) -> Any:
    """Return the program of `augmentation`; cached, because each epoch is a new stream with the same augmentation."""
    return tf.function(lambda images, params: _apply(images, params, augmentation), jit_compile=True)


def _apply(images: Any, params: AugmentParams, augmentation: AugmentConfig) -> Any:
    if augmentation.randaugment:
        images = apply_color_ops(images, params.color_ops, params.color_strengths)
    if augmentation.is_geometric:
        images = _warp(images, params.matrix, augmentation.fill, augmentation.cval)
    images = tf.cast(images, tf.float32)
    if augmentation.channel_shift:
        low, high = (extreme(images, (1, 2, 3), keepdims=True) for extreme in (tf.reduce_min, tf.reduce_max))
        images = tf.clip_by_value(images + _each(params.channel_shift), low, high)
    if augmentation.brightness:
        images = _clip(_each(params.brightness) * images)
    if augmentation.contrast:
        mean = tf.reduce_mean(ops.luma(images), (1, 2, 3), keepdims=True)
        images = _blend(mean, images, params.contrast)
    if augmentation.saturation:
        images = _blend(ops.luma(images), images, params.saturation)
    if augmentation.hue:
        images = _shift_hue(images, params.hue)
    if augmentation.erasing:
        images = _erase(images, params.erase_box, params.erase_color)
    return images


def _warp(images: Any, matrix: Any, fill: str, cval: float) -> Any:
    """Transform every image by its matrix [2, 3]: float32 [batch, height, width, 3]; see `ops.warp`."""
    _, height, width, channels = images.shape
    pixels = tf.reshape(images, [-1, height * width, channels])

    def pixel_at(row: Any, column: Any) -> Any:
        return tf.cast(tf.gather(pixels, row * width + column, batch_dims=1), tf.float32)

    return ops.interpolate(TF, pixel_at, matrix, height, width, fill, cval)


def _each(factor: Any) -> Any:
    """Reshape one number per image, [batch], to broadcast against [batch, height, width, channels]."""
    return factor[:, tf.newaxis, tf.newaxis, tf.newaxis]


def _clip(images: Any) -> Any:
    return tf.clip_by_value(images, 0.0, 255.0)


def _blend(degenerate: Any, images: Any, factor: Any) -> Any:
    return _clip(degenerate + _each(factor) * (images - degenerate))


def _shift_hue(images: Any, turns: Any) -> Any:
    """Rotate the hexcone hue of every pixel; see `ops.shift_hue`."""
    red, green, blue = tf.unstack(images, axis=-1)
    value = tf.reduce_max(images, -1)
    chroma = value - tf.reduce_min(images, -1)
    step = 1 / tf.where(chroma > 0, chroma, 1.0)
    hue = tf.where(
        (red >= green) & (red >= blue),
        (green - blue) * step,
        tf.where(green >= blue, 2 + (blue - red) * step, 4 + (red - green) * step),
    )
    k = (tf.constant(ops.HUE_OFFSETS) + hue[..., tf.newaxis] + 6 * _each(turns)) % 6
    return value[..., tf.newaxis] - chroma[..., tf.newaxis] * tf.clip_by_value(tf.minimum(k, 4 - k), 0.0, 1.0)


def _erase(images: Any, box: Any, color: Any) -> Any:
    _, height, width, _ = images.shape
    rows, columns = tf.range(height, dtype=tf.float32)[:, tf.newaxis], tf.range(width, dtype=tf.float32)
    top, left, bottom, right = (side[:, tf.newaxis, tf.newaxis] for side in tf.unstack(box, axis=1))
    covered = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return tf.where(covered[..., tf.newaxis], color[:, tf.newaxis, tf.newaxis], images)


def apply_color_ops(images: Any, operations: Any, strengths: Any) -> Any:
    """Apply the color operations of every image in their order: int32 [batch, height, width, 3], 0..255.

    `images` are uint8 [batch, height, width, 3], `operations` int32 and `strengths` float32 [batch, n].
    """

    def one(image: Any, drawn: tuple[Any, Any]) -> Any:
        operation, strength = drawn
        return tf.switch_case(
            operation, {int(kind): lambda apply=apply: apply(image, strength) for kind, apply in COLOR_OPS.items()}
        )

    def all_of(parts: tuple[Any, Any, Any]) -> Any:
        image, *drawn = parts
        return tf.foldl(one, tuple(drawn), initializer=image)

    # image by image, so that only the selected one of the nine operations is computed
    return tf.map_fn(all_of, (tf.cast(images, tf.int32), operations, strengths), fn_output_signature=tf.int32)


def _equalize(image: Any, _: Any) -> Any:
    channels = tf.range(image.shape[-1])
    places = 256 * channels + image  # 256 values per channel
    counts = tf.math.unsorted_segment_sum(tf.ones_like(places), places, 256 * image.shape[-1])
    last = tf.gather(counts, tf.reduce_max(places, (0, 1)))
    counts = tf.reshape(counts, [-1, 256])
    step = (tf.reduce_sum(counts, 1) - last) // 255
    below = tf.cumsum(counts, axis=1, exclusive=True)
    table = ((step // 2)[:, tf.newaxis] + below) // tf.maximum(step, 1)[:, tf.newaxis]  # [channels, 256]
    return tf.where(step > 0, tf.minimum(tf.gather(tf.reshape(table, [-1]), places), 255), image)


def _posterize(image: Any, bits: Any) -> Any:
    dropped_bits = 8 - tf.cast(bits, tf.int32)
    return tf.bitwise.left_shift(tf.bitwise.right_shift(image, dropped_bits), dropped_bits)


def _contrast(image: Any, factor: Any) -> Any:
    mean = rounded_mean(tf.reduce_sum(to_gray(TF, image)), image.shape[0] * image.shape[1])
    return _blend_integers(mean, image, factor)


def _sharpness(image: Any, factor: Any) -> Any:
    height, width, _ = image.shape
    if min(height, width) < 3:  # only edge pixels
        return image
    middle = tf.concat([image[1:-1, :1], smooth_inside(image), image[1:-1, -1:]], 1)
    return _blend_integers(tf.concat([image[:1], middle, image[-1:]], 0), image, factor)


def _blend_integers(degenerate: Any, image: Any, factor: Any) -> Any:
    mixed = tf.cast(degenerate, tf.float32) + factor * tf.cast(image - degenerate, tf.float32)
    return tf.cast(tf.clip_by_value(mixed, 0.0, 255.0), tf.int32)


COLOR_OPS = {
    Operation.NOTHING: lambda image, _: image,
    Operation.AUTOCONTRAST: lambda image, _: stretch(
        TF, image, tf.reduce_min(image, (0, 1)), tf.reduce_max(image, (0, 1))
    ),
    Operation.EQUALIZE: _equalize,
    Operation.SOLARIZE: lambda image, threshold: tf.where(tf.cast(image, tf.float32) < threshold, image, 255 - image),
    Operation.POSTERIZE: _posterize,
    Operation.COLOR: lambda image, factor: _blend_integers(to_gray(TF, image), image, factor),
    Operation.CONTRAST: _contrast,
    Operation.BRIGHTNESS: lambda image, factor: _blend_integers(0, image, factor),
    Operation.SHARPNESS: _sharpness,
}
"""(image, strength) -> image, int32 [height, width, 3]; `randaugment.apply_color_op` has the formulas."""
