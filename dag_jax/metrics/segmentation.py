"""Intersection over union of segmentations, from one confusion matrix per dataset.

Shapes: C classes; *P any shape of pixels, usually [H, W] or [B, H, W]; *B matrices.

The score of a dataset comes from the sum of its images' matrices, never from a mean of the images'
scores. Counting is exact: int64 in NumPy on the host, whatever the precision of the device.
"""

import numpy as np
from jaxtyping import Float64, Int64, Integer

from dag_jax.arrays import Array
from dag_jax.errors import UserError

VOID = 255  # what masks of VOC hold where a pixel is of no class


def confusion_matrix(
    labels: Integer[Array, "*P"],
    predictions: Integer[Array, "*P"],
    num_classes: int,
    *,
    void: int | None = VOID,
) -> Int64[np.ndarray, "{num_classes} {num_classes}"]:
    """Count the pixels of each true class by predicted class.

    Entry [i, j] is the number of pixels of class i that were predicted as class j. Void pixels are
    left out.

    Args:
      labels: integer [*P], true class of each pixel. NumPy or JAX.
      predictions: integer [*P], predicted classes. NumPy or JAX.
      num_classes: C, background included.
      void: the label that is no class; VOC's 255, or None where every pixel has a class.

    Returns:
      int64 [C, C]; rows are the truth, columns the prediction. Matrices of several images add up.

    Raises:
      ValueError: for shapes that differ, values that are not integers, a class outside 0..C-1 at
        a pixel that counts, or a void label that is one of the classes.

    Reference: VOCevalseg.m of the PASCAL VOC development kit.
    """
    if num_classes < 1:
        raise UserError(f"num_classes must be at least 1, got {num_classes}")
    if void is not None and 0 <= void < num_classes:
        raise UserError(
            f"void is {void}, which is one of {num_classes} classes: give another label that is no "
            "class (such as -1), or void=None where there is none"
        )
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape:
        raise UserError(
            f"labels has shape {labels.shape}, predictions has shape {predictions.shape}"
        )
    for name, values in (("labels", labels), ("predictions", predictions)):
        if not np.issubdtype(values.dtype, np.integer):
            raise UserError(f"{name} must hold integer classes, got {values.dtype}")
    counted = np.ones(labels.shape, bool) if void is None else labels != void
    truth = labels[counted].astype(np.int64)
    predicted = predictions[counted].astype(np.int64)
    for name, values in (("labels", truth), ("predictions", predicted)):
        if values.size and not (0 <= values.min() and values.max() < num_classes):
            raise UserError(
                f"{name} run from {values.min()} to {values.max()}, "
                f"outside the {num_classes} classes 0..{num_classes - 1}"
            )
    counts = np.bincount(truth * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def class_iou(confusion: Integer[Array, "*B C C"]) -> Float64[np.ndarray, "*B C"]:
    """Return the intersection over union of each class.

    IoU_c = n_cc / (sum_j n_cj + sum_i n_ic - n_cc)

    Args:
      confusion: integer [*B, C, C] from `confusion_matrix`, or a sum of several.

    Returns:
      float64 [*B, C], fractions in 0..1; nan for a class that occurs neither in truth nor
      prediction.

    Raises:
      ValueError: if `confusion` is not a square matrix of counts.
    """
    confusion = np.asarray(confusion)
    if confusion.ndim < 2 or confusion.shape[-1] != confusion.shape[-2]:
        raise UserError(f"a confusion matrix is square, got shape {confusion.shape}")
    if not np.issubdtype(confusion.dtype, np.integer) or (confusion < 0).any():
        raise UserError("a confusion matrix holds counts: integers, none below 0")
    intersection = np.diagonal(confusion, axis1=-2, axis2=-1)
    union = confusion.sum(axis=-2) + confusion.sum(axis=-1) - intersection
    return np.where(union > 0, intersection / np.maximum(union, 1), np.nan)


def mean_iou(confusion: Integer[Array, "C C"]) -> float:
    """Return the mean IoU over the classes that occur in the truth or in the prediction.

    A class in neither has no IoU and is left out. A class in only one of them counts with 0.

    Args:
      confusion: integer [C, C] from `confusion_matrix`, or a sum of several.

    Returns:
      A float in 0..1 (Table 1 prints it times 100); nan for a matrix of zeros.

    Raises:
      ValueError: if `confusion` is not a square matrix of counts.
    """
    ious = class_iou(confusion)
    occurring = ious[~np.isnan(ious)]
    return float(occurring.mean()) if occurring.size else float("nan")
