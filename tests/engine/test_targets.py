"""Targets against loops, and what their random labels promise."""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dag_jax

VOID = 255


def test_make_targets_drops_void_agreement_and_what_is_invalid():
    labels = np.array([3, 1, VOID, 2, 4, 4], np.uint8)
    adversarial = np.array([5, 1, 2, VOID, 0, 1], np.uint8)
    valid = np.array([1, 1, 1, 1, 1, 0], bool)
    targets = dag_jax.make_targets(labels, adversarial, valid)
    np.testing.assert_array_equal(targets.labels, [3, 0, 0, 0, 4, 0])
    np.testing.assert_array_equal(targets.adversarial, [5, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(targets.valid, [True, False, False, False, True, False])
    assert targets.labels.dtype == targets.adversarial.dtype == jnp.int32
    assert targets.valid.dtype == bool


def test_make_targets_takes_a_mask_and_one_class_for_all(rng):
    mask = rng.integers(0, 5, (4, 6))
    mask[0, 0] = VOID
    targets = jax.jit(dag_jax.make_targets)(mask, 2)
    expected = (mask != 2) & (mask != VOID)
    np.testing.assert_array_equal(targets.valid, expected)
    np.testing.assert_array_equal(targets.labels, np.where(expected, mask, 0))
    np.testing.assert_array_equal(targets.adversarial, np.where(expected, 2, 0))


def test_make_targets_leaves_out_the_void_that_a_dataset_has():
    labels, adversarial = np.array([0, 1, 255, 364]), np.array([1, 365, 1, 255])
    every = dag_jax.make_targets(labels, adversarial, void=None)
    assert every.valid.all()
    targets = dag_jax.make_targets(labels, adversarial, void=365)
    np.testing.assert_array_equal(targets.valid, [True, False, True, True])
    np.testing.assert_array_equal(targets.labels, [0, 0, 255, 364])


@pytest.mark.parametrize(
    ("adversarial", "valid", "message"),
    [
        (np.zeros((3, 4), int), True, r"adversarial has shape \(3, 4\), labels have \(4, 3\)"),
        (np.zeros(3, int), True, r"adversarial has shape \(3,\)"),
        (1, np.full((4, 3), np.nan), "valid is float.*, neither true nor false"),
        (1, np.ones(4, bool), r"valid has shape \(4,\), labels have \(4, 3\)"),
    ],
)
def test_make_targets_refuses_what_does_not_fit(adversarial, valid, message):
    with pytest.raises(ValueError, match=message):
        dag_jax.make_targets(np.zeros((4, 3), int), adversarial, valid)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (7.6, "labels are float64; classes are integers"),
        (np.nan, "labels are float64"),
        (True, "labels are bool"),
        (2**33 + 7, "run from 8589934599 to 8589934599; classes are int32"),
        (-(2**33) + 7, "classes are int32"),
        (364, "there is a class 364, so 255 is a class, too: give void=None"),
    ],
)
def test_labels_that_are_no_classes_are_refused(label, message):
    with pytest.raises(ValueError, match=message):
        dag_jax.make_targets(np.array([label]), 3)
    if label != 364:
        with pytest.raises(ValueError, match=message):
            dag_jax.permute_labels(jax.random.key(0), np.array([label]), 21)
        with pytest.raises(ValueError, match=message):
            dag_jax.absent_labels(jax.random.key(0), np.array([label]), 21)


def overlap(a, b):
    """Intersection over union of two boxes with inclusive corners."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    shared = max(width, 0) * max(height, 0)
    area = lambda box: (box[2] - box[0] + 1) * (box[3] - box[1] + 1)  # noqa: E731
    return shared / (area(a) + area(b) - shared)


def label_by_loop(boxes, scores, valid, truth_boxes, truth_labels, truth_valid, iou, confidence):
    labels, is_target = np.zeros(len(boxes), int), np.zeros(len(boxes), bool)
    for n in range(len(boxes)):
        probability = np.exp(scores[n] - scores[n].max())
        probability /= probability.sum()
        best = iou
        for g in range(len(truth_boxes)):
            value = overlap(boxes[n], truth_boxes[g])
            sure = probability[truth_labels[g]] > confidence
            if valid[n] and truth_valid[g] and sure and value > best:
                labels[n], is_target[n], best = truth_labels[g], True, value
    return labels, is_target


def random_boxes(rng, count):
    corners = np.sort(rng.integers(0, 40, (count, 2, 2)), axis=1)
    return corners.reshape(count, 4).astype(np.float32)  # x0, y0, x1, y1


@pytest.mark.parametrize(("iou", "confidence"), [(0.1, 0.1), (0.3, 0.2)])
def test_label_proposals_equals_a_loop(rng, iou, confidence):
    label = jax.jit(dag_jax.label_proposals, static_argnames=("iou", "confidence"))
    seen = collections.Counter()
    for _ in range(20):
        boxes, truth_boxes = random_boxes(rng, 40), random_boxes(rng, 5)
        scores = 2 * rng.standard_normal((40, 6)).astype(np.float32)
        truth_labels = rng.integers(1, 6, 5).astype(np.int32)
        valid, truth_valid = rng.random(40) < 0.8, rng.random(5) < 0.8
        arguments = (boxes, scores, valid, truth_boxes, truth_labels, truth_valid)
        labels, is_target = label(*arguments, iou=iou, confidence=confidence)
        expected, expected_found = label_by_loop(*arguments, iou, confidence)
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_array_equal(is_target, expected_found)
        seen.update(labels.tolist())
    assert len(seen) == 6  # not all of it was padding


def test_label_proposals_by_hand():
    truths = np.float32([[0, 0, 9, 9], [0, 0, 9, 19]])
    box = np.float32([[0, 0, 9, 9]])  # IoU 1 with the first, 0.5 with the second
    on = np.ones(2, bool)
    classes = np.int32([1, 2])

    def label(scores, **changes):
        truth_valid = changes.pop("truth_valid", on)
        return dag_jax.label_proposals(
            box, np.float32([scores]), np.ones(1, bool), truths, classes, truth_valid, **changes
        )

    assert label([0, 0, 0])[0] == 1  # the larger IoU, not the larger confidence
    assert label([0, -9, 0])[0] == 2  # not confident of the first box's class
    assert not label([9, 0, 0])[1]
    assert label([0, 0, 0], truth_valid=np.array([False, True]))[0] == 2
    assert not label([0, -9, 0], iou=0.5)[1]  # exactly 0.5: the limit is exclusive
    assert not label([0, 0, 0], truth_valid=~on)[1]


@pytest.mark.parametrize("label", [3, 90, -1])
def test_label_proposals_takes_columns_of_the_scores_alone(label):
    box, on, scores = np.zeros((1, 4), np.float32), np.ones(1, bool), np.zeros((1, 3), np.float32)
    case = box, scores, on, box, np.array([label])
    with pytest.raises(ValueError, match=f"truth_labels hold {label}, and the scores .* 0 to 2"):
        dag_jax.label_proposals(*case, on)
    assert not jax.jit(dag_jax.label_proposals)(*case, on)[1].any()
    assert not dag_jax.label_proposals(*case, ~on)[1].any()  # padding may hold anything


def test_label_proposals_without_an_object_finds_none(rng):
    boxes = jnp.float32([[0, 0, 5, 5], [2, 2, 9, 9]])
    scores = jnp.asarray(rng.standard_normal((2, 4)), jnp.float32)
    nothing = jnp.zeros((0, 4)), jnp.zeros(0, jnp.int32), jnp.zeros(0, bool)
    labels, valid = dag_jax.label_proposals(boxes, scores, jnp.ones(2, bool), *nothing)
    np.testing.assert_array_equal(labels, [0, 0])
    assert not valid.any()
    truth = jnp.zeros((2, 4)), jnp.ones(1, jnp.int32), jnp.ones(2, bool)
    with pytest.raises(ValueError, match="truth_boxes have 2 rows, truth_labels 1"):
        dag_jax.label_proposals(boxes, scores, jnp.ones(2, bool), *truth)


def test_label_proposals_refuses_disagreeing_rows():
    boxes = np.zeros((3, 4), np.float32)
    with pytest.raises(ValueError, match="boxes have 3 rows, scores 2, valid 3"):
        dag_jax.label_proposals(
            boxes,
            np.zeros((2, 5), np.float32),
            np.ones(3, bool),
            boxes,
            np.ones(3, np.int32),
            np.ones(3, bool),
        )


def test_image_key_depends_on_seed_and_name_alone():
    crc = np.uint32(0xCBF43926)  # of "123456789", the published check value
    key = dag_jax.image_key(7, "123456789")
    expected = jax.random.fold_in(jax.random.key(7), crc)
    np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(expected))
    for same in (123456789, np.int64(123456789)):  # the number that a dataset calls it by
        same = dag_jax.image_key(7, same)
        np.testing.assert_array_equal(jax.random.key_data(same), jax.random.key_data(key))
    other_keys = [dag_jax.image_key(7, "123456780"), dag_jax.image_key(8, "123456789")]
    other_keys += [dag_jax.image_key(7, name) for name in ("", "M\u00fcnchen", "\udcff.jpg", -1)]
    for other_key in other_keys:
        assert np.any(jax.random.key_data(key) != jax.random.key_data(other_key))


@functools.partial(jax.jit, static_argnames=("function", "count", "options"))
def _many(function, count, options, *arrays):
    keys = jax.random.split(jax.random.key(0), count)
    return jax.vmap(lambda key: function(key, *arrays, **dict(options)))(keys)


def many(function, count, *arrays, **options):
    """Call a function of a key with many keys."""
    return np.asarray(_many(function, count, tuple(options.items()), *arrays))


def test_derangement_has_no_fixed_point_and_all_are_equally_likely():
    draws = 6000
    counts = collections.Counter(map(tuple, many(dag_jax.derangement, draws, size=4)))
    all_nine = {p for p in itertools.permutations(range(4)) if all(i != c for i, c in enumerate(p))}
    assert set(counts) == all_nine
    # The standard deviation of a count is 24; 6 of them never happen.
    assert all(abs(count - draws / 9) < 150 for count in counts.values())


@pytest.mark.parametrize("size", [2, 21])
def test_derangement_is_a_permutation(size):
    tables = many(dag_jax.derangement, 100, size=size)
    np.testing.assert_array_equal(np.sort(tables, axis=1), np.tile(np.arange(size), (100, 1)))
    assert not np.any(tables == np.arange(size)[None, :])
    assert tables.dtype == np.int32


@pytest.mark.parametrize("size", [0, 1])
def test_derangement_of_less_than_two_is_refused(size):
    with pytest.raises(ValueError, match=f"permutation of {size} element"):
        dag_jax.derangement(jax.random.key(0), size)


BACKGROUNDS = pytest.mark.parametrize("background", [None, 0, 3])


def moved_classes(num_classes, background):
    return [index for index in range(num_classes) if index != background]


@BACKGROUNDS
def test_permute_labels_moves_every_class_and_no_other_label(rng, background):
    mask = rng.integers(0, 21, (9, 11)).astype(np.uint8)
    mask.flat[:21] = np.arange(21)
    mask[-1] = VOID
    moved = many(dag_jax.permute_labels, 30, mask, num_classes=21, background=background)
    moves = moved_classes(21, background)
    assert moved.dtype == np.int32
    for image in moved:
        table = image.flat[:21]  # what became of each class
        assert sorted(table) == list(range(21))
        assert not np.any(table[moves] == moves)
        assert background is None or table[background] == background
        np.testing.assert_array_equal(image[:-1], table[mask[:-1]])
        np.testing.assert_array_equal(image[-1], VOID)


def test_permute_labels_depends_on_the_key_and_not_on_the_image():
    key = dag_jax.image_key(0, "one")
    permute = jax.jit(dag_jax.permute_labels, static_argnums=2)
    whole = permute(key, np.arange(21), 21)
    reversed_ = permute(key, np.arange(21)[::-1], 21)
    np.testing.assert_array_equal(whole, reversed_[::-1])
    assert dag_jax.make_targets(np.arange(21), whole).valid.all()


@pytest.mark.parametrize("function", [dag_jax.permute_labels, dag_jax.absent_labels])
def test_the_second_image_compiles_nothing(caplog, function):
    labels = jnp.arange(5)
    for seed, compiles in ((0, True), (1, False)):
        key = jax.random.key(seed)
        caplog.clear()
        with jax.log_compiles():
            function(key, labels, 13)
        assert ("Compiling" in caplog.text) == compiles


def test_what_is_no_class_stays_what_it_is():
    """Void is 255, or 365 in a dataset in which 255 is a class."""
    labels = np.array([0, 254, 255, 364, 365, -1])
    for function in (dag_jax.permute_labels, dag_jax.absent_labels):
        moved = np.asarray(function(jax.random.key(0), labels, 365))
        assert (moved[:4] != labels[:4]).all()
        np.testing.assert_array_equal(moved[4:], labels[4:])


def absent_of_eight(key, labels, valid, background):
    return dag_jax.absent_labels(key, labels, 8, valid=valid, background=background)


def is_absent_labelling(labels, adversarial, num_classes, valid, background):
    """Check the rule class by class; return what each present class became."""
    np.testing.assert_array_equal(adversarial[labels == VOID], VOID)
    moves = moved_classes(num_classes, background)
    present = sorted(set(labels[valid].tolist()) & set(moves))
    absent = {c for c in moves if c not in labels[valid]}
    table = {}
    for c in present:
        (table[c],) = set(adversarial[labels == c])  # one label for all of a class
        assert table[c] in absent
    assert len(set(table.values())) == min(len(present), len(absent))
    return table


@BACKGROUNDS
@pytest.mark.parametrize("num_present", [1, 3, 6])
def test_absent_labels_are_absent_and_differ(rng, num_present, background):
    labels = rng.integers(0, num_present, 40)
    labels[:num_present] = np.arange(num_present)
    labels[-3:] = VOID
    valid = np.ones(40, bool)
    results = many(absent_of_eight, 60, labels, valid, background=background)
    seen = collections.Counter()
    for adversarial in results:
        table = is_absent_labelling(labels, adversarial, 8, valid, background)
        seen.update(table.values())
        is_background = labels == background
        np.testing.assert_array_equal(adversarial[is_background], labels[is_background])
    if set(range(num_present)) - {background}:
        expected = set(range(num_present, 8)) - {background}
        assert set(seen) == expected  # every absent class comes up


def test_what_is_not_valid_is_not_present():
    labels = np.tile(np.arange(8), 5)
    valid = labels < 6
    results = many(absent_of_eight, 60, labels, valid, background=0)
    assert set(results[:, 1]) == {6, 7}


@BACKGROUNDS
def test_an_image_with_every_class_gets_a_permutation(background):
    labels = np.tile(np.arange(8), 5)
    labels[-1] = VOID
    moves = moved_classes(8, background)
    for image in many(absent_of_eight, 60, labels, np.ones(40, bool), background=background):
        table = image[:8]
        assert sorted(table) == list(range(8)) and image[-1] == VOID
        assert not np.any(table[moves] == moves)
        assert background is None or table[background] == background
        np.testing.assert_array_equal(image[:-1], table[labels[:-1]])
