"""Exact greedy non-maximum suppression, compiled.

Shapes: `N` boxes, `K` outputs, `C` classes.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int, Int32

from dag_jax.arrays import Array, Number
from dag_jax.detection import boxes as box_ops
from dag_jax.errors import UserError


def _sweep_to_fixed_point(overlaps, valid):
    """Return bool[N], the boxes that greedy suppression keeps.

    `overlaps[i, j]` says that box i, if kept, removes box j. The sweep is keep_j = valid_j and not
    any_{i < j}(keep_i and overlaps_ij). Its fixed point is the result, and there is only one: box 0
    is settled from the start, and box j once all boxes before it are.
    """

    def sweep(state):
        keep, _ = state
        swept = valid & ~jnp.any(overlaps & keep[:, None], axis=0)
        return swept, jnp.any(swept != keep)

    keep, _ = lax.while_loop(lambda state: state[1], sweep, (valid, jnp.bool_(True)))
    return keep


def nms(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, " N"],
    *,
    threshold: Number,
    max_outputs: int,
    valid: Bool[Array, " N"] | None = None,
    groups: Int[Array, " N"] | None = None,
) -> tuple[Int32[jax.Array, " {max_outputs}"], Bool[jax.Array, " {max_outputs}"]]:
    """Keep boxes by descending score, and drop each that overlaps a kept one.

    Box j is dropped if IoU(i, j) > threshold for a kept box i before it. Equal scores are in the
    order of their index. No gradient passes.

    Args:
      boxes: f32[N, 4], boxes in pixels.
      scores: f32[N].
      threshold: largest IoU that two kept boxes may have.
      max_outputs: K.
      valid: bool[N], boxes to consider, or None for all.
      groups: i32[N], such as classes: a box drops only boxes of its own group. None: one group.

    Returns:
      indices: i32[K], kept boxes by descending score, then padding.
      valid: bool[K], False at the padding.

    Raises:
      ValueError: where shapes disagree.

    Reference: `py_cpu_nms` of py-faster-rcnn; results are equal for every threshold.
    """
    count = boxes.shape[0]
    if scores.shape != (count,):
        raise UserError(f"boxes has {count} rows, scores has shape {scores.shape}")
    if valid is None:
        valid = jnp.ones(count, bool)
    if valid.shape != (count,):
        raise UserError(f"boxes has {count} rows, valid has shape {valid.shape}")
    if groups is not None and groups.shape != (count,):
        raise UserError(f"boxes has {count} rows, groups has shape {groups.shape}")
    boxes, scores = (lax.stop_gradient(jnp.asarray(x)) for x in (boxes, scores))
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True).astype(jnp.int32)
    boxes, valid = boxes[order], jnp.asarray(valid)[order]
    rank = jnp.arange(count)
    overlaps = (box_ops.iou(boxes, boxes) > threshold) & (rank[:, None] < rank[None, :])
    if groups is not None:
        groups = jnp.asarray(groups)[order]
        overlaps &= groups[:, None] == groups[None, :]
    keep = _sweep_to_fixed_point(overlaps, valid)
    (places,) = jnp.nonzero(keep, size=max_outputs, fill_value=0)
    indices = order[places] if count else jnp.zeros(max_outputs, jnp.int32)
    return indices, jnp.arange(max_outputs) < jnp.sum(keep)


def nms_per_class(
    boxes: Float[Array, "C N 4"],
    scores: Float[Array, "C N"],
    *,
    threshold: Number,
    max_outputs: int,
    valid: Bool[Array, "C N"],
) -> tuple[
    Float[jax.Array, "{max_outputs} 4"],
    Int32[jax.Array, " {max_outputs}"],
    Float[jax.Array, " {max_outputs}"],
    Bool[jax.Array, " {max_outputs}"],
]:
    """Suppress within each class, then keep the best of all classes.

    Args:
      boxes: f32[C, N, 4], boxes in pixels, one list per class.
      scores: f32[C, N].
      threshold: largest IoU that two kept boxes of one class may have.
      max_outputs: K.
      valid: bool[C, N], boxes to consider.

    Returns:
      boxes: f32[K, 4], by descending score, then padding.
      classes: i32[K], row of the box in the arguments.
      scores: f32[K].
      valid: bool[K], False at the padding.

    Raises:
      ValueError: where shapes disagree.
    """
    if boxes.shape[:2] != scores.shape:
        raise UserError(f"boxes has shape {boxes.shape}, scores has {scores.shape}")
    per_class = min(max_outputs, boxes.shape[1])

    def one_class(boxes, scores, valid):
        return nms(boxes, scores, threshold=threshold, max_outputs=per_class, valid=valid)

    indices, keep = jax.vmap(one_class)(boxes, scores, valid)
    boxes = jnp.take_along_axis(boxes, indices[..., None], axis=1).reshape(-1, 4)
    scores = jnp.take_along_axis(scores, indices, axis=1).reshape(-1)
    keep = keep.reshape(-1)
    best = jnp.argsort(jnp.where(keep, -scores, jnp.inf), stable=True)[:max_outputs]
    best = jnp.pad(best, (0, max_outputs - best.shape[0])).astype(jnp.int32)
    filled = jnp.arange(max_outputs) < jnp.sum(keep)
    return boxes[best], best // per_class, scores[best], filled
