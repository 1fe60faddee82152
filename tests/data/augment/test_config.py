import math
import re

import jax
import numpy as np
import pytest
from helpers.distributions import kolmogorov_distance

from flaxtl.data.augment.affine import Affine, compose
from flaxtl.data.augment.config import (
    CROP_TRIES,
    AugmentConfig,
    AugmentParams,
    _crop,
    example_keys,
    sample_affine,
    sample_params,
)
from flaxtl.errors import UserError

EVERYTHING = {
    "rotation": 30, "height_shift": 0.2, "width_shift": 0.2, "shear": 0.2, "zoom": 0.2, "horizontal_flip": True,
    "vertical_flip": True, "brightness": 0.4, "channel_shift": 30, "contrast": 0.3, "saturation": 0.6, "hue": 0.1,
    "crop": 0.3, "randaugment": 2, "magnitude": 5, "erasing": 0.5,
}  # fmt: skip
MANY = 20_000

# what else is on in the draw that the tests of crops use
WITH_CROPS = ("crop", "brightness", "contrast", "erasing")

drawn = jax.jit(sample_params, static_argnums=(1, 2, 3))
drawn_affine = jax.jit(jax.vmap(sample_affine, in_axes=(0, None, None, None)), static_argnums=(1, 2, 3))
keys_of = jax.jit(example_keys)


def some_keys(n: int) -> jax.Array:
    return keys_of(3, np.zeros(MANY, int), np.arange(MANY))[:n]


@pytest.fixture(scope="module")
def many() -> AugmentParams:
    """Parameters of all operations for 20,000 images of 100 x 50 pixels."""
    return jax.tree.map(np.asarray, drawn(some_keys(MANY), AugmentConfig(**EVERYTHING), 100, 50))


def is_uniform(values: np.ndarray, low: float, high: float) -> bool:
    values = np.asarray(values, np.float64)
    # float32 ends, such as 1 - 0.2
    assert values.min() >= low - 1e-6 * abs(low)
    assert values.max() <= high + 1e-6 * abs(high)
    # Kolmogorov-Smirnov distance; it exceeds 1.95 / sqrt(n) by chance once in a thousand, and the seed is fixed
    distance = kolmogorov_distance(values, lambda x: np.clip((x - low) / (high - low), 0, 1))
    return distance < 1.95 / np.sqrt(len(values))


def test_example_keys_depend_on_seed_epoch_and_index_only():
    epochs, indices = np.array([0, 0, 1, 1, 2]), np.array([5, 6, 5, 1_000_000, 2])
    batch = jax.random.key_data(keys_of(11, epochs, indices))
    backward = jax.random.key_data(keys_of(11, epochs[::-1], indices[::-1]))
    np.testing.assert_array_equal(backward[::-1], batch)
    untagged = jax.random.fold_in(jax.random.fold_in(jax.random.key(11), 0), 5)
    assert (jax.random.key_data(untagged) != batch[0]).any()
    grid = np.indices((100, MANY // 100)).reshape(2, -1)
    apart = np.concatenate([jax.random.key_data(keys_of(seed, *grid)) for seed in (11, 12)])
    assert len(np.unique(apart, axis=0)) == 2 * MANY


def test_sample_affine_draws_never_change():
    """Resumed runs need the same draws; here: seed 3, image 5 in epoch 0 and image 6 in epoch 1."""
    kinds = AugmentConfig(rotation=1, height_shift=0.5, width_shift=0.5, shear=1, zoom=0.5, horizontal_flip=True)
    affine = drawn_affine(keys_of(3, np.array([0, 1]), np.array([5, 6])), kinds, 2, 2)
    expected = [
        [-0.05719470977783203, -0.8983354568481445],
        [-0.7684948444366455, 0.829965353012085],
        [0.3612852096557617, -0.5952439308166504],
        [-0.4938795566558838, -0.4937748908996582],
        [0.678808331489563, 0.8138271570205688],
        [0.6737098693847656, 1.3128913640975952],
        [True, True],
        [False, False],
    ]
    np.testing.assert_array_equal(np.stack(affine), np.float32(expected))


@pytest.fixture(scope="module")
def affine() -> Affine:
    """The affine part of `many`."""
    return jax.tree.map(np.asarray, drawn_affine(some_keys(MANY), AugmentConfig(**EVERYTHING), 100, 50))


@pytest.fixture(scope="module")
def with_crops() -> AugmentParams:
    """The part of `many` that WITH_CROPS names: the only geometric operation is the crop."""
    kinds = AugmentConfig(**{name: EVERYTHING[name] for name in WITH_CROPS})
    return jax.tree.map(np.asarray, drawn(some_keys(MANY), kinds, 100, 50))


@pytest.fixture(scope="module")
def crops(with_crops) -> np.ndarray:
    """The matrices of 20,000 crops of 100 x 50 pixels."""
    return with_crops.matrix


def test_sample_affine_is_uniform_in_keras_ranges(affine):
    assert is_uniform(affine.theta, -30, 30)
    assert is_uniform(affine.tx, -20, 20)
    assert is_uniform(affine.ty, -10, 10)
    assert is_uniform(affine.shear, -0.2, 0.2)
    assert is_uniform(affine.zx, 0.8, 1.2)
    assert is_uniform(affine.zy, 0.8, 1.2)
    for flip in (affine.flip_horizontal, affine.flip_vertical):
        assert abs(flip.mean() - 0.5) < 4 * 0.5 / np.sqrt(MANY)


@pytest.mark.slow
def test_sample_params_are_independent(affine, many, crops):
    tall, wide = crops[:, 0, 0], crops[:, 1, 1]
    drawings = [
        *affine,
        many.channel_shift, many.brightness, many.contrast, many.saturation, many.hue,
        tall * wide, wide / tall, crops[:, 0, 2], crops[:, 1, 2],
        many.erase_box[:, 2] > many.erase_box[:, 0], *many.erase_color.T,
        many.color_ops[:, 0] == 0, many.color_ops[:, 1] == 0,
    ]  # fmt: skip
    correlations = np.corrcoef(np.stack(drawings)) - np.eye(len(drawings))
    among_crops = np.s_[13:17, 13:17]  # the possible positions of a crop depend on its size
    assert np.abs(correlations[among_crops]).max() > 0.1
    correlations[among_crops] = 0
    assert np.abs(correlations).max() < 4.5 / np.sqrt(MANY)  # of 270 pairs


def test_sample_affine_disabling_one_keeps_others(affine):
    whole, part = affine, drawn_affine(some_keys(MANY), AugmentConfig(zoom=0.2), 100, 50)
    assert not np.any([part.theta, part.tx, part.ty, part.shear, part.flip_horizontal])
    np.testing.assert_array_equal([part.zx, part.zy], [whole.zx, whole.zy])
    assert (np.asarray(part.zx) != part.zy).all()


def test_sample_params_colors_are_uniform(many):
    assert is_uniform(many.brightness, 0.6, 1.4)
    assert is_uniform(many.channel_shift, -30, 30)
    assert is_uniform(many.contrast, 0.7, 1.3)
    assert is_uniform(many.saturation, 0.4, 1.6)
    assert is_uniform(many.hue, -0.1, 0.1)


def test_sample_params_erase_boxes(many):
    top, left, bottom, right = many.erase_box.T
    erased = bottom > top
    assert abs(erased.mean() - 0.5) < 4 * 0.5 / np.sqrt(MANY)
    assert (many.erase_box[~erased] == 0).all()
    assert (many.erase_box == np.round(many.erase_box)).all()
    assert ((top >= 0) & (left >= 0) & (bottom <= 100) & (right <= 50)).all()
    tall, wide = (bottom - top)[erased], (right - left)[erased]
    uncut = (tall < 100) & (wide < 50)
    # whole pixels: half a pixel off in a side of at least sqrt(0.02 * 5000 / 3.3) = 5.5
    area, aspect = (tall * wide)[uncut] / 5000, (tall / wide)[uncut]
    assert area.min() > 0.02 * (1 - 0.5 / 5.5) ** 2
    assert area.max() < 0.33 * (1 + 0.5 / 22) ** 2
    assert aspect.min() > (1 / 3.3) * (1 - 0.5 / 5.5) / (1 + 0.5 / 18)
    assert aspect.max() < 3.3 * (1 + 0.5 / 18) / (1 - 0.5 / 5.5)
    assert abs(np.median(aspect) - 1) < 0.2  # as many tall as wide, except those that are clipped
    # tall boxes of every second image or less touch both edges; the others lie anywhere
    free = 100 - tall
    places = (top[erased] / np.maximum(free, 1))[free > 50]
    assert kolmogorov_distance(places, lambda place: np.clip(place, 0, 1)) < 0.03  # whole pixels
    assert is_uniform(many.erase_color.ravel(), 0, 255)


def test_sample_params_crops_have_requested_areas_and_aspects(crops):
    tall, wide = crops[:, 0, 0], crops[:, 1, 1]
    np.testing.assert_array_equal(crops[:, [0, 1], [1, 0]], 0)
    first, last = crops[:, :, 2], crops @ np.array([99.0, 49.0, 1.0], np.float32)
    assert first.min() >= 0
    # float32 of products of two numbers below 100
    assert (last <= np.array([99, 49]) + 2e-5).all()
    assert (tall * wide).min() >= 0.3 - 1e-6
    aspect = wide / tall
    assert (aspect >= 3 / 4 - 1e-6).all()
    assert (aspect <= 4 / 3 + 1e-6).all()
    small = tall * wide < 0.7  # all of these fit: 0.7 * 4 / 3 < 1
    assert is_uniform(tall[small] * wide[small], 0.3, 0.7)
    assert is_uniform(np.log(aspect[small]), -math.log(4 / 3), math.log(4 / 3))
    assert is_uniform(first[small, 0] / (99 * (1 - tall[small])), 0, 1)
    assert is_uniform(first[small, 1] / (49 * (1 - wide[small])), 0, 1)


def test_sample_params_crops_show_at_least_the_area():
    """A box of area a fits with probability -ln(a) / ln(4/3), on average 0.17991 for a from 0.9 to 1."""
    crops = np.asarray(jax.jit(jax.vmap(lambda key: _crop(key, 0.9, 100, 50)))(some_keys(MANY)))
    area = crops[:, 0, 0] * crops[:, 1, 1]
    assert area.min() >= 0.9 - 1e-6
    assert crops[:, [0, 1], [0, 1]].max() <= 1
    is_whole, none_fits = (crops == np.eye(3)[:2]).all(axis=(1, 2)), (1 - 0.17991) ** CROP_TRIES
    assert abs(is_whole.mean() - none_fits) < 4 * np.sqrt(none_fits * (1 - none_fits) / MANY)


def test_sample_params_one_matrix_composes_independent_draws(many, with_crops):
    others = AugmentConfig(**{name: value for name, value in EVERYTHING.items() if name not in WITH_CROPS})
    second = drawn(some_keys(MANY), others, 100, 50)
    for name in set(many._fields) - {"matrix"}:
        in_first = name in {"brightness", "contrast", "erase_box", "erase_color"}
        on, off = (with_crops, second) if in_first else (second, with_crops)
        np.testing.assert_array_equal(getattr(on, name), getattr(many, name))
        assert not np.array_equal(getattr(off, name), getattr(many, name))
    expected = jax.jit(jax.vmap(compose))(with_crops.matrix, second.matrix)
    # the same products, of numbers up to 100, summed in another order
    np.testing.assert_allclose(many.matrix, expected, rtol=0, atol=1e-4)


def test_sample_params_of_nothing_are_neutral():
    change = drawn(some_keys(2), AugmentConfig(), 7, 9)
    neutral = AugmentParams(np.zeros((2, 0)), np.zeros((2, 0)), [np.eye(3)[:2]] * 2, 0, 1, 1, 1, 0, 0, 0)
    for name, expected in neutral._asdict().items():
        np.testing.assert_array_equal(getattr(change, name), expected)


def test_sample_params_shapes_and_dtypes(many):
    shapes = {name: (value.shape[1:], value.dtype) for name, value in many._asdict().items()}
    whole, real = np.dtype(np.int32), np.dtype(np.float32)
    assert shapes == {
        "color_ops": ((2,), whole),
        "color_strengths": ((2,), real),
        "matrix": ((2, 3), real),
        "channel_shift": ((), real),
        "brightness": ((), real),
        "contrast": ((), real),
        "saturation": ((), real),
        "hue": ((), real),
        "erase_box": ((4,), real),
        "erase_color": ((3,), real),
    }
    nothing = drawn(some_keys(2), AugmentConfig(), 7, 9)
    assert [value.dtype for value in nothing] == [value.dtype for value in many]


@pytest.mark.parametrize("bad", [
    {"rotation": -1}, {"height_shift": 1.0}, {"zoom": 1.5}, {"shear": float("nan")}, {"cval": 256}, {"brightness": 1.1},
    {"channel_shift": -1}, {"hue": 0.6}, {"crop": 1.1}, {"randaugment": -1}, {"magnitude": 11}, {"erasing": 2},
    {"mixup": -0.2}, {"cutmix": float("inf")}, {"mixup": float("nan")},
], ids=str)  # fmt: skip
def test_augment_config_out_of_range_raises(bad):
    ((name, value),) = bad.items()
    with pytest.raises(UserError, match=rf"\b{name}\b.*[ =]{re.escape(str(value))}\b.*\b0\b"):
        AugmentConfig(**bad)


def test_augment_config_unknown_fill_suggests_one():
    with pytest.raises(UserError, match=r"fill.*'reflct'.*'reflect'"):
        AugmentConfig(fill="reflct")


@pytest.mark.parametrize(("kinds", "moves", "mixes"), [
    ({}, False, False), ({"brightness": 0.1, "erasing": 1, "hue": 0.5}, False, False), ({"shear": 1}, True, False),
    ({"vertical_flip": True}, True, False), ({"crop": 0.5}, True, False), ({"randaugment": 1}, True, False),
    ({"mixup": 0.2}, False, True), ({"cutmix": 1}, False, True),
], ids=str)  # fmt: skip
def test_augment_config_is_geometric_and_uses_mixing(kinds, moves, mixes):
    augmentation = AugmentConfig(**kinds)
    assert (augmentation.is_geometric, augmentation.uses_mixing) == (moves, mixes)
