"""A method is a value: checked, compared and hashed by what is in it, its numbers traced."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dag_jax
from dag_jax import Method, Objective, UserError, methods
from dag_jax.engine.objective import DAG

MADE = {
    "dag": methods.dag,
    "release": methods.release,
    "release of a detector": lambda: methods.release(background=3),
    "best_other": methods.best_other,
    "momentum": methods.momentum,
    "fgsm": methods.fgsm,
    "pgd": methods.pgd,
    "segpgd": methods.segpgd,
    "cospgd": methods.cospgd,
    "joint": lambda: Method(margin={"fcn": 0.0, "detector": 3.0}),
}
OTHER = {
    "objective": Objective(DAG.active, methods.best_other().objective.loss),
    "update": optax.sgd,
    "step_size": 0.25,
    "margin": 1.0,
    "max_steps": 150,
    "stop_fraction": None,
    "rounded": True,
}


def test_the_default_is_the_papers():
    assert Method() == methods.dag()
    assert dataclasses.asdict(Method()) | {"objective": DAG} == {
        "objective": DAG,
        "update": dag_jax.dag_update,
        "step_size": 0.5,
        "margin": 0.0,
        "max_steps": 200,
        "stop_fraction": 0.0,
        "rounded": False,
    }


@pytest.mark.parametrize("name", MADE)
def test_two_of_the_same_arguments_are_one_value(name):
    first, second = MADE[name](), MADE[name]()
    assert first == second and hash(first) == hash(second) and first is not second
    assert {first: "found"}[second] == "found"
    leaves, structure = jax.tree.flatten(first)
    assert (
        structure == jax.tree.structure(second) and jax.tree.unflatten(structure, leaves) == first
    )


def test_methods_differ_from_each_other():
    every = [make() for make in MADE.values()]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize("name", OTHER)
def test_another_value_of_any_attribute_is_another_method(name):
    changed = Method().replace(**{name: OTHER[name]})
    assert changed != Method() and not changed == Method()
    assert getattr(changed, name) == OTHER[name]
    assert changed.replace(**{name: getattr(Method(), name)}) == Method()
    assert [field.name for field in dataclasses.fields(Method)] == list(OTHER)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (methods.momentum(0.9), methods.momentum(0.8)),
        (methods.pgd(8), methods.pgd(4)),
        (methods.pgd(8, 2), methods.pgd(8, 1)),
        (methods.release(0), methods.release(1)),
        (Method(margin={"a": 0.0, "b": 1.0}), Method(margin={"a": 1.0, "b": 0.0})),
        (Method(margin={"a": 0.0}), Method(margin={"b": 0.0})),
    ],
)
def test_other_arguments_give_another_method(first, second):
    assert first != second


@pytest.mark.parametrize(
    "number", [np.float32(0.5), np.float64(0.5), jnp.float32(0.5), np.array(0.5)]
)
def test_the_kind_of_a_number_is_no_part_of_its_value(number):
    assert Method(step_size=number) == Method(step_size=0.5)
    assert hash(Method(step_size=number)) == hash(Method(step_size=0.5))


def test_a_method_is_no_other_value():
    assert Method() != dataclasses.asdict(Method()) and Method() != "dag"


def test_the_leaves_are_the_numbers_that_are_swept():
    assert jax.tree.leaves(Method(step_size=0.25, margin={"a": 1.0, "b": 2.0})) == [0.25, 1.0, 2.0]
    traces = []

    @jax.jit
    def use(method):
        traces.append(method.max_steps)
        return method.step_size + method.margin

    for step_size in np.linspace(0.5, 2, 4):
        use(Method(step_size=step_size.item()))
    use(Method(max_steps=3))
    assert traces == [200, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(update=optax.adam(0.1)), r"update is .*: optax.adam, not optax.adam\(0.5\)"),
        (dict(update=dag_jax.dag_update(0.5)), "update is .*it is a function of the step size"),
        (dict(update=0.5), "update is 0.5"),
        (dict(update=None), "update is None"),
        (dict(objective=dag_jax.active_targets), "objective is .*it is a dag_jax.Objective"),
        (dict(objective=None), "objective is None"),
        (dict(max_steps=0), "max_steps is 0; an attack takes at least 1 step"),
        (dict(max_steps=-3), "max_steps is -3"),
        (dict(max_steps=2.5), "max_steps is 2.5; it is a whole number"),
        (dict(max_steps=200.0), "max_steps is 200.0; it is a whole number"),
        (dict(max_steps="200"), "max_steps is '200'"),
        (dict(max_steps=True), "max_steps is True"),
        (dict(max_steps=None), "max_steps is None"),
        (dict(stop_fraction=1.0), "stop_fraction is 1.0; it is a share of the targets"),
        (dict(stop_fraction=-0.1), "stop_fraction is -0.1"),
        (dict(stop_fraction=math.nan), "stop_fraction is nan"),
        (dict(stop_fraction="half"), "stop_fraction is 'half'"),
        (dict(stop_fraction=jnp.float32(0.5)), "stop_fraction is Array"),
        (dict(rounded="no"), "rounded is 'no'; it is True or False"),
        (dict(step_size=0.0), "step_size is 0.0; it is a positive number of grey levels"),
        (dict(step_size=-3), "step_size is -3"),
        (dict(step_size=math.inf), "step_size is inf"),
        (dict(step_size=np.float32(-1)), "step_size is -1"),
        (dict(step_size=jnp.float32(0)), "step_size is 0"),
        (dict(step_size="0.5"), "'0.5' is no number"),
        (dict(margin=-1.0), "margin is -1.0; it is a number of logits, 0 or more"),
        (dict(margin=math.nan), "margin is nan"),
        (dict(margin={"a": 0.0, "b": -2.0}), "margin is -2.0"),
        (dict(margin=True), "True is no number"),
    ],
)
def test_what_no_attack_can_have_is_named_when_the_method_is_made(change, message):
    with pytest.raises(UserError, match=message):
        Method(**change)
    with pytest.raises(UserError, match=message):
        Method().replace(**change)


def test_numpy_numbers_are_numbers():
    method = Method(
        step_size=np.float64(0.5),
        margin=np.int64(0),
        max_steps=np.int64(200),
        stop_fraction=np.float32(0),
        rounded=np.False_,
    )
    assert method == Method()


def test_a_method_maps_and_vmaps_as_a_pytree():
    """JAX puts other things than numbers into a pytree's leaves, and takes them out again."""
    method = Method(margin={"a": 0.0, "b": 1.0})
    axes = jax.tree.map(lambda _: None, method)
    assert jax.tree.leaves(axes) == []
    assert jax.tree.map(lambda _: object(), method).max_steps == 200
    sweep = jax.tree.map(lambda number: jnp.float32([number, number + 1]), method)
    sums = jax.vmap(lambda method: sum(jax.tree.leaves(method)))(sweep)
    np.testing.assert_array_equal(sums, [1.5, 4.5])
    shapes = jax.eval_shape(lambda method: method, method)
    assert shapes.margin["b"].shape == () and "Method(" in repr(shapes)


def test_only_what_is_kept_from_step_to_step_is_state():
    keeping = {name for name, method in methods.UNBOUNDED.items() if method().keeps_state()}
    assert keeping == {"momentum", "momentum_best_other", "clipped_momentum"}
    assert Method(update=optax.adam).keeps_state() and not methods.pgd(8.0).keeps_state()
