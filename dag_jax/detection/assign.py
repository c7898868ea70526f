"""Training targets of a detector: which anchors and regions are objects, and their offsets.

Shapes: `A` anchors, `P` proposals, `G` ground-truth boxes, `S` samples.

One image at a time, with fixed shapes: ground truth is padded and comes with a mask, and a sample
is a mask or a padded list. All boxes are in the frame of the network.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int32, Integer, PRNGKeyArray

from dag_jax.arrays import Array
from dag_jax.detection import boxes as box_ops
from dag_jax.errors import UserError


class AnchorTargets(NamedTuple):
    """The training targets of the region proposal network, for each anchor."""

    positive: Bool[jax.Array, " A"]  # the anchor is an object
    sampled: Bool[jax.Array, " A"]  # the anchor counts in the loss
    deltas: Float[jax.Array, "A 4"]  # offsets to its best ground-truth box


class RegionTargets(NamedTuple):
    """The regions that the heads learn from, with their labels and offsets."""

    boxes: Float[jax.Array, "S 4"]
    labels: Int32[jax.Array, " S"]  # class, 0 is background
    deltas: Float[jax.Array, "S 4"]  # offsets to its best ground-truth box
    valid: Bool[jax.Array, " S"]  # False at the padding


def _ious(boxes, truths, valid):
    """Return f32[A, G] overlaps; those with padding are -1, so that padding is never the best."""
    if valid.shape != truths.shape[:1]:
        raise UserError(f"there are {truths.shape[0]} ground-truth boxes, valid is {valid.shape}")
    if truths.shape[0] == 0:
        raise UserError("ground truth needs at least 1 row, got 0: pad it")
    return jnp.where(valid[None, :], box_ops.iou(boxes, truths), -1)


def _draw(key, candidates, count):
    """Return a random subset of the mask `candidates`, of at most `count`."""
    ticket = jnp.where(candidates, jax.random.uniform(key, candidates.shape), jnp.inf)
    rank = jnp.argsort(jnp.argsort(ticket))
    return candidates & (rank < count)


def anchor_targets(
    key: PRNGKeyArray,
    anchors: Float[Array, "A 4"],
    truths: Float[Array, "G 4"],
    valid: Bool[Array, " G"],
    *,
    num_samples: int = 256,
    positive_fraction: float = 0.5,
    positive_iou: float = 0.7,
    negative_iou: float = 0.3,
) -> AnchorTargets:
    """Label anchors and sample those that count in the loss.

    An anchor is positive if its best IoU is at least `positive_iou`, or if it is the best anchor of
    a ground-truth box. It is negative if its best IoU is below `negative_iou`. At most
    `positive_fraction` of the samples are positive; negatives fill the rest.

    py-faster-rcnn leaves out anchors that cross the image border. Here they count, because on a
    small canvas nearly all anchors cross it.

    Args:
      key: a PRNG key.
      anchors: f32[A, 4].
      truths: f32[G, 4], padded.
      valid: bool[G], False at the padding.
      num_samples: S, the most anchors that count.
      positive_fraction: share of the samples that may be positive.
      positive_iou: IoU from which an anchor is an object.
      negative_iou: IoU below which an anchor is background.

    Returns:
      AnchorTargets.

    Raises:
      ValueError: where shapes disagree.

    Reference: `AnchorTargetLayer` of py-faster-rcnn.
    """
    anchors, truths = jnp.asarray(anchors), jnp.asarray(truths)
    overlaps = _ious(anchors, truths, valid)
    best = jnp.max(overlaps, axis=1)
    best_of_truth = jnp.max(overlaps, axis=0)
    # A box that no anchor touches makes none positive.
    is_best = (overlaps == best_of_truth[None, :]) & (overlaps > 0)
    positive = (best >= positive_iou) | jnp.any(is_best, axis=1)
    negative = (best < negative_iou) & ~positive
    positive_key, negative_key = jax.random.split(key)
    drawn = _draw(positive_key, positive, int(positive_fraction * num_samples))
    negatives = _draw(negative_key, negative, num_samples - jnp.sum(drawn))
    deltas = box_ops.encode_boxes(anchors, truths[jnp.argmax(overlaps, axis=1)])
    # Offsets to padding may be infinite, and a mask does not stop 0 * inf in a gradient.
    return AnchorTargets(positive, drawn | negatives, jnp.where(positive[:, None], deltas, 0))


def jitter_boxes(
    key: PRNGKeyArray, boxes: Float[Array, "G 4"], count: int, *, strength: float = 0.2
) -> Float[jax.Array, "G*{count} 4"]:
    """Return copies of boxes with each side moved at random.

    They give the heads objects to learn from while the region proposal network still finds none,
    and more objects afterwards.

    Args:
      key: a PRNG key.
      boxes: f32[G, 4].
      count: copies of each box.
      strength: most that a side moves, as a share of the box's extent along that axis.

    Returns:
      f32[G * count, 4], the copies of a box next to each other.
    """
    boxes = jnp.repeat(jnp.asarray(boxes), count, axis=0)
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    moves = jax.random.uniform(key, boxes.shape, minval=-strength, maxval=strength)
    return boxes + moves * jnp.concatenate([sides, sides], axis=1)


def region_targets(
    key: PRNGKeyArray,
    proposals: Float[Array, "P 4"],
    proposals_valid: Bool[Array, " P"],
    truths: Float[Array, "G 4"],
    classes: Integer[Array, " G"],
    valid: Bool[Array, " G"],
    *,
    num_samples: int = 128,
    foreground_fraction: float = 0.25,
    foreground_iou: float = 0.5,
) -> RegionTargets:
    """Sample regions from the proposals and the ground truth, with labels and offsets.

    A region is foreground if its best IoU is at least `foreground_iou`, else background.

    Args:
      key: a PRNG key.
      proposals: f32[P, 4], padded.
      proposals_valid: bool[P], False at the padding.
      truths: f32[G, 4], padded.
      classes: i32[G], class of each ground-truth box, from 1.
      valid: bool[G], False at the padding.
      num_samples: S.
      foreground_fraction: share of the samples that may be foreground.
      foreground_iou: IoU from which a region is an object.

    Returns:
      RegionTargets: foreground, then background, then padding if there are too few regions.

    Raises:
      ValueError: where shapes disagree.

    Reference: `ProposalTargetLayer` of py-faster-rcnn.
    """
    if classes.shape != truths.shape[:1]:
        raise UserError(f"truths has {truths.shape[0]} rows, classes has shape {classes.shape}")
    if proposals_valid.shape != proposals.shape[:1]:
        raise UserError(
            f"proposals has {proposals.shape[0]} rows, its mask has shape {proposals_valid.shape}"
        )
    truths, classes = jnp.asarray(truths), jnp.asarray(classes)
    regions = jnp.concatenate([proposals, truths])
    usable = jnp.concatenate([proposals_valid, valid])
    overlaps = _ious(regions, truths, valid)
    match = jnp.argmax(overlaps, axis=1)
    object_like = jnp.max(overlaps, axis=1) >= foreground_iou
    foreground_key, background_key = jax.random.split(key)
    foreground = _draw(
        foreground_key, usable & object_like, round(foreground_fraction * num_samples)
    )
    background = _draw(background_key, usable & ~object_like, num_samples - jnp.sum(foreground))
    order = jnp.argsort(jnp.where(foreground, 0, jnp.where(background, 1, 2)), stable=True)
    order = jnp.pad(order[:num_samples], (0, max(num_samples - order.shape[0], 0)))
    filled = jnp.arange(num_samples) < jnp.sum(foreground | background)
    is_object = (foreground[order] & filled)[:, None]
    boxes, truths = regions[order], truths[match[order]]
    deltas = jnp.where(is_object, box_ops.encode_boxes(boxes, truths), 0)
    labels = jnp.where(is_object[:, 0], classes[match[order]], 0)
    return RegionTargets(boxes, labels.astype(jnp.int32), deltas, filled)
