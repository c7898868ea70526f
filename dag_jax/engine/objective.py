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
    """Return f32[*T], each target's score of a class; 0 where there is no such class.

    Args:
      scores: float[*T, C].
      labels: i32[*T].
    """
    return jnp.where(_is_class(scores, labels), wide(scores), 0).sum(axis=-1)


def lead(
    scores: Float[Array, "*T C"],
    labels: Integer[Array, "*T"],
    others: Integer[Array, "*T"],
    where: Bool[Array, "*T"],
) -> Float[jax.Array, "*T"]:
    """Return f32[*T], each target's score of one class minus that of another, or 0.

    A select and a sum, not two gathers: the gradient is then a select, too, not a scatter.

    Args:
      scores: float[*T, C].
      labels: i32[*T], the class whose score counts.
      others: i32[*T], the class whose score is subtracted.
      where: bool[*T], the targets that count. Elsewhere the result and its gradient are 0,
        whatever the scores are.
    """
    scores = wide(scores)
    plus, minus = (_is_class(scores, part).astype(scores.dtype) for part in (labels, others))
    sign = jnp.where(where[..., None], plus - minus, 0)
    return (jnp.where(sign != 0, scores, 0) * sign).sum(axis=-1)


def others(scores: Float[Array, "*T C"], labels: Integer[Array, "*T"]) -> Float[jax.Array, "*T C"]:
    """Return f32[*T, C], the scores of each target with minus infinity for one class.

    Args:
      scores: float[*T, C].
      labels: i32[*T], the class to leave out.
    """
    return jnp.where(_is_class(scores, labels), -jnp.inf, wide(scores))


def best_other(
    scores: Float[Array, "*T C"], labels: Integer[Array, "*T"]
) -> Int32[jax.Array, "*T"]:
    """Return i32[*T], the first class of the largest score of each target but for one class.

    Args:
      scores: float[*T, C].
      labels: i32[*T], the class to leave out.
    """
    return jnp.argmax(others(lax.stop_gradient(scores), labels), axis=-1).astype(jnp.int32)


def _is_class(scores, labels):
    """Return bool[*T, C], whether a score is that of a label."""
    return lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1) == labels[..., None]


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
    return lead(scores, targets.labels, targets.adversarial, targets.valid)


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

    def leading(scores):
        return predicted(scores) == labels

    def near(scores):
        return score_of(scores, labels) - others(scores, labels).max(axis=-1) > -margin

    # Inside the branches, which are programs of their own: outside, XLA would compute each score
    # anew for the argmax.
    return lax.cond(margin > 0, lambda f: leading(f) | near(f), leading, scores)


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
    return lead(scores, targets.labels, targets.adversarial, active)


DAG = Objective(active_targets, _margins_of_active)
