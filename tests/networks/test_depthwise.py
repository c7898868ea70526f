"""Depthwise convolution against XLA's grouped one, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dag_jax.networks import depthwise


def grouped(x, kernel, stride, padding, dilation):
    return lax.conv_general_dilated(
        x[None],
        kernel[:, :, None],
        (stride, stride),
        ((padding, padding),) * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation", "shape"),
    [
        (3, 1, 1, 1, (6, 5)),
        (3, 2, 1, 1, (7, 8)),
        (3, 2, 0, 1, (8, 7)),
        (5, 3, 2, 1, (9, 10)),
        (3, 1, 2, 2, (6, 7)),
        (1, 2, 0, 1, (5, 4)),
    ],
)
def test_values_and_gradients_are_those_of_a_grouped_convolution(
    rng, size, stride, padding, dilation, shape
):
    x = rng.normal(size=(*shape, 4)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 4)).astype(np.float32)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    y, pull = jax.vjp(lambda *args: depthwise.convolve(*args, **geometry), x, kernel)
    expected, expected_pull = jax.vjp(lambda *args: grouped(*args, *geometry.values()), x, kernel)
    assert y.shape == expected.shape
    cotangent = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
    results = y, *pull(cotangent)
    for actual, wanted in zip(results, (expected, *expected_pull(cotangent)), strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-4)


def test_a_batch_is_its_images(rng):
    x = rng.normal(size=(2, 5, 6, 3)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 3)).astype(np.float32)
    together = depthwise.convolve(x, kernel, padding=1)
    for image, alone in zip(x, together, strict=True):
        np.testing.assert_allclose(depthwise.convolve(image, kernel, padding=1), alone, rtol=1e-6)
