"""Public functions say what they take and return; while tests run, that is checked."""

import inspect
import types

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import dag_jax
from dag_jax import adapters, datasets, detection, metrics, runs
from dag_jax.engine import objective

IMAGE = np.full((4, 5, 3), 100, np.float32)


def public():
    """Yield (name, function) of what a user is offered."""
    packages = (dag_jax, dag_jax.methods, dag_jax.models)
    for package in (*packages, adapters, datasets, detection, metrics, runs):
        for name in getattr(package, "__all__", dir(package)):
            value = inspect.unwrap(getattr(package, name))
            inside = isinstance(value, types.FunctionType) and not name.startswith("_")
            if inside and value.__module__.startswith("dag_jax"):
                yield f"{package.__name__}.{name}", value


@pytest.mark.parametrize(("name", "function"), [pytest.param(*it, id=it[0]) for it in public()])
def test_every_argument_and_result_of_a_public_function_has_a_type(name, function):
    signature = inspect.signature(function)
    lacking = [key for key, it in signature.parameters.items() if it.annotation is it.empty]
    assert not lacking and signature.return_annotation is not signature.empty


def test_a_wrong_shape_that_a_function_takes_is_a_violation():
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'perturbation'"):
        dag_jax.perturb(IMAGE, IMAGE[:1])


def test_a_wrong_dtype_that_a_function_takes_is_a_violation():
    with pytest.raises(jaxtyping.TypeCheckError, match="boxes"):
        detection.clip_boxes(np.zeros((2, 4), np.int32), (4, 5))


def test_what_a_function_refuses_it_refuses_in_its_own_words():
    with pytest.raises(dag_jax.UserError, match=r"perturbation must be \[H, W, 3\]"):
        metrics.perceptibility(IMAGE[0])


def test_a_result_of_another_dtype_is_a_violation(monkeypatch):
    monkeypatch.setattr(objective, "lead", lambda scores, labels, *others: labels)
    targets = dag_jax.make_targets(np.array([0, 1]), np.array([1, 0]))
    with pytest.raises(jaxtyping.TypeCheckError, match="return value of .*margin_loss"):
        dag_jax.margin_loss(np.zeros((2, 3), np.float32), targets)


def test_a_function_inside_a_compiled_one_is_checked():
    with pytest.raises(jaxtyping.TypeCheckError, match="perturb"):
        jax.jit(dag_jax.perturb)(IMAGE, jnp.asarray(IMAGE[:1]))


def test_a_function_that_others_hold_is_checked_and_stays_what_it_is():
    assert dag_jax.DAG.active is dag_jax.active_targets
    with pytest.raises(jaxtyping.TypeCheckError, match="active_targets"):
        targets = dag_jax.make_targets(np.array([0, 1]), np.array([1, 0]))
        dag_jax.DAG.active(np.zeros((2, 3), np.int32), targets)
