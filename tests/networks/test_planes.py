"""Operations on planes against XLA's own convolution, and against what they are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dag_jax.networks import planes


def values_and_gradients(function, x, kernel):
    """What a function of both gives, and its gradients by a cotangent that is drawn."""
    y, vjp = jax.vjp(function, x, kernel)
    weights = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    return y, *vjp(weights)


def assert_are_equal(ours, theirs, x, kernel):
    pairs = zip(*(values_and_gradients(f, x, kernel) for f in (ours, theirs)), strict=True)
    for our, their in pairs:
        np.testing.assert_allclose(our, their, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("channels", "features", "groups", "stride", "dilation"),
    [
        *((4, 4, 4, stride, dilation) for stride in (1, 2) for dilation in (1, 2, 3)),
        *((3, 8, 1, 2, 1), (4, 3, 1, 1, 1), (8, 4, 4, 1, 1), (8, 6, 2, 1, 1)),
        *((8, 8, 2, 1, 1), (6, 2, 2, 1, 1)),  # groups of many channels, and of one feature
    ],
)
@pytest.mark.parametrize("shape", [(8, 12), (7, 9)])
def test_a_convolution_is_xlas(channels, features, groups, stride, dilation, shape, rng):
    x = rng.normal(size=(2, channels, *shape)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, channels // groups, features)).astype(np.float32)

    def ours(x, kernel):
        if groups == channels == features:
            return planes.depthwise(x, kernel, stride=stride, dilation=dilation)
        return planes.convolve(x, kernel, stride=stride, groups=groups)

    def theirs(x, kernel):
        return lax.conv_general_dilated(
            *(x, kernel, (stride, stride), ((dilation, dilation),) * 2),
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NCHW", "HWIO", "NCHW"),
            feature_group_count=groups,
        )

    assert_are_equal(jax.jit(ours), jax.jit(theirs), x, kernel)


def test_a_stride_of_several_groups_is_refused():
    with pytest.raises(ValueError, match="groups are 2 and stride is 2"):
        planes.convolve(jnp.zeros((1, 4, 6, 6)), jnp.zeros((3, 3, 2, 4)), groups=2, stride=2)


@pytest.mark.slow
@pytest.mark.parametrize("enlarged", [(12, 16), (18, 24), (24, 32), (13, 17)])
def test_correlating_enlarged_is_all_three_steps(enlarged, rng):
    x = rng.normal(size=(2, 3, 12, 16)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 1, 3)).astype(np.float32)
    sides = x.shape[2:]

    def steps(x, kernel):
        y = planes.resize(x, *map(planes.corners_matrix, enlarged, sides))
        y = planes.depthwise(y, kernel)
        return planes.resize(y, *map(planes.average_matrix, sides, enlarged))

    ours = jax.jit(lambda x, kernel: planes.correlate_enlarged(x, kernel, enlarged))
    assert_are_equal(ours, jax.jit(steps), x, kernel)


def test_groups_are_multiplied_each_alone(rng):
    x = rng.normal(size=(2, 6, 4, 5)).astype(np.float32)
    kernel = rng.normal(size=(1, 1, 3, 8)).astype(np.float32)
    halves = [
        np.einsum("bchw,cd->bdhw", part, weights)
        for part, weights in zip(np.split(x, 2, 1), np.split(kernel[0, 0], 2, 1), strict=True)
    ]
    ours = planes.pointwise(x, kernel, groups=2)
    np.testing.assert_allclose(ours, np.concatenate(halves, 1), rtol=1e-5, atol=1e-5)


def test_averages_are_those_of_a_loop():
    for size, cells in ((20, 192), (5, 24), (192, 288), (7, 7)):
        matrix = planes.average_matrix(size, cells)
        for row in range(size):
            window = np.zeros(cells, np.float32)
            window[row * cells // size : -(-(row + 1) * cells // size)] = 1
            np.testing.assert_allclose(matrix[row], window / window.sum(), rtol=1e-6)


def test_a_prelu_has_its_slope_at_and_below_zero():
    x = jnp.array([-2.0, 0.0, 3.0]).reshape(1, 1, 1, 3)
    slope = jnp.array([0.25])
    y, vjp = jax.vjp(lambda x: planes.prelu(x, slope), x)
    np.testing.assert_array_equal(y[0, 0, 0], [-0.5, 0, 3])
    np.testing.assert_array_equal(vjp(jnp.ones_like(y))[0][0, 0, 0], [0.25, 0.25, 1])


def test_a_shuffle_is_a_transposition():
    x = np.arange(6, dtype=np.float32).reshape(1, 6, 1, 1)
    assert planes.shuffle(x, 2).ravel().tolist() == [0, 3, 1, 4, 2, 5]
