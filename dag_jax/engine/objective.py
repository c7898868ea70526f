"""What an attack is after: which targets still stand, and what it descends on.

The engine asks an `Objective` at every iterate. The paper's is `DAG`; others are compositions of
the same scores (`dag_jax.methods`).

Shapes: `*T` any target shape ([H, W] pixels or [N] proposals), `C` classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int32, Integer

from dag_jax.arrays import Array, Number
from dag_jax.engine.targets import Targets


class Objective(NamedTuple):
    """Two functions of the scores of one network, f32[*T, C], and its targets.

    Objectives are equal where their functions are: give those of a module, not lambdas made for a
    call, or an attack is compiled anew.

    Attributes:
      active: (scores, targets, margin) -> bool[*T], which targets still stand, false where there is
        no target. These are counted, and the attack stops by their number.
      loss: (scores, targets, active, progress) -> f32[*T], terms whose sum the attack descends on;
        `active` is what `active` returned, `progress` f32[] is num_steps / max_steps. A term
        without a target is 0, and so is its gradient, whatever the scores are there.
    """

    active: Callable
    loss: Callable


def wide(scores: Float[Array, "*T C"]) -> Float[Array, "*T C"]:
    """Return scores in float32 or wider, so that differences and sums lose nothing.

    Args:
      scores: float[*T, C].
    """
    return scores.astype(jnp.float32) if jnp.finfo(scores.dtype).bits < 32 else scores


def score_of(scores: Float[Array, "*T C"], labels: Integer[Array, "*T"]) -> Float[jax.Array, "*T"]:
    """Return f32[*T], each target's score of a class.

    Args:
      scores: float[*T, C].
      labels: i32[*T].
    """
    return jnp.take_along_axis(wide(scores), labels[..., None], axis=-1)[..., 0]


def largest_other(
    scores: Float[Array, "*T C"], labels: Integer[Array, "*T"]
) -> Float[jax.Array, "*T"]:
    """Return f32[*T], the largest score of each target over all classes but its label.

    Args:
      scores: float[*T, C].
      labels: i32[*T], the class to leave out.
    """
    classes = lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    return jnp.where(classes == labels[..., None], -jnp.inf, wide(scores)).max(axis=-1)


def predicted(scores: Float[Array, "*T C"]) -> Int32[jax.Array, "*T"]:
    """Return i32[*T], the predicted class of each target: the first of the largest scores.

    Args:
      scores: float[*T, C]. Scores of half precision are rounded to it first. A compiler may carry
        them in more bits, and then break ties that are ties in the scores it returns.
    """
    bits = jnp.finfo(scores.dtype)
    if bits.bits < 32:
        scores = lax.reduce_precision(scores, bits.nexp, bits.nmant)
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def margin_loss(scores: Float[Array, "*T C"], targets: Targets) -> Float[jax.Array, "*T"]:
    """Return each target's margin of its label over its adversarial label.

        f_label(X, t) - f_adversarial(X, t), and 0 where there is no target

    Args:
      scores: float[*T, C], pre-softmax.
      targets: Targets of shape *T.

    Returns:
      f32[*T].

    Reference: Xie et al., ICCV 2017, equation 1.
    """
    return jnp.where(
        targets.valid,
        score_of(scores, targets.labels) - score_of(scores, targets.adversarial),
        0,
    )


def leads(
    scores: Float[Array, "*T C"], labels: Integer[Array, "*T"], margin: Number = 0.0
) -> Bool[jax.Array, "*T"]:
    """Return whether a class is predicted, or has lost by less than a margin.

        argmax_c f_c = label;    with a margin also f_label - max of the others > -margin

    Args:
      scores: float[*T, C], pre-softmax.
      labels: i32[*T], the class.
      margin: logits. At 0 the prediction alone decides, ties included: the first of equals wins.

    Returns:
      bool[*T].
    """
    near = score_of(scores, labels) - largest_other(scores, labels) > -margin
    return (predicted(scores) == labels) | ((margin > 0) & near)


def active_targets(
    scores: Float[Array, "*T C"], targets: Targets, margin: Number = 0.0
) -> Bool[Array, "*T"]:
    """Return bool[*T], the targets whose label still wins: see `leads`.

    Args:
      scores: float[*T, C], pre-softmax.
      targets: Targets of shape *T.
      margin: logits by which a label must have lost before its target rests. 0 is the paper's
        rule (the label is the argmax).

    Returns:
      bool[*T], false where there is no target.
    """
    return targets.valid & leads(scores, targets.labels, margin)


def _margins_of_active(scores, targets, active, progress):
    """Return L of algorithm 1: the margins of the targets that are active."""
    del progress
    return jnp.where(active, margin_loss(scores, targets), 0)


DAG = Objective(active_targets, _margins_of_active)
