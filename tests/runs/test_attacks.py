"""What is attacked in an image, and what is kept of it, on miniatures and an image of blocks."""

import jax
import numpy as np
import pytest

from dag_jax import detection, files, networks
from dag_jax.datasets import CLASS_NAMES, VOID, ExampleSet
from dag_jax.engine.algorithm import Attack, Status
from dag_jax.runs import attacks, buckets, rundir
from dag_jax.runs.subject import subject_of
from dag_jax.runs.targets import candidate_targets, drawn_targets, paper_targets

SIZE = 64, 96


def blocks(mask=None):
    levels = np.random.default_rng(0).integers(0, 256, (SIZE[0] // 8, SIZE[1] // 8, 3), np.uint8)
    drawn = np.zeros(SIZE, np.int32)
    drawn[16:48, 32:64], drawn[:4] = 15, VOID
    example = {
        "image_id": "blocks",
        "image": levels.repeat(8, 0).repeat(8, 1),
        "mask": drawn if mask is None else mask,
        "objects": {"boxes": np.float32([[0, 0, 95, 63]]), "label": np.int64([15])},
    }
    return ExampleSet([example], CLASS_NAMES)


@pytest.mark.slow  # it compiles a detector
def test_proposals_are_as_dense_as_their_settings_ask():
    network = networks.load("fr_zf_07", miniature=True)
    subject = subject_of(network, blocks())
    example = subject.examples[0]
    image = example["image"].astype(np.float32)
    propose = jax.jit(
        lambda network, image, threshold: network.propose(
            image, nms_threshold=threshold, max_proposals=60
        )
    )
    (group,) = buckets.group(network, [image.shape])
    kept = []
    for threshold in np.float32([0.3, 0.9]):
        candidates = propose(network, image, threshold)
        boxes = np.asarray(candidates.boxes)[np.asarray(candidates.valid)]
        overlap = np.array(detection.iou(boxes, boxes))
        np.fill_diagonal(overlap, 0)
        assert overlap.max() <= threshold
        setting = {"nms_threshold": threshold, "most": 60}
        targets, _, count = candidate_targets(subject, group, example, 0, **setting)
        assert count == len(boxes)
        attacked, (handle,) = paper_targets(subject, group, example, 0, **setting)
        assert attacked.valid.sum() == targets.valid.sum() and len(handle) <= 60
        kept.append(len(boxes))
    assert 0 < kept[0] < kept[1] == 60


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True])
def test_every_pixel_of_a_drawing_is_a_target(padded):
    network = networks.load("fcn_alex", miniature=True)
    image = blocks()[0]["image"].astype(np.float32)
    prediction = np.asarray(jax.jit(lambda network, image: network.predict(image))(network, image))
    drawn = blocks()[0]["mask"][:, :, 0].copy()
    drawn[50:52] = prediction[50:52]  # some is as drawn already
    subject = subject_of(network, blocks(drawn))
    group = buckets.group_of(network, image.shape)
    if not padded:
        (group,) = buckets.group(network, [image.shape])
    targets, inputs = drawn_targets(subject, group, subject.examples[0], 0)
    valid = drawn != VOID
    assert inputs == () and targets.valid.shape == SIZE
    np.testing.assert_array_equal(targets.valid, valid)
    np.testing.assert_array_equal(targets.adversarial[valid], drawn[valid])
    differs = valid & (prediction != drawn)
    np.testing.assert_array_equal(targets.labels[differs], prediction[differs])
    assert (targets.labels != targets.adversarial)[valid].all() and (valid & ~differs).any()


def test_a_record_says_what_holds_of_the_image_and_of_its_png():
    image = np.full((4, 4, 3), 100, np.uint8)
    change = np.zeros((4, 4, 3), np.float32)
    change[0, 0] = [3, 4, 0]
    counts = np.int32([16, 2, 0, -1])
    attack = Attack(image + change, change, np.int32(2), np.zeros(16, bool), counts, Status.FOOLED)
    record = attacks.record_of(image, attack, (5, False))
    assert record == {
        "status": "FOOLED",
        "num_steps": 2,
        "active_counts": [16, 2, 0],
        "perceptibility": pytest.approx(5 / 255 / 4),
        "largest_change": 4.0,
        "fooled": True,
        "fooled_png": False,
        "active_png": 5,
        "image_sha256": files.sha256(image),
    }


def test_results_of_other_images_are_refused(tmp_path):
    example = blocks()[0]
    results = rundir.Results(tmp_path / "run", {"a": 1}, ["blocks"])
    record = {"image_sha256": files.sha256(example["image"])}
    results.add(0, example["image"], np.zeros(example["image"].shape, np.float32), record, 1.0)
    attacks.check_images(tmp_path, results.records(), [example])
    # Another --data_dir, which no manifest records, has photographs of the same names.
    other = {**example, "image": 255 - example["image"]}
    with pytest.raises(ValueError, match="was made of another image of the name 'blocks'"):
        attacks.check_images(tmp_path, results.records(), [other])
