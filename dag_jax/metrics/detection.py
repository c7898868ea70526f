"""Average precision of a detector, as the PASCAL VOC development kit counts it.

Shapes: N detections or ground-truth boxes of one image, C classes. Boxes are [x0, y0, x1, y1] in
pixels of the image, 0-based, inclusive corners: a width is x1 - x0 + 1. Everything here is NumPy
on the host, in float64.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Float64, Integer, Num

from dag_jax.arrays import Array
from dag_jax.errors import UserError


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["boxes", "classes", "scores", "valid"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Detections:
    """The detections of one image.

    boxes: in pixels. classes: indices of the detector's classes. scores: higher is surer. valid:
    false for padding. The metrics take detections without padding, whose `valid` is None: see
    `without_padding`.
    """

    boxes: Num[Array, "N 4"]
    classes: Integer[Array, " N"]
    scores: Float[Array, " N"]
    valid: Bool[Array, " N"] | None = None

    def without_padding(self) -> "Detections":
        """Return the valid rows, as NumPy arrays."""
        if self.valid is None:
            return self
        keep = np.asarray(self.valid)
        fields = (self.boxes, self.classes, self.scores)
        return Detections(*(np.asarray(field)[keep] for field in fields))


@dataclasses.dataclass(frozen=True)
class Truths:
    """The annotated objects of one image.

    boxes: in pixels. classes: indices as the detector's. difficult: objects that an evaluation
    leaves out.
    """

    boxes: Num[Array, "N 4"]
    classes: Integer[Array, " N"]
    difficult: Bool[Array, " N"]


class AveragePrecision(NamedTuple):
    """Average precision of each class and their mean, fractions in 0..1.

    per_class: nan for background and for a class without countable ground truth. mean: over the
    classes that have some; nan if none has.
    """

    per_class: Float64[np.ndarray, " C"]
    mean: float


class Matches(NamedTuple):
    """The detections of one class as true and false positives, by falling score.

    There are D detections and M images. images: the image of each detection. true, false: whether
    it is a true or a false positive; a match of a difficult object is neither. positives: number
    of countable objects of each image.
    """

    images: Integer[np.ndarray, " D"]
    true: Bool[np.ndarray, " D"]
    false: Bool[np.ndarray, " D"]
    positives: Integer[np.ndarray, " M"]


def voc_ap(
    detections: Mapping[Any, Detections],
    truths: Mapping[Any, Truths],
    *,
    iou: float = 0.5,
    eleven_point: bool = True,
    num_classes: int = 21,
    background: int | None = 0,
) -> AveragePrecision:
    """Score the detections of a whole dataset.

    The detections of a class are taken by falling score, over all images. Each is compared with
    the one ground-truth box of its class and image that it overlaps most. Overlap below `iou`:
    false positive. A difficult box: not counted at all. A box that an earlier detection took:
    false positive. Otherwise: true positive.

    Recall is compared with the eleven points in integers. The kit's rounded floats may miss a
    point that is reached exactly. Equal scores are ordered by the text of the image id and then by
    row, so the order of the mappings does not matter.

    Args:
      detections: image id -> `Detections`.
      truths: image id -> `Truths`, of the same images.
      iou: least intersection over union of a match (inclusive).
      eleven_point: mean of the best precision at recalls 0, 0.1, .., 1 (VOC2007); otherwise the
        area under the precision envelope (VOC2010 and later).
      num_classes: C, background included.
      background: the class that is no object; None where all are.

    Returns:
      An `AveragePrecision`.

    Raises:
      ValueError: where an image is in one mapping only, arrays have different lengths, a true box
        has no area, or a class is none of the C, or background.

    Reference: VOCevaldet.m of the PASCAL VOC development kit.
    """
    per_class = np.full(num_classes, np.nan)
    by_class = match_detections(
        detections, truths, iou=iou, num_classes=num_classes, background=background
    )
    for class_index, matches in by_class.items():
        images = np.ones((1, len(matches.positives)), np.int64)
        per_class[class_index] = average_precision(matches, images, eleven_point=eleven_point)[0]
    with_truth = per_class[~np.isnan(per_class)]
    return AveragePrecision(per_class, float(with_truth.mean()) if with_truth.size else np.nan)


def match_detections(
    detections: Mapping[Any, Detections],
    truths: Mapping[Any, Truths],
    *,
    iou: float = 0.5,
    num_classes: int = 21,
    background: int | None = 0,
) -> dict[int, Matches]:
    """Find the true and false positives of a whole dataset, as `voc_ap` counts them.

    Args:
      detections: as in `voc_ap`.
      truths: as in `voc_ap`.
      iou: as in `voc_ap`.
      num_classes: as in `voc_ap`.
      background: as in `voc_ap`.

    Returns:
      `Matches` of each class that has countable ground truth; images are numbered in the order of
      `truths`.

    Raises:
      ValueError: as `voc_ap`.
    """
    if detections.keys() != truths.keys():
        raise UserError(
            f"detections has {len(detections)} images, truths has {len(truths)}; "
            f"only in detections: {_some(detections.keys() - truths.keys())}; "
            f"only in truths: {_some(truths.keys() - detections.keys())}"
        )
    number = {image: row for row, image in enumerate(truths)}
    images = sorted(truths, key=str)
    rows = np.array([number[image] for image in images], np.int64)
    objects = [index for index in range(num_classes) if index != background]
    detection_rows, drawn = (
        [_arrays(side[image], image, objects, background) for image in images]
        for side in (detections, truths)
    )

    matches = {}
    for class_index in objects:
        in_class = [
            (f[f[:, 4] == class_index], t[t[:, 4] == class_index])
            for f, t in zip(detection_rows, drawn, strict=True)
        ]
        positives = np.zeros(len(images), np.int64)
        positives[rows] = [(t[:, 5] == 0).sum() for _, t in in_class]
        if positives.any():
            order, true, false = _match(in_class, iou)
            image_rows = np.repeat(rows, [len(f) for f, _ in in_class])
            matches[class_index] = Matches(image_rows[order], true, false, positives)
    return matches


def average_precision(
    matches: Matches, images: Integer[Array, "B M"], *, eleven_point: bool = True
) -> Float64[np.ndarray, " B"]:
    """Return the average precision of one class on sets of images with repeats.

    Args:
      matches: of the class.
      images: integer [B, M], how often each image is in each of B sets; all ones is the dataset.
        Copies of a detection, from copies of its image, stand together in the ranking.
      eleven_point: as in `voc_ap`.

    Returns:
      float64 [B], fractions in 0..1; nan where no image of a set has a countable object.
    """
    images = np.asarray(images, np.int64)
    weights = images[:, matches.images]
    true = np.cumsum(weights * matches.true, axis=1)
    false = np.cumsum(weights * matches.false, axis=1)
    positives = images @ matches.positives
    precision = true / np.maximum(true + false, 1)
    # The best precision from each detection on; none is reached after the last.
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    curve = _eleven_points if eleven_point else _area
    return np.where(positives > 0, curve(true, envelope, positives), np.nan)


def _match(images, threshold):
    """Return (order by falling score, true positive, false positive), [D] each, the latter sorted.

    `images` holds, for one class, rows of (box, class, score) and rows of (box, class, difficult).
    """
    scores, taken_box, counts, hits = [], [], [], []
    first_box = 0  # numbers the ground-truth boxes of all images consecutively
    for detected, drawn in images:
        overlaps = _overlaps(detected[:, :4], drawn[:, :4])
        if len(drawn):
            best = overlaps.argmax(axis=1)
            hit = overlaps.max(axis=1) >= threshold
            difficult = hit & (drawn[best, 5] == 1)
        else:
            best, hit, difficult = (np.zeros(len(detected), dtype) for dtype in (int, bool, bool))
        scores.append(detected[:, 5])
        taken_box.append(first_box + best)
        counts.append(~difficult)
        hits.append(hit & ~difficult)
        first_box += len(drawn)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    taken_box, counts, hits = (np.concatenate(a)[order] for a in (taken_box, counts, hits))

    hit_rows = np.flatnonzero(hits)
    _, first = np.unique(taken_box[hit_rows], return_index=True)
    true = np.zeros(len(order), bool)
    true[hit_rows[first]] = True
    return order, true, counts & ~true


def _overlaps(boxes, references):
    """Return the intersection over union [N, M] of boxes with inclusive corners."""
    corner0 = np.maximum(boxes[:, None, :2], references[None, :, :2])
    corner1 = np.minimum(boxes[:, None, 2:4], references[None, :, 2:4])
    intersection = np.maximum(corner1 - corner0 + 1, 0).prod(axis=-1)
    # A detector may answer with a box whose corners are exchanged: it has no area.
    area = np.maximum(boxes[:, 2:4] - boxes[:, :2] + 1, 0).prod(axis=-1)
    other_area = (references[:, 2:4] - references[:, :2] + 1).prod(axis=-1)
    return intersection / (area[:, None] + other_area[None, :] - intersection)


def _eleven_points(true, envelope, positives):
    total = np.zeros(len(true))
    for point in range(11):
        reached = true * 10 >= point * positives[:, None]
        at = reached.sum(axis=1)  # detections from the first that reaches it to the last
        padded = np.pad(envelope, ((0, 0), (0, 1)))
        total += padded[np.arange(len(true)), padded.shape[1] - 1 - at]
    return total / 11


def _area(true, envelope, positives):
    recall = np.pad(true, ((0, 0), (1, 0))) / np.maximum(positives, 1)[:, None]
    return np.sum(np.diff(recall, axis=1) * envelope, axis=1)


def _arrays(item, image, objects, background):
    """Return one image's boxes, classes and scores (or difficult flags) as float64 [N, 6]."""
    last_name = "scores" if isinstance(item, Detections) else "difficult"
    boxes = np.asarray(item.boxes, np.float64)
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    classes, last = np.asarray(item.classes), np.asarray(getattr(item, last_name), np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise UserError(f"image {image}: boxes must be [N, 4], got shape {boxes.shape}")
    for name, values in (("classes", classes), (last_name, last)):
        if values.shape != (len(boxes),):
            raise UserError(
                f"image {image}: boxes has {len(boxes)} rows, {name} has shape {values.shape}"
            )
    if not (np.isfinite(boxes).all() and np.isfinite(last).all()):
        raise UserError(f"image {image}: boxes and {last_name} must be finite")
    if isinstance(item, Truths):
        for box in boxes[(boxes[:, 2:] - boxes[:, :2] + 1 <= 0).any(axis=1)]:
            raise UserError(f"image {image}: box {box.tolist()} has no area (x0, y0, x1, y1)")
        if (odd := last[~np.isin(last, (0, 1))]).size:
            raise UserError(f"image {image}: difficult is {odd[0]}, neither true nor false")
    if (strange := classes[~np.isin(classes, objects)]).size:
        raise UserError(
            f"image {image}: class {strange[0]} is none of the {len(objects)} classes of objects "
            f"(background is {background})"
        )
    return np.column_stack([boxes, classes, last])


def _some(ids):
    ids = sorted(map(str, ids))
    return ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "") or "none"
