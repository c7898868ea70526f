import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax.detection import nms, nms_per_class

THRESHOLDS = (0.3, 0.5, 0.7, 0.9)


def greedy(boxes, scores, threshold):
    """The loop of py_cpu_nms, with a stable order."""
    x0, y0, x1, y1 = boxes.T
    areas = (x1 - x0 + 1) * (y1 - y0 + 1)
    order = np.argsort(-scores, kind="stable")
    keep = []
    while order.size:
        i, lower = order[0], order[1:]
        keep.append(i)
        width = np.maximum(np.minimum(x1[i], x1[lower]) - np.maximum(x0[i], x0[lower]) + 1, 0)
        height = np.maximum(np.minimum(y1[i], y1[lower]) - np.maximum(y0[i], y0[lower]) + 1, 0)
        overlap = width * height / (areas[i] + areas[lower] - width * height)
        order = lower[overlap <= np.float32(threshold)]
    return np.array(keep, np.int32)


def scattered(rng, count):
    corner = rng.integers(0, 200, (count, 2))
    return np.concatenate([corner, corner + rng.integers(20, 120, (count, 2))], 1).astype(
        np.float32
    )


def clustered(rng, count):
    centres = scattered(rng, 5)
    return centres[rng.integers(0, 5, count)] + rng.integers(-8, 9, (count, 4)).astype(np.float32)


@functools.partial(jax.jit, static_argnames="max_outputs")
def compiled(boxes, scores, threshold, max_outputs, valid=None):
    return nms(boxes, scores, threshold=threshold, max_outputs=max_outputs, valid=valid)


def valid_indices(indices, valid):
    indices, valid = np.asarray(indices), np.asarray(valid)
    count = valid.sum()
    assert valid[:count].all() and not valid[count:].any()
    return indices[:count]


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("draw", [scattered, clustered])
def test_equals_the_greedy_loop(rng, draw, threshold):
    for _ in range(10):
        boxes, scores = draw(rng, 150), rng.normal(size=150).astype(np.float32)
        result = valid_indices(*compiled(boxes, scores, np.float32(threshold), 150))
        np.testing.assert_array_equal(result, greedy(boxes, scores, threshold))


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_ties_come_in_the_order_of_their_index(rng, threshold):
    for _ in range(5):
        boxes, scores = clustered(rng, 80), rng.integers(0, 4, 80).astype(np.float32)
        result = valid_indices(*compiled(boxes, scores, np.float32(threshold), 80))
        np.testing.assert_array_equal(result, greedy(boxes, scores, threshold))


def test_a_chain_where_each_box_overlaps_the_next():
    # Box 0 removes 1, which therefore does not remove 2, and so on: one sweep is not enough.
    x = 4 * np.arange(9)
    boxes = np.stack([x, np.zeros(9), x + 9, np.full(9, 9)], 1).astype(np.float32)
    scores = -np.arange(9, dtype=np.float32)
    result = valid_indices(*nms(boxes, scores, threshold=0.3, max_outputs=9))
    np.testing.assert_array_equal(result, [0, 2, 4, 6, 8])


def test_groups_are_suppressed_each_alone(rng):
    boxes, scores = clustered(rng, 90), rng.permutation(90).astype(np.float32)
    groups = rng.integers(0, 4, 90).astype(np.int32)
    suppress = functools.partial(nms, threshold=0.5, max_outputs=90)
    result = valid_indices(*jax.jit(suppress)(boxes, scores, groups=groups))
    assert np.all(np.diff(scores[result]) < 0)
    for group in range(4):
        (members,) = np.nonzero(groups == group)
        alone = members[greedy(boxes[members], scores[members], 0.5)]
        np.testing.assert_array_equal(result[groups[result] == group], alone)
    with pytest.raises(ValueError, match=r"groups has shape \(3,\)"):
        suppress(boxes, scores, groups=groups[:3])


def test_an_overlap_equal_to_the_threshold_stays():
    boxes = np.float32([[0, 0, 9, 9], [0, 0, 9, 4]])  # IoU exactly 0.5
    scores = np.float32([1, 0])
    assert valid_indices(*nms(boxes, scores, threshold=0.5, max_outputs=2)).tolist() == [0, 1]
    assert valid_indices(*nms(boxes, scores, threshold=0.499, max_outputs=2)).tolist() == [0]


def test_max_outputs_cuts_and_pads(rng):
    boxes, scores = scattered(rng, 60), rng.normal(size=60).astype(np.float32)
    expected = greedy(boxes, scores, 0.5)
    assert len(expected) > 10
    np.testing.assert_array_equal(valid_indices(*compiled(boxes, scores, 0.5, 10)), expected[:10])
    indices, valid = compiled(boxes, scores, 0.5, 100)
    assert indices.shape == valid.shape == (100,)
    np.testing.assert_array_equal(valid_indices(indices, valid), expected)


def test_padding_changes_nothing(rng):
    boxes, scores = clustered(rng, 50), rng.normal(size=50).astype(np.float32)
    # Padding with the highest scores and on top of everything must neither stay nor suppress.
    padded_boxes = np.concatenate([np.tile(np.float32([[0, 0, 300, 300]]), (7, 1)), boxes])
    padded_scores = np.concatenate([np.full(7, 100, np.float32), scores])
    valid = np.arange(57) >= 7
    result = valid_indices(*compiled(padded_boxes, padded_scores, 0.3, 57, valid))
    np.testing.assert_array_equal(result - 7, greedy(boxes, scores, 0.3))


def test_order_changes_nothing(rng):
    boxes, scores = clustered(rng, 50), rng.permutation(50).astype(np.float32)
    order = rng.permutation(50)
    shuffled = valid_indices(*compiled(boxes[order], scores[order], 0.5, 50))
    np.testing.assert_array_equal(order[shuffled], valid_indices(*compiled(boxes, scores, 0.5, 50)))


@pytest.mark.slow
def test_nothing_valid_and_nothing_at_all(rng):
    boxes, scores = scattered(rng, 5), np.ones(5, np.float32)
    _, valid = nms(boxes, scores, threshold=0.5, max_outputs=5, valid=np.zeros(5, bool))
    assert not valid.any()
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    indices, valid = nms(*none, threshold=0.5, max_outputs=3)
    assert indices.shape == (3,) and not valid.any()


@pytest.mark.slow
def test_vmap_equals_one_at_a_time(rng):
    boxes = np.stack([draw(rng, 64) for draw in (scattered, clustered, scattered)])
    scores = rng.normal(size=(3, 64)).astype(np.float32)
    suppress = functools.partial(nms, threshold=0.5, max_outputs=40)
    together = jax.jit(jax.vmap(suppress))(boxes, scores)
    for i in range(3):
        alone = suppress(boxes[i], scores[i])
        np.testing.assert_array_equal(together[0][i], alone[0])
        np.testing.assert_array_equal(together[1][i], alone[1])


def test_no_gradient_passes_and_none_is_nan(rng):
    boxes, scores = scattered(rng, 20), rng.normal(size=20).astype(np.float32)

    def total(boxes, scores):
        indices, valid = nms(boxes, scores, threshold=0.5, max_outputs=20)
        return jnp.sum(jnp.where(valid, scores[indices], 0))

    by_boxes, by_scores = jax.grad(total, argnums=(0, 1))(boxes, scores)
    np.testing.assert_array_equal(by_boxes, np.zeros((20, 4)))
    expected = np.zeros(20)
    expected[greedy(boxes, scores, 0.5)] = 1
    np.testing.assert_array_equal(by_scores, expected)


@pytest.mark.parametrize(
    "max_outputs",
    [30, *(pytest.param(number, marks=pytest.mark.slow) for number in (5, 500))],
)
def test_per_class_equals_loops_and_a_sort(rng, max_outputs):
    boxes = np.stack([clustered(rng, 40) for _ in range(3)])
    scores = rng.permutation(120).reshape(3, 40).astype(np.float32)
    valid = scores > 30
    outputs = nms_per_class(boxes, scores, threshold=0.3, max_outputs=max_outputs, valid=valid)
    expected = []
    for c in range(3):
        (rows,) = np.nonzero(valid[c])
        for i in rows[greedy(boxes[c, rows], scores[c, rows], 0.3)]:
            expected.append((scores[c, i], c, *boxes[c, i]))
    expected = np.array(sorted(expected, reverse=True)[:max_outputs])
    out_boxes, out_classes, out_scores, out_valid = map(np.asarray, outputs)
    assert out_valid.shape == (max_outputs,) and out_valid.sum() == len(expected)
    rows = np.concatenate([out_scores[:, None], out_classes[:, None], out_boxes], 1)[out_valid]
    np.testing.assert_array_equal(rows, expected)


def test_wrong_shapes_are_named():
    boxes = np.zeros((5, 4), np.float32)
    with pytest.raises(ValueError, match=r"5 rows, scores has shape \(6,\)"):
        nms(boxes, np.zeros(6, np.float32), threshold=0.5, max_outputs=5)
    with pytest.raises(ValueError, match=r"5 rows, valid has shape \(4,\)"):
        nms(boxes, np.zeros(5, np.float32), threshold=0.5, max_outputs=5, valid=np.ones(4, bool))
