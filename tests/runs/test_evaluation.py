"""Predictions, and how they score."""

import dataclasses

import numpy as np
import pytest

from dag_jax import metrics, models
from dag_jax.datasets import CLASS_NAMES, ExampleSet
from dag_jax.runs import evaluation
from dag_jax.runs.subject import Subject

MASK = np.zeros((40, 60), np.uint8)
MASK[10:20, 30:60] = 7
EXAMPLE = {
    "image_id": "a",
    "image": np.repeat(MASK[:, :, None], 3, axis=2) * 20,
    "mask": MASK,
    "objects": {"boxes": np.float32([[30, 10, 59, 19]]), "label": np.int32([7])},
}
EXAMPLES = ExampleSet([EXAMPLE], CLASS_NAMES)


def subject(task, of_model=range(21)):
    about = models.About("a model", task, CLASS_NAMES, 0, 0.0, 1)
    shared = models.SharedClasses(tuple(of_model), tuple(range(21)), (), ())
    return Subject("a", None, EXAMPLES, about, shared, "")


SEGMENTS, DETECTS = subject(models.SEGMENTATION), subject(models.DETECTION, range(1, 21))


def test_a_perfect_segmentation_scores_100():
    assert evaluation.score(SEGMENTS, EXAMPLES, [MASK]) == 100


def test_detections_score_by_what_they_find():
    objects = EXAMPLE["objects"]
    perfect = metrics.Detections(objects["boxes"], objects["label"], np.float32([0.9]))
    assert evaluation.score(DETECTS, EXAMPLES, [perfect]) == 100
    nothing = metrics.Detections(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    assert evaluation.score(DETECTS, EXAMPLES, [nothing]) == 0
    assert np.isnan(evaluation.score(DETECTS, EXAMPLES, [nothing], classes=[1, 2]))


def test_padding_is_no_detection():
    boxes = np.float32([[30, 10, 59, 19], [0, 0, 9, 9]])
    valid = np.array([True, False])
    padded = metrics.Detections(boxes, np.int32([7, 7]), np.float32([0.5, 0.9]), valid)
    assert evaluation.score(DETECTS, EXAMPLES, [padded]) == 100


def test_a_score_over_some_classes_is_their_mean():
    wrong = np.where(MASK == 7, 8, 0)
    assert evaluation.score(SEGMENTS, EXAMPLES, [wrong]) == pytest.approx(100 / 3)
    assert evaluation.score(SEGMENTS, EXAMPLES, [wrong], classes=[0]) == 100
    assert evaluation.score(SEGMENTS, EXAMPLES, [wrong], classes=[7]) == 0


def test_classes_that_the_dataset_has_not_cost_those_that_it_has():
    some = dataclasses.replace(SEGMENTS, shared=SEGMENTS.shared._replace(of_model=(0, 7)))
    wrong = np.where(MASK == 7, 8, 0)  # 8 is the model's alone
    assert evaluation.score(some, EXAMPLES, [wrong]) == 50
