"""Each normalisation against its definition, in value and gradient, and against OpenCV."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax.networks import lrn


def lrn_by_loop(x, size, alpha, within):
    x = x.astype(np.float64)
    y = np.zeros_like(x)
    half = size // 2
    for i, j, c in np.ndindex(x.shape):
        if within:
            patch = x[max(i - half, 0) : i + half + 1, max(j - half, 0) : j + half + 1, c]
            mean = (patch**2).sum() / size**2
        else:
            mean = (x[i, j, max(c - half, 0) : c + half + 1] ** 2).sum() / size
        y[i, j, c] = x[i, j, c] / (1 + alpha * mean) ** 0.75
    return y


LRN = [
    (lrn.across_channels, False, 5, 1e-4),
    (lrn.within_channel, True, 3, 5e-5),
]


@pytest.mark.parametrize(("function", "within", "size", "alpha"), LRN)
def test_lrn_equals_a_loop(rng, function, within, size, alpha):
    x = (100 * rng.standard_normal((5, 4, 7))).astype(np.float32)
    y = jax.jit(function)(x)  # the defaults are those of the networks
    np.testing.assert_allclose(y, lrn_by_loop(x, size, alpha, within), rtol=1e-5)
    y = jax.jit(functools.partial(function, size=3, alpha=0.5))(x)
    np.testing.assert_allclose(y, lrn_by_loop(x, 3, 0.5, within), rtol=1e-5)


@pytest.mark.parametrize(("function", "within", "size", "alpha"), LRN)
def test_lrn_gradient_equals_differences_of_the_loop(rng, function, within, size, alpha):
    x = (10 * rng.standard_normal((3, 4, 5))).astype(np.float32)
    weights = rng.standard_normal(x.shape).astype(np.float32)
    alpha = 0.1
    loss = lambda x: jnp.sum(jnp.asarray(weights) * function(x, size=size, alpha=alpha))  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(x)
    for where in itertools.islice(np.ndindex(x.shape), 0, None, 7):
        moved = np.zeros(x.shape)
        moved[where] = 1e-4
        up, down = (lrn_by_loop(x + sign * moved, size, alpha, within) for sign in (1, -1))
        expected = (weights * (up - down)).sum() / 2e-4
        np.testing.assert_allclose(gradient[where], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("function", "within", "size", "alpha"), LRN)
def test_lrn_equals_opencvs_reading_of_the_deploy_file(rng, function, within, size, alpha):
    cv2 = pytest.importorskip("cv2")
    region = "WITHIN_CHANNEL" if within else "ACROSS_CHANNELS"
    text = f"""
        input: "data"
        input_shape {{ dim: 1 dim: 9 dim: 6 dim: 5 }}
        layer {{
          name: "norm" type: "LRN" bottom: "data" top: "norm"
          lrn_param {{ local_size: {size} alpha: {alpha} beta: 0.75 norm_region: {region} }}
        }}
    """
    x = (300 * rng.standard_normal((6, 5, 9))).astype(np.float32)
    network = cv2.dnn.readNetFromCaffe(np.frombuffer(text.encode(), np.uint8))
    network.setInput(np.ascontiguousarray(x.transpose(2, 0, 1)[None]))
    expected = network.forward()[0].transpose(1, 2, 0)
    y = jax.jit(functools.partial(function, size=size, alpha=alpha))(x)
    np.testing.assert_allclose(y, expected, rtol=1e-5)


@pytest.mark.parametrize("function", [lrn.across_channels, lrn.within_channel])
def test_single_equals_batch_equals_vmap(assert_batching_changes_nothing, function):
    assert_batching_changes_nothing(function)
