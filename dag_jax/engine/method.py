"""What an attack is: one value, a `Method`, that every function of the engine takes."""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from dag_jax.arrays import Number
from dag_jax.engine.objective import DAG, Objective
from dag_jax.errors import UserError


def scale_by_max_norm() -> optax.GradientTransformation:
    """Scale a gradient to a largest absolute value of 1; a zero gradient stays zero."""

    def update(gradient, state, params=None):
        del params
        largest = jnp.max(jnp.abs(gradient))
        return gradient / jnp.where(largest > 0, largest, 1), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def dag_update(step_size: Number) -> optax.GradientTransformation:
    """Return the paper's update rule: r + gamma / ||r_m||_inf r_m, where r_m = -gradient.

    Args:
      step_size: gamma, the largest change of a channel in one step, in grey levels.

    Returns:
      An optax transformation of the loss's gradient with respect to the image.

    Reference: Xie et al., ICCV 2017, algorithm 1.
    """
    return optax.chain(scale_by_max_norm(), optax.scale(-step_size))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step_size", "margin"],
    meta_fields=["objective", "update", "max_steps", "stop_fraction", "rounded"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """An attack's rule; without arguments, the paper's. `dag_jax.methods` has others.

    A pytree: `step_size` and `margin` are its leaves, so that a sweep over them compiles once. The
    rest is static. Two methods are equal, and have the same hash, if all their values are equal.

    Attributes:
      objective: which targets are active, and what is descended on. A joint attack asks it of each
        network.
      update: function of `step_size` that returns the optax transformation of the loss's gradient
        with respect to the image, such as `dag_update` or `optax.adam`. Its parameters are r; one
        that takes further arguments (`optax.GradientTransformationExtraArgs`) gets `image`, the
        clean one. Equal functions compile once: give one of a module, or a frozen dataclass.
      step_size: gamma, the largest change of a channel in one step, in grey levels.
      margin: logits by which a label must have lost before its target rests; 0 is the paper's. One
        number, or in a joint attack the same pytree of numbers as of targets.
      max_steps: M_0; the paper has 200 for segmentation and 150 for detection.
      stop_fraction: the attack stops as FOOLED once at most this share of the targets is active, of
        each network in a joint attack; 0 is the paper's. None: it goes on to `max_steps`, as
        attacks of a bounded norm do, and is FOOLED if none is active in the end.
      rounded: whether the image is scored as rounded to whole grey levels, so that the saved PNG
        itself fools.

    Raises:
      ValueError: for a number that no attack can have, or an `update` that is no function.
    """

    objective: Objective = DAG
    update: Callable = dag_update
    step_size: Number = 0.5
    margin: PyTree[Number] = 0.0
    max_steps: int = 200
    stop_fraction: float | None = 0.0
    rounded: bool = False

    def __post_init__(self):
        if isinstance(self.update, optax.GradientTransformation) or not callable(self.update):
            raise UserError(
                f"update is {self.update!r:.100}; it is a function of the step size that returns "
                "an optax transformation: optax.adam, not optax.adam(0.5)"
            )
        if not isinstance(self.objective, Objective):
            raise UserError(f"objective is {self.objective!r:.100}; it is a dag_jax.Objective")
        if not isinstance(self.max_steps, numbers.Integral) or isinstance(self.max_steps, bool):
            raise UserError(f"max_steps is {self.max_steps!r}; it is a whole number")
        if self.max_steps < 1:
            raise UserError(f"max_steps is {self.max_steps}; an attack takes at least 1 step")
        share = self.stop_fraction
        if share is not None and not (isinstance(share, numbers.Real) and 0 <= share < 1):
            raise UserError(
                f"stop_fraction is {share!r:.100}; it is a share of the targets, 0 or more and "
                "less than 1, or None"
            )
        if not isinstance(self.rounded, bool | np.bool_):
            raise UserError(f"rounded is {self.rounded!r:.100}; it is True or False")
        for size in _numbers(self.step_size):
            if not 0 < size < math.inf:
                raise UserError(f"step_size is {size}; it is a positive number of grey levels")
        for logits in _numbers(self.margin):
            if not 0 <= logits < math.inf:
                raise UserError(f"margin is {logits}; it is a number of logits, 0 or more")

    def _value(self):
        leaves, structure = jax.tree.flatten(self)
        return structure, tuple(map(_comparable, leaves))

    def __eq__(self, other):
        return self._value() == other._value() if isinstance(other, Method) else NotImplemented

    def __hash__(self):
        return hash(self._value())

    def describe(self) -> dict:
        """Return the method as JSON values, by which run folders tell two methods apart."""
        numbers = jax.tree.map(float, {"step_size": self.step_size, "margin": self.margin})
        return numbers | {
            "objective": [_name(function) for function in self.objective],
            "update": _name(self.update),
            "max_steps": self.max_steps,
            "stop_fraction": self.stop_fraction,
            "rounded": self.rounded,
        }

    def replace(self, **changes: Any) -> "Method":
        """Return this method with other values of some attributes."""
        return dataclasses.replace(self, **changes)

    def keeps_state(self) -> bool:
        """Return whether the update keeps arrays from step to step, as momentum does."""
        return bool(jax.tree.leaves(self.optimizer().init(jnp.zeros((1, 1, 3)))))

    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        """Return the optax transformation that `update` makes of gamma, taken as float32."""
        step_size = jnp.asarray(self.step_size, jnp.float32)
        return optax.with_extra_args_support(self.update(step_size))


def _name(function) -> str:
    """Return a function's full name, or the `repr` of a callable without a name."""
    name = getattr(function, "__qualname__", None)
    return f"{function.__module__}.{name}" if name else repr(function)


def _is_number(leaf) -> bool:
    return isinstance(leaf, int | float | np.number) and not isinstance(leaf, bool)


def _comparable(leaf):
    """Return what a leaf is compared and hashed by: its value, or its id where it has none."""
    if _is_number(leaf):
        return float(leaf)
    if isinstance(leaf, np.ndarray | jax.Array) and not isinstance(leaf, jax.core.Tracer):
        return float(leaf) if leaf.ndim == 0 else tuple(np.ravel(leaf).tolist()) + leaf.shape
    return id(leaf)


def _numbers(tree):
    """Yield the known numbers of a pytree; tracers and JAX's placeholders are left out."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.core.Tracer):
            continue
        if _is_number(leaf):
            yield leaf
        elif isinstance(leaf, np.ndarray | jax.Array):
            yield from np.ravel(np.asarray(leaf)).tolist()
        elif isinstance(leaf, str | bool):
            raise UserError(f"{leaf!r} is no number")
