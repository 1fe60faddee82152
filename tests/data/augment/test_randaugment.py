from functools import partial

import jax
import numpy as np
import pytest
from helpers.distributions import chi_square_p_value

from flaxtl.data.augment import affine, randaugment
from flaxtl.data.augment.randaugment import Operation, apply_color_op

N = 20_000


@partial(jax.jit, static_argnums=0)
def _drawn(n, magnitude):
    keys = jax.random.split(jax.random.key(2), N)
    return jax.vmap(lambda key: randaugment.sample_randaugment(key, n, magnitude, 40, 60))(keys)


def drawn(magnitude):
    """Two operations for each of N images of 40 x 60."""
    return jax.tree.map(np.asarray, _drawn(2, magnitude))


@pytest.fixture(scope="module")
def strongest():
    """The second operation of each image: its number, strength and map."""
    two = drawn(10.0)
    return two.operations[:, 1], two.strengths[:, 1], two.maps[1]


def test_sample_randaugment_operations_are_uniform(strongest):
    operations, _, maps = strongest
    counts = [(operations == kind).sum() for kind in range(1, 9)]
    turned = maps[:, 0, 0] < 1
    across, down = maps[:, 1, 0] != 0, maps[:, 0, 1] != 0
    shifts = maps @ [19.5, 29.5, 1.0] - [19.5, 29.5]
    counts += [turned.sum(), (across & ~turned).sum(), (down & ~turned).sum()]
    counts += [(np.abs(shifts[:, axis]) > 1).sum() for axis in (0, 1)]
    assert sum(counts) < N
    counts.append(N - sum(counts))  # nothing at all
    assert chi_square_p_value(counts, np.full(14, N / 14)) > 0.001  # the seed is fixed


def test_sample_randaugment_strengths_at_magnitude_ten(strongest):
    operations, strengths, _ = strongest
    seen = {kind: {float(each) for each in np.unique(strengths[operations == kind])} for kind in range(9)}
    enhanced = {1 - 230 / 256, 1 + 230 / 256}  # 0.9 in 256ths
    assert seen == {
        Operation.NOTHING: {1.0},
        Operation.AUTOCONTRAST: {1.0},
        Operation.EQUALIZE: {1.0},
        Operation.SOLARIZE: {0.0},
        Operation.POSTERIZE: {4.0},
        Operation.COLOR: enhanced,
        Operation.CONTRAST: enhanced,
        Operation.BRIGHTNESS: enhanced,
        Operation.SHARPNESS: enhanced,
    }


def test_sample_randaugment_maps_at_magnitude_ten(strongest):
    operations, _, maps = strongest
    assert (maps[operations != Operation.NOTHING] == np.eye(3)[:2]).all()
    still = affine.Affine(0.0, 0.0, 0.0, 0.0, 1.0, 1.0, False, False)
    expected = [affine.affine_matrix(still, 40, 60)]
    expected += [affine.affine_matrix(still._replace(theta=angle), 40, 60) for angle in (30.0, -30.0)]
    expected += [affine.about_center((1.0, 0.0, 0.0), (by, 1.0, 0.0), 40, 60) for by in (0.3, -0.3)]
    expected += [affine.about_center((1.0, by, 0.0), (0.0, 1.0, 0.0), 40, 60) for by in (0.3, -0.3)]
    expected += [affine.affine_matrix(still._replace(**{name: sign * 150 / 331 * side}), 40, 60)
                 for name, side in (("tx", 40), ("ty", 60)) for sign in (1, -1)]  # fmt: skip
    distances = np.abs(maps[:, None] - np.stack(expected)).max((2, 3))
    # float32 of numbers up to 60, and of sine and cosine
    assert (distances.min(1) < 2e-5).all()
    assert set(distances.argmin(1)) == set(range(11))


def test_sample_randaugment_magnitude_zero_is_nearly_identity():
    nothing = drawn(0.0)
    assert (np.stack(nothing.maps) == np.eye(3)[:2]).all()
    kinds = np.arange(9, dtype=np.int32)
    first = np.argmax(nothing.operations[:, 0] == kinds[:, None], axis=1)
    image = np.random.default_rng(1).integers(9, 256, (30, 30, 3), dtype=np.int32)
    results = jax.jit(jax.vmap(apply_color_op, in_axes=(None, 0, 0)))(image, kinds, nothing.strengths[first, 0])
    assert set(np.flatnonzero((results != image).any((1, 2, 3)))) == {Operation.AUTOCONTRAST, Operation.EQUALIZE}


@pytest.mark.parametrize("magnitude", [0.7, 3.0, 9.0])
def test_sample_randaugment_factors_are_multiples_of_256th(magnitude):
    some = drawn(magnitude)
    factors = some.strengths[some.operations >= Operation.COLOR]
    assert (256 * factors == np.round(256 * factors)).all()
    np.testing.assert_allclose(np.abs(factors - 1), 0.09 * magnitude, rtol=0, atol=1 / 512 + 1e-6)


def test_sample_randaugment_operations_are_independent():
    together = np.histogram2d(*drawn(5.0).operations.T, bins=np.arange(-0.5, 9))[0]
    # 14 equal chances, six of them without a color operation
    chances = np.array([6, *[1] * 8]) / 14
    assert chi_square_p_value(together, N * np.outer(chances, chances)) > 0.001


def test_none():
    none = _drawn(0, 9.0)
    assert none.operations.shape == none.strengths.shape == (N, 0)
    assert none.maps == []
