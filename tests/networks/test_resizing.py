"""Maps scaled as cv2.resize scales them, and cells repeated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax.networks import resizing


def resize_by_loop(x, shape, ratios, extent):
    """cv2.resize's INTER_LINEAR for f32[h, w, C]: centres correspond, the border goes on."""
    y = np.zeros((*shape, x.shape[2]))
    for place in np.ndindex(*shape):
        spots = []
        for pixel, (numerator, denominator), end in zip(place, ratios, extent, strict=True):
            spot = (pixel + 0.5) * denominator / numerator - 0.5
            first, part = int(np.floor(spot)), spot - np.floor(spot)
            spots.append([(np.clip(first + k, 0, end - 1), abs(1 - k - part)) for k in (0, 1)])
        for row, above in spots[0]:
            for column, weight in spots[1]:
                y[place] += above * weight * x[row, column]
    return y


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "shape", "ratios", "extent"),
    [
        ((4, 3), (29, 20), ((29, 4), (20, 3)), (4, 3)),  # an FCN's cells to pixels
        ((6, 5), (29, 20), ((23, 4), (11, 2)), (4, 2)),  # those of an image with padding
        ((9, 12), (6, 8), ((2, 3), (2, 3)), (9, 12)),  # a smaller canvas
    ],
)
def test_resize_equals_a_loop(rng, size, shape, ratios, extent):
    x = rng.standard_normal((*size, 2)).astype(np.float32)
    expected = resize_by_loop(x, shape, ratios, extent)
    np.testing.assert_allclose(
        resizing.resize(x, shape, ratios=ratios, extent=extent), expected, atol=1e-5
    )
    traced = jax.jit(functools.partial(resizing.resize, shape=shape))
    arrays = {"ratios": jax.tree.map(jnp.int32, ratios), "extent": jax.tree.map(jnp.int32, extent)}
    np.testing.assert_allclose(traced(x, **arrays), expected, atol=1e-5)


def test_cells_are_repeated_and_their_gradients_add_up(rng):
    x = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    y = resizing.enlarge(x, 2)
    np.testing.assert_array_equal(y, x.repeat(2, axis=1).repeat(2, axis=2))
    gradient = jax.grad(lambda x: resizing.enlarge(x, 2).sum())(x)
    np.testing.assert_array_equal(gradient, np.full(x.shape, 4))


@pytest.mark.parametrize(
    ("taps", "axis", "traced"),
    [((4, 5), 1, False), ((4, 5), 3, True), ((4, None), 2, True), ((99, 99), 2, False)],
)
def test_a_banded_product_is_the_whole_one(rng, taps, axis, traced):
    x = rng.standard_normal((2, 13, 13, 13)).astype(np.float32)
    matrix = resizing.antialiased_matrix(8, 13, 11)  # its last two columns are empty
    cotangent = rng.standard_normal((*x.shape[:axis], 8, *x.shape[axis + 1 :])).astype(np.float32)

    @jax.jit
    def run(x, extent):
        bands = resizing.antialiased_matrix(8, 13, extent) if traced else matrix
        y, pull = jax.vjp(lambda x: resizing.banded(x, bands, taps=taps, axis=axis), x)
        return y, pull(cotangent)[0]

    y, gradient = run(x, np.int32(11))
    spelled = functools.partial(np.moveaxis, source=-1, destination=axis)
    np.testing.assert_allclose(y, spelled(np.moveaxis(x, axis, -1) @ matrix.T), atol=1e-5)
    expected = spelled(np.moveaxis(cotangent, axis, -1) @ matrix)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)
