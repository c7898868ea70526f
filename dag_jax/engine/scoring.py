"""What scores an image, as the engine takes it: a pytree whose leaves are its arrays.

Those are traced, so that other parameters of one structure compile nothing. A plain function has
none that can be seen: its captured arrays are constants of what is compiled.
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
    """Return whether a callable is no pytree: a function, whose parameters nobody sees."""
    return jax.tree_util.all_leaves([score_fn])


def as_callable_pytree(score_fn: Callable) -> Callable:
    """Return what scores images as a pytree in any case, a plain function as one without leaves."""
    score_fn = as_pytree(score_fn)
    return jax.tree_util.Partial(score_fn) if is_plain(score_fn) else score_fn


def as_pytree(score_fn: Any) -> Callable:
    """Return a callable as one that compiles once, and whose leaves are arrays.

    `model.scores` of a model that is a pytree is a new object each time that it is named; as a
    `Partial` of the class's function and the model, it compiles once. What is no array in a pytree,
    such as an activation function, is part of its structure. A plain object without a hash goes by
    its identity.
    """
    if inspect.ismethod(score_fn) and not is_plain(score_fn.__self__):
        score_fn = jax.tree_util.Partial(score_fn.__func__, score_fn.__self__)
    if is_plain(score_fn):
        return score_fn if _has_hash(score_fn) else score_fn.__call__
    leaves, structure = jax.tree.flatten(score_fn)
    if all(map(_is_array, leaves)):
        return score_fn
    arrays = [leaf if _is_array(leaf) else None for leaf in leaves]
    others = tuple(None if _is_array(leaf) else leaf for leaf in leaves)
    return jax.tree_util.Partial(_WithoutArrays(kind_of(score_fn), structure, others), arrays)


def kind_of(tree: Any) -> int:
    """Return what tells the classes in a pytree from others, as a static argument of `jit`.

    Of those that `jax.tree_util.register_dataclass` has registered, JAX 0.10 compares the fields
    and not the class: now and then a jitted function runs for a model of one class what it compiled
    for another. The hashes of structures differ by class, though not by the values of static
    fields, which JAX does compare.
    """
    return hash(jax.tree.structure(tree))


def told_apart(score_fn: Callable) -> Callable:
    """Return a pytree that scores as one that JAX takes for no other: see `kind_of`."""
    return jax.tree_util.Partial(_OfKind(kind_of(score_fn)), score_fn)


@dataclasses.dataclass(frozen=True)
class _OfKind:
    """Calls its first argument; a static part that differs with its structure."""

    kind: int

    def __call__(self, score_fn, *arguments):
        return score_fn(*arguments)


def shapes_of_scores(
    score_fn: Callable, image_shape: tuple[int, ...], *inputs: Any
) -> PyTree[jax.ShapeDtypeStruct]:
    """Return the scores of an image as `jax.ShapeDtypeStruct`; a pytree is traced once for all.

    Args:
      score_fn: image f32[H, W, 3] -> scores f32[*T, C], or a pytree of scores.
      image_shape: (H, W, 3).
      *inputs: what it takes after the image.
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
    """A callable pytree but for its arrays."""

    kind: int
    structure: jax.tree_util.PyTreeDef
    others: tuple  # leaves that are no arrays, None for those that are

    def __call__(self, arrays, image, *inputs):
        pairs = zip(arrays, self.others, strict=True)
        leaves = [array if other is None else other for array, other in pairs]
        return jax.tree.unflatten(self.structure, leaves)(image, *inputs)


def _is_array(leaf) -> bool:
    kinds = jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct
    return isinstance(leaf, kinds | bool | int | float | complex)


def _has_hash(value) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
