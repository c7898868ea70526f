"""What the tables report: mean IoU, VOC average precision, size of a perturbation."""

from dag_jax.metrics.detection import AveragePrecision, Detections, Truths, voc_ap
from dag_jax.metrics.perturbation import perceptibility, permute
from dag_jax.metrics.segmentation import class_iou, confusion_matrix, mean_iou

__all__ = [
    "AveragePrecision",
    "Detections",
    "Truths",
    "class_iou",
    "confusion_matrix",
    "mean_iou",
    "perceptibility",
    "permute",
    "voc_ap",
]
