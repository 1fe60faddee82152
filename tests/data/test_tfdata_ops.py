from types import SimpleNamespace

import jax
import numpy as np
import pytest
import scipy.ndimage
from keras.src.legacy.preprocessing import image as keras_image

from flaxtl.data.augment import ops, randaugment
from flaxtl.data.augment.config import FILLS, AugmentConfig, AugmentParams, example_keys, sample_params

pytestmark = pytest.mark.needs_tf


@pytest.fixture(scope="module", autouse=True)
def _tensorflow():
    """Import TensorFlow for the tests here, not in every worker that collects them: it takes 4 s."""
    global tfdata, tf
    import tensorflow as tf

    from flaxtl.data import tfdata


HEIGHT, WIDTH, BATCH = 33, 46, 24

COLORS = {"brightness": 0.7, "channel_shift": 90, "contrast": 0.9, "saturation": 1, "hue": 0.5}
FAR = {"rotation": 170, "height_shift": 0.9, "width_shift": 0.9, "shear": 60, "zoom": 0.8, "vertical_flip": True}
MOST = FAR | COLORS | {"fill": "reflect", "horizontal_flip": True, "crop": 0.3, "erasing": 0.5}
ALL = MOST | {"randaugment": 2}

STILL = AugmentParams(
    color_ops=np.zeros((BATCH, 0), np.int32),
    color_strengths=np.zeros((BATCH, 0), np.float32),
    matrix=np.tile(np.eye(3, dtype=np.float32)[:2], (BATCH, 1, 1)),
    channel_shift=np.zeros(BATCH, np.float32),
    brightness=np.ones(BATCH, np.float32),
    contrast=np.ones(BATCH, np.float32),
    saturation=np.ones(BATCH, np.float32),
    hue=np.zeros(BATCH, np.float32),
    erase_box=np.zeros((BATCH, 4), np.float32),
    erase_color=np.zeros((BATCH, 3), np.float32),
)
"""Parameters that change nothing."""

# Both compute in float32 with the same integer coordinates and factors; sums, and divisions by the hue's chroma,
# may be ordered differently. A mean of 1,500 values of up to 255 is off by at most 255 * 1,500 * 2**-24 = 0.023 in any
# order; everything else is thousands of times smaller.
ORDER = 0.03

# Against float64, as in test_ops.py: coordinates within 2**-15 pixels on either axis, 255 gray levels a pixel.
GREY = 2 * 255 * 2.0**-15

draw = jax.jit(
    lambda indices, augmentation: sample_params(example_keys(5, indices, indices), augmentation, HEIGHT, WIDTH),
    static_argnums=1,
)
apply_by_jax = jax.jit(ops.apply_params, static_argnums=2)
operate = jax.jit(jax.vmap(randaugment.apply_color_op, in_axes=(0, None, None)))


@pytest.fixture(scope="module", params=FILLS)
def fill(request):
    """A fixture of the module, so that the tests of one fill follow each other and share its two programs."""
    return request.param


@pytest.fixture(scope="module")
def params():
    """Parameters of all operations but RandAugment."""
    return draw(np.arange(BATCH, dtype=np.int32), AugmentConfig(**MOST))


@pytest.fixture(scope="module")
def images():
    """Noise, gradients and flat colors: every kind of edge, and pixels without a hue."""
    rng = np.random.default_rng(3)
    made = rng.integers(0, 256, (BATCH, HEIGHT, WIDTH, 3), dtype=np.uint8)
    made[8:16] = np.linspace(0, 255, WIDTH, dtype=np.uint8)[:, None] // np.array([1, 2, 3], np.uint8)
    made[16:20] //= 4
    made[20] = 128
    made[21] = made[21, ..., :1]
    return made


def tensors(change):
    return AugmentParams(*(tf.constant(np.asarray(field)) for field in change))


def ours(images, change, augmentation):
    return tfdata.apply_params(tf.constant(images), tensors(change), augmentation).numpy()


def only_warp(fill):
    return AugmentConfig(rotation=1, fill=fill, cval=77)


def assert_tf_matches_jax(images, change, augmentation):
    expected = apply_by_jax(images, change, augmentation)
    actual = ours(images, change, augmentation)
    assert actual.dtype == np.float32
    assert not np.array_equal(actual, images)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=ORDER)


def test_tf_apply_params_matches_jax(images, params):
    assert_tf_matches_jax(images, params, AugmentConfig(**MOST))


@pytest.mark.parametrize("name", [*COLORS, "erase_box"])
def test_tf_apply_params_of_one_color_operation_matches_jax(name, images, params):
    change = STILL._replace(**{name: getattr(params, name)}, erase_color=params.erase_color)
    assert_tf_matches_jax(images, change, AugmentConfig(**MOST))


def test_tf_apply_params_ignores_disabled_operations(fill, images, params):
    assert_tf_matches_jax(images, params, only_warp(fill))


@pytest.mark.slow
def test_tf_apply_params_with_randaugment_matches_jax(images):
    augmentation = AugmentConfig(**ALL)
    assert_tf_matches_jax(images, draw(np.arange(BATCH, dtype=np.int32), augmentation), augmentation)


@pytest.mark.parametrize("operation", range(9))
def test_tf_color_ops_match_jax_exactly(operation, images):
    images = images[[0, 8, 16, 20, 21]]  # noise, a gradient, dark noise, one color, gray levels
    for strength in {3: (0, 100, 256), 4: (4, 6, 8)}.get(operation, (26 / 256, 1, 487 / 256)):
        every = tf.fill([len(images), 1], operation), tf.fill([len(images), 1], float(strength))
        actual = tfdata.apply_color_ops(tf.constant(images), *every)
        assert np.array_equal(actual, operate(images.astype(np.int32), operation, np.float32(strength)))


def test_tf_apply_params_of_nothing_is_identity(images):
    assert np.array_equal(ours(images, STILL, AugmentConfig()), images)


def test_tf_warp_of_nothing_is_identity(fill, images):
    assert np.array_equal(ours(images, STILL, only_warp(fill)), images)


def test_tf_warp_matches_keras(fill, images, monkeypatch):
    """Record the matrix that Keras computes from its parameters, and apply the same one."""
    seen = []

    def watched(channel, matrix, offset, **options):
        seen.append(np.column_stack([matrix, offset]))
        return scipy.ndimage.affine_transform(channel, matrix, offset, **options)

    monkeypatch.setattr(scipy.ndimage, "interpolation", SimpleNamespace(affine_transform=watched), raising=False)
    rng = np.random.default_rng(9)
    expected, matrices = [], []
    for image in images:
        theta, shear = rng.uniform(-180, 180), rng.uniform(-60, 60)
        tx, ty, zx, zy = *rng.uniform(-40, 40, 2), *rng.uniform(0.2, 2, 2)
        expected.append(
            keras_image.apply_affine_transform(
                image.astype(np.float32), theta, tx, ty, shear, zx, zy,
                row_axis=0, col_axis=1, channel_axis=2, fill_mode=fill, cval=77.0,
            )
        )  # fmt: skip
        matrices.append(seen[-1])
    actual = ours(images, STILL._replace(matrix=np.array(matrices, np.float32)), only_warp(fill))
    # 'constant' and 'wrap' jump, so within rounding of an edge both sides are correct: none of these draws is there
    np.testing.assert_allclose(actual, expected, rtol=0, atol=GREY)


def test_tf_warp_by_whole_pixels_matches_scipy_exactly(fill, images):
    """Shifts of up to two widths, and of exactly one, where a fill mode repeats."""
    moves = np.arange(BATCH) * (HEIGHT - 1) // 4 - 2 * HEIGHT, np.arange(BATCH) * (WIDTH - 1) // 4 - 2 * WIDTH + 2
    matrices = np.stack([np.column_stack([np.eye(2), move]) for move in zip(*moves, strict=True)]).astype(np.float32)
    actual = ours(images, STILL._replace(matrix=matrices), only_warp(fill))
    for image, move, result in zip(images.astype(np.float32), zip(*moves, strict=True), actual, strict=True):
        expected = scipy.ndimage.shift(image, [-move[0], -move[1], 0], order=1, mode=fill, cval=77)
        assert np.array_equal(result, expected)


def test_tf_channel_shift_and_brightness_match_keras(images):
    rng = np.random.default_rng(9)
    shifts, factors = rng.uniform(-90, 90, BATCH), rng.uniform(0.3, 1.7, BATCH)
    # integer gray levels and 1 / 256: no product or sum is rounded, and Keras' truncation changes nothing else
    shifts, factors = np.round(shifts).astype(np.float32), (np.round(factors * 256) / 256).astype(np.float32)
    both = AugmentConfig(channel_shift=90, brightness=0.7)
    shifted = ours(images, STILL._replace(channel_shift=shifts), both)
    brightened = ours(images, STILL._replace(brightness=factors), both)
    for i, image in enumerate(images.astype(np.float32)):
        assert np.array_equal(shifted[i], keras_image.apply_channel_shift(image, shifts[i], channel_axis=2))
        keras = keras_image.apply_brightness_shift(image, float(factors[i]), scale=False)
        assert np.array_equal(np.trunc(brightened[i]), keras)
