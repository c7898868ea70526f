"""Images without ground truth: a model's own predictions take its place.

Shapes: `H W` pixels, `N` candidates, `C` classes.
"""

import jax
import numpy as np

from dag_jax import detection, models
from dag_jax.datasets.selection import ExampleSet
from dag_jax.engine.targets import make_targets
from dag_jax.errors import UserError
from dag_jax.metrics import Detections
from dag_jax.runs import evaluation
from dag_jax.runs.subject import Subject, subject_of
from dag_jax.runs.targets import paper_targets

MIN_SCORE = 0.5  # of a detection that counts as an object
SAME_PLACE = 0.5  # IoU with which a detection of the same class is the same object


def objects_in(detections: Detections, min_score: float = MIN_SCORE) -> Detections:
    """Return the detections of at least `min_score`, without padding."""
    whole = detections.without_padding()
    keep = np.asarray(whole.scores) >= min_score
    return Detections(*(np.asarray(a)[keep] for a in (whole.boxes, whole.classes, whole.scores)))


def as_seen(
    model, images: dict, *, min_score: float = MIN_SCORE, name=None, weights_sha256=None
) -> Subject:
    """Return images with a model's predictions as their ground truth.

    An attack on these succeeds where the prediction changes, right or wrong.

    Args:
      model: a `models.Segmenter`, whose masks are the predicted classes, or a `models.Detector`.
      images: {image_id: u8[H, W, 3], RGB}.
      min_score: of a detector, the least score of an object.
      name: as in `subject_of`.
      weights_sha256: as in `subject_of`.

    Raises:
      ValueError: where `model` is no model, or an image is no u8[H, W, 3].
    """
    about = models.about(model)
    alone = [{"image_id": key, "image": images[key]} for key in images]
    blank = ExampleSet(alone, about.classes, void=None)
    predictions = evaluation.predict(model, evaluation.clean_images(blank))
    labelled = []
    for example, prediction in zip(blank, predictions, strict=True):
        seen = {"image_id": example["image_id"], "image": example["image"]}
        if about.detects:
            objects = objects_in(prediction, min_score)
            seen["objects"] = {"boxes": objects.boxes, "label": objects.classes}
        else:
            seen["mask"] = prediction
        labelled.append(seen)
    examples = ExampleSet(labelled, about.classes, void=None)
    return subject_of(model, examples, name=name, weights_sha256=weights_sha256)


def aimed_targets(subject: Subject, group, example, seed, *, adversarial):
    """Find the targets of `targets.paper_targets`, driven to one class or to a drawing.

    Args:
      subject: the model and its examples.
      group: the `buckets.Group` that the image goes through.
      example: one of the subject's.
      seed: not used but by `paper_targets`.
      adversarial: index of a class of the model; for a segmenter also i32[H, W], whose void pixels
        are no targets.

    Returns:
      (targets, inputs). Pixels and boxes of that class already are no targets.

    Raises:
      ValueError: for a detector with a sigmoid head, which has no other class to be seen as.
    """
    targets, inputs = paper_targets(subject, group, example, seed)
    if subject.about.detects and targets.labels.ndim == 2:
        raise UserError(
            f"{subject.about.title} says of each class by itself whether it is there: it can be "
            "made to lose an object, not to see it as another"
        )
    void = subject.examples.void
    targets = make_targets(targets.labels, adversarial, targets.valid, void=void)
    return jax.device_get(targets), inputs


def changes_of(subject: Subject, before, after, targets, *, min_score: float = MIN_SCORE) -> dict:
    """Return the changes of a model's prediction by an attack, as JSON values.

    Args:
      subject: the model and its examples.
      before: its prediction on the clean image: labels i32[H, W], or `Detections`.
      after: its prediction on the adversarial image.
      targets: the attack's targets.
      min_score: as in `as_seen`.

    Returns:
      For a segmenter the share "pixels_changed" and the share "targets_as_asked" of the targets.
      For a detector the numbers "objects_before", "objects_kept" of these and new "objects_other",
      and all detections ("detections_before", "detections_after").
    """
    if not subject.about.detects:
        is_adversarial = after == targets.adversarial
        return {
            "pixels_changed": float((before != after).mean()),
            "targets_as_asked": float(is_adversarial[targets.valid].mean()),
        }
    objects, remaining = (objects_in(each, min_score) for each in (before, after))
    overlap = np.asarray(detection.iou(objects.boxes, remaining.boxes))
    same = (objects.classes[:, None] == remaining.classes[None, :]) & (overlap >= SAME_PLACE)
    return {
        "objects_before": len(objects.scores),
        "objects_kept": int(same.any(axis=1).sum()),
        "objects_other": int((~same.any(axis=0)).sum()),
        "detections_before": _listed(before, subject.about.classes),
        "detections_after": _listed(after, subject.about.classes),
    }


def _listed(detections, classes):
    """Return all detections as JSON values, in the detector's order."""
    whole = detections.without_padding()
    rows = zip(whole.classes, whole.scores, whole.boxes, strict=True)
    return [
        {
            "class": classes[index],
            "score": round(float(score), 4),
            "box": [round(float(corner), 2) for corner in box],
        }
        for index, score, box in rows
    ]
