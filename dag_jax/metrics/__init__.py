"""The tables' numbers: mean IoU, VOC average precision, perturbation sizes, intervals."""

from dag_jax.metrics.bootstrap import (
    Interval,
    draw_images,
    interval,
    mean_ap_of_sets,
    mean_iou_of_sets,
    median_of_sets,
)
from dag_jax.metrics.detection import (
    AveragePrecision,
    Detections,
    Matches,
    Truths,
    average_precision,
    match_detections,
    voc_ap,
)
from dag_jax.metrics.perturbation import perceptibility, permute
from dag_jax.metrics.segmentation import class_iou, confusion_matrix, mean_iou

__all__ = [
    "AveragePrecision",
    "Detections",
    "Interval",
    "Matches",
    "Truths",
    "average_precision",
    "class_iou",
    "confusion_matrix",
    "draw_images",
    "interval",
    "match_detections",
    "mean_ap_of_sets",
    "mean_iou",
    "mean_iou_of_sets",
    "median_of_sets",
    "perceptibility",
    "permute",
    "voc_ap",
]
