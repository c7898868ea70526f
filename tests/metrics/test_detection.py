import math

import numpy as np
import pytest

from dag_jax.metrics import Detections, Truths, voc_ap


def slow_ap(detections, truths, class_index, threshold, eleven_point):
    """The development kit's procedure for one class, one detection and one box at a time."""
    ordered = []
    for image in sorted(detections):
        item = detections[image]
        for row in range(len(item.scores)):
            if item.classes[row] == class_index:
                ordered.append((float(item.scores[row]), image, list(map(float, item.boxes[row]))))
    ordered.sort(key=lambda entry: -entry[0])

    positives = 0
    used = {}
    for image, item in truths.items():
        for row in range(len(item.classes)):
            used[image, row] = False
            if item.classes[row] == class_index and not item.difficult[row]:
                positives += 1
    if positives == 0:
        return math.nan

    hits, misses, curve = 0, 0, []
    for _, image, box in ordered:
        best_overlap, best_row = -1.0, None
        for row, truth_box in enumerate(truths[image].boxes):
            if truths[image].classes[row] != class_index:
                continue
            width = min(box[2], truth_box[2]) - max(box[0], truth_box[0]) + 1
            height = min(box[3], truth_box[3]) - max(box[1], truth_box[1]) + 1
            if width <= 0 or height <= 0:
                continue
            area = (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
            other_area = (truth_box[2] - truth_box[0] + 1) * (truth_box[3] - truth_box[1] + 1)
            overlap = width * height / (area + other_area - width * height)
            if overlap > best_overlap:
                best_overlap, best_row = overlap, row
        if best_overlap >= threshold:
            if not truths[image].difficult[best_row]:
                if used[image, best_row]:
                    misses += 1
                else:
                    hits += 1
                    used[image, best_row] = True
        else:
            misses += 1
        if hits + misses:
            curve.append((hits / positives, hits / (hits + misses)))

    if eleven_point:
        total = 0.0
        for point in range(11):
            total += max((p for r, p in curve if r >= point / 10 - 1e-9), default=0.0)
        return total / 11
    area, last_recall = 0.0, 0.0
    for at, (recall, _) in enumerate(curve):
        area += (recall - last_recall) * max(p for _, p in curve[at:])
        last_recall = recall
    return area


def random_dataset(seed, num_images=8, num_classes=4):
    rng = np.random.default_rng(seed)
    detections, truths = {}, {}
    for image in range(num_images):
        count = rng.integers(0, 6)
        corner = rng.integers(0, 60, (count, 2))
        boxes = np.hstack([corner, corner + rng.integers(5, 40, (count, 2))]).astype(np.float32)
        classes = rng.integers(1, num_classes, count)
        truths[f"image{image}"] = Truths(boxes, classes, rng.random(count) < 0.25)
        # Some detections near the truth (several per box), some anywhere.
        near = np.repeat(np.arange(count), 2)
        stray = rng.integers(0, 60, (3, 2))
        detected = np.vstack(
            [
                boxes[near] + rng.normal(0, 4, (len(near), 4)),
                np.hstack([stray, stray + rng.integers(5, 40, (3, 2))]),
            ]
        ).astype(np.float32)
        detected[:, 2:] = np.maximum(detected[:, 2:], detected[:, :2])
        found_classes = np.concatenate([classes[near], rng.integers(1, num_classes, 3)])
        scores = rng.random(len(detected)).astype(np.float32)
        detections[f"image{image}"] = Detections(detected, found_classes, scores)
    return detections, truths


@pytest.mark.parametrize("eleven_point", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_agrees_with_the_procedure_of_the_kit(seed, eleven_point):
    detections, truths = random_dataset(seed)
    result = voc_ap(detections, truths, iou=0.5, eleven_point=eleven_point, num_classes=5)
    expected = [slow_ap(detections, truths, c, 0.5, eleven_point) for c in range(1, 5)]
    assert np.isnan(result.per_class[0])
    np.testing.assert_allclose(result.per_class[1:], expected, rtol=1e-12)
    assert result.mean == pytest.approx(np.nanmean(expected))


def one_image(boxes, scores, truth_boxes, difficult=None, classes=None):
    classes = [1] * len(boxes) if classes is None else classes
    difficult = [False] * len(truth_boxes) if difficult is None else difficult
    return (
        {"a": Detections(np.array(boxes, float), np.array(classes), np.array(scores))},
        {"a": Truths(np.array(truth_boxes, float), np.ones(len(truth_boxes), int), difficult)},
    )


A, B, FAR = [0, 0, 9, 9], [20, 0, 29, 9], [50, 50, 59, 59]


def test_literal_curve():
    # hit (recall 1/2, precision 1), miss, hit (recall 1, precision 2/3)
    case = one_image([A, FAR, B], [0.9, 0.8, 0.7], [A, B])
    assert voc_ap(*case).per_class[1] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert voc_ap(*case, eleven_point=False).per_class[1] == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_a_second_detection_of_a_box_is_a_false_positive():
    # precision at full recall: hit, repeat, hit
    case = one_image([A, A, B], [0.9, 0.8, 0.7], [A, B])
    assert voc_ap(*case, eleven_point=False).mean == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_only_the_best_overlapping_box_is_tried():
    # The second detection overlaps both, A more; A is taken, B is not tried.
    truth = [[0, 0, 9, 9], [0, 3, 9, 12]]
    case = one_image([[0, 0, 9, 9], [0, 1, 9, 10]], [0.9, 0.8], truth)
    assert voc_ap(*case, eleven_point=False).mean == pytest.approx(0.5)


def test_difficult_boxes_neither_count_nor_penalise():
    case = one_image([B, B, A], [0.9, 0.8, 0.7], [A, B], difficult=[False, True])
    assert voc_ap(*case).mean == 1
    assert np.isnan(voc_ap(*one_image([B], [0.9], [B], difficult=[True])).mean)


def test_widths_include_both_corners():
    # 6 of 10 columns shared: 60 / (100 + 60 - 60) with +1 widths, 45 / 81 < 0.56 without.
    case = one_image([[0, 0, 5, 9]], [1.0], [A])
    assert voc_ap(*case, iou=0.6).mean == 1
    assert voc_ap(*case, iou=0.601).mean == 0


def test_recall_points_reached_exactly_count():
    truth = [[40 * k, 0, 40 * k + 9, 9] for k in range(10)]
    case = one_image(truth[:3], [0.9, 0.8, 0.7], truth)
    assert voc_ap(*case).mean == pytest.approx(4 / 11)  # recalls 0, 0.1, 0.2 and 0.3


def test_classes_are_kept_apart():
    case = one_image([A, A], [0.9, 0.8], [A], classes=[2, 1])
    result = voc_ap(*case)
    assert result.per_class[1] == 1 and np.isnan(result.per_class[2])
    assert result.per_class.shape == (21,)


@pytest.mark.parametrize(
    ("background", "has_ap"), [(0, (1, 2)), (1, (0, 2)), (2, (0, 1)), (None, (0, 1, 2))]
)
def test_background_may_be_any_class_or_none(background, has_ap):
    # One object of each class that is one, found exactly.
    classes = np.array(has_ap)
    boxes = np.array([A, B, FAR], float)[: len(classes)]
    detections = {"a": Detections(boxes, classes, np.full(len(classes), 0.9))}
    truths = {"a": Truths(boxes, classes, np.zeros(len(classes), bool))}
    result = voc_ap(detections, truths, num_classes=3, background=background)
    assert tuple(np.flatnonzero(result.per_class == 1)) == has_ap and result.mean == 1
    if background is not None:
        detections["a"].classes[0] = background
        with pytest.raises(
            ValueError, match=rf"class {background} is none .* \(background is {background}\)"
        ):
            voc_ap(detections, truths, num_classes=3, background=background)


def test_a_class_without_detections_scores_zero():
    case = one_image(np.zeros((0, 4)), [], [A])
    assert voc_ap(*case).mean == 0


def test_order_does_not_matter():
    detections, truths = random_dataset(3)
    for item in detections.values():  # ties between images and within them
        item.scores[:] = np.round(item.scores, 1)
    expected = voc_ap(detections, truths, num_classes=4)
    backwards = voc_ap(
        dict(reversed(detections.items())), dict(reversed(truths.items())), num_classes=4
    )
    np.testing.assert_array_equal(backwards.per_class, expected.per_class)


def test_images_without_anything_change_nothing():
    detections, truths = random_dataset(4)
    expected = voc_ap(detections, truths, num_classes=4)
    detections["zz"] = Detections(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    truths["zz"] = Truths(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool))
    np.testing.assert_array_equal(
        voc_ap(detections, truths, num_classes=4).per_class, expected.per_class
    )


def test_no_image_at_all_scores_nan():
    assert np.isnan(voc_ap({}, {}).mean)


def test_bad_input_is_named():
    detections, truths = one_image([A], [0.9], [A])
    with pytest.raises(ValueError, match="detections has 0 images, truths has 1.*in truths: a"):
        voc_ap({}, truths)
    with pytest.raises(ValueError, match=r"image a: boxes has 1 rows, scores has shape \(2,\)"):
        voc_ap({"a": Detections(np.array([A]), [1], [0.9, 0.8])}, truths)
    with pytest.raises(ValueError, match="image a: class 0 is none of the 20 classes of objects"):
        voc_ap({"a": Detections(np.array([A]), [0], [0.9])}, truths)
    with pytest.raises(ValueError, match=r"boxes must be \[N, 4\], got shape \(4,\)"):
        voc_ap({"a": Detections(np.array(A), [1], [0.9])}, truths)
    with pytest.raises(ValueError, match="must be finite"):
        voc_ap({"a": Detections(np.array([A]), [1], [np.nan])}, truths)
    for strange in (1.5, np.nan, 21):
        with pytest.raises(ValueError, match=f"image a: class {strange} is none of the 20"):
            voc_ap({"a": Detections(np.array([A]), np.array([strange]), [0.9])}, truths)
    x0, y0, x1, y1 = A
    for box in ([x1, y0, x0, y1], [x0, y0, x0 - 1, y1]):
        with pytest.raises(ValueError, match=r"image a: box \[.* has no area"):
            voc_ap(detections, {"a": Truths(np.array([box]), np.array([1]), np.zeros(1, bool))})
    with pytest.raises(ValueError, match="image a: difficult is 2.0, neither true nor false"):
        voc_ap(detections, {"a": Truths(np.array([A]), np.array([1]), np.array([2]))})


def test_a_detection_with_its_corners_exchanged_is_false():
    x0, y0, x1, y1 = A
    truth = np.array([A])
    clean = voc_ap(*one_image([A], [0.9], truth)).mean
    assert clean == 1
    for box in ([x1 + 1, y1 + 1, x0, y0], [x1, y1, x0, y0], [x1 + 2, y0, x0, y1]):
        assert voc_ap(*one_image([box, A], [0.95, 0.9], truth)).mean == 0.5
