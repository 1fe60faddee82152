"""Images from a file to the training step, read and augmented on the host while the step before is computed.

The only module that imports TensorFlow, and it hides every accelerator from it, because their memory is JAX's. Import
it where streaming is wanted, and no sooner; without TensorFlow it raises a UserError that says how to install it.

Augmentation follows the formulas of apply.py and operations.py, compiled by XLA for the processor, one program for a
batch. Coordinates are the same fixed-point numbers, so both appliers read the same pixels; weights and colours are
float32 in both, summed in an order that XLA chooses.
"""

import os
from collections.abc import Callable, Generator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from flaxtl.data.array_store import ArrayStore
from flaxtl.data.augment.config import AugmentConfig, AugmentParams, example_keys, sample_params
from flaxtl.data.sampler import EpochSampler, Indices, padded_batches, process_slice
from flaxtl.errors import UserError

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only; TensorFlow reads both when it is loaded
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # announces itself on the console, and nothing here uses it
try:
    import tensorflow as tf
except ImportError as error:
    raise UserError("streaming images needs TensorFlow; pip install 'flaxtl[stream]'") from error
tf.config.set_visible_devices([], "GPU")

AHEAD = 2
"""Finished batches that wait for the training step, beyond those in the making (one a processor at most)."""

Images = npt.NDArray[Any]
Arrays = tuple[npt.NDArray[Any], ...]


class Streamed(NamedTuple):
    """A batch of training examples.

    images: uint8, or float32 if they are augmented, [batch, height, width, 3], 0..255. The others are int32 [batch];
    `indices` and `passes` are those of `order.Batch`.
    """

    images: Images
    labels: Indices
    indices: Indices
    passes: Indices


def train_batches(
    store: ArrayStore,
    labels: Indices,
    order: EpochSampler,
    first_step: int,
    last_step: int,
    augmentation: AugmentConfig | None,
    shard: tuple[int, int] = (0, 1),
) -> Generator[Streamed, None, None]:
    """The batches of the training steps from `first_step` to below `last_step`: the examples that `order` names.

    Augmentation is a function of (order.seed, passes, indices), as that of resident images is, so a stream that
    begins at a later step goes on as the uninterrupted one would have. `labels` is int32 [n]. With `shard` (process,
    processes) only that slice of every batch is read. Closing the generator ends what it reads ahead.
    """
    _, height, width, _ = store.shape

    def read(step: int) -> Arrays:
        indices, passes = (process_slice(part, *shard) for part in order.batch(step))
        change = [] if augmentation is None else _draw(order.seed, augmentation, height, width)(passes, indices)
        return store.read(indices), labels[indices], indices, passes, *change

    def finish(images: Any, labels: Any, indices: Any, passes: Any, *change: Any) -> tuple[Any, ...]:
        if augmentation is not None:
            images = apply_params(images, AugmentParams(*change), augmentation)
        return images, labels, indices, passes

    for batch in _parallel(range(first_step, last_step), read, finish):
        yield Streamed(*batch)


def eval_batches(
    store: ArrayStore, labels: Indices, batch: int, shard: tuple[int, int] = (0, 1)
) -> Generator[tuple[Images, Indices, npt.NDArray[np.bool_]], None, None]:
    """Every image once, in order: (images uint8 [batch, height, width, 3], labels int32 [batch], real [batch]).

    The last batch is padded with image 0, where `real` is False. For `shard` and closing see `training`.
    """
    batches = list(padded_batches(len(store), batch))

    def read(number: int) -> Arrays:
        indices, real = process_slice(batches[number][0], *shard), process_slice(batches[number][1], *shard)
        return store.read(indices), labels[indices], real

    yield from _parallel(range(len(batches)), read, lambda *parts: parts)  # type: ignore[misc]


@lru_cache(maxsize=4)
def _draw(
    seed: int, augmentation: AugmentConfig, height: int, width: int
) -> Callable[[Indices, Indices], Sequence[npt.NDArray[Any]]]:
    """(passes, indices) -> the fields of their `Change`, drawn on this host's processor: small, and wanted here."""
    host = _processor()
    compiled = jax.jit(
        lambda passes, indices: sample_params(example_keys(seed, passes, indices), augmentation, height, width)
    )

    def drawn(passes: Indices, indices: Indices) -> Sequence[npt.NDArray[Any]]:
        with jax.default_device(host):
            return [np.asarray(field) for field in compiled(passes, indices)]

    return drawn


def _processor() -> jax.Device:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise UserError(
            "augmentation of streamed images is drawn on the processor, which JAX_PLATFORMS hides from JAX; "
            "add ',cpu' to it"
        ) from error


def _parallel(
    numbers: range, read: Callable[[int], Arrays], finish: Callable[..., tuple[Any, ...]]
) -> Generator[Arrays, None, None]:
    """finish(*read(number)) for every number, in order: `read` in Python, `finish` in TensorFlow, many at a time."""
    if not numbers:
        return
    kinds = [(part.shape, part.dtype) for part in read(numbers[0])]  # all batches are of the kind of the first
    readers, raised = [read], list[Exception]()

    def recorded(number: Any) -> Arrays:
        try:
            return readers[0](int(number))
        except Exception as error:  # told below, as it was; TensorFlow would print a traceback and raise its own
            raised.append(error)
            return tuple(np.zeros(*kind) for kind in kinds)

    def batch(number: Any) -> tuple[Any, ...]:
        parts = tf.numpy_function(recorded, [number], [dtype for _, dtype in kinds])
        return finish(*(tf.ensure_shape(part, shape) for part, (shape, _) in zip(parts, kinds, strict=True)))

    dataset = tf.data.Dataset.range(numbers.start, numbers.stop)
    dataset = dataset.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(AHEAD)
    try:
        for parts in dataset.as_numpy_iterator():
            if raised:
                raise raised[0]
            yield parts
    finally:
        readers.clear()  # TensorFlow keeps `recorded` as long as the process lives, and with it what it refers to


# ---------------------------------------------------------------- augmentation: the formulas of apply.py

_BITS = 16  # of the fraction in a coordinate, as in apply.py
_ONE = 1 << _BITS

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def apply_params(images: Any, change: AugmentParams, augmentation: AugmentConfig) -> Any:
    """Every image changed: float32 [batch, height, width, 3], 0..255, as from `apply.apply`.

    Args:
      images: uint8 [batch, height, width, 3], of which height and width are known when this is traced.
      change: the record of `augment.changes`, tensors [batch, ...].
      augmentation: what it leaves off is not even looked at.
    """
    return _compiled(augmentation)(images, change)


@lru_cache(maxsize=8)
def _compiled(augmentation: AugmentConfig) -> Any:
    """The program for `augmentation`; remembered, because an epoch is a new stream but the same augmentation."""
    return tf.function(lambda images, change: _apply(images, change, augmentation), jit_compile=True)


def _apply(images: Any, change: AugmentParams, augmentation: AugmentConfig) -> Any:
    if augmentation.randaugment:
        images = apply_color_ops(images, change.operations, change.strengths)
    if augmentation.is_geometric:
        images = _warp(images, change.matrix, augmentation.fill, augmentation.cval)
    images = tf.cast(images, tf.float32)
    if augmentation.channel_shift:
        low, high = (extreme(images, (1, 2, 3), keepdims=True) for extreme in (tf.reduce_min, tf.reduce_max))
        images = tf.clip_by_value(images + _each(change.channel_shift), low, high)
    if augmentation.brightness:
        images = _clip(_each(change.brightness) * images)
    if augmentation.contrast:
        mean = tf.reduce_mean(_luma(images), (1, 2, 3), keepdims=True)
        images = _blend(mean, images, change.contrast)
    if augmentation.saturation:
        images = _blend(_luma(images), images, change.saturation)
    if augmentation.hue:
        images = _turn_hue(images, change.hue)
    if augmentation.erasing:
        images = _erase(images, change.box, change.colour)
    return images


def _warp(images: Any, matrix: Any, fill: str, cval: float) -> Any:
    """float32 [batch, height, width, 3]: every image seen through its matrix [2, 3]; see `apply.warp`."""
    _, height, width, channels = images.shape
    row, column = (_coordinate(matrix[:, axis], height, width) for axis in (0, 1))
    top, down = _read(row, height, fill)
    left, right = _read(column, width, fill)
    bottom, beside = tf.minimum(top + 1, height - 1), tf.minimum(left + 1, width - 1)
    pixels = tf.reshape(images, [-1, height * width, channels])

    def corner(row: Any, column: Any) -> Any:
        return tf.cast(tf.gather(pixels, row * width + column, batch_dims=1), tf.float32)

    above = corner(top, left) * (1 - right) + corner(top, beside) * right
    below = corner(bottom, left) * (1 - right) + corner(bottom, beside) * right
    seen = above * (1 - down) + below * down
    if fill == "constant":
        inside = (row >= 0) & (row <= (height - 1) * _ONE) & (column >= 0) & (column <= (width - 1) * _ONE)
        return tf.where(inside[..., tf.newaxis], seen, cval)
    return seen


def _coordinate(line: Any, height: int, width: int) -> Any:
    """int32 [batch, height, width]: where one axis of the input is read, in pixels times 2**16.

    `line` is float32 [batch, 3]. Each term is rounded on its own, as in apply.py: both get the same whole numbers.
    """
    rows, columns = tf.range(height, dtype=tf.float32)[:, tf.newaxis], tf.range(width, dtype=tf.float32)
    by_row, by_column, constant = (line[:, i, tf.newaxis, tf.newaxis] for i in range(3))
    return sum(tf.cast(tf.round(term * _ONE), tf.int32) for term in (by_row * rows, by_column * columns, constant))


def _read(position: Any, size: int, fill: str) -> tuple[Any, Any]:
    """The pixel to read, int32 [batch, h, w], and the share of the one after it, float32 [batch, h, w, 1]."""
    edge = (size - 1) * _ONE
    if fill == "reflect":
        period = 2 * size * _ONE
        folded = position % period
        position = tf.minimum(folded, period - _ONE - folded)
    elif fill == "wrap" and size > 1:
        back = edge - -position % edge
        position = tf.where(position < 0, back, tf.where(position > edge, position % edge, position))
    position = tf.clip_by_value(position, 0, edge)
    fraction = tf.cast(tf.bitwise.bitwise_and(position, _ONE - 1), tf.float32) / _ONE
    return tf.bitwise.right_shift(position, _BITS), fraction[..., tf.newaxis]


def _each(factor: Any) -> Any:
    """A number an image, [batch], against [batch, height, width, channels]."""
    return factor[:, tf.newaxis, tf.newaxis, tf.newaxis]


def _clip(images: Any) -> Any:
    return tf.clip_by_value(images, 0.0, 255.0)


def _luma(images: Any) -> Any:
    return sum(weight * images[..., i : i + 1] for i, weight in enumerate(_LUMA))


def _blend(degenerate: Any, images: Any, factor: Any) -> Any:
    return _clip(degenerate + _each(factor) * (images - degenerate))


def _turn_hue(images: Any, turns: Any) -> Any:
    """The hexcone hue of every pixel moved; see `apply.turn_hue`."""
    red, green, blue = tf.unstack(images, axis=-1)
    value = tf.reduce_max(images, -1)
    chroma = value - tf.reduce_min(images, -1)
    step = 1 / tf.where(chroma > 0, chroma, 1.0)
    hue = tf.where(
        value == red,
        (green - blue) * step,
        tf.where(value == green, 2 + (blue - red) * step, 4 + (red - green) * step),
    )
    k = (tf.constant([5.0, 3.0, 1.0]) + hue[..., tf.newaxis] + 6 * _each(turns)) % 6
    return value[..., tf.newaxis] - chroma[..., tf.newaxis] * tf.clip_by_value(tf.minimum(k, 4 - k), 0.0, 1.0)


def _erase(images: Any, box: Any, colour: Any) -> Any:
    _, height, width, _ = images.shape
    rows, columns = tf.range(height, dtype=tf.float32)[:, tf.newaxis], tf.range(width, dtype=tf.float32)
    top, left, bottom, right = (side[:, tf.newaxis, tf.newaxis] for side in tf.unstack(box, axis=1))
    covered = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return tf.where(covered[..., tf.newaxis], colour[:, tf.newaxis, tf.newaxis], images)


# ---------------------------------------------------------------- RandAugment: the formulas of operations.py


def apply_color_ops(images: Any, operations: Any, strengths: Any) -> Any:
    """int32 [batch, height, width, 3], 0..255: the operations of every image done one after another.

    `images` are uint8 [batch, height, width, 3], `operations` int32 and `strengths` float32 [batch, n].
    """
    kinds = (_nothing, _autocontrast, _equalize, _solarize, _posterize, _colour, _contrast, _brightness, _sharpness)

    def one(image: Any, drawn: tuple[Any, Any]) -> Any:
        operation, strength = drawn
        return tf.switch_case(operation, [lambda kind=kind: kind(image, strength) for kind in kinds])

    def all_of(parts: tuple[Any, Any, Any]) -> Any:
        image, *drawn = parts
        return tf.foldl(one, tuple(drawn), initializer=image)

    # image by image, so that of the nine kinds only the one that is wanted is computed
    return tf.map_fn(all_of, (tf.cast(images, tf.int32), operations, strengths), fn_output_signature=tf.int32)


def _nothing(image: Any, _: Any) -> Any:
    return image


def _autocontrast(image: Any, _: Any) -> Any:
    low, high = tf.reduce_min(image, (0, 1)), tf.reduce_max(image, (0, 1))
    return tf.where(high > low, 255 * (image - low) // tf.maximum(high - low, 1), image)


def _equalize(image: Any, _: Any) -> Any:
    channels = tf.range(image.shape[-1])
    places = 256 * channels + image  # every channel has its own 256 counts
    counts = tf.math.unsorted_segment_sum(tf.ones_like(places), places, 256 * image.shape[-1])
    last = tf.gather(counts, tf.reduce_max(places, (0, 1)))
    counts = tf.reshape(counts, [-1, 256])
    step = (tf.reduce_sum(counts, 1) - last) // 255
    below = tf.cumsum(counts, axis=1, exclusive=True)
    table = ((step // 2)[:, tf.newaxis] + below) // tf.maximum(step, 1)[:, tf.newaxis]  # [channels, 256]
    return tf.where(step > 0, tf.minimum(tf.gather(tf.reshape(table, [-1]), places), 255), image)


def _solarize(image: Any, threshold: Any) -> Any:
    return tf.where(tf.cast(image, tf.float32) < threshold, image, 255 - image)


def _posterize(image: Any, bits: Any) -> Any:
    lost = 8 - tf.cast(bits, tf.int32)
    return tf.bitwise.left_shift(tf.bitwise.right_shift(image, lost), lost)


def _colour(image: Any, factor: Any) -> Any:
    return _blend_whole(_grey(image), image, factor)


def _contrast(image: Any, factor: Any) -> Any:
    grey = _grey(image)
    n = image.shape[0] * image.shape[1]
    return _blend_whole((2 * tf.reduce_sum(grey) + n) // (2 * n), image, factor)


def _brightness(image: Any, factor: Any) -> Any:
    return _blend_whole(0, image, factor)


def _sharpness(image: Any, factor: Any) -> Any:
    height, width, _ = image.shape
    if min(height, width) < 3:  # all edge
        return image
    rows = image[:-2] + image[1:-1] + image[2:]
    around = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * image[1:-1, 1:-1]
    middle = tf.concat([image[1:-1, :1], (2 * around + 13) // 26, image[1:-1, -1:]], 1)
    return _blend_whole(tf.concat([image[:1], middle, image[-1:]], 0), image, factor)


def _grey(image: Any) -> Any:
    red, green, blue = image[..., :1], image[..., 1:2], image[..., 2:]
    return tf.bitwise.right_shift(19595 * red + 38470 * green + 7471 * blue + 32768, 16)


def _blend_whole(degenerate: Any, image: Any, factor: Any) -> Any:
    mixed = tf.cast(degenerate, tf.float32) + factor * tf.cast(image - degenerate, tf.float32)
    return tf.cast(tf.clip_by_value(mixed, 0.0, 255.0), tf.int32)
