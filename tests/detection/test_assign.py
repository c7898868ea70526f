import functools

import jax
import numpy as np
import pytest

from dag_jax import detection
from dag_jax.detection import encode_boxes, generate_anchors, iou, tile_anchors

anchor_targets = jax.jit(detection.anchor_targets, static_argnames="num_samples")
region_targets = jax.jit(detection.region_targets, static_argnames="num_samples")

ANCHORS = tile_anchors(generate_anchors((24, 40, 64), base=8), (16, 16), stride=8)
TRUTHS = np.float32([[10, 12, 40, 44], [60, 70, 127, 120], [100, 5, 104, 8], [0, 0, 0, 0]])
VALID = np.array([True, True, True, False])
CLASSES = np.int32([3, 20, 7, 9])


def labels_by_loop(anchors, truths, positive_iou=0.7, negative_iou=0.3):
    """1, 0 or -1 per anchor, as AnchorTargetLayer labels them before it samples."""
    overlaps = np.asarray(iou(anchors, truths))
    labels = np.full(len(anchors), -1)
    labels[overlaps.max(1) < negative_iou] = 0
    for g in range(len(truths)):
        labels[overlaps[:, g] == overlaps[:, g].max()] = 1
    labels[overlaps.max(1) >= positive_iou] = 1
    return labels


def test_anchor_labels_equal_the_loop():
    everything = 2 * len(ANCHORS)
    targets = anchor_targets(jax.random.key(0), ANCHORS, TRUTHS, VALID, num_samples=everything)
    labels = labels_by_loop(ANCHORS, TRUTHS[:3])
    np.testing.assert_array_equal(targets.positive, labels == 1)
    np.testing.assert_array_equal(targets.sampled, labels != -1)
    assert (labels == 1).sum() > 3 and (labels == -1).sum() > 3


def test_every_truth_has_an_anchor_even_a_tiny_one():
    targets = anchor_targets(jax.random.key(0), ANCHORS, TRUTHS, VALID)
    overlaps = np.asarray(iou(ANCHORS, TRUTHS[2:3]))[:, 0]
    assert overlaps.max() < 0.3
    assert targets.positive[overlaps.argmax()]


def test_anchor_offsets_lead_to_the_best_truth():
    targets = anchor_targets(jax.random.key(0), ANCHORS, TRUTHS, VALID)
    (rows,) = np.nonzero(np.asarray(targets.positive))
    match = TRUTHS[np.asarray(iou(ANCHORS, TRUTHS[:3]))[rows].argmax(1)]
    np.testing.assert_allclose(targets.deltas[rows], encode_boxes(ANCHORS[rows], match), rtol=1e-6)
    np.testing.assert_array_equal(np.delete(np.asarray(targets.deltas), rows, axis=0), 0)


@pytest.mark.parametrize("num_samples", [4, 8, 64])
def test_samples_are_as_many_as_asked_and_mixed(num_samples):
    sample = functools.partial(anchor_targets, num_samples=num_samples)
    seen = []
    for seed in range(3):
        targets = sample(jax.random.key(seed), ANCHORS, TRUTHS, VALID)
        positive, sampled = np.asarray(targets.positive), np.asarray(targets.sampled)
        assert sampled.sum() == num_samples
        assert (sampled & positive).sum() == min(positive.sum(), num_samples // 2)
        seen.append(sampled)
    assert not np.array_equal(seen[0], seen[1])
    again = sample(jax.random.key(0), ANCHORS, TRUTHS, VALID)
    np.testing.assert_array_equal(again.sampled, seen[0])


def test_an_image_without_truths_is_all_background():
    nothing = np.zeros(4, bool)
    targets = anchor_targets(jax.random.key(0), ANCHORS, TRUTHS, nothing, num_samples=32)
    assert not targets.positive.any() and targets.sampled.sum() == 32
    regions = region_targets(
        jax.random.key(0), ANCHORS, np.ones(len(ANCHORS), bool), TRUTHS, CLASSES, nothing
    )
    assert regions.valid.all() and not regions.labels.any()


def proposals_near(rng, count=60):
    boxes = TRUTHS[rng.integers(0, 2, count)] + rng.integers(-20, 21, (count, 4))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 4)
    return boxes.astype(np.float32)


def test_regions_have_the_label_and_offset_of_their_best_truth(rng):
    proposals = proposals_near(rng)
    targets = region_targets(
        jax.random.key(1), proposals, np.ones(60, bool), TRUTHS, CLASSES, VALID, num_samples=32
    )
    assert targets.valid.all()
    pool = {tuple(box) for box in np.concatenate([proposals, TRUTHS[:3]])}
    num_foreground = 0
    for box, label, deltas in zip(
        *map(np.asarray, (targets.boxes, targets.labels, targets.deltas)), strict=True
    ):
        assert tuple(box) in pool
        overlaps = np.asarray(iou(box[None], TRUTHS[:3]))[0]
        best = overlaps.argmax()
        if overlaps[best] >= 0.5:
            num_foreground += 1
            assert label == CLASSES[best]
            np.testing.assert_allclose(
                deltas, encode_boxes(box[None], TRUTHS[best][None])[0], rtol=1e-5, atol=1e-6
            )
        else:
            assert label == 0 and not deltas.any()
    assert num_foreground == 8  # a quarter of 32


def test_too_few_regions_are_padded(rng):
    proposals = proposals_near(rng)
    few = np.arange(60) < 5
    targets = region_targets(
        jax.random.key(1), proposals, few, TRUTHS, CLASSES, VALID, num_samples=100
    )
    assert targets.boxes.shape == (100, 4)
    usable = np.concatenate([proposals[:5], TRUTHS[:3]])
    assert targets.valid.sum() == len(usable)
    boxes = {tuple(box) for box in np.asarray(targets.boxes)[np.asarray(targets.valid)]}
    assert boxes == {tuple(box) for box in usable}
    assert not np.asarray(targets.labels)[~np.asarray(targets.valid)].any()


def test_padding_of_truths_changes_nothing(rng):
    proposals = proposals_near(rng)
    key, mask = jax.random.key(2), np.ones(60, bool)
    padded_truths = TRUTHS.copy()
    padded_truths[3] = [0, 0, 127, 127]
    a = anchor_targets(key, ANCHORS, TRUTHS, VALID)
    b = anchor_targets(key, ANCHORS, padded_truths, VALID)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    # The padded row must never be drawn as a region either.
    a = region_targets(key, proposals, mask, TRUTHS, CLASSES, VALID, num_samples=32)
    b = region_targets(key, proposals, mask, padded_truths, CLASSES, VALID, num_samples=32)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_vmap_equals_one_at_a_time(rng):
    keys = jax.random.split(jax.random.key(3), 2)
    truths = np.stack([TRUTHS, TRUTHS[::-1]])
    valid = np.stack([VALID, VALID[::-1]])
    proposals = np.stack([proposals_near(rng), proposals_near(rng)])

    def both(key, proposals, truths, valid):
        mask = np.ones(60, bool)
        anchors = anchor_targets(key, ANCHORS, truths, valid, num_samples=32)
        return anchors, region_targets(key, proposals, mask, truths, CLASSES, valid, num_samples=32)

    together = jax.jit(jax.vmap(both))(keys, proposals, truths, valid)
    for i in range(2):
        alone = both(keys[i], proposals[i], truths[i], valid[i])
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6),
            together,
            alone,
        )


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="4 ground-truth boxes"):
        anchor_targets(jax.random.key(0), ANCHORS, TRUTHS, VALID[:3])
    with pytest.raises(ValueError, match="at least 1 row"):
        anchor_targets(jax.random.key(0), ANCHORS, TRUTHS[:0], VALID[:0])
    with pytest.raises(ValueError, match="4 rows, classes"):
        region_targets(
            jax.random.key(0), ANCHORS, np.ones(len(ANCHORS), bool), TRUTHS, CLASSES[:2], VALID
        )
