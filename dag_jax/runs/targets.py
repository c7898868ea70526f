"""The targets of an example for any model, and the score function's further inputs.

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

    With a softmax head a candidate is a target if its IoU with a ground-truth box is above `iou`
    and its confidence for that box's class is above `confidence`. Adversarial labels come from one
    permutation of the classes. With a sigmoid head every pair of a candidate and a class of the
    image is a target, with label 0 (there) and adversarial label 1 (not there). Targets that are
    inactive on the clean image are included, as they can become active during the attack.

    Args:
      model: a `models.Detector`.
      image: f32[H, W, 3], RGB grey levels.
      truths: `metrics.Truths`, G boxes and their classes, indices of the model's.
      key: JAX key of the permutation; `image_key` makes one per image.
      iou: least overlap, exclusive.
      confidence: least softmax probability, exclusive.

    Returns:
      (`Targets` of shape [N], or [N, C] with a sigmoid head; score function, a pytree), the
      arguments of `dag_jax.attack`. Rows with targets come first.

    Raises:
      ValueError: where `model` is no detector or no pytree, or a box is of a class it lacks.

    Reference: Xie et al., ICCV 2017, section 3.3; the authors' release.
    """
    targets, handle = targets_and_handle(model, image, truths, key, iou, confidence)
    return targets, models.score_fn(model, handle)


def targets_and_handle(model, image, truths, key, iou, confidence):
    """Return (targets, handle of the candidates): `detector_targets` before the score function."""
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

    `options` and `counts` are further arguments of the model's `propose`: traced numbers and static
    ones. `kind` is `kind_of` the model.
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
    """Return the smallest of fewest, fewest * factor, ... that is at least `count`.

    Each length is a compilation, so there are few. The length depends on the image alone.
    """
    while fewest < count:
        fewest *= factor
    return fewest


def _padded(boxes, labels):
    """Return (boxes, labels, bool: which rows are no padding), padded to one of few lengths."""
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
      nms_threshold: largest IoU of two candidates; None is the model's own rule.
      most: largest number of candidates; None is the model's own rule.

    Returns:
      (targets, handle, number of candidates), arrays being NumPy's.
    """
    objects = example["objects"]
    options = {} if nms_threshold is None else {"nms_threshold": np.float32(nms_threshold)}
    counts = () if most is None else (("max_proposals", most),)
    candidates = _find_targets(
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
    return jax.device_get(candidates)


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
      (targets, inputs) for `attack_stream`, as NumPy arrays.
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
    """Find the targets of `paper_targets`, driven to classes that no target of the image has."""
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
    """Find targets that drive a segmentation to the example's mask.

    Every pixel that is not void is a target. Its adversarial label is the mask's, its label the
    model's prediction on the clean image. Where the prediction equals the mask, the label is the
    next best class, so that an attack that asks for the adversarial label keeps the pixel.

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
