"""A model's predictions on images, and their scores.

Shapes: `M` examples, `H W` pixels, `G` ground-truth boxes, `C` classes.
"""

import functools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from dag_jax import metrics
from dag_jax.engine.scoring import kind_of
from dag_jax.errors import UserError
from dag_jax.models import Detector
from dag_jax.progress import progress
from dag_jax.runs import buckets
from dag_jax.runs.subject import Subject

_BATCH = 16  # images predicted at a time on a device, if they are small
_BATCH_PIXELS = 2**20  # pixels predicted at a time on a device, if they are large


def clean_images(examples) -> buckets.Computed:
    """Return the images u8[H, W, 3] of examples."""
    return buckets.Computed(lambda example: example["image"], examples)


def look(model, image, *extent):
    """Run a whole model on an image: labels i32[H, W], or `metrics.Detections`.

    Raises:
      ValueError: for a model that returns anything else.
    """
    title = type(model).__name__
    if isinstance(model, Detector):
        detections = model.detect(image, *extent)
        if not isinstance(detections, metrics.Detections):
            kind = type(detections).__name__
            raise UserError(f"{title}.detect returns a {kind}; it must return metrics.Detections")
        return detections
    labels = model.predict(image, *extent)
    if labels.shape != image.shape[:2] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise UserError(
            f"{title}.predict returns {labels.dtype}{list(labels.shape)}; it must return a class "
            f"for each pixel, i32{list(image.shape[:2])}"
        )
    return labels


@functools.partial(jax.jit, static_argnames=("mesh", "kind"))
def _predict_batch(model, images, *extents, mesh, kind):
    del kind  # `kind_of` the model

    def each(model, images, *extents):
        axes = (None, 0) + (0,) * len(extents)
        return jax.vmap(look, axes)(model, images, *extents)

    parts = P(mesh.axis_names)
    in_specs = (P(), parts) + (parts,) * len(extents)
    predict = jax.shard_map(each, mesh=mesh, in_specs=in_specs, out_specs=parts, check_vma=False)
    return predict(model, images, *extents)


def predict(model, images, *, label=None, mesh=None) -> list:
    """Run a whole model over images; see `predict_each`."""
    predictions: list = [None] * len(images)
    for row, prediction in predict_each(model, images, label=label, mesh=mesh):
        predictions[row] = prediction
    return predictions


def predict_each(model, images, *, shapes=None, label=None, mesh=None):
    """Run a whole model over images.

    Args:
      model: a `models.Segmenter` or `models.Detector`.
      images: sequence of M images [H, W, 3], grey levels; of one size or of many.
      shapes: the images' shapes, if an image is costly to compute; None reads them off the images.
      label: name of a progress bar; None for no bar.
      mesh: devices to share the images out to; None is the first.

    Yields:
      (index into `images`, prediction), images of one shape together. A prediction is labels
      i32[H, W] or `metrics.Detections`.
    """
    shapes = shapes or [np.shape(image) for image in images]
    if mesh is None:
        mesh = Mesh(jax.local_devices()[:1], ("images",))
    mesh = Mesh(mesh.devices, mesh.axis_names)  # whatever kind of axes it had
    with progress(total=len(images), desc=label, unit="image", disable=label is None) as bar:
        for group in buckets.group(model, shapes):
            kind = kind_of(group.model)
            most = min(max(1, _BATCH_PIXELS // math.prod(group.shape)), _BATCH)
            # One image alone goes through other kernels, and could differ in the last bits.
            batch = mesh.size * min(max(-(-len(group.rows) // mesh.size), 2), most)
            for start in range(0, len(group.rows), batch):
                rows = group.rows[start : start + batch]
                batch_rows = rows + rows[-1:] * (
                    batch - len(rows)
                )  # the last batch is as long as all
                padded = np.stack([group.pad(np.float32(images[row])) for row in batch_rows])
                extents = (
                    (np.int32([shapes[row][:2] for row in batch_rows]),) if group.padded else ()
                )
                result = _predict_batch(group.model, padded, *extents, mesh=mesh, kind=kind)
                result = jax.device_get(result)
                for place, row in enumerate(rows):
                    alone = jax.tree.map(operator.itemgetter(place), result)
                    yield row, _cut(alone, shapes[row])
                bar.update(len(rows))


def _cut(prediction, shape):
    """Return a prediction without its padding, for an image of `shape`."""
    if isinstance(prediction, metrics.Detections):
        return prediction.without_padding()
    return prediction[: shape[0], : shape[1]]


def evidence(subject: Subject, example, prediction) -> dict[str, np.ndarray]:
    """Return a prediction's share in the score of a set: counts, or detections.

    Args:
      subject: what the row is of.
      example: the example that was predicted.
      prediction: from `predict`.

    Returns:
      {"confusion": i64[C, C]} of labels, {"boxes", "classes", "scores"} of detections.
    """
    if isinstance(prediction, metrics.Detections):
        detections = prediction.without_padding()
        keep = np.isin(detections.classes, subject.shared.of_model)
        fields = {
            "boxes": detections.boxes,
            "classes": detections.classes,
            "scores": detections.scores,
        }
        return {name: np.asarray(values)[keep] for name, values in fields.items()}
    counts = metrics.confusion_matrix(
        example["mask"][:, :, 0],
        prediction,
        len(subject.about.classes),
        void=subject.examples.void,
    )
    return {"confusion": counts}


def score(subject: Subject, examples, predictions, classes=None) -> float:
    """Score predictions as the paper's table does, in percent; see `score_sets`."""
    pairs = zip(examples, predictions, strict=True)
    image_evidence = [evidence(subject, *pair) for pair in pairs]
    return score_evidence(subject, examples, image_evidence, classes)


def score_evidence(subject: Subject, examples, image_evidence, classes=None) -> float:
    """Score a set of `evidence` as the paper's table does, in percent; see `score_sets`."""
    images = np.ones((1, len(image_evidence)), np.int64)
    return float(score_sets(subject, examples, image_evidence, images, classes)[0])


def score_sets(subject: Subject, examples, image_evidence, images, classes=None) -> np.ndarray:
    """Score sets of images as the paper's table does, in percent.

    Args:
      subject: what the row is of.
      examples: the M examples that were predicted.
      image_evidence: `evidence` of each, in the same order.
      images: integer [B, M], how often each image is in each of B sets; `metrics.draw_images`.
      classes: classes to average over; None for all that model and dataset share.

    Returns:
      float64 [B]: mIoU of each set for labels, 11-point VOC mAP for detections; nan for a set
      without anything to score.
    """
    classes = subject.shared.of_model if classes is None else classes
    if not subject.about.detects:
        confusions = np.stack([counts["confusion"] for counts in image_evidence])
        return 100 * metrics.mean_iou_of_sets(confusions, images, classes=classes)
    matches = _matches(subject, examples, image_evidence)
    return 100 * metrics.mean_ap_of_sets(matches, images, classes=classes)


def class_scores(subject: Subject, examples, image_evidence) -> list[float | None]:
    """Score each class that model and dataset share, in percent, rounded to hundredths.

    Args:
      subject: what the row is of.
      examples: the examples that were predicted.
      image_evidence: `evidence` of each, in the same order.

    Returns:
      IoU or 11-point AP in the order of `subject.facts()["classes"]`. None for a class that is in
      no truth (for IoU: nor in any prediction). `score_sets` returns their mean.
    """
    if subject.about.detects:
        matches, images = (
            _matches(subject, examples, image_evidence),
            np.ones((1, len(image_evidence)), np.int64),
        )
        nothing = np.full(1, np.nan)
        shares = [
            metrics.average_precision(matches[c], images) if c in matches else nothing
            for c in subject.shared.of_model
        ]
        values = np.concatenate(shares)
    else:
        counts = np.sum([evidence["confusion"] for evidence in image_evidence], axis=0)
        values = metrics.class_iou(counts)[list(subject.shared.of_model)]
    return [None if math.isnan(value) else round(100 * float(value), 2) for value in values]


def _matches(subject, examples, image_evidence):
    """Return {class: `metrics.Matches`} of the detections with the ground truth."""
    detections, truths = {}, {}
    for example, boxes in zip(examples, image_evidence, strict=True):
        objects = example["objects"]
        detections[example["image_id"]] = metrics.Detections(**boxes)
        truths[example["image_id"]] = metrics.Truths(
            objects["boxes"], objects["label"], objects["difficult"]
        )
    return metrics.match_detections(
        detections,
        truths,
        num_classes=len(subject.about.classes),
        background=subject.about.background,
    )
