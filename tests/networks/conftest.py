"""What the tests of operations and of layers share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture
def assert_batching_changes_nothing(rng):
    """Assert that two maps alone, in a batch and under vmap have equal values and gradients."""

    def check(function):
        def run(x):
            y, vjp = jax.vjp(function, x)
            return y, vjp(jnp.cos(y))[0]

        x = jnp.asarray(rng.standard_normal((2, 8, 7, 4)), jnp.float32)
        run, batched = jax.jit(run), jax.jit(jax.vmap(run))
        alone = jax.tree.map(lambda *leaves: np.stack(leaves), *(run(item) for item in x))
        for together in (run(x), batched(x)):
            jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), together, alone)

    return check
