import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.distributions import kolmogorov_distance
from scipy import special

from flaxtl.data.augment.config import AugmentConfig, example_keys
from flaxtl.data.augment.mixup import mix

N = 40
LABELS = np.random.default_rng(3).integers(0, 5, N).astype(np.int32)
IMAGES = np.random.default_rng(7).integers(0, 256, (N, 20, 27, 3), dtype=np.uint8)
NEXT = np.roll(IMAGES, -1, axis=0)

MIXUP, CUTMIX, BOTH = {"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}
MIXED_TOKENS = AugmentConfig(**MIXUP)

keys_of = jax.jit(example_keys)
step = jax.jit(mix, static_argnums=3)


def mixed(turn=0, n=N, **kinds):
    own = keys_of(5, np.full(n, turn), np.arange(n))
    return jax.tree.map(np.asarray, step(own, IMAGES[:n], LABELS[:n], AugmentConfig(**kinds)))


def shares_of(turns, **kinds):
    return np.concatenate([mixed(turn, **kinds).lam for turn in range(turns)])


@pytest.mark.parametrize("kinds", [MIXUP, CUTMIX, pytest.param(BOTH, marks=pytest.mark.slow)], ids=str)
def test_mix_partners_are_the_next_images(kinds):
    result = mixed(**kinds)
    np.testing.assert_array_equal(result.labels, LABELS)
    np.testing.assert_array_equal(result.labels_b, [*LABELS[1:], LABELS[0]])
    assert result.images.dtype == result.lam.dtype == np.float32
    assert result.images.shape == IMAGES.shape
    assert result.labels_b.dtype == np.int32


def test_mixup_is_weighted_mean():
    result = mixed(**MIXUP)
    shares = np.asarray(result.lam, np.float64)[:, None, None, None]
    # a difference, a product and a sum of at most 255 in float32
    atol = 3 * 255 * 2.0**-24
    np.testing.assert_allclose(result.images, shares * IMAGES + (1 - shares) * NEXT, rtol=0, atol=atol)


def test_mixup_of_features_without_places_is_weighted_mean():
    tokens = np.random.default_rng(4).normal(size=(N, 5, 8)).astype(jnp.bfloat16)
    result = jax.tree.map(np.asarray, step(keys_of(5, np.zeros(N, int), np.arange(N)), tokens, LABELS, MIXED_TOKENS))
    shares, values = result.lam.astype(np.float64)[:, None, None], tokens.astype(np.float64)
    assert result.images.dtype == np.float32
    # a difference, a product and a sum of values below 5, in float32
    expected = shares * values + (1 - shares) * np.roll(values, -1, axis=0)
    np.testing.assert_allclose(result.images, expected, rtol=0, atol=3 * 10 * 2.0**-24)
    np.testing.assert_array_equal(result.lam, mixed(**MIXUP).lam)  # as for images


def test_cutmix_pastes_one_box_and_counts_pixels():
    result = mixed(**CUTMIX)
    own, other = (result.images == IMAGES).all(-1), (result.images == NEXT).all(-1)
    assert (own ^ other).all()
    for pasted, share in zip(other, result.lam, strict=True):
        rows, columns = pasted.any(1), pasted.any(0)
        np.testing.assert_array_equal(pasted, rows[:, None] & columns)
        for line in (rows, columns):
            assert np.count_nonzero(np.diff(line)) <= 2  # one stretch
        assert share == pytest.approx(1 - pasted.mean(), abs=1e-6)  # float32
    assert other.any((1, 2)).sum() > 0.8 * N  # next to none is empty


def test_mixup_lam_has_beta_distribution():
    shares = shares_of(50, **MIXUP)
    # Kolmogorov-Smirnov distance; it exceeds 1.95 / sqrt(n) by chance once in a thousand, and the seed is fixed
    assert kolmogorov_distance(shares, lambda share: special.betainc(0.4, 0.4, share)) < 1.95 / np.sqrt(shares.size)


def test_cutmix_boxes_are_anywhere_and_clipped():
    shares = shares_of(50, **CUTMIX)
    assert shares.min() >= 0
    assert shares.max() <= 1
    # A box of side s (a fraction) about a uniform center shows s - s**2 / 4 of it on average, along each axis; s**2
    # is uniform, so the mean of the product is 1/2 - 1/5 + 1/48. Whole pixels of 20 change little of that.
    expected = 1 - (1 / 2 - 1 / 5 + 1 / 48)
    assert abs(shares.mean() - expected) < 4 * shares.std() / np.sqrt(shares.size) + 0.005


@pytest.mark.slow
def test_mix_with_both_selects_one_per_step():
    heads = 0
    for turn in range(40):
        shares = mixed(turn, **BOTH).lam
        alone = [np.allclose(shares, mixed(turn, **kind).lam, atol=1e-6) for kind in (MIXUP, CUTMIX)]
        assert sum(alone) == 1
        heads += alone[0]
    assert 8 <= heads <= 32  # 4 standard deviations of 40 fair coins


def test_mix_lam_depends_on_keys_only():
    whole, again = mixed(**MIXUP).lam, mixed(**MIXUP).lam
    np.testing.assert_array_equal(whole, again)
    indices = np.arange(N)[::-1]
    backward = step(keys_of(5, np.zeros(N, int), indices), IMAGES, LABELS, AugmentConfig(**MIXUP))
    np.testing.assert_array_equal(backward.lam, whole[::-1])
    assert (mixed(1, **MIXUP).lam != whole).all()


@pytest.mark.slow
def test_mix_of_one_image_is_its_own_partner():
    alone = mixed(n=1, **MIXUP)
    np.testing.assert_array_equal(alone.images, IMAGES[:1])  # other + share * 0: exact
    np.testing.assert_array_equal(alone.labels_b, alone.labels)


def test_mix_disabled_keeps_images():
    still = mixed()
    np.testing.assert_array_equal(still.images, IMAGES)
    np.testing.assert_array_equal(still.lam, np.ones(N))
