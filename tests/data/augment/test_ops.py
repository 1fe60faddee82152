import colorsys

import jax
import numpy as np
import pytest
import scipy.ndimage
from keras.src.legacy.preprocessing import image as keras_image
from PIL import Image, ImageEnhance

from flaxtl.data.augment.affine import Affine, affine_matrix
from flaxtl.data.augment.config import FILLS, AugmentConfig, AugmentParams, example_keys, sample_params
from flaxtl.data.augment.ops import apply_params, augment, shift_hue, warp, warp_on_tpu
from flaxtl.data.augment.randaugment import apply_color_op

LECTURE = AugmentConfig(rotation=30, height_shift=0.2, width_shift=0.2, shear=0.2, zoom=0.2, horizontal_flip=True)
STILL = Affine(theta=0.0, tx=0.0, ty=0.0, shear=0.0, zx=1.0, zy=1.0, flip_horizontal=False, flip_vertical=False)
ALONE = [
    {"theta": 23.0},
    {"theta": -171.5},
    {"tx": 7.3},
    {"ty": -5.8},
    {"shear": 12.5},
    {"zx": 1.19},
    {"zy": 0.83},
    {"flip_horizontal": True},
    {"flip_vertical": True},
]
TOGETHER = [
    {"theta": -28.4, "tx": 9.7, "ty": -6.1, "shear": 0.17, "zx": 0.87, "zy": 1.13},
    {"theta": 64.0, "tx": -3.2, "ty": 11.9, "shear": -31.0, "zx": 1.3, "zy": 0.7, "flip_horizontal": True},
    {"theta": 11.0, "tx": 40.2, "ty": -71.3, "zx": 1.7, "zy": 1.6, "flip_horizontal": True, "flip_vertical": True},
]
COUNT = len(ALONE + TOGETHER)
SIZES = [(32, 47), (1, 9)]
CVAL = 91.0

# Against float64: a coordinate's three terms are each rounded to 2**-16 (1.5 * 2**-16 at most) after float32 rounding
# of numbers up to 128 (3 * 2**-18) and of the matrix itself (a few 2**-18 more): below 2**-15 pixels on either axis.
# Bilinear values of 0..255 change by at most 255 a pixel on either axis, the blend itself rounds to 255 * 2**-23.
PIXELS = 2.0**-15
GREY = 2 * 255 * PIXELS

step = jax.jit(augment, static_argnums=2)
done = jax.jit(apply_params, static_argnums=2)
drawn = jax.jit(sample_params, static_argnums=(1, 2, 3))
keys_of = jax.jit(example_keys)
turned = jax.jit(shift_hue)
operate = jax.jit(apply_color_op)
# one program a size and fill: one image under COUNT matrices
seen = jax.jit(jax.vmap(warp, in_axes=(None, 0, None, None)), static_argnums=(2, 3))
matrices_of = jax.jit(jax.vmap(affine_matrix, in_axes=(0, None, None)), static_argnums=(1, 2))


@pytest.fixture(autouse=True)
def scipy_name_that_keras_uses(monkeypatch):
    monkeypatch.setattr(scipy.ndimage, "interpolation", scipy.ndimage, raising=False)  # gone in scipy 2


@pytest.fixture
def unexchanged(monkeypatch):
    """Keras with its exchange of the axes undone, by exchanging them again (see config.py)."""
    centred = keras_image.transform_matrix_offset_center

    def exchanged(product, height, width):
        return centred(product, height, width)[[1, 0, 2]][:, [1, 0, 2]]

    monkeypatch.setattr(keras_image, "transform_matrix_offset_center", exchanged)


def some_keys(n: int, turn: int = 0) -> jax.Array:
    return keys_of(3, np.full(n, turn), np.arange(n))


def noise(height: int, width: int, batch: tuple[int, ...] = ()) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (*batch, height, width, 3), dtype=np.uint8)


def keras_transform(image, affine, fill="nearest", **more):
    names = {"tx", "ty"} | more.keys()
    generator = keras_image.ImageDataGenerator(fill_mode=fill, cval=CVAL)
    assert names  # Keras ignores unknown names
    return generator.apply_transform(image.astype(np.float32), {**affine, **more})


def views(image, affines):
    """Return the matrices, float32 [COUNT, 2, 3], of `affines` that differ from STILL, then the identity."""
    every = [STILL._replace(**affine) for affine in affines] + [STILL] * (COUNT - len(affines))
    return np.asarray(matrices_of(Affine(*map(np.asarray, zip(*every, strict=True))), *image.shape[:2]))


def ours(image, affines, fill="nearest"):
    return np.asarray(seen(image, views(image, affines), fill, CVAL))[: len(affines)]


def away_from_jumps(image, matrices, fill):
    """bool [n, h, w]: where rounding a coordinate cannot move it across a discontinuity.

    'constant' jumps at the outermost pixels, and 'wrap', whose period is one pixel short, at every seam.
    """
    height, width, _ = image.shape
    places = np.stack([*np.indices((height, width), np.float64), np.ones((height, width))])
    position = np.einsum("nij,jhw->nihw", matrices.astype(np.float64), places)
    edge = np.array([height, width])[:, None, None] - 1.0
    if fill == "wrap":
        off = np.where(edge > 0, np.abs(position - edge * np.round(position / np.maximum(edge, 1))), 1)
    else:
        off = np.minimum(np.abs(position), np.abs(position - edge))
    return (off > 4 * PIXELS).all(1) if fill in {"wrap", "constant"} else np.full((len(matrices), height, width), True)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize(
    "size", [*SIZES, *(pytest.param(size, marks=pytest.mark.slow) for size in ((33, 33), (61, 40)))]
)
@pytest.mark.usefixtures("unexchanged")
def test_warp_matches_keras_apply_transform(size, fill):
    image, affines = noise(*size), ALONE + TOGETHER
    safe = away_from_jumps(image, views(image, affines), fill)
    expected = np.stack([keras_transform(image, affine, fill) for affine in affines])
    np.testing.assert_allclose(ours(image, affines, fill)[safe], expected[safe], rtol=0, atol=GREY)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize(
    "size", [*SIZES, *(pytest.param(size, marks=pytest.mark.slow) for size in ((1, 1), (2, 3), (33, 33)))]
)
def test_warp_far_outside_matches_scipy(size, fill):
    image, random = noise(*size), np.random.default_rng(2)
    # quarters: exact in float32 and in fixed point, so that seams are met exactly, too
    lines = np.concatenate([random.integers(-8, 9, (COUNT, 2, 2)), random.integers(-600, 600, (COUNT, 2, 1))], 2) / 4
    planes = np.moveaxis(image.astype(np.float64), -1, 0)
    for result, own in zip(seen(image, lines.astype(np.float32), fill, CVAL), lines, strict=True):
        scipys = [
            scipy.ndimage.affine_transform(plane, own[:, :2], own[:, 2], order=1, mode=fill, cval=CVAL)
            for plane in planes
        ]
        np.testing.assert_allclose(result, np.stack(scipys, -1), rtol=0, atol=255 * 2.0**-22)  # the blend alone


@pytest.mark.parametrize("fill", ["nearest", *(pytest.param(fill, marks=pytest.mark.slow) for fill in FILLS[1:])])
def test_warp_on_squares_matches_keras_with_swapped_axes(fill):
    image, affines = noise(33, 33), ALONE + TOGETHER
    unflipped = [i for i, affine in enumerate(affines) if not any("flip" in name for name in affine)]
    safe = away_from_jumps(image, views(image, affines), fill)[unflipped]
    result = ours(image.swapaxes(0, 1), affines, fill)[unflipped]
    expected = np.stack([keras_transform(image, affines[i], fill).swapaxes(0, 1) for i in unflipped])
    np.testing.assert_allclose(result[safe], expected[safe], rtol=0, atol=GREY)


@pytest.mark.usefixtures("unexchanged")
def test_warp_of_lecture_size_matches_keras():
    image = noise(200, 200)
    # as above, with numbers up to 256: twice the float32 part
    (result,) = ours(image, TOGETHER[:1])
    np.testing.assert_allclose(result, keras_transform(image, TOGETHER[0]), rtol=0, atol=2 * GREY)


def test_warp_height_shift_moves_rows():
    """A positive shift reads further down, so the image moves up: Keras' sign, along the axis of its name."""
    image = noise(32, 47)
    down, right = ours(image, [{"tx": 2.0}, {"ty": 2.0}])
    np.testing.assert_array_equal(down[:-2], image[2:])
    np.testing.assert_array_equal(down[-2:], image[[-1, -1]])
    np.testing.assert_array_equal(right[:, :-2], image[:, 2:])


@pytest.mark.parametrize(("fill", "rows"), [("nearest", [0, 0, 0]), ("reflect", [2, 1, 0]), ("wrap", [28, 29, 30])])
def test_warp_fills_whole_pixels(fill, rows):
    """Wrap's period is one short, as scipy's: row 31 is row 0 again and is not seen."""
    image = noise(32, 47)
    np.testing.assert_array_equal(ours(image, [{"tx": -3.0}], fill)[0], image[[*rows, *range(29)]])


def test_warp_constant_fill_starts_at_edge():
    (moved,) = ours(noise(32, 47), [{"tx": -0.25}], "constant")
    assert (moved[0] == CVAL).all()
    assert (moved[1:] != CVAL).any(axis=(1, 2)).all()


@pytest.mark.slow
@pytest.mark.parametrize("fill", FILLS)
def test_warp_on_tpu_equals_warp(fill):
    image = np.random.default_rng(5).integers(0, 256, (7, 9, 3), np.uint8)
    matrices = views(image, [ALONE[0], *TOGETHER])[:4]

    def both(image):
        def pair(matrix):
            return warp(image, matrix, fill, CVAL), warp_on_tpu(image, matrix, fill, CVAL)

        return jax.vmap(pair)(matrices)

    for given, packed in jax.jit(lambda images: [both(image) for image in images])([image, image / np.float32(3)]):
        assert given.shape == packed.shape == (4, 7, 9, 3)
        # The same pixels and weights; the three sums of a blend may be contracted to fused multiply-adds or not.
        np.testing.assert_allclose(packed, given, rtol=0, atol=3 * 255 * 2.0**-24)


def test_warp_index_and_weight_are_consistent():
    """The reason for fixed point: a coordinate has the same bits in every compilation, and in each use within one."""
    images = noise(40, 30, (8,))
    matrices = drawn(some_keys(8), LECTURE, 40, 30).matrix
    together = jax.jit(jax.vmap(warp))(images, matrices)
    in_turn = jax.jit(lambda *batch: jax.lax.map(lambda one: warp(*one), batch))(images, matrices)
    # only the blend may be contracted: two float32 roundings of at most 255
    np.testing.assert_allclose(in_turn, together, rtol=0, atol=255 * 2.0**-22)


@pytest.mark.slow
def test_warp_step_by_step_equals_one_program():
    """Outside of jit each operation is a program: fifty of them."""
    images, matrices = noise(40, 30, (2,)), drawn(some_keys(8), LECTURE, 40, 30).matrix[:2]
    by_steps, together = jax.vmap(warp)(images, matrices), jax.jit(jax.vmap(warp))(images, matrices)
    np.testing.assert_allclose(by_steps, together, rtol=0, atol=255 * 2.0**-22)


@pytest.mark.parametrize(
    ("images", "still"),
    [
        (noise(33, 20, (3,)), AugmentConfig()),
        (noise(33, 20, (3,)) + np.float32(0.37), AugmentConfig(rotation=1e-30, fill="constant")),
    ],
    ids=["uint8", "float32-warp"],
)
def test_augment_of_nothing_is_identity(images, still):
    result = step(some_keys(3), images, still)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, images.astype(np.float32))


def test_augment_flips_are_exact_and_hit_half():
    images = noise(16, 21, (64,))
    flips = AugmentConfig(fill="constant", horizontal_flip=True, vertical_flip=True)
    result = np.asarray(step(some_keys(64), images, flips))
    mirrors = images, images[:, :, ::-1], images[:, ::-1], images[:, ::-1, ::-1]
    kept, horizontal, vertical, both = ((result == mirror).all((1, 2, 3)) for mirror in mirrors)
    np.testing.assert_array_equal(kept.astype(int) + horizontal + vertical + both, 1)
    for flipped in (horizontal | both, vertical | both):
        assert 16 < flipped.sum() < 48  # 4 standard deviations of 64 fair coins


NEUTRAL = AugmentParams(
    color_ops=np.zeros((1, 0), np.int32),
    color_strengths=np.zeros((1, 0), np.float32),
    matrix=np.eye(3, dtype=np.float32)[None, :2],
    channel_shift=np.zeros(1, np.float32),
    brightness=np.ones(1, np.float32),
    contrast=np.ones(1, np.float32),
    saturation=np.ones(1, np.float32),
    hue=np.zeros(1, np.float32),
    erase_box=np.zeros((1, 4), np.float32),
    erase_color=np.zeros((1, 3), np.float32),
)


def changed(image, augmentation, **fields):
    """Return one image with these `fields` of its parameters."""
    fields = {name: np.asarray(value, np.float32)[None] for name, value in fields.items()}
    return np.asarray(done(image[None], NEUTRAL._replace(**fields), augmentation))[0]


@pytest.mark.parametrize("shift", [-37.25, 0.0, 90.5])
def test_channel_shift_matches_keras_exactly(shift):
    image = 30 + noise(20, 30) // 2  # 30..157: its own ends are not 0 and 255
    expected = keras_transform(image, {}, channel_shift_intensity=shift)
    result = changed(image, AugmentConfig(channel_shift=100), channel_shift=shift)
    np.testing.assert_array_equal(result, expected)
    assert (result.min() == 30) == (shift <= 0)
    assert (result.max() == 157) == (shift >= 0)


@pytest.mark.parametrize("factor", [0.0, 0.3, 0.77, 1.0, 1.21, 2.0])
def test_brightness_matches_keras_without_rounding(factor):
    image = noise(20, 30)
    result = changed(image, AugmentConfig(brightness=1), brightness=factor)
    # Keras truncates to integers; the products are the same float32
    np.testing.assert_array_equal(np.floor(result), keras_transform(image, {}, brightness=factor))


@pytest.mark.usefixtures("unexchanged")
def test_augment_all_of_keras_matches_keras():
    """Keras truncates x before brightness f, and f x after it: it is at most f + 1 darker."""
    image, factor, shift = noise(32, 47), 1.21, 33.0
    affine = TOGETHER[1] | {"flip_vertical": True}
    expected = keras_transform(image, affine, channel_shift_intensity=shift, brightness=factor)
    kinds = AugmentConfig(rotation=90, channel_shift=100, brightness=1)
    lines = views(image, [affine])[0]
    result = changed(image, kinds, matrix=lines, channel_shift=shift, brightness=factor)
    difference = result - expected
    assert difference.min() > -factor * GREY
    assert difference.max() < factor + 1 + factor * GREY
    assert 0.5 < difference.mean() < 1.3  # about half a level each time, except for clipped values


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.6, 2.0])
@pytest.mark.parametrize(
    ("kind", "enhancer"), [("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)]
)
def test_contrast_and_saturation_match_pillow_without_rounding(kind, enhancer, factor):
    image = noise(20, 30)
    expected = np.asarray(enhancer(Image.fromarray(image)).enhance(factor), np.float64)
    difference = changed(image, AugmentConfig(**{kind: 1}), **{kind: factor}) - expected
    # Pillow rounds the gray level (and the mean again) and truncates the result
    off = abs(1 - factor) * {"saturation": 0.51, "contrast": 1.01}[kind] + 1e-4
    assert difference.min() > -off
    assert difference.max() < 1 + off


@pytest.mark.parametrize("turns", [-0.5, -0.13, 0.0, 0.021, 0.35, 0.5])
def test_shift_hue_matches_colorsys(turns):
    image = np.concatenate([noise(12, 20), np.full((1, 20, 3), 77), np.zeros((1, 20, 3))]).astype(np.float32)
    image[-3:, :, 1] = image[-3:, :, 0]  # ties
    hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in (image.reshape(-1, 3) / 255.0).tolist()]
    expected = [colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value) for hue, saturation, value in hsv]
    result = turned(image, np.float32(turns))
    # k, below 16, is a sum of four float32 terms: 4 * 2**-21, times a chroma of at most 255
    np.testing.assert_allclose(result, 255 * np.reshape(expected, image.shape), rtol=0, atol=255 * 2.0**-19)


def test_erasing_covers_box_only():
    image = noise(9, 12)
    erased = changed(image, AugmentConfig(erasing=1), erase_box=[2, 3, 5, 12], erase_color=[1.5, 200, 30])
    expected = image.astype(np.float32)
    expected[2:5, 3:12] = [1.5, 200, 30]
    np.testing.assert_array_equal(erased, expected)
    erased = changed(image, AugmentConfig(erasing=1), erase_box=[0, 0, 9, 7], erase_color=[0, 0, 0])
    assert not erased[:, :7].any()
    np.testing.assert_array_equal(erased[:, 7:], image[:, 7:])
    np.testing.assert_array_equal(changed(image, AugmentConfig(erasing=1), erase_box=[0, 0, 0, 0]), image)


def test_apply_params_ignores_disabled_operations():
    image = noise(9, 12)
    wild = {"matrix": np.ones((2, 3)), "channel_shift": 50, "brightness": 2, "contrast": 0, "saturation": 0, "hue": 0.4}
    np.testing.assert_array_equal(changed(image, AugmentConfig(), erase_box=[0, 0, 9, 9], **wild), image)


def test_apply_params_order_is_documented_one():
    images, kinds = noise(40, 30, (1,)), ("channel_shift", "brightness", "contrast", "saturation", "hue")
    change = NEUTRAL._replace(
        color_ops=np.array([[2, 8]], np.int32),
        color_strengths=np.array([[1, 1.5]], np.float32),
        matrix=views(images[0], TOGETHER)[:1],
        channel_shift=np.array([-31.5], np.float32),
        brightness=np.array([1.3], np.float32),
        contrast=np.array([0.7], np.float32),
        saturation=np.array([1.9], np.float32),
        hue=np.array([0.2], np.float32),
        erase_box=np.array([[3, 4, 9, 11]], np.float32),
        erase_color=np.array([[0, 100, 200.0]], np.float32),
    )
    every = dict.fromkeys(kinds, 0.5) | {"rotation": 1, "erasing": 1}

    @jax.jit
    def apply_in_turn(images):
        for kind in ("rotation", *kinds, "erasing"):
            images = apply_params(images, change, AugmentConfig(fill="reflect", **{kind: every[kind]}))
        return images

    expected = images[0].astype(np.int32)
    for operation, strength in zip(change.color_ops[0], change.color_strengths[0], strict=True):
        expected = operate(expected, operation, strength)
    result = done(images, change, AugmentConfig(**every, randaugment=2, fill="reflect"))
    assert result.dtype == np.float32
    assert result.min() >= 0
    assert result.max() <= 255
    # two compilations: a few float32 roundings of gray levels, and those of a rotated hue
    np.testing.assert_allclose(result, apply_in_turn(expected[None]), rtol=0, atol=255 * 2.0**-17)


def test_augment_depends_on_key_not_batch():
    images, order = noise(40, 30, (8,)), np.array([6, 1, 3, 3, 0, 7, 2, 6])
    whole = np.asarray(step(some_keys(8), images, LECTURE))
    np.testing.assert_array_equal(step(some_keys(8)[order], images[order], LECTURE), whole[order])
    assert (np.asarray(step(some_keys(8, turn=1), images, LECTURE)) != whole).any(axis=(1, 2, 3)).all()


def test_augment_of_uint8_and_float32_is_equal():
    images = noise(40, 30, (8,))
    results = [np.asarray(step(some_keys(8), images.astype(dtype), LECTURE)) for dtype in (np.uint8, np.float32)]
    assert results[0].dtype == np.float32
    assert results[0].shape == (8, 40, 30, 3)
    np.testing.assert_array_equal(*results)
    assert results[0].min() >= 0
    assert results[0].max() <= 255 * (1 + 2.0**-22)  # weights that sum to 1, rounded


def test_augment_is_sample_then_apply():
    images = noise(40, 30, (8,))
    expected = done(images, drawn(some_keys(8), LECTURE, 40, 30), LECTURE)
    # two compilations of the same formula: sine and cosine within an ulp, the gray values as in GREY
    np.testing.assert_allclose(step(some_keys(8), images, LECTURE), expected, rtol=0, atol=GREY)
