import jax.numpy as jnp
import numpy as np
import pytest

from flaxtl.data.augment.affine import Affine, about_center, affine_matrix, compose

STILL = Affine(theta=0.0, tx=0.0, ty=0.0, shear=0.0, zx=1.0, zy=1.0, flip_horizontal=False, flip_vertical=False)


def whole(lines):
    """Append the omitted last row: [3, 3]."""
    return np.concatenate([np.asarray(lines, np.float64), [[0, 0, 1]]])


def test_affine_matrix_of_nothing_is_identity():
    for size in [(5, 9), (200, 200), (1, 1)]:
        np.testing.assert_array_equal(affine_matrix(STILL, *size), np.eye(3)[:2])


def test_matrix_turns_about_the_center():
    turned = np.asarray(affine_matrix(STILL._replace(theta=90.0, flip_horizontal=True), 5, 9))
    # float32 cosine of a right angle is -4e-8, times half a width
    np.testing.assert_allclose(turned @ [2, 4, 1], [2, 4], atol=1e-6)
    np.testing.assert_allclose(turned, [[0, 1, -2], [1, 0, 2]], atol=1e-6)
    assert turned.dtype == np.float32


@pytest.mark.parametrize(
    ("flips", "expected"),
    [
        ({"flip_horizontal": True}, [[1, 0, 0], [0, -1, 8]]),
        ({"flip_vertical": True}, [[-1, 0, 4], [0, 1, 0]]),
        ({"flip_horizontal": True, "flip_vertical": True}, [[-1, 0, 4], [0, -1, 8]]),
    ],
    ids=str,
)
def test_affine_matrix_flips_are_exact(flips, expected):
    np.testing.assert_array_equal(affine_matrix(STILL._replace(**flips), 5, 9), expected)


def test_about_center_keeps_center_then_shifts():
    lines = about_center((0.5, 0.25, 3.0), (-1.0, 2.0, -4.0), 7, 4)
    # halves and quarters: exact
    np.testing.assert_array_equal(np.asarray(lines) @ [3, 1.5, 1], [3 + 3, 1.5 - 4])
    np.testing.assert_array_equal(np.asarray(lines)[:, :2], [[0.5, 0.25], [-1, 2]])


def test_compose_is_matrix_product():
    outer, inner = jnp.asarray(np.random.default_rng(5).integers(-8, 9, (2, 2, 3)) / 4, jnp.float32)
    # quarters up to 2: every product and sum is exact in float32
    np.testing.assert_array_equal(whole(compose(outer, inner)), whole(outer) @ whole(inner))
