"""The door of the engine: `attack` one image, or `attack_batch` several of one size.

Called plainly, both check values and run a program that is compiled once; inside `jax.jit`,
`jax.vmap`, `jax.grad` and `jax.shard_map` they are the pure function of `algorithm.run`.

Shapes: `B` images, `H W` pixels, `*T` any target shape, `C` classes.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Num, PyTree

from dag_jax.arrays import Array
from dag_jax.engine.algorithm import Attack, run
from dag_jax.engine.checks import check, check_score_fn, check_start
from dag_jax.engine.method import Method
from dag_jax.engine.scoring import as_pytree, is_plain, told_apart
from dag_jax.engine.targets import Targets
from dag_jax.errors import UserError

_MOST_FUNCTIONS = 32  # plain functions whose programs are kept


def attack(
    score_fn: Callable,
    image: Num[Array, "H W 3"],
    targets: PyTree[Targets],
    method: Method = Method(),  # noqa: B008 (frozen)
    *,
    start: Num[Array, "H W 3"] | None = None,
) -> Attack:
    """Find a perturbation of an image that makes a network wrong on every target.

    Called plainly it checks values, and compiles once for each structure of `score_fn`, shapes and
    static part of `method`. A `score_fn` may be a pytree, such as a `jax.tree_util.Partial` of a
    function and its parameters, or a method of a pytree: other parameters of the same shapes
    compile nothing. A plain function is compiled once for each function object, and the arrays
    that it captures are constants of the program. Inside `jax.jit`, `jax.vmap`, `jax.grad` and
    `jax.shard_map` this is the pure function, and traced values are not checked.

    Only forward-mode derivatives of the result exist (`jax.jvp`), as the number of steps is not
    known before. `step` has both modes.

    Args:
      score_fn: image f32[H, W, 3] -> pre-softmax scores f32[*T, C], or a pytree of scores.
      image: [H, W, 3], RGB grey levels 0-255.
      targets: Targets of shape *T, or the same pytree of them as the scores.
      method: what the attack is; the paper's rule if none is given.
      start: f32[H, W, 3] in grey levels, r of the first iterate; None is 0.

    Returns:
      Attack, whatever happened: its status says why it stopped.

    Raises:
      ValueError: as `checks.check` says.

    Reference: Xie et al., ICCV 2017, algorithm 1.
    """
    check_score_fn(score_fn)
    score_fn = as_pytree(score_fn)
    check(score_fn, image, targets, method)
    if start is not None:
        check_start(start, image)
    return _call(run, score_fn, image, targets, method, start)


def attack_batch(
    score_fn: Callable,
    images: Num[Array, "B H W 3"],
    targets: PyTree[Targets],
    method: Method = Method(),  # noqa: B008
    *,
    start: Num[Array, "B H W 3"] | None = None,
) -> Attack:
    """Attack images of one size together: `attack` with a first axis of B in all arrays.

    The batch runs until its last image has stopped. `dag_jax.attack_stream` gives the place of a
    finished image to the next one, and takes images of many sizes.

    Args:
      score_fn: as in `attack`, of one image.
      images: [B, H, W, 3], RGB grey levels 0-255.
      targets: Targets of shape [B, *T], or the same pytree of them as the scores.
      method: as in `attack`, the same for all.
      start: f32[B, H, W, 3] in grey levels; None is 0.

    Returns:
      Attack, each of its arrays with a first axis of B.

    Raises:
      ValueError: as `checks.check` says, naming which image.
    """
    check_score_fn(score_fn)
    score_fn = as_pytree(score_fn)
    shape = np.shape(images)
    if len(shape) != 4 or shape[-1] != 3 or not shape[0]:
        raise UserError(f"images have shape {shape}; they must be [B, H, W, 3], B at least 1")
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves((targets, start))}
    if sizes - {shape[:1]}:
        raise UserError(
            f"{shape[0]} images, but targets (and start) have first axes of "
            f"{', '.join(str(size) for size in sorted(sizes))}: each array needs one row an image"
        )
    for row in range(shape[0]):
        image, row_targets, first = jax.tree.map(
            lambda leaf, i=row: leaf[i], (images, targets, start)
        )
        try:
            check(score_fn, image, row_targets, method)
            if first is not None:
                check_start(first, image)
        except UserError as error:
            raise UserError(f"image {row}: {error}") from error
    return _call(_run_batch, score_fn, images, targets, method, start)


def _run_batch(method, score_fn, images, targets, start):
    axes = (0, 0, None if start is None else 0)
    each = jax.vmap(
        lambda image, row_targets, first: run(method, score_fn, image, row_targets, first), axes
    )
    return each(images, targets, start)


def _call(function, score_fn, image, targets, method, start):
    """Call a function of the engine, compiled unless the caller is being traced."""
    arguments = method, score_fn, image, targets, start
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments)):
        return function(*arguments)
    # Numbers of one dtype, whatever kind was given: other kinds are other programs.
    method = jax.tree.map(np.float32, method)
    image = image.astype(np.float32)
    if is_plain(score_fn):
        return _program(function, score_fn)(method, image, targets, start)
    return _compiled(function, method, told_apart(score_fn), image, targets, start)


@functools.partial(jax.jit, static_argnums=0)
def _compiled(function, method, score_fn, image, targets, start):
    return function(method, score_fn, image, targets, start)


@functools.lru_cache(_MOST_FUNCTIONS)
def _program(function, score_fn):
    """Return the compiled attack on a plain function, from a cache of those used last."""
    return jax.jit(lambda method, *arguments: function(method, score_fn, *arguments))
