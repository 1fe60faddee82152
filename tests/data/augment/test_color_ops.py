import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from flaxtl.data.augment.randaugment import Operation, apply_color_op

SIZES = [(33, 20), (2, 5), *(pytest.param(size, marks=pytest.mark.slow) for size in ((40, 40), (3, 3), (1, 1)))]
FACTORS = [26 / 256, 180 / 256, 1.0, 1 + 77 / 256, 1 + 230 / 256]

run = jax.jit(apply_color_op)


def noise(height, width):
    """Uneven gray levels, so that histograms differ from channel to channel."""
    uniform = np.random.default_rng(height * width).uniform(size=(height, width, 3))
    return (30 + 200 * uniform ** [0.5, 1.0, 3.0]).astype(np.uint8)


def ours(image, operation, strength=1.0):
    result = np.asarray(run(image.astype(np.int32), np.int32(operation), np.float32(strength)))
    assert result.dtype == np.int32
    return result


def pillow(image, change):
    return np.asarray(change(Image.fromarray(image)), np.int32)


@pytest.mark.parametrize("size", SIZES)
def test_color_op_nothing_is_identity(size):
    image = noise(*size)
    np.testing.assert_array_equal(ours(image, Operation.NOTHING), image)


@pytest.mark.parametrize("size", SIZES)
def test_color_op_equalize_matches_pillow(size):
    image = noise(*size)
    np.testing.assert_array_equal(ours(image, Operation.EQUALIZE), pillow(image, ImageOps.equalize))


@pytest.mark.slow
def test_equalize_of_many_pixels_matches_pillow():
    image = noise(300, 211)
    np.testing.assert_array_equal(ours(image, Operation.EQUALIZE), pillow(image, ImageOps.equalize))


@pytest.mark.parametrize("level", [0, 77])
def test_equalize_of_one_color_matches_pillow(level):
    image = np.full((33, 20, 3), level, np.uint8)
    np.testing.assert_array_equal(ours(image, Operation.EQUALIZE), pillow(image, ImageOps.equalize))


@pytest.mark.parametrize("size", SIZES)
def test_color_op_autocontrast_matches_pillow(size):
    """Pillow multiplies by a rounded 255 / (hi - lo), so it may be one lower where the quotient is an integer."""
    image = noise(*size)
    difference = ours(image, Operation.AUTOCONTRAST) - pillow(image, ImageOps.autocontrast)
    exact = ours(image, Operation.AUTOCONTRAST)
    low, high = image.min((0, 1)).astype(int), image.max((0, 1)).astype(int)
    whole = 255 * (image - low) % np.maximum(high - low, 1) == 0
    assert (difference[~whole] == 0).all()
    assert ((difference == 0) | (difference == 1)).all()
    if size == (33, 20):
        assert (exact.min((0, 1)) == 0).all()
        assert (exact.max((0, 1)) == 255).all()


def test_color_op_autocontrast_keeps_constant_channel():
    image = noise(33, 20)
    image[..., 1] = 99
    assert (ours(image, Operation.AUTOCONTRAST)[..., 1] == 99).all()


@pytest.mark.parametrize("threshold", [0, 26, 128, 256])
def test_color_op_solarize_matches_pillow(threshold):
    image = noise(33, 20)
    expected = pillow(image, lambda pil_image: ImageOps.solarize(pil_image, threshold))
    np.testing.assert_array_equal(ours(image, Operation.SOLARIZE, threshold), expected)


@pytest.mark.parametrize("bits", [4, 5, 7, 8])
def test_color_op_posterize_matches_pillow(bits):
    image = noise(33, 20)
    expected = pillow(image, lambda pil_image: ImageOps.posterize(pil_image, bits))
    np.testing.assert_array_equal(ours(image, Operation.POSTERIZE, bits), expected)


@pytest.mark.parametrize(
    ("operation", "enhancer"),
    [
        (Operation.COLOR, ImageEnhance.Color),
        (Operation.CONTRAST, ImageEnhance.Contrast),
        (Operation.BRIGHTNESS, ImageEnhance.Brightness),
        (Operation.SHARPNESS, ImageEnhance.Sharpness),
    ],
)
@pytest.mark.parametrize("size", SIZES)
def test_color_op_enhancements_match_pillow(size, operation, enhancer):
    image = noise(*size)
    for factor in FACTORS:
        expected = pillow(image, lambda pil_image, factor=factor: enhancer(pil_image).enhance(factor))
        np.testing.assert_array_equal(ours(image, operation, factor), expected)


@pytest.mark.slow
def test_color_ops_of_batch_match_single_images():
    images = np.stack([noise(16, 18)] * 9).astype(np.int32)
    strengths = np.array([1, 1, 1, 100, 5, 1.5, 0.5, 1.25, 0.25], np.float32)
    together = jax.jit(jax.vmap(apply_color_op))(images, np.arange(9, dtype=np.int32), strengths)
    for operation in range(9):
        np.testing.assert_array_equal(together[operation], ours(images[0], operation, strengths[operation]))
