"""Whatever scores an image becomes a pytree of arrays, or stays a plain function."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax.engine.scoring import (
    as_callable_pytree,
    as_pytree,
    is_plain,
    kind_of,
    shapes_of_scores,
    told_apart,
)

IMAGE = np.arange(2 * 2 * 3, dtype=np.float32).reshape(2, 2, 3)
WEIGHTS = jnp.float32([[1, 2], [3, 4], [5, 6]])


def plain(image):
    return image @ WEIGHTS


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["weights", "activation"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Network:
    """A model with a function among its leaves, as those of Equinox have."""

    weights: jax.Array
    activation: object = jnp.tanh

    def __call__(self, image):
        return self.scores(image)

    def scores(self, image, shift=0.0):
        return self.activation(image @ self.weights) + shift


@dataclasses.dataclass
class WithoutHash:
    """A plain object that compares by value, so that it has no hash."""

    weights: jax.Array

    def __call__(self, image):
        return image @ self.weights

    def scores(self, image):
        return image @ self.weights


PARTIAL = jax.tree_util.Partial(lambda weights, image: image @ weights, WEIGHTS)


@pytest.mark.parametrize(
    "score_fn",
    [
        plain,
        jax.jit(plain),
        functools.partial(lambda weights, image: image @ weights, WEIGHTS),
        PARTIAL,
        WithoutHash(WEIGHTS),
        WithoutHash(WEIGHTS).scores,
        Network(WEIGHTS),
        Network(WEIGHTS).scores,
    ],
)
def test_it_scores_as_before_and_its_leaves_are_arrays(score_fn):
    expected = score_fn(IMAGE)
    for made in (as_pytree(score_fn), as_callable_pytree(score_fn), as_pytree(as_pytree(score_fn))):
        np.testing.assert_array_equal(made(IMAGE), expected)
    made = as_callable_pytree(score_fn)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(made))
    np.testing.assert_allclose(jax.jit(lambda made: made(IMAGE))(made), expected, rtol=1e-6)
    assert shapes_of_scores(score_fn, IMAGE.shape) == jax.eval_shape(score_fn, IMAGE)


@pytest.mark.parametrize("name", ["__call__", "scores"])
def test_models_of_other_parameters_have_one_structure(name):
    first, second, third = (
        as_pytree(getattr(Network(weights, activation), name))
        for weights, activation in ((WEIGHTS, jnp.tanh), (-WEIGHTS, jnp.tanh), (WEIGHTS, jnp.sin))
    )
    assert jax.tree.structure(first) == jax.tree.structure(second) != jax.tree.structure(third)
    np.testing.assert_array_equal(jax.tree.leaves(second)[0], -WEIGHTS)


def test_a_method_of_a_pytree_is_one_structure_each_time_that_it_is_named():
    model = Network(WEIGHTS)
    first, second = as_pytree(model.scores), as_pytree(model.scores)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    np.testing.assert_array_equal(first(IMAGE, 2.0), model.scores(IMAGE) + 2)  # further arguments


def test_a_model_of_shapes_alone_is_one_of_arrays():
    model = jax.eval_shape(lambda weights: Network(weights, jnp.zeros(())), WEIGHTS)
    assert jax.tree.leaves(as_pytree(model.scores)) == jax.tree.leaves(model)


def test_a_plain_function_stays_what_it_is():
    assert is_plain(plain) and as_pytree(plain) is plain
    assert not is_plain(PARTIAL) and as_pytree(PARTIAL) is PARTIAL
    assert jax.tree.leaves(as_callable_pytree(plain)) == []


def test_a_plain_object_without_a_hash_goes_by_its_identity():
    first, second = WithoutHash(1.0), WithoutHash(1.0)
    assert first == second
    assert as_pytree(first) == as_pytree(first) and hash(as_pytree(first)) is not None
    assert as_pytree(first) != as_pytree(second)


def test_the_class_of_a_classmethod_is_no_model():
    class Model:
        @classmethod
        def scores(cls, image):
            return image @ WEIGHTS

    assert is_plain(as_pytree(Model.scores))
    np.testing.assert_array_equal(as_pytree(Model.scores)(IMAGE), plain(IMAGE))


def constant_of(channels, value):
    """A new class of the same fields, registered as any user's: it scores so many classes."""
    call = lambda self, image: jnp.ones((2, 2, channels))  # noqa: E731
    kind = dataclasses.make_dataclass("Model", ["value"], frozen=True, namespace={"__call__": call})
    return jax.tree_util.register_dataclass(kind, ["value"], [])(value)


@pytest.mark.slow
@pytest.mark.parametrize("value", [WEIGHTS, jnp.tanh])
def test_a_class_is_never_taken_for_another_of_the_same_fields(value):
    # JAX 0.10 takes them for equal, and one time in some dozens runs one's program for the other.
    for _ in range(200):
        two, three = constant_of(2, value), constant_of(3, value)
        assert kind_of(two) != kind_of(three)
        assert shapes_of_scores(two, IMAGE.shape).shape == (2, 2, 2)
        assert shapes_of_scores(three, IMAGE.shape).shape == (2, 2, 3)


def test_models_of_one_class_are_of_one_kind():
    first, second = Network(WEIGHTS), Network(-WEIGHTS)
    assert kind_of(first) == kind_of(second) != kind_of((first, second))
    apart = [told_apart(as_pytree(model.scores)) for model in (first, second)]
    assert jax.tree.structure(apart[0]) == jax.tree.structure(apart[1])
    np.testing.assert_array_equal(apart[1](IMAGE), second.scores(IMAGE))
