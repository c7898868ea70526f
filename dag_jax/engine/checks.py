"""Checks of an attack's arguments: one clear error before any long work starts.

Shapes: `H W` pixels, `*T` any target shape, `C` classes.

Shapes are always checked. Values are checked where they are known, so not inside `jax.jit`; there
an attack that cannot go on says so by its status.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Num, PyTree

from dag_jax.arrays import Array
from dag_jax.engine.method import Method
from dag_jax.engine.scoring import shapes_of_scores
from dag_jax.engine.targets import Targets, map_targets
from dag_jax.errors import UserError

WHITE = 255  # the largest grey level


def check(
    score_fn: Callable,
    image: Num[Array, "H W 3"],
    targets: PyTree[Targets],
    method: Method = Method(),  # noqa: B008
) -> None:
    """Raise a ValueError that names the wrong argument of an attack.

    Args:
      score_fn: image -> scores.
      image: f32[H, W, 3], RGB grey levels 0-255.
      targets: Targets, or a pytree of them like the scores.
      method: a `Method`. It has checked its own numbers.

    Raises:
      ValueError: for an argument of the wrong kind or shape, a label that is no class, or a grey
        level or number out of its range.
    """
    check_method(method)
    check_score_fn(score_fn)
    check_image(image)
    check_are_targets(targets)
    check_targets(targets, shapes_of_scores(score_fn, image.shape))
    check_margin(method.margin, targets)


def check_method(method: Any) -> None:
    """Raise a ValueError unless `method` is a `Method`; `check` calls this."""
    if not isinstance(method, Method):
        raise UserError(
            f"method is {_kind(method)}; it must be a dag_jax.Method, such as "
            "dag_jax.Method(max_steps=200) or dag_jax.methods.pgd(8)"
        )
    if jax.tree.leaves(method.step_size) != [method.step_size] or np.shape(method.step_size):
        raise UserError(f"step_size is {_kind(method.step_size)}; it must be one number")
    for logits in jax.tree.leaves(method.margin):
        if np.shape(logits):
            raise UserError(f"margin is {_kind(logits)}; it must be one number for each network")


def check_score_fn(score_fn: Any) -> None:
    """Raise a ValueError unless `score_fn` can be called on an image; `check` calls this."""
    if hasattr(score_fn, "scores") and not isinstance(score_fn, type):
        raise UserError(
            f"score_fn is {_kind(score_fn)}, a model: give its function of an image, model.scores "
            "of a segmenter; dag_jax.detector_targets makes that of a detector"
        )
    if not callable(score_fn):
        raise UserError(
            f"score_fn is {_kind(score_fn)}; it must be a function of an image f32[H, W, 3] that "
            "returns scores f32[*T, C]. The order is attack(score_fn, image, targets, method)"
        )


def check_are_targets(targets: Any) -> None:
    """Raise a ValueError unless these are a pytree of `Targets`; `check` calls this."""
    leaves = jax.tree.leaves(targets, is_leaf=lambda node: isinstance(node, Targets))
    if not leaves or not all(isinstance(leaf, Targets) for leaf in leaves):
        raise UserError(
            f"targets are {_kind(targets)}; they must be dag_jax.Targets (make_targets(mask, "
            "adversarial) makes them of a mask), or a pytree of them like the scores"
        )


def _kind(value):
    """Return the kind of a value in a few words, for messages."""
    shape = f"{value.dtype}{list(value.shape)}" if hasattr(value, "dtype") else ""
    article = "an" if type(value).__name__[0] in "AEIOUaeiou" else "a"
    return f"an array {shape}" if shape else f"{article} {type(value).__name__}"


def _is_concrete(value) -> bool:
    return not isinstance(value, jax.core.Tracer)


def check_image(image: Any) -> None:
    """Raise a ValueError unless this is an RGB image in grey levels; `check` calls this."""
    if not (hasattr(image, "shape") and hasattr(image, "dtype")):
        raise UserError(
            f"image is {_kind(image)}; it must be an array [H, W, 3]: np.asarray(image)"
        )
    shape = tuple(image.shape)
    if len(shape) != 3 or shape[-1] != 3:
        hint = ""
        if len(shape) == 3 and shape[0] == 3:
            hint = ", channels last: image.transpose(1, 2, 0)"
        elif len(shape) == 4:
            hint = ": one image. dag_jax.attack_batch takes several, attack_stream many"
        raise UserError(f"image has shape {shape}; it must be [H, W, 3]{hint}")
    kinds = (jnp.floating, jnp.integer)
    if not any(jnp.issubdtype(image.dtype, kind) for kind in kinds):
        raise UserError(f"image is {image.dtype}; it must be numbers, grey levels 0 to 255")
    if 0 in shape:
        raise UserError(f"image has shape {shape}: it has no pixels")
    if not _is_concrete(image):
        return
    low, high = float(image.min()), float(image.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError("image has values that are not finite")
    if low < 0 or high > WHITE:
        raise UserError(
            f"image has values from {low:g} to {high:g}; they are grey levels from 0 to 255, "
            "before any mean is subtracted"
        )
    if 0 < high <= 1:
        raise UserError(
            f"image has values from {low:g} to {high:g}, which looks like [0, 1]; grey levels "
            "go from 0 to 255 here, and step_size counts them: multiply the image by 255"
        )


def check_start(start: Any, image: Any) -> None:
    """Raise a ValueError unless a first perturbation fits the image; `init` calls this.

    Args:
      start: [H, W, 3] in grey levels.
      image: [H, W, 3].
    """
    if not hasattr(start, "dtype") or not jnp.issubdtype(start.dtype, jnp.number):
        raise UserError(f"start is {_kind(start)}; it must be an array of numbers, grey levels")
    if np.shape(start) != np.shape(image):
        raise UserError(f"start has shape {np.shape(start)}, image has {np.shape(image)}")
    if _is_concrete(start) and not np.isfinite(start).all():
        raise UserError("start has values that are not finite")


def check_targets(targets: PyTree[Targets], scores: PyTree) -> None:
    """Raise a ValueError unless targets fit the scores; `check` calls this.

    Args:
      targets: Targets, or a pytree of them.
      scores: arrays or `jax.ShapeDtypeStruct`, the same pytree.

    Raises:
      ValueError: where structures or shapes differ, or a class has no score.
    """
    target_tree: Any = jax.tree.structure(map_targets(lambda _: 0, targets))
    if target_tree != jax.tree.structure(scores):
        raise UserError(
            f"score_fn returns {jax.tree.structure(scores)}, targets are {target_tree}: a joint "
            "attack takes the same pytree of Targets as of scores"
        )
    map_targets(_check_leaf, targets, scores)


def check_margin(margin: PyTree, targets: PyTree[Targets]) -> None:
    """Raise a ValueError unless margins have the targets' structure; `check` calls this.

    Args:
      margin: a number, or a pytree of numbers.
      targets: Targets, or a pytree of them.
    """
    tree, target_tree = (
        jax.tree.structure(tree) for tree in (margin, map_targets(lambda _: 0, targets))
    )
    if tree not in (target_tree, jax.tree.structure(0)):
        raise UserError(
            f"margin is {tree}, targets are {target_tree}: give one number for all, or the same "
            "pytree of numbers as of Targets"
        )


def _check_leaf(targets: Targets, scores: Any) -> None:
    if scores.ndim < 1 or not jnp.issubdtype(scores.dtype, jnp.floating):
        raise UserError(f"scores are {scores.dtype}{scores.shape}; they must be floats [*T, C]")
    for field in dataclasses.fields(Targets):
        value = getattr(targets, field.name)
        if value.shape != scores.shape[:-1]:
            raise UserError(
                f"targets.{field.name} has shape {value.shape}, scores have {scores.shape}: the "
                f"targets must be {scores.shape[:-1]}"
            )
    values = (targets.labels, targets.adversarial, targets.valid)
    kinds = ("labels", jnp.integer), ("adversarial", jnp.integer), ("valid", jnp.bool_)
    for (name, kind), value in zip(kinds, values, strict=True):
        if not jnp.issubdtype(value.dtype, kind):
            raise UserError(
                f"targets.{name} is {value.dtype}; it must be "
                f"{'bool' if kind is jnp.bool_ else 'an integer type'}"
            )
    if not all(map(_is_concrete, values)):
        return
    labels, adversarial, valid = map(np.asarray, values)
    for name, classes in (("labels", labels), ("adversarial", adversarial)):
        wrong = valid & ((classes < 0) | (classes >= scores.shape[-1]))
        if wrong.any():
            raise UserError(
                f"targets.{name} has class {classes[wrong][0]}, scores have {scores.shape[-1]} "
                "classes counted from 0; void belongs into targets.valid"
            )
    same = valid & (labels == adversarial)
    if same.any():
        raise UserError(
            f"{same.sum()} target(s) have their own label as the adversarial one; "
            "make_targets drops them"
        )
