"""What is attacked in an example, for any model: its targets, and what it scores them by.

Shapes: `H W` pixels, `N` candidates, `G` ground-truth boxes, `C` classes.
"""

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Num, PRNGKeyArray

from dag_jax import models
from dag_jax.arrays import Array
from dag_jax.engine.scoring import kind_of, told_apart
from dag_jax.engine.targets import (
    Targets,
    absent_labels,
    image_key,
    label_proposals,
    make_targets,
    permute_labels,
)
from dag_jax.errors import UserError
from dag_jax.metrics import Truths
from dag_jax.runs import buckets
from dag_jax.runs.subject import Subject

_FEWEST_BOXES = 8  # rows that lists of ground-truth boxes have, doubled as often as needed
FEWEST_TARGETS = 128  # rows that lists of targets have, four times as many as often as needed


def detector_targets(
    model: models.Detector,
    image: Num[Array, "H W 3"],
    truths: Truths,
    *,
    key: PRNGKeyArray,
    iou: float = 0.1,
    confidence: float = 0.1,
) -> tuple[Targets, Callable]:
    """Find what the paper attacks in an image of a detector: propose, label, permute.

    Of a softmax head a candidate is a target when its IoU with a ground-truth box is above `iou`
    and its confidence for that box's class above `confidence`; its adversarial label is of one
    permutation of the classes. Of a sigmoid head every pair of a candidate and a class that the
    image has is a target, with label 0 (there) and adversarial label 1 (not there): those that are
    inactive on the clean image wake up later, so they belong to the set.

    Args:
      model: a `models.Detector`.
      image: f32[H, W, 3], RGB grey levels.
      truths: `metrics.Truths`, G boxes and their classes, indices of the model's.
      key: JAX key of the permutation; `image_key` makes one per image.
      iou: least overlap, exclusive.
      confidence: least softmax probability, exclusive.

    Returns:
      (`Targets` of shape [N], or [N, C] of a sigmoid head; score function of the image, a pytree),
      which is what `dag_jax.attack` takes. Rows that hold targets come first.

    Raises:
      ValueError: for what is no detector, or no pytree; for boxes of classes that it has not.

    Reference: Xie et al., ICCV 2017, section 3.3; the authors' release.
    """
    targets, handle = targets_and_handle(model, image, truths, key, iou, confidence)
    return targets, models.score_fn(model, handle)


def targets_and_handle(model, image, truths, key, iou, confidence):
    """Return `detector_targets`, but the handle of its candidates for the score function."""
    about = models.about(model)
    if not about.detects:
        raise UserError(f"{about.title} segments: make_targets(mask, ...) has its targets")
    models.parameters_of(model)
    boxes, labels = np.asarray(truths.boxes, np.float32), np.asarray(truths.classes, np.int32)
    if (strange := labels[~np.isin(labels, about.objects)]).size:
        raise UserError(
            f"truths have an object of class {strange[0]}, which is none of the "
            f"{len(about.objects)} classes of objects of {about.title}"
        )
    targets, handle, _ = _find_targets(
        model,
        key,
        jnp.asarray(image).astype(jnp.float32),
        *_padded(boxes.reshape(-1, 4), labels),
        (),
        {"iou": np.float32(iou), "confidence": np.float32(confidence)},
        {},
        kind=kind_of(model),
    )
    return targets, handle


@functools.partial(jax.jit, static_argnames=("counts", "kind"))
def _find_targets(
    model, key, image, boxes, labels, valid, extent, limits, options, counts=(), *, kind
):
    """Return (targets, handle, number of candidates), rows with targets first.

    `options` and `counts` are the model's own, numbers that are traced and numbers that are not;
    `kind` is `kind_of` the model.
    """
    del kind
    about = models.about(model)
    candidates = model.propose(image, *extent, **options, **dict(counts))
    if not isinstance(candidates, models.Candidates):
        kind = type(candidates).__name__
        raise UserError(f"{about.title}.propose returns a {kind}; it must return models.Candidates")
    scores = models.score_fn(model)(image, candidates.handle, *extent)
    if models.is_sigmoid(scores):
        classes = jnp.arange(scores.shape[1], dtype=jnp.int32)
        present = jnp.any((labels[:, None] == classes[None, :]) & valid[:, None], axis=0)
        pairs = candidates.valid[:, None] & present[None, :]
        label = jnp.zeros(pairs.shape, jnp.int32)
        targets = Targets(label, pairs.astype(jnp.int32), pairs)
        has_target = pairs.any(axis=1)
    else:
        label, has_target = label_proposals(
            candidates.boxes, scores, candidates.valid, boxes, labels, valid, **limits
        )
        adversarial = permute_labels(key, label, len(about.classes), background=about.background)
        targets = make_targets(label, adversarial, has_target, void=None)
        has_target = targets.valid
    first = jnp.argsort(~has_target, stable=True)  # targets to the front
    targets, handle = jax.tree.map(lambda leaf: leaf[first], (targets, candidates.handle))
    return targets, handle, candidates.valid.sum()


@functools.partial(jax.jit, static_argnames=("num_classes", "void"))
def _pixel_targets(key, mask, num_classes, void):
    return make_targets(mask, permute_labels(key, mask, num_classes), void=void)


def padded_length(count, fewest=FEWEST_TARGETS, factor=4):
    """Return the least of fewest, fewest * factor, ... that is no less than count.

    A list's length depends on nothing but the image, and each length is a compilation.
    """
    while fewest < count:
        fewest *= factor
    return fewest


def _padded(boxes, labels):
    """Return (boxes, labels, which are there), padded to one of few lengths."""
    count = len(labels)
    rows = padded_length(count, _FEWEST_BOXES, 2)
    more = rows - count
    padded = np.pad(boxes, [(0, more), (0, 0)]), np.pad(labels, (0, more))
    return *padded, np.arange(rows) < count


def candidate_targets(subject: Subject, group, example, seed, *, nms_threshold=None, most=None):
    """Find a detector's targets in an example, on the host.

    Args:
      subject: what the row is of.
      group: the `buckets.Group` that the image goes through.
      example: one of the subject's.
      seed: of the permutation of the classes.
      nms_threshold: IoU that two candidates may have; None is the model's own rule.
      most: the most candidates; None is the model's own rule.

    Returns:
      (targets, handle, number of candidates), arrays being NumPy's.
    """
    objects = example["objects"]
    options = {} if nms_threshold is None else {"nms_threshold": np.float32(nms_threshold)}
    counts = () if most is None else (("max_proposals", most),)
    found = _find_targets(
        group.model,
        image_key(seed, example["image_id"]),
        group.pad(example["image"].astype(np.float32)),
        *_padded(objects["boxes"], objects["label"]),
        group.extent(example["image"].shape),
        {},
        options,
        counts=counts,
        kind=kind_of(group.model),
    )
    return jax.device_get(found)


def paper_targets(subject: Subject, group, example, seed, **options):
    """Find what the paper attacks in an example, and the adversarial labels.

    The targets of a segmenter are all pixels that are not void; a detector's are those of
    `detector_targets`.

    Args:
      subject: what the row is of.
      group: the `buckets.Group` that the image goes through, with the model.
      example: one of the subject's.
      seed: of the permutation of the classes.
      **options: of `candidate_targets`.

    Returns:
      (targets, inputs): what `attack_stream` takes beside the image, arrays being NumPy's.
    """
    if subject.about.detects:
        targets, handle, _ = candidate_targets(subject, group, example, seed, **options)
        rows = targets.valid.reshape(len(targets.valid), -1).any(axis=1).sum()
        keep = slice(padded_length(rows))
        return jax.tree.map(operator.itemgetter(keep), (targets, (handle,)))
    key = image_key(seed, example["image_id"])
    void = subject.examples.void
    mask = group.pad(example["mask"][:, :, 0].astype(np.int32), void)
    targets = jax.device_get(_pixel_targets(key, mask, len(subject.about.classes), void))
    return buckets.crop(targets, example["image"].shape, group.shape), ()


def absent_targets(subject: Subject, group, example, seed):
    """Find what `paper_targets` does, driven to classes that no target of the image has."""
    targets, inputs = paper_targets(subject, group, example, seed)
    if subject.about.detects and targets.labels.ndim == 2:  # there or not: there is no other class
        return targets, inputs
    adversarial = absent_labels(
        image_key(seed, example["image_id"]),
        targets.labels,
        len(subject.about.classes),
        valid=targets.valid,
        background=subject.about.background if subject.about.detects else None,
    )
    targets = make_targets(targets.labels, adversarial, targets.valid, void=None)
    return jax.device_get(targets), inputs


@functools.partial(jax.jit, static_argnames="void")
def _drawn_targets(score_fn, image, drawn, *extent, void):
    _, best = jax.lax.top_k(score_fn(image, *extent), 2)
    # A pixel that is as drawn has the next best class for its label: it is a target, at rest.
    labels = jnp.where(best[..., 0] == drawn, best[..., 1], best[..., 0])
    return make_targets(labels, drawn, void=void)


def drawn_targets(subject: Subject, group, example, seed):
    """Find what drives a segmentation to the example's mask.

    Every pixel that is not void is a target: adversarial is the mask, the label what the model
    says of the clean image. Where that is as drawn already, the label is the next best class, so
    that an attack which asks for the adversarial label keeps the pixel.

    Args:
      subject: a segmenter's; the masks of its examples are drawings.
      group: the `buckets.Group` that the image goes through.
      example: one of the subject's.
      seed: not used.

    Returns:
      (targets, ()), arrays being NumPy's.
    """
    del seed
    shape, void = example["image"].shape, subject.examples.void
    image = group.pad(example["image"].astype(np.float32))
    drawn = group.pad(example["mask"][:, :, 0].astype(np.int32), void)
    score_fn = told_apart(models.score_fn(group.model))
    targets = _drawn_targets(score_fn, image, drawn, *group.extent(shape), void=void)
    return buckets.crop(jax.device_get(targets), shape, group.shape), ()
