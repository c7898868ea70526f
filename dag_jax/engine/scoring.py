"""Score functions as the engine takes them: pytrees whose leaves are arrays.

The leaves are traced, so that other parameters of the same structure compile nothing. A plain
function has no leaves: the arrays that it captures are constants of the compiled program.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


def is_plain(score_fn: Any) -> bool:
    """Return whether a callable is a plain function, whose parameters JAX does not see."""
    return jax.tree_util.all_leaves([score_fn])


def as_callable_pytree(score_fn: Callable) -> Callable:
    """Return a score function as a pytree; a plain function becomes one without leaves."""
    score_fn = as_pytree(score_fn)
    return jax.tree_util.Partial(score_fn) if is_plain(score_fn) else score_fn


def as_pytree(score_fn: Any) -> Callable:
    """Return a score function in a form that compiles once, and whose leaves are arrays.

    A bound method such as `model.scores` is a new object each time; of a model that is a pytree it
    becomes a `Partial` of the class's function and the model. Leaves that are no arrays, such as an
    activation function, become part of the structure. A plain object without a hash is compared by
    identity.
    """
    if inspect.ismethod(score_fn) and not is_plain(score_fn.__self__):
        score_fn = jax.tree_util.Partial(score_fn.__func__, score_fn.__self__)
    if is_plain(score_fn):
        return score_fn if _has_hash(score_fn) else score_fn.__call__
    leaves = jax.tree.leaves(score_fn)
    if all(map(_is_array, leaves)):
        return score_fn
    arrays = [leaf if _is_array(leaf) else None for leaf in leaves]
    constants = tuple(None if _is_array(leaf) else leaf for leaf in leaves)
    return jax.tree_util.Partial(_WithoutArrays(kind_of(score_fn), constants), arrays)


def kind_of(tree: Any) -> tuple[int, jax.tree_util.PyTreeDef]:
    """Return (hash, structure) of a pytree: a static argument by which `jit` tells kinds apart.

    JAX 0.10 compares classes registered by `jax.tree_util.register_dataclass` by their fields
    alone. Two classes with the same fields are then equal, and now and then a jitted function runs
    the program that it compiled for the other class. Their hashes differ.
    """
    structure = jax.tree.structure(tree)
    return hash(structure), structure


def told_apart(score_fn: Callable) -> Callable:
    """Return a score function that JAX never confuses with one of another class: see `kind_of`."""
    return jax.tree_util.Partial(_OfKind(kind_of(score_fn)), score_fn)


@dataclasses.dataclass(frozen=True)
class _OfKind:
    """Calls its first argument; `kind` is static and differs with that argument's structure."""

    kind: tuple

    def __call__(self, score_fn, *arguments):
        return score_fn(*arguments)


def shapes_of_scores(
    score_fn: Callable, image_shape: tuple[int, ...], *inputs: Any
) -> PyTree[jax.ShapeDtypeStruct]:
    """Return the shapes of an image's scores, as `jax.ShapeDtypeStruct`, without computing them.

    Args:
      score_fn: image f32[H, W, 3] -> scores f32[*T, C], or a pytree of scores.
      image_shape: (H, W, 3).
      *inputs: the arguments of `score_fn` after the image.
    """
    score_fn, image = as_pytree(score_fn), jax.ShapeDtypeStruct(image_shape, jnp.float32)
    if is_plain(score_fn):  # whose captured arrays would live as long as the program
        return jax.eval_shape(score_fn, image, *inputs)
    return _score.eval_shape(told_apart(score_fn), image, *inputs)


@jax.jit
def _score(score_fn, image, *inputs):
    return score_fn(image, *inputs)


@dataclasses.dataclass(frozen=True)
class _WithoutArrays:
    """A callable pytree without its arrays, which are the first argument of the call."""

    kind: tuple  # from `kind_of`
    constants: tuple  # leaves that are no arrays, None for those that are

    def __call__(self, arrays, image, *inputs):
        pairs = zip(arrays, self.constants, strict=True)
        leaves = [array if constant is None else constant for array, constant in pairs]
        return jax.tree.unflatten(self.kind[1], leaves)(image, *inputs)


def _is_array(leaf) -> bool:
    kinds = jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct
    return isinstance(leaf, kinds | bool | int | float | complex)


def _has_hash(value) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
