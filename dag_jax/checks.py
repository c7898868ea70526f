"""What an attack cannot mean: one clear error before any long work starts.

Shapes: `H W` pixels, `*T` any target shape, `C` classes.

Shapes are always checked. Values are checked where they are concrete, so not inside `jax.jit`,
where an attack that cannot go on says so by its status.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from dag_jax.targets import Targets, map_targets

WHITE = 255  # the largest grey level


def check(
    score_fn, image, targets, *, max_steps=200, step_size=0.5, margin=0.0, stop_fraction=0.0
) -> None:
    """Raise a ValueError that names what is wrong with the arguments of an attack.

    Args:
      score_fn: image -> scores.
      image: f32[H, W, 3], RGB grey levels 0-255.
      targets: Targets, or a pytree of them like the scores.
      max_steps: as in `attack`.
      step_size: as in `attack`.
      margin: as in `attack`.
      stop_fraction: as in `attack`.

    Raises:
      ValueError: for a shape, label, grey level or number that an attack cannot mean.
    """
    check_numbers(max_steps, step_size, margin, stop_fraction)
    check_image(image)
    scores = jax.eval_shape(score_fn, jax.ShapeDtypeStruct(image.shape, jnp.float32))
    check_targets(targets, scores)
    check_margin(margin, targets)


def check_numbers(max_steps, step_size, margin, stop_fraction=0.0) -> None:
    """Raise a ValueError for a number that no attack can have; `check` calls this."""
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}; an attack takes at least 1 step")
    if _is_concrete(step_size) and not (0 < step_size < math.inf):
        raise ValueError(f"step_size is {step_size}; it is a positive number of grey levels")
    for logits in jax.tree.leaves(margin):
        if _is_concrete(logits) and not (0 <= logits < math.inf):
            raise ValueError(f"margin is {logits}; it is a number of logits, 0 or more")
    if stop_fraction is not None and not (0 <= stop_fraction < 1):
        raise ValueError(
            f"stop_fraction is {stop_fraction}; it is a share of the targets, 0 or more and less "
            "than 1, or None"
        )


def _is_concrete(value) -> bool:
    return not isinstance(value, jax.core.Tracer)


def check_image(image) -> None:
    """Raise a ValueError for what is no RGB image in grey levels; `check` calls this."""
    if image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"image has shape {image.shape}; it must be [H, W, 3]")
    if not _is_concrete(image):
        return
    low, high = float(image.min()), float(image.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("image has values that are not finite")
    if low < 0 or high > WHITE:
        raise ValueError(
            f"image has values from {low:g} to {high:g}; they are grey levels from 0 to 255, "
            "before any mean is subtracted"
        )
    if 0 < high <= 1:
        raise ValueError(
            f"image has values from {low:g} to {high:g}, which looks like [0, 1]; grey levels "
            "go from 0 to 255 here, and step_size counts them: multiply the image by 255"
        )


def check_start(start, image) -> None:
    """Raise a ValueError for a first perturbation that does not fit the image; `init` calls this.

    Args:
      start: [H, W, 3] in grey levels.
      image: [H, W, 3].
    """
    if start.shape != image.shape:
        raise ValueError(f"start has shape {start.shape}, image has {image.shape}")
    if _is_concrete(start) and not np.isfinite(start).all():
        raise ValueError("start has values that are not finite")


def check_targets(targets, scores) -> None:
    """Raise a ValueError for targets that do not fit the scores; `check` calls this.

    Args:
      targets: Targets, or a pytree of them.
      scores: arrays or `jax.ShapeDtypeStruct`, the same pytree.

    Raises:
      ValueError: for another structure, shape or class than the scores have.
    """
    target_tree = jax.tree.structure(map_targets(lambda _: 0, targets))
    if jax.tree.structure(scores) != target_tree:
        raise ValueError(
            f"score_fn returns {jax.tree.structure(scores)}, targets are {target_tree}: a joint "
            "attack takes the same pytree of Targets as of scores"
        )
    map_targets(_check_leaf, targets, scores)


def check_margin(margin, targets) -> None:
    """Raise a ValueError for margins of another structure than the targets; `check` calls this.

    Args:
      margin: a number, or a pytree of numbers.
      targets: Targets, or a pytree of them.
    """
    tree, target_tree = (
        jax.tree.structure(one) for one in (margin, map_targets(lambda _: 0, targets))
    )
    if tree not in (target_tree, jax.tree.structure(0)):
        raise ValueError(
            f"margin is {tree}, targets are {target_tree}: give one number for all, or the same "
            "pytree of numbers as of Targets"
        )


def _check_leaf(targets: Targets, scores) -> None:
    if scores.ndim < 1 or not jnp.issubdtype(scores.dtype, jnp.floating):
        raise ValueError(f"scores are {scores.dtype}{scores.shape}; they must be floats [*T, C]")
    for field in dataclasses.fields(Targets):
        value = getattr(targets, field.name)
        if value.shape != scores.shape[:-1]:
            raise ValueError(
                f"targets.{field.name} has shape {value.shape}, scores have {scores.shape}: the "
                f"targets must be {scores.shape[:-1]}"
            )
    values = (targets.labels, targets.adversarial, targets.valid)
    kinds = ("labels", jnp.integer), ("adversarial", jnp.integer), ("valid", jnp.bool_)
    for (name, kind), value in zip(kinds, values, strict=True):
        if not jnp.issubdtype(value.dtype, kind):
            raise ValueError(
                f"targets.{name} is {value.dtype}; it must be "
                f"{'bool' if kind is jnp.bool_ else 'an integer type'}"
            )
    if not all(map(_is_concrete, values)):
        return
    labels, adversarial, valid = map(np.asarray, values)
    for name, classes in (("labels", labels), ("adversarial", adversarial)):
        wrong = valid & ((classes < 0) | (classes >= scores.shape[-1]))
        if wrong.any():
            raise ValueError(
                f"targets.{name} has class {classes[wrong][0]}, scores have {scores.shape[-1]} "
                "classes counted from 0; void belongs into targets.valid"
            )
    same = valid & (labels == adversarial)
    if same.any():
        raise ValueError(
            f"{same.sum()} target(s) have their own label as the adversarial one; "
            "make_targets drops them"
        )
