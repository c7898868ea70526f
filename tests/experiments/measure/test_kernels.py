"""The plain forms equal ours in value and gradient, alone and in a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax.networks import layers, operations
from experiments.measure import kernels, naive

SHRINK = 64


@pytest.mark.slow
@pytest.mark.parametrize("kernel", kernels.kernels(SHRINK), ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("looped", [False, True])
def test_both_forms_have_equal_values_and_gradients(kernel, looped):
    kernel = kernel._replace(x=tuple(min(extent, 24) for extent in kernel.x))
    inputs = kernels.arrays(kernel)
    plain, ours = (
        kernels.value_and_gradient(function, looped)(*inputs)
        for function in (kernel.plain, kernel.ours)
    )
    for actual, expected in zip(ours, plain, strict=True):
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def test_full_shapes_are_those_of_the_networks():
    shapes = {kernel.name: (kernel.x, kernel.weights) for kernel in kernels.kernels()}
    assert shapes["fc6 as a 7x7 convolution"] == (
        (1, 11, 11, 512),
        ((7, 7, 512, 4096), (4096,)),
    )
    assert shapes["2x2 max pool"] == ((1, 326, 326, 64), ())


def test_a_naive_pool_splits_no_tie_and_keeps_the_last_cells():
    x = jnp.float32([[1, 5, 7], [5, 5, 2], [0, 0, 3]])[None, :, :, None]
    pool = lambda x: naive.max_pool(x, size=2, stride=2)[0, :, :, 0]  # noqa: E731
    np.testing.assert_array_equal(pool(x), [[5, 7], [0, 3]])
    gradient = jax.grad(lambda x: pool(x).sum())(x)[0, :, :, 0]
    np.testing.assert_array_equal(gradient, [[0, 1, 1], [0, 0, 0], [1, 0, 1]])


@pytest.mark.slow
@pytest.mark.parametrize(("stride", "size", "offset"), [(2, 4, 0), (8, 16, 31), (32, 63, 18)])
def test_a_naive_upsampling_equals_ours(rng, stride, size, offset):
    x = jnp.asarray(rng.standard_normal((2, 6, 5, 3)), jnp.float32)
    options = {"stride": stride, "kernel_size": size, "offset": offset}
    shape = (5 * stride, 4 * stride)
    shape = tuple(
        min(n, (m - 1) * stride + size - offset) for n, m in zip(shape, (6, 5), strict=True)
    )
    np.testing.assert_allclose(
        naive.upsample(x, shape, **options), operations.upsample(x, shape, **options), atol=1e-5
    )


def test_a_naive_layer_with_groups_equals_ours(rng):
    x = jnp.asarray(rng.standard_normal((2, 6, 5, 4)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 2, 6)), jnp.float32)
    bias = jnp.asarray(rng.standard_normal(6), jnp.float32)
    module = layers.Conv(6, 3, padding=1, groups=2)
    actual = module.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(
        actual, naive.layer(x, kernel, bias, padding=1, groups=2), rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
def test_measure_gives_a_row_for_each_of_the_five():
    rows = kernels.measure(pairs=1, shrink=SHRINK)
    assert len(rows) == 5
    for row in rows:
        assert row["difference"] < 1e-5 and row["pairs"] == 1
        assert row["plain_ms"] > 0 and row["ours_ms"] > 0
        assert row["ratio"] == row["range"][0] == row["range"][1]
