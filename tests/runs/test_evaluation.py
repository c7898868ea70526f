import numpy as np
import pytest

from dag_jax import datasets, metrics, networks
from dag_jax.runs import evaluation


def example(height=40, width=60):
    mask = np.zeros((height, width, 1), np.uint8)
    mask[10:20, 30:60] = 7
    return {
        "image_id": "a",
        "image": np.repeat(mask, 3, axis=2) * 20,
        "mask": mask,
        "has_mask": True,
        "objects": {
            "boxes": np.float32([[30, 10, 59, 19]]),
            "label": np.int32([7]),
            "difficult": np.array([False]),
        },
    }


def test_resize_moves_mask_and_box_together():
    scaled = evaluation.resize(example(), 20)
    assert scaled["image"].shape == (20, 20, 3) and scaled["mask"].shape == (20, 20, 1)
    rows, columns = np.nonzero(scaled["mask"][:, :, 0])
    box = [columns.min(), rows.min(), columns.max(), rows.max()]
    np.testing.assert_allclose(scaled["objects"]["boxes"], [box])
    np.testing.assert_array_equal(scaled["image"][:, :, 0], scaled["mask"][:, :, 0] * 20)


def test_score_of_perfect_and_of_empty_predictions():
    one = example()
    assert evaluation.score([one], [one["mask"][:, :, 0]]) == 100
    objects = one["objects"]
    perfect = metrics.Detections(objects["boxes"], objects["label"], np.float32([0.9]))
    assert evaluation.score([one], [perfect]) == 100
    nothing = metrics.Detections(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    assert evaluation.score([one], [nothing]) == 0
    assert np.isnan(evaluation.score([one], [nothing], classes=[1, 2]))


def test_score_over_some_classes_is_their_mean():
    one = example()
    wrong = np.where(one["mask"] == 7, 8, 0)[:, :, 0]
    assert evaluation.score([one], [wrong]) == pytest.approx(100 / 3)
    assert evaluation.score([one], [wrong], classes=[0]) == 100
    assert evaluation.score([one], [wrong], classes=[7]) == 0


def test_every_network_has_a_title():
    assert tuple(evaluation.TITLES) == networks.NAMES + networks.BLACK_BOX


def test_frequent_classes_are_background_and_six_animals_and_people():
    names = [datasets.CLASS_NAMES[i] for i in evaluation.FREQUENT]
    assert names == ["background", "cat", "cow", "dog", "horse", "person", "sheep"]
