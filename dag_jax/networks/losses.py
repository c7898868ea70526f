"""The losses that the networks of Table 1 are trained by.

Shapes: `*B` no axis or one batch axis, `B` images, `H W` pixels, `C` classes, `G` ground-truth
boxes, `A` anchors, `R` regions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dag_jax import detection
from dag_jax.errors import UserError


class DetectionLoss(NamedTuple):
    """The four terms of Faster R-CNN's loss; their sum is what is minimised."""

    rpn_class: jax.Array  # f32[]
    rpn_box: jax.Array  # f32[]
    head_class: jax.Array  # f32[]
    head_box: jax.Array  # f32[]


def _cross_entropy(scores, labels):
    """Return f32[*S] from pre-softmax scores f32[*S, C] and labels i32[*S]."""
    picked = jnp.take_along_axis(jax.nn.log_softmax(scores), labels[..., None], axis=-1)
    return -picked[..., 0]


def _weighted_mean(values, weights):
    """Return the mean of `values`, or 0 where all weights are 0."""
    total = jnp.sum(weights)
    return jnp.sum(values * weights) / jnp.where(total > 0, total, 1)


def segmentation_loss(scores, labels, *, class_weights=None):
    """Return the mean cross entropy of the pixels that are not void.

    sum_n w_n CE_n / sum_n w_n over pixels n, with w_n the weight of the label's class.

    Args:
      scores: f32[*B, H, W, C], pre-softmax.
      labels: i32[*B, H, W]; a label that is none of the C classes is void.
      class_weights: f32[C], or None for equal ones.

    Returns:
      f32[], 0 where every pixel is void.

    Raises:
      ValueError: where shapes disagree.
    """
    if scores.shape[:-1] != labels.shape:
        raise UserError(f"scores has shape {scores.shape}, labels has {labels.shape}")
    if class_weights is None:
        class_weights = jnp.ones(scores.shape[-1])
    if class_weights.shape != scores.shape[-1:]:
        raise UserError(f"{scores.shape[-1]} classes, class_weights is {class_weights.shape}")
    is_class = (labels >= 0) & (labels < scores.shape[-1])
    labels = jnp.where(is_class, labels, 0)
    weights = jnp.where(is_class, jnp.asarray(class_weights)[labels], 0)
    return _weighted_mean(_cross_entropy(scores, labels), weights)


def smooth_l1(difference, *, sigma: float = 1.0):
    """Return Fast R-CNN's robust loss.

    0.5 (sigma d)^2 where |d| < 1 / sigma^2, and |d| - 0.5 / sigma^2 beyond.

    Args:
      difference: f32[*S].
      sigma: how narrow the quadratic part is.

    Returns:
      f32[*S].
    """
    size = jnp.abs(difference)
    quadratic = 0.5 * (sigma * difference) ** 2
    return jnp.where(size < 1 / sigma**2, quadratic, size - 0.5 / sigma**2)


def rpn_loss(key, scores, deltas, anchors, truths, valid, *, num_samples: int = 256):
    """Return the region proposal network's loss on one image.

    Args:
      key: a PRNG key, for the sample of anchors.
      scores: f32[A, 2], background and object, pre-softmax.
      deltas: f32[A, 4], offsets.
      anchors: f32[A, 4], canvas pixels.
      truths: f32[G, 4], canvas pixels, padded.
      valid: bool[G], False at the padding.
      num_samples: anchors that count.

    Returns:
      f32[], cross entropy; f32[], smooth L1 of the offsets. Both are means over the sample.

    Reference: py-faster-rcnn's `rpn_loss_cls` and `rpn_loss_bbox` (sigma 3).
    """
    targets = detection.anchor_targets(key, anchors, truths, valid, num_samples=num_samples)
    sampled = targets.sampled.astype(jnp.float32)
    class_loss = _weighted_mean(_cross_entropy(scores, targets.positive.astype(jnp.int32)), sampled)
    box_loss = jnp.sum(smooth_l1(deltas - targets.deltas, sigma=3.0), axis=-1)
    return class_loss, _weighted_mean(jnp.where(targets.positive, box_loss, 0), sampled)


def head_loss(scores, deltas, targets: detection.RegionTargets, *, means, stds):
    """Return the loss of the heads on one image's regions.

    Args:
      scores: f32[R, C], pre-softmax.
      deltas: f32[R, C, 4], normalised offsets.
      targets: what the heads should say of the R regions.
      means: four numbers that offsets are normalised by.
      stds: four numbers that offsets are normalised by.

    Returns:
      f32[], cross entropy; f32[], smooth L1 of the class's offsets. Both are means over regions.

    Reference: py-faster-rcnn's `loss_cls` and `loss_bbox`.
    """
    counts = targets.valid.astype(jnp.float32)
    class_loss = _weighted_mean(_cross_entropy(scores, targets.labels), counts)
    mean, std = (jnp.asarray(values, jnp.float32)[None, :] for values in (means, stds))
    label_deltas = jnp.take_along_axis(deltas, targets.labels[:, None, None], axis=1)[:, 0]
    box_loss = jnp.sum(smooth_l1(label_deltas - (targets.deltas - mean) / std), axis=-1)
    return class_loss, _weighted_mean(jnp.where(targets.labels > 0, box_loss, 0), counts)


def detection_loss(
    module,
    variables,
    key,
    images,
    truths,
    classes,
    valid,
    *,
    num_anchors: int = 256,
    num_regions: int = 128,
    num_proposals: int = 2000,
    num_jittered: int = 0,
    foreground_fraction: float = 0.25,
):
    """Return a Faster R-CNN's loss on a batch, trained end to end.

    The layers with batch normalisation see the whole batch; the rest goes image by image. No
    gradient passes through the places of proposals.

    Args:
      module: a `FasterRCNN`.
      variables: its "params", and its "batch_stats" if it has any.
      key: a PRNG key, for the samples of anchors and regions.
      images: f32[B, H, W, 3], grey levels 0-255, RGB.
      truths: f32[B, G, 4], pixels of the image, padded.
      classes: i32[B, G], from 1.
      valid: bool[B, G], False at the padding.
      num_anchors: anchors an image that count.
      num_regions: regions an image that the heads classify.
      num_proposals: proposals an image that regions are drawn from.
      num_jittered: copies of each ground-truth box, moved at random, that join the proposals;
        py-faster-rcnn has none.
      foreground_fraction: share of the regions that may be objects.

    Returns:
      loss: f32[], the mean over images of the sum of the four terms.
      terms: DetectionLoss, the means of the terms.
      batch_stats: the running statistics after this batch, empty without batch normalisation.

    Raises:
      ValueError: where the numbers of images disagree.

    Reference: py-faster-rcnn's end-to-end training.
    """
    counts = [x.shape[0] for x in (images, truths, classes, valid)]
    if len(set(counts)) != 1:
        raise UserError(f"images, truths, classes and valid have {counts} rows, not equally many")
    statistics = variables.get("batch_stats", {})

    def apply(*arguments, method):
        """Run a part on the whole batch, so that batch normalisation has its statistics."""
        nonlocal statistics
        state = {"params": variables["params"], "batch_stats": statistics}
        result, updates = module.apply(
            state, *arguments, True, method=method, mutable=["batch_stats"]
        )
        statistics = updates.get("batch_stats", {})
        return result

    features = apply(images, method="features")
    rpn = apply(features, method="rpn")
    shape = images.shape[1:]
    canvas = module.canvas(shape)
    truths = truths * canvas[1]
    anchors = module.anchors(features.shape[1:3])

    def draw_regions(key, features, rpn, truths, classes, valid):
        jitter_key, head_key = jax.random.split(key)
        proposals, _, proposal_valid = module.apply(
            variables,
            rpn,
            features.shape[:2],
            canvas,
            nms_threshold=0.7,
            max_proposals=num_proposals,
            method="select_proposals",
        )
        copies = detection.jitter_boxes(jitter_key, truths, num_jittered)
        copies = detection.clip_boxes(copies, canvas[0])
        targets = detection.region_targets(
            head_key,
            jnp.concatenate([proposals, copies]),
            jnp.concatenate([proposal_valid, jnp.repeat(valid, num_jittered)]),
            truths,
            classes,
            valid,
            num_samples=num_regions,
            foreground_fraction=foreground_fraction,
        )
        return targets, module.apply(variables, features, targets.boxes, method="pool")

    rpn_key, region_key = jax.random.split(key)
    keys = jax.random.split(region_key, counts[0])
    targets, pooled = jax.vmap(draw_regions)(keys, features, rpn, truths, classes, valid)
    heads = apply(pooled.reshape(-1, *pooled.shape[2:]), method="classify")
    heads = jax.tree.map(lambda leaf: leaf.reshape(counts[0], num_regions, *leaf.shape[1:]), heads)

    def one_image(key, rpn, heads, targets, truths, valid):
        rpn_terms = rpn_loss(key, *rpn, anchors, truths, valid, num_samples=num_anchors)
        head_terms = head_loss(*heads, targets, means=module.delta_means, stds=module.delta_stds)
        return DetectionLoss(*rpn_terms, *head_terms)

    keys = jax.random.split(rpn_key, counts[0])
    terms = jax.vmap(one_image)(keys, rpn, heads, targets, truths, valid)
    terms = jax.tree.map(jnp.mean, terms)
    return sum(terms), terms, statistics
