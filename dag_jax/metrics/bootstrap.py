"""Intervals of scores by the bootstrap over images.

B sets of M images each are drawn with replacement. The spread of their scores estimates how much
the score would move with other images of the same kind. Two columns of a table are compared on the
same sets, so that the choice of images cancels out of their difference.

Shapes: M images, B sets of them, S scores (B + 1), C classes. Everything here is NumPy on the host.

Reference: Efron and Tibshirani, An Introduction to the Bootstrap, 1993.
"""

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64, Integer, Num

from dag_jax.arrays import Array
from dag_jax.errors import UserError
from dag_jax.metrics.detection import Matches, average_precision
from dag_jax.metrics.segmentation import class_iou

_AT_A_TIME = 2**24  # numbers of one array on the way, 128 MB


class Interval(NamedTuple):
    """A score and its interval over the choice of images."""

    value: float  # of the images themselves
    low: float
    high: float


def draw_images(
    seed: int, num_images: int, num_sets: int = 1000
) -> Int64[np.ndarray, "{num_sets}+1 {num_images}"]:
    """Draw sets of images with replacement.

    Args:
      seed: of the draw.
      num_images: M.
      num_sets: B.

    Returns:
      int64 [B + 1, M], how often each image is in each set. The first set has each image once, for
      the score of the images themselves.

    Raises:
      ValueError: for less than 1 image or set.
    """
    if num_images < 1 or num_sets < 1:
        raise UserError(f"{num_sets} sets of {num_images} images; it takes at least 1 of each")
    draws = np.random.default_rng(seed).multinomial(
        num_images, np.full(num_images, 1 / num_images), size=num_sets
    )
    return np.concatenate([np.ones((1, num_images), np.int64), draws])


def mean_iou_of_sets(
    confusions: Integer[Array, "M C C"],
    images: Integer[Array, "B M"],
    *,
    classes: Collection[int] | None = None,
) -> Float64[np.ndarray, " B"]:
    """Return the mean IoU of sets of images.

    Args:
      confusions: integer [M, C, C] from `confusion_matrix`, one of each image.
      images: integer [B, M], how often each image is in each set.
      classes: classes to average over; None for all.

    Returns:
      float64 [B], fractions in 0..1; nan for a set without a pixel that counts.

    Raises:
      ValueError: where the numbers of images disagree, or a matrix is no confusion matrix.
    """
    confusions, images = np.asarray(confusions), np.asarray(images)
    _check(len(confusions), images)
    counts = np.tensordot(images, confusions, axes=1)
    per_class = class_iou(counts)
    return _mean(per_class if classes is None else per_class[:, list(classes)])


def mean_ap_of_sets(
    matches: Mapping[int, Matches],
    images: Integer[Array, "B M"],
    *,
    classes: Collection[int] | None = None,
    eleven_point: bool = True,
) -> Float64[np.ndarray, " B"]:
    """Return the mean average precision of sets of images.

    Args:
      matches: from `match_detections`.
      images: integer [B, M], how often each image is in each set.
      classes: classes to average over; None for all.
      eleven_point: as in `voc_ap`.

    Returns:
      float64 [B], fractions in 0..1: the mean over the classes that a set has objects of; nan for a
      set without objects.

    Raises:
      ValueError: where the numbers of images disagree.
    """
    images = np.asarray(images)
    class_matches = [matches[c] for c in matches if classes is None or c in classes]
    per_class = np.full((len(images), len(class_matches)), np.nan)
    for column, matched in enumerate(class_matches):
        _check(len(matched.positives), images)
        step = max(1, _AT_A_TIME // max(len(matched.images), 1))
        for start in range(0, len(images), step):
            rows = slice(start, start + step)
            scores = average_precision(matched, images[rows], eleven_point=eleven_point)
            per_class[rows, column] = scores
    return _mean(per_class)


def median_of_sets(
    values: Num[Array, " M"], images: Integer[Array, "B M"]
) -> Float64[np.ndarray, " B"]:
    """Return the median of one number for each image over sets of images.

    Args:
      values: [M], finite numbers.
      images: integer [B, M], how often each image is in each set; at least one is.

    Returns:
      float64 [B].

    Raises:
      ValueError: where the numbers of images disagree.
    """
    values, images = np.asarray(values, np.float64), np.asarray(images)
    _check(len(values), images)
    order = np.argsort(values)
    up_to = np.cumsum(images[:, order], axis=1)
    middles = [(up_to[:, -1:] - 1) // 2, up_to[:, -1:] // 2]  # equal for an odd number
    return sum(values[order][np.argmax(up_to > middle, axis=1)] for middle in middles) / 2


def interval(
    scores: Float[Array, " S"],
    *,
    level: float = 0.95,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """Return a score and its basic bootstrap interval, [2 s - q_high, 2 s - q_low].

    Sets with repeated images have biased scores: classes are missing, and copies of an image stand
    together in a ranking. A mean average precision is some points higher. The quantiles q of the
    sets have that bias. The basic interval removes it; the percentile interval [q_low, q_high]
    would have it twice. A limit remains: few images do not represent all. For the mean average
    precision of 100 images, fewer than 95% of the 95% intervals contain the score of all images
    (tests/metrics/test_bootstrap.py).

    Args:
      scores: float [S], of the images themselves and of each set that `draw_images` drew; or a
        difference of two such. Sets without a score are left out.
      level: share of the sets inside.
      within: the least and the largest number that a score can be.

    Returns:
      An `Interval` that has the score in it; nan where no set has a score.

    Raises:
      ValueError: for a level outside 0 to 1, or where there is no set.

    Reference: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 5.2.
    """
    scores = np.asarray(scores, np.float64)
    if not 0 < level < 1 or scores.ndim != 1 or len(scores) < 2:
        raise UserError(f"level {level} of {scores.shape} scores; 0 to 1, of at least 2")
    drawn = scores[1:][~np.isnan(scores[1:])]
    if not drawn.size:
        return Interval(float(scores[0]), float("nan"), float("nan"))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    value = float(scores[0])
    low, high = np.clip([2 * value - high, 2 * value - low], *within)
    return Interval(value, min(float(low), value), max(float(high), value))


def _check(num_images, images):
    if images.ndim != 2 or images.shape[1] != num_images:
        raise UserError(f"sets are [B, M], got {images.shape}; there are {num_images} images")


def _mean(per_class):
    """Return the mean over the last axis without nan; nan where all values are nan."""
    defined = ~np.isnan(per_class)
    count = defined.sum(axis=-1)
    total = np.where(defined, per_class, 0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
