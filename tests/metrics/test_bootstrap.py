import numpy as np
import pytest

from dag_jax import metrics

NUM_CLASSES = 4


def some_detections(rng, num_images):
    """Return detections and ground truth of images named 0, 1, ... in a shuffled order."""
    detections, truths = {}, {}
    for image in rng.permutation(num_images):
        corners = rng.uniform(0, 40, (3, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(10, 30, (3, 2))], axis=1)
        classes = rng.integers(1, NUM_CLASSES, 3)
        near = np.concatenate([boxes + rng.normal(0, 3, boxes.shape), boxes[:1]])
        scores = rng.permutation([0.2, 0.5, 0.9, 0.95])  # ties between images, none within one
        detections[int(image)] = metrics.Detections(near, np.append(classes, classes[0]), scores)
        truths[int(image)] = metrics.Truths(boxes, classes, rng.random(3) < 0.2)
    return detections, truths


def repeated(by_image, images, truths):
    """Return a mapping in which the image at place i of `truths` is there images[i] times."""
    return {
        (image, copy): by_image[image]
        for image, count in zip(truths, images, strict=True)
        for copy in range(count)
    }


@pytest.mark.parametrize("eleven_point", [True, False])
def test_a_set_scores_as_the_dataset_of_its_images(rng, eleven_point):
    detections, truths = some_detections(rng, 12)
    images = metrics.draw_images(0, 12, 20)
    matches = metrics.match_detections(detections, truths, num_classes=NUM_CLASSES)
    scores = metrics.mean_ap_of_sets(matches, images, eleven_point=eleven_point)

    alone = [
        metrics.voc_ap(
            repeated(detections, counts, truths),
            repeated(truths, counts, truths),
            eleven_point=eleven_point,
            num_classes=NUM_CLASSES,
        ).mean
        for counts in images
    ]

    np.testing.assert_allclose(scores, alone, rtol=1e-12)
    assert np.ptp(scores) > 0.01  # the sets differ


def test_mean_iou_of_a_set_is_that_of_its_sum(rng):
    confusions = rng.integers(0, 9, (7, NUM_CLASSES, NUM_CLASSES))
    confusions[:, 3] = confusions[:, :, 3] = 0  # a class that nobody has
    images = metrics.draw_images(1, 7, 5)

    scores = metrics.mean_iou_of_sets(confusions, images)

    sums = [
        sum(n * confusion for n, confusion in zip(counts, confusions, strict=True))
        for counts in images
    ]
    np.testing.assert_allclose(
        scores, [metrics.mean_iou(confusion) for confusion in sums], rtol=1e-12
    )


def test_sets_are_as_large_as_the_images_and_the_first_is_the_images():
    images = metrics.draw_images(3, 5, 200)

    assert images.shape == (201, 5)
    np.testing.assert_array_equal(images[0], 1)
    np.testing.assert_array_equal(images.sum(axis=1), 5)
    np.testing.assert_array_equal(images, metrics.draw_images(3, 5, 200))
    assert (images != metrics.draw_images(4, 5, 200)).any()


def test_the_interval_of_a_mean_is_that_of_the_normal_law():
    values = np.random.default_rng(0).normal(10, 3, 900)
    images = metrics.draw_images(0, 900, 4000)

    interval = metrics.interval(images @ values / 900)

    error = values.std() / 30
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


@pytest.mark.slow
def test_intervals_of_a_mean_iou_have_the_truth_in_them():
    """100 images of 20 classes in three: sets lack classes, and score lower than they should."""
    rng = np.random.default_rng(0)
    every = np.zeros((400, 20, 20), np.int64)
    for confusion in every:
        for truth in rng.integers(0, 20, 2):
            right = rng.integers(0, 100)
            confusion[truth, truth] += right
            confusion[truth, rng.integers(0, 20)] += 100 - right
    truth = metrics.mean_iou_of_sets(every, np.ones((1, 400), int))[0]

    inside = []
    for seed in range(200):
        sample = every[rng.integers(0, 400, 100)]
        scores = metrics.mean_iou_of_sets(sample, metrics.draw_images(seed, 100, 200))
        interval = metrics.interval(scores, within=(0, 1))
        inside.append(interval.low <= truth <= interval.high)

    assert 0.88 < np.mean(inside) < 0.99


def scenes(rng, num_images, quality):
    """Return detections and ground truth of 20 classes; that share of objects is found."""
    detections, truths = {}, {}
    for image in range(num_images):
        count, more = rng.integers(1, 4), rng.integers(0, 3)
        corners = rng.uniform(0, 60, (count, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(15, 40, (count, 2))], axis=1)
        classes = rng.integers(1, 21, count)
        right = rng.random(count) < quality
        near = np.where(right[:, None], boxes + rng.normal(0, 1, boxes.shape), boxes + 40)
        corners = rng.uniform(0, 60, (more, 2))
        detections[image] = metrics.Detections(
            np.concatenate([near, np.concatenate([corners, corners + 20], axis=1)]),
            np.append(classes, rng.integers(1, 21, more)),
            np.append(np.where(right, rng.beta(4, 2, count), 0.5), rng.beta(2, 5, more)),
        )
        truths[image] = metrics.Truths(boxes, classes, np.zeros(count, bool))
    return detections, truths


@pytest.mark.slow
@pytest.mark.parametrize("quality", [0.75])
def test_intervals_of_a_mean_average_precision_have_the_truth_in_them(quality):
    """A sample of 100 images has a higher precision than all images: nominal is not reached."""
    rng = np.random.default_rng(0)
    detections, truths = scenes(rng, 1000, quality)

    def matches(indices):
        sample = [
            {i: by_index[k] for i, k in enumerate(indices)} for by_index in (detections, truths)
        ]
        return metrics.match_detections(*sample, num_classes=21)

    truth = metrics.mean_ap_of_sets(matches(range(1000)), np.ones((1, 1000), int))[0]

    inside = []
    for seed in range(50):
        sample = matches(rng.integers(0, 1000, 100))
        scores = metrics.mean_ap_of_sets(sample, metrics.draw_images(seed, 100, 200))
        interval = metrics.interval(scores, within=(0, 1))
        inside.append(interval.low <= truth <= interval.high)

    assert np.mean(inside) > 0.8


def test_columns_that_agree_on_each_image_differ_by_nothing(rng):
    confusions = rng.integers(0, 9, (30, NUM_CLASSES, NUM_CLASSES))
    images = metrics.draw_images(0, 30)

    first, second = (metrics.mean_iou_of_sets(confusions, images) for _ in range(2))

    assert metrics.interval(first - second) == metrics.Interval(0, 0, 0)
    interval = metrics.interval(first)
    assert interval.low < interval.value < interval.high


def test_sets_without_a_score_are_left_out():
    scores = np.array([0.5, np.nan, 0.4, 0.6])

    assert metrics.interval(scores, level=0.5) == pytest.approx((0.5, 0.45, 0.55))
    assert metrics.interval(scores, level=0.5, within=(0.48, 1)).low == 0.48
    nothing = metrics.interval(np.full(2, np.nan))
    assert np.isnan(nothing).all()


def test_images_without_objects_have_no_precision():
    empty = metrics.Truths(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool))
    none = metrics.Detections(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    box = metrics.Truths(np.array([[0.0, 0, 9, 9]]), np.array([1]), np.array([False]))
    matches = metrics.match_detections({"a": none, "b": none}, {"a": empty, "b": box})

    scores = metrics.mean_ap_of_sets(matches, np.array([[2, 0], [1, 1]]))

    np.testing.assert_array_equal(scores, [np.nan, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.draw_images(0, 0), "0 images"),
        (lambda: metrics.draw_images(0, 3, 0), "0 sets"),
        (lambda: metrics.interval([1.0]), "at least 2"),
        (lambda: metrics.interval([1.0, 2.0], level=95), "level 95"),
        (
            lambda: metrics.mean_iou_of_sets(np.ones((2, 3, 3), int), np.ones((1, 3), int)),
            "there are 2 images",
        ),
        (
            lambda: metrics.mean_ap_of_sets(
                {1: metrics.Matches(*(np.zeros(0, int),) * 3, np.ones(2, int))},
                np.ones((1, 3), int),
            ),
            "there are 2 images",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_medians_of_sets_are_numpys(rng):
    values = rng.integers(0, 9, 7)  # some are equal
    images = metrics.draw_images(0, 7, 50)
    expected = [np.median(np.repeat(values, counts)) for counts in images]
    np.testing.assert_array_equal(metrics.median_of_sets(values, images), expected)
    order = rng.permutation(7)
    again = metrics.median_of_sets(values[order], images[:, order])
    np.testing.assert_array_equal(again, expected)
    with pytest.raises(ValueError, match="7 images"):
        metrics.median_of_sets(values, images[:, 1:])
