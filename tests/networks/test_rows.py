"""A function of rows by chunks equals the function, and computes no gradient that is zero."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax.networks.rows import map_rows


def score(shared, rows):
    """Two results a row, from a matrix and a vector that all rows share."""
    matrix, vector = shared
    hidden = jnp.tanh(rows @ matrix)
    return {"scores": hidden * vector[None, :], "norm": (hidden**2).sum(axis=1)}


@pytest.fixture
def shared(rng):
    shapes = [(4, 5), (5,)]
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def value_and_gradient(function, shared, rows, weights):
    def loss(shared):
        result = function(shared, rows)
        return (weights * result["scores"]).sum() + (weights[:, 0] * result["norm"]).sum(), result

    gradient, result = jax.grad(loss, has_aux=True)(shared)
    return result, gradient


def assert_close(actual, expected):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), actual, expected
    )


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 4, 11, 12, 40])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_chunks_change_nothing(rng, shared, chunk, share):
    rows = jnp.asarray(rng.normal(size=(12, 4)), jnp.float32)
    weights = rng.normal(size=(12, 5)) * (rng.uniform(size=(12, 1)) < share)
    weights = jnp.asarray(weights, jnp.float32)
    expected = value_and_gradient(score, shared, rows, weights)
    chunked = functools.partial(map_rows, score, chunk=chunk)
    run = jax.jit(functools.partial(value_and_gradient, chunked))
    assert_close(run(shared, rows, weights), expected)
    # The order of the rows is nothing to the gradient, and theirs to the results.
    order = rng.permutation(12)
    result, gradient = run(shared, rows[order], weights[order])
    assert_close(gradient, expected[1])
    assert_close(result, jax.tree.map(lambda leaf: leaf[order], expected[0]))


def test_chunks_under_vmap(rng, shared):
    rows = jnp.asarray(rng.normal(size=(3, 9, 4)), jnp.float32)
    # Each lane asks for the gradient of another number of rows.
    weights = rng.normal(size=(3, 9, 5)) * (np.arange(9) < [[0], [3], [9]])[:, :, None]
    weights = jnp.asarray(weights, jnp.float32)
    chunked = functools.partial(map_rows, score, chunk=2)

    def over(function):
        of_image = functools.partial(value_and_gradient, function)
        return jax.jit(jax.vmap(of_image, (None, 0, 0)))(shared, rows, weights)

    assert_close(over(chunked), over(score))


@pytest.mark.parametrize(("number", "chunks"), [(0, 0), (1, 1), (4, 1), (5, 2), (20, 5)])
def test_backward_runs_the_chunks_that_are_asked_for(rng, number, chunks):
    counts = []

    def counted(shared, rows):
        jax.debug.callback(lambda _: counts.append(1), rows[0, 0])
        return rows * shared[None, :]

    rows = jnp.asarray(rng.normal(size=(20, 3)), jnp.float32)
    weights = np.zeros((20, 3), np.float32)
    weights[rng.permutation(20)[:number]] = 1

    @jax.jit
    def gradient(shared):
        return jax.grad(lambda s: (weights * map_rows(counted, s, rows, chunk=4)).sum())(shared)

    actual = gradient(jnp.float32([1, 2, 3]))
    jax.effects_barrier()
    np.testing.assert_allclose(actual, (weights * rows).sum(axis=0), rtol=1e-5, atol=1e-6)
    assert len(counts) == 5 + chunks


def test_only_what_is_asked_for_is_differentiated(rng, shared):
    rows = rng.normal(size=(8, 4)).astype(np.float32)

    def gradient(vector):
        return jax.grad(lambda v: map_rows(score, (shared[0], v), rows, chunk=4)["scores"].sum())(
            vector
        )

    def whole(vector):
        return jax.grad(lambda v: score((shared[0], v), rows)["scores"].sum())(vector)

    assert_close(gradient(shared[1]), whole(shared[1]))
    # The loop that adds up gradients carries the vector's alone.
    (loop,) = (e for e in jax.make_jaxpr(gradient)(shared[1]).eqns if e.primitive.name == "while")
    assert [variable.aval.shape for variable in loop.outvars] == [(), (5,)]


def test_no_gradient_passes_to_rows(rng, shared):
    rows = jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)
    for chunk in (4, 8):
        gradient = jax.grad(lambda r, c=chunk: map_rows(score, shared, r, chunk=c)["norm"].sum())
        np.testing.assert_array_equal(gradient(rows), 0)


def test_the_backward_pass_multiplies_in_the_precision_of_the_call():
    def function(weights, rows):
        return rows @ weights

    with jax.default_matmul_precision("tensorfloat32"):
        _, pull = jax.vjp(
            lambda weights: map_rows(function, weights, jnp.ones((5, 2)), chunk=2), jnp.ones((2, 3))
        )
    text = str(jax.make_jaxpr(pull)(jnp.ones((5, 3))))
    assert "Precision.HIGH" in text and "precision=None" not in text
