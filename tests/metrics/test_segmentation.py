import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax.metrics import class_iou, confusion_matrix, mean_iou


def loop_confusion(labels, predictions, num_classes):
    counts = np.zeros((num_classes, num_classes), np.int64)
    for label, prediction in zip(labels.ravel(), predictions.ravel(), strict=True):
        if label != 255:
            counts[label, prediction] += 1
    return counts


def test_literal_counts_with_void():
    labels = np.array([[0, 0, 1], [1, 2, 255]], np.uint8)
    predictions = np.array([[0, 1, 1], [1, 0, 2]], np.int32)
    confusion = confusion_matrix(labels, predictions, 4)
    np.testing.assert_array_equal(
        confusion, [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    )
    assert confusion.dtype == np.int64
    # Class 2 was drawn and never found: 0. Class 3 occurs nowhere: left out of the mean.
    np.testing.assert_allclose(class_iou(confusion), [1 / 3, 2 / 3, 0, np.nan])
    assert mean_iou(confusion) == pytest.approx(1 / 3)


def test_a_class_that_was_only_predicted_counts_with_zero():
    confusion = confusion_matrix(np.array([0, 0]), np.array([0, 3]), 4)
    assert mean_iou(confusion) == pytest.approx((0.5 + 0) / 2)


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_agrees_with_a_loop(as_array):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 21, (3, 17, 19)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.1] = 255
    predictions = rng.integers(0, 21, labels.shape).astype(np.int32)
    expected = loop_confusion(labels, predictions, 21)
    np.testing.assert_array_equal(
        confusion_matrix(as_array(labels), as_array(predictions), 21), expected
    )
    parts = [confusion_matrix(a, b, 21) for a, b in zip(labels, predictions, strict=True)]
    np.testing.assert_array_equal(sum(parts), expected)


def test_order_of_pixels_and_void_do_not_matter():
    rng = np.random.default_rng(1)
    labels, predictions = rng.integers(0, 5, (2, 200))
    shuffled = rng.permutation(200)
    padded = np.pad(labels[shuffled], (0, 30), constant_values=255)
    extra = np.pad(predictions[shuffled], (0, 30), constant_values=4)
    np.testing.assert_array_equal(
        confusion_matrix(padded, extra, 5), confusion_matrix(labels, predictions, 5)
    )


def test_what_is_predicted_on_void_may_be_void_too():
    assert confusion_matrix(np.array([255, 1]), np.array([255, 1]), 2).sum() == 1


def test_255_is_a_class_where_the_dataset_has_so_many():
    labels, predictions = np.array([255, 255, 300, -1]), np.array([255, 300, 300, 7])
    confusion = confusion_matrix(labels, predictions, 365, void=-1)
    assert confusion.sum() == 3 and confusion[255, 255] == confusion[300, 300] == 1
    assert confusion[255, 300] == 1


@pytest.mark.parametrize("void", [0, 364])
def test_a_void_label_that_is_a_class_is_refused(void):
    with pytest.raises(ValueError, match=f"void is {void}, .* give another label .*-1"):
        confusion_matrix(np.zeros(2, int), np.zeros(2, int), 365, void=void)


def test_without_a_void_label_every_pixel_counts():
    assert confusion_matrix(np.array([0, 1]), np.array([1, 1]), 2, void=None).sum() == 2
    with pytest.raises(ValueError, match="labels run from 0 to 255, outside the 2 classes"):
        confusion_matrix(np.array([0, 255]), np.array([1, 1]), 2, void=None)


def test_counts_stay_exact_beyond_float32():
    part = confusion_matrix(np.zeros(1, int), np.zeros(1, int), 2) * (2**24 + 1)
    total = part + confusion_matrix(np.zeros(2, int), np.array([0, 1]), 2)
    assert total[0, 0] == 2**24 + 2


def test_nothing_but_void_scores_nan():
    confusion = confusion_matrix(np.full((2, 2), 255), np.zeros((2, 2), int), 3)
    assert np.isnan(mean_iou(confusion))


@pytest.mark.parametrize(
    ("labels", "predictions", "num_classes", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), 2, r"\(2, 3\).*\(3, 2\)"),
        (np.zeros(2), np.zeros(2, int), 2, "labels must hold integer classes, got float64"),
        (np.zeros(2, int), np.zeros(2), 2, "predictions must hold integer"),
        (np.array([0, 7]), np.zeros(2, int), 2, "labels run from 0 to 7, outside the 2 classes"),
        (np.zeros(2, int), np.array([-1, 0]), 2, "predictions run from -1 to 0"),
        (np.zeros(2, int), np.zeros(2, int), 0, "num_classes must be at least 1, got 0"),
        (np.zeros(2, int), np.zeros(2, int), 256, "void is 255, which is one of 256 classes"),
    ],
)
def test_bad_input_is_named(labels, predictions, num_classes, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(labels, predictions, num_classes)


@pytest.mark.parametrize(
    "confusion", [np.zeros((2, 3), int), np.zeros((2, 2)), -np.eye(2, dtype=int)]
)
def test_what_is_no_confusion_matrix_is_named(confusion):
    with pytest.raises(ValueError, match="a confusion matrix"):
        mean_iou(confusion)
