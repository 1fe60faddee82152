import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from keras.src.legacy.preprocessing import image as keras_image

from flaxtl.data.augment import Affine, Augmentation, augment, draw, keys, matrix, warp
from flaxtl.errors import UserError

LECTURE = Augmentation(rotation=30, height_shift=0.2, width_shift=0.2, shear=0.2, zoom=0.2, horizontal_flip=True)
STILL = Affine(theta=0.0, tx=0.0, ty=0.0, shear=0.0, zx=1.0, zy=1.0, flip=False)
ALONE = [
    {"theta": 23.0},
    {"theta": -171.5},
    {"tx": 7.3},
    {"ty": -5.8},
    {"shear": 12.5},
    {"zx": 1.19},
    {"zy": 0.83},
    {"flip": True},
]
TOGETHER = [
    {"theta": -28.4, "tx": 9.7, "ty": -6.1, "shear": 0.17, "zx": 0.87, "zy": 1.13},
    {"theta": 64.0, "tx": -3.2, "ty": 11.9, "shear": -31.0, "zx": 1.3, "zy": 0.7, "flip": True},
]
SIZES = [(32, 32), (33, 33), (32, 47), (61, 40), (1, 9)]

# Against float64: a coordinate's three terms are each rounded to 2**-16 (1.5 * 2**-16 at most) after float32 rounding
# of numbers up to 128 (3 * 2**-18) and of the matrix itself (a few 2**-18 more): below 2**-15 pixels on either axis.
# Bilinear values of 0..255 change by at most 255 a pixel on either axis, the blend itself rounds to 255 * 2**-23.
GREY = 2 * 255 * 2.0**-15


step = jax.jit(augment, static_argnums=2)
keys_of = jax.jit(keys)
view = jax.jit(lambda picture, affine: warp(picture, matrix(affine, *picture.shape[:2])))


@pytest.fixture(autouse=True)
def scipy_name_that_keras_uses(monkeypatch):
    monkeypatch.setattr(scipy.ndimage, "interpolation", scipy.ndimage, raising=False)  # gone in scipy 2


@pytest.fixture
def unexchanged(monkeypatch):
    """Keras without its exchange of the axes: exchanging them once more undoes it (see the module's docstring)."""
    centred = keras_image.transform_matrix_offset_center

    def exchanged(product, height, width):
        return centred(product, height, width)[[1, 0, 2]][:, [1, 0, 2]]

    monkeypatch.setattr(keras_image, "transform_matrix_offset_center", exchanged)


def noise(height: int, width: int, batch: tuple[int, ...] = ()) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (*batch, height, width, 3), dtype=np.uint8)


def keras_transform(picture: np.ndarray, affine: dict[str, float]) -> np.ndarray:
    parameters = {"flip_horizontal" if name == "flip" else name: value for name, value in affine.items()}
    return keras_image.ImageDataGenerator(fill_mode="nearest").apply_transform(picture.astype(np.float32), parameters)


def ours(picture: np.ndarray, affine: dict[str, float]) -> np.ndarray:
    return np.asarray(view(picture, STILL._replace(**affine)))


@pytest.mark.parametrize("affine", ALONE + TOGETHER, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("unexchanged")
def test_warp_is_keras_apply_transform(size, affine):
    picture = noise(*size)
    np.testing.assert_allclose(ours(picture, affine), keras_transform(picture, affine), rtol=0, atol=GREY)


@pytest.mark.parametrize("affine", [a for a in ALONE + TOGETHER if not a.get("flip")], ids=str)
@pytest.mark.parametrize("side", [32, 33])
def test_on_squares_keras_of_today_is_the_same_with_the_axes_exchanged(side, affine):
    picture = noise(side, side)
    turned = ours(picture.swapaxes(0, 1), affine).swapaxes(0, 1)
    np.testing.assert_allclose(turned, keras_transform(picture, affine), rtol=0, atol=GREY)


def test_the_lectures_size_is_keras_too(unexchanged):
    picture = noise(200, 200)
    # as above, with numbers up to 256: twice the float32 part
    np.testing.assert_allclose(ours(picture, TOGETHER[0]), keras_transform(picture, TOGETHER[0]), rtol=0, atol=2 * GREY)


def test_height_shift_moves_rows():
    """A positive shift reads further down, so the picture moves up: Keras' sign, and the axis its name says."""
    picture = noise(9, 7)
    np.testing.assert_array_equal(ours(picture, {"tx": 2.0})[:-2], picture[2:])
    np.testing.assert_array_equal(ours(picture, {"tx": 2.0})[-2:], picture[[-1, -1]])
    np.testing.assert_array_equal(ours(picture, {"ty": 2.0})[:, :-2], picture[:, 2:])


def test_matrix_turns_about_the_centre():
    turned = np.asarray(matrix(STILL._replace(theta=90.0, flip=True), 5, 9))
    centre = np.array([2, 4, 1])
    # float32 cosine of a right angle is -4e-8, times half a width
    np.testing.assert_allclose(turned @ centre, centre, atol=1e-6)
    np.testing.assert_allclose(turned, [[0, 1, -2], [1, 0, 2], [0, 0, 1]], atol=1e-6)
    assert turned.dtype == np.float32


def test_index_and_weight_never_disagree():
    """The reason for fixed point: a coordinate has the same bits in every compilation, and in each use within one."""
    pictures = jnp.asarray(noise(64, 64, (8,)))
    matrices = jax.jit(jax.vmap(lambda key: matrix(draw(key, LECTURE, 64, 64), 64, 64)))(some_keys(8))
    together = jax.jit(jax.vmap(warp))(pictures, matrices)
    in_turn = jax.jit(lambda *batch: jax.lax.map(lambda one: warp(*one), batch))(pictures, matrices)
    by_steps = jax.vmap(warp)(pictures, matrices)
    # only the blend may be contracted: two float32 roundings of at most 255
    np.testing.assert_allclose(in_turn, together, rtol=0, atol=255 * 2.0**-22)
    np.testing.assert_allclose(by_steps, together, rtol=0, atol=255 * 2.0**-22)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("size", [(16, 16), (33, 20)])
def test_no_augmentation_is_the_identity_bit_for_bit(size, dtype):
    pictures = noise(*size, (3,)).astype(dtype)
    if dtype == np.float32:
        pictures += np.float32(0.37)
    result = step(some_keys(3), pictures, Augmentation())
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(result, pictures.astype(np.float32))


@pytest.mark.parametrize("size", [(16, 16), (16, 21)])
def test_flip_is_exact_and_hits_about_half(size):
    pictures = noise(*size, (64,))
    result = np.asarray(step(some_keys(64), pictures, Augmentation(horizontal_flip=True)))
    flipped = np.array([(one == before[:, ::-1]).all() for one, before in zip(result, pictures, strict=True)])
    kept = np.array([(one == before).all() for one, before in zip(result, pictures, strict=True)])
    assert (flipped ^ kept).all()
    assert 16 < flipped.sum() < 48  # 4 standard deviations of 64 fair coins


def some_keys(n: int, seed: int = 3, turn: int = 0) -> jax.Array:
    return keys_of(seed, np.full(n, turn), np.arange(n))


def test_draws_are_uniform_in_keras_ranges():
    many = jax.jit(jax.vmap(lambda key: draw(key, LECTURE, 100, 50)))(some_keys(20_000))
    ranges = {
        "theta": (-30, 30),
        "tx": (-20, 20),
        "ty": (-10, 10),
        "shear": (-0.2, 0.2),
        "zx": (0.8, 1.2),
        "zy": (0.8, 1.2),
    }
    standard = []
    for name, (low, high) in ranges.items():
        values = np.asarray(getattr(many, name), np.float64)
        # one part in a million more than the range: 1 - 0.2 in float32
        assert values.min() >= low - 1e-6 * abs(low)
        assert values.max() <= high + 1e-6 * high
        standard.append((values - low) / (high - low))
        # Kolmogorov-Smirnov distance; 1.95 / sqrt(n) is passed by chance once in a thousand, and the seed is fixed
        assert scipy.stats.kstest(standard[-1], "uniform").statistic < 1.95 / np.sqrt(20_000)
    correlations = np.corrcoef([*standard, np.asarray(many.flip)]) - np.eye(7)
    assert np.abs(correlations).max() < 4 / np.sqrt(20_000)
    assert abs(np.mean(many.flip) - 0.5) < 4 * 0.5 / np.sqrt(20_000)


def test_switching_one_kind_off_leaves_the_others():
    key = some_keys(1)[0]
    whole, part = draw(key, LECTURE, 64, 64), draw(key, Augmentation(zoom=0.2), 64, 64)
    assert (part.theta, part.tx, part.ty, part.shear, part.flip) == (0, 0, 0, 0, False)
    assert (part.zx, part.zy) == (whole.zx, whole.zy)
    assert part.zx != part.zy


def test_a_key_is_a_function_of_seed_pass_and_index_alone():
    passes, indices = jnp.array([0, 0, 1, 1, 2]), jnp.array([5, 6, 5, 1_000_000, 2])
    batch = jax.random.key_data(keys(11, passes, indices))
    for i in range(5):
        np.testing.assert_array_equal(jax.random.key_data(keys(11, passes[i : i + 1], indices[i : i + 1]))[0], batch[i])
    untagged = jax.random.fold_in(jax.random.fold_in(jax.random.key(11), 0), 5)
    assert (jax.random.key_data(untagged) != batch[0]).any()
    grid = jnp.meshgrid(jnp.arange(30), jnp.arange(30))
    apart = jnp.concatenate([jax.random.key_data(keys(seed, *map(jnp.ravel, grid))) for seed in (11, 12)])
    assert len(np.unique(apart, axis=0)) == 2 * 30 * 30


def test_the_same_key_gives_the_same_picture_in_any_batch():
    pictures = jnp.asarray(noise(24, 24, (8,)))
    whole = step(some_keys(8), pictures, LECTURE)
    order = jnp.array([6, 1, 3])
    np.testing.assert_array_equal(step(some_keys(8)[order], pictures[order], LECTURE), whole[order])
    assert (step(some_keys(8, turn=1), pictures, LECTURE) != whole).any(axis=(1, 2, 3)).all()


def test_uint8_and_float32_give_the_same_floats_within_range():
    pictures = noise(40, 30, (8,))
    results = [step(some_keys(8), pictures.astype(dtype), LECTURE) for dtype in (np.uint8, np.float32)]
    assert results[0].dtype == jnp.float32
    assert results[0].shape == (8, 40, 30, 3)
    np.testing.assert_array_equal(*results)
    assert results[0].min() >= 0
    assert results[0].max() <= 255 * (1 + 2.0**-22)  # weights that sum to 1, rounded


def test_augment_is_draw_matrix_warp():
    pictures = jnp.asarray(noise(20, 26, (2,)))
    result = step(some_keys(2), pictures, LECTURE)
    one = view(pictures[1], draw(some_keys(2)[1], LECTURE, 20, 26))
    # two compilations of the same formula: sine and cosine within an ulp, the grey values as in GREY
    np.testing.assert_allclose(result[1], one, rtol=0, atol=GREY)


@pytest.mark.parametrize("bad", [{"rotation": -1}, {"height_shift": 1.0}, {"zoom": 1.5}, {"shear": float("nan")}])
def test_ranges_without_meaning_are_refused(bad):
    with pytest.raises(UserError, match=f"augmentation {next(iter(bad))} is"):
        Augmentation(**bad)
