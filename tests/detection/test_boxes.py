import jax
import numpy as np
import pytest

from dag_jax.detection import (
    boxes_from_centres,
    boxes_from_edges,
    boxes_to_edges,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    iou,
    scale_boxes,
)


def random_boxes(rng, count, extent=100):
    corner = rng.integers(0, extent, (count, 2))
    return np.concatenate([corner, corner + rng.integers(0, extent, (count, 2))], 1).astype(
        np.float32
    )


def iou_loop(a, b):
    table = np.zeros((len(a), len(b)), np.float32)
    for i, p in enumerate(a):
        for j, q in enumerate(b):
            width = min(p[2], q[2]) - max(p[0], q[0]) + 1
            height = min(p[3], q[3]) - max(p[1], q[1]) + 1
            if width > 0 and height > 0:
                area = (p[2] - p[0] + 1) * (p[3] - p[1] + 1) + (q[2] - q[0] + 1) * (q[3] - q[1] + 1)
                table[i, j] = np.float32(width * height) / np.float32(area - width * height)
    return table


def encode_loop(boxes, targets):
    """py-faster-rcnn's bbox_transform, spelled out."""
    rows = []
    for b, t in zip(boxes, targets, strict=True):
        w, h, tw, th = b[2] - b[0] + 1, b[3] - b[1] + 1, t[2] - t[0] + 1, t[3] - t[1] + 1
        dx = (t[0] + 0.5 * tw - b[0] - 0.5 * w) / w
        dy = (t[1] + 0.5 * th - b[1] - 0.5 * h) / h
        rows.append([dx, dy, np.log(tw / w), np.log(th / h)])
    return np.array(rows, np.float32)


def test_iou_of_three_known_pairs():
    box = np.float32([[0, 0, 9, 9]])
    truths = np.float32([[0, 0, 9, 9], [5, 0, 14, 9], [10, 0, 19, 9], [9, 9, 9, 9]])
    np.testing.assert_array_equal(iou(box, truths), np.float32([[1, 1 / 3, 0, 0.01]]))


def test_iou_equals_a_loop(rng):
    a, b = random_boxes(rng, 40), random_boxes(rng, 25)
    np.testing.assert_array_equal(jax.jit(iou)(a, b), iou_loop(a, b))
    np.testing.assert_array_equal(iou(b, a), np.asarray(iou(a, b)).T)


def test_iou_under_vmap_equals_one_at_a_time(rng):
    a, b = random_boxes(rng, 24).reshape(3, 8, 4), random_boxes(rng, 15).reshape(3, 5, 4)
    np.testing.assert_array_equal(
        jax.vmap(iou)(a, b), [iou(p, q) for p, q in zip(a, b, strict=True)]
    )


def test_encode_of_a_known_pair():
    boxes, targets = np.float32([[0, 0, 9, 19]]), np.float32([[5, 10, 24, 29]])
    expected = [[(15 - 5) / 10, (20 - 10) / 20, np.log(2), 0]]
    np.testing.assert_allclose(encode_boxes(boxes, targets), expected, rtol=1e-6)


def test_encode_equals_py_faster_rcnn(rng):
    boxes, targets = random_boxes(rng, 50), random_boxes(rng, 50)
    expected = encode_loop(boxes.astype(np.float64), targets.astype(np.float64))
    np.testing.assert_allclose(encode_boxes(boxes, targets), expected, rtol=1e-5, atol=1e-6)


# One pixel that py-faster-rcnn's decoding adds to x1 and y1.
EXTRA = np.float32([[0, 0, 1, 1]])


def test_decode_undoes_encode_but_for_the_known_pixel(rng):
    boxes, targets = random_boxes(rng, 50), random_boxes(rng, 50)
    decoded = decode_boxes(boxes, encode_boxes(boxes, targets))
    np.testing.assert_allclose(decoded, targets + EXTRA, atol=2e-4)


def test_decode_equals_py_faster_rcnn(rng):
    boxes, deltas = random_boxes(rng, 20), rng.normal(size=(20, 4)).astype(np.float32) / 3
    for box, delta, decoded in zip(boxes, deltas, decode_boxes(boxes, deltas), strict=True):
        width, height = box[2] - box[0] + 1, box[3] - box[1] + 1
        x = box[0] + 0.5 * width + delta[0] * width
        y = box[1] + 0.5 * height + delta[1] * height
        width, height = width * np.exp(delta[2]), height * np.exp(delta[3])
        expected = [x - 0.5 * width, y - 0.5 * height, x + 0.5 * width, y + 0.5 * height]
        np.testing.assert_allclose(decoded, expected, rtol=1e-5, atol=1e-4)


def test_decode_broadcasts_over_classes(rng):
    boxes = random_boxes(rng, 6)
    deltas = rng.normal(size=(6, 3, 4)).astype(np.float32)
    together = decode_boxes(boxes[:, None], deltas)
    for c in range(3):
        np.testing.assert_allclose(together[:, c], decode_boxes(boxes, deltas[:, c]), rtol=1e-6)


def test_clip_to_a_wide_image():
    boxes = np.float32([[-5, -5, 300, 300], [3, 4, 5, 6], [250, 120, 260, 130]])
    expected = [[0, 0, 199, 99], [3, 4, 5, 6], [199, 99, 199, 99]]
    np.testing.assert_array_equal(clip_boxes(boxes, (100, 200)), np.float32(expected))


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(7, 5\)"):
        iou(np.zeros((7, 5), np.float32), np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match="deltas"):
        decode_boxes(np.zeros((2, 4), np.float32), np.zeros((2, 84), np.float32))


def test_a_box_of_other_conventions_is_the_same_pixels():
    # Pixels 2, 3, 4 across and 1, 2 down, of an image of 8 x 16 (rows x columns).
    ours = np.float32([2, 1, 4, 2])
    edges = np.float32([2, 1, 5, 3])
    centre = np.float32([3.5, 2, 3, 2])
    parts = np.float32([3.5 / 16, 2 / 8, 3 / 16, 2 / 8])
    np.testing.assert_array_equal(boxes_from_edges(edges), ours)
    np.testing.assert_array_equal(boxes_to_edges(ours), edges)
    np.testing.assert_array_equal(boxes_from_centres(centre), ours)
    np.testing.assert_array_equal(boxes_from_centres(scale_boxes(parts, (8, 16))), ours)


def test_conversions_keep_overlaps_and_work_compiled_on_batches(rng):
    edges = random_boxes(rng, 12) + np.float32([0, 0, 1, 1])
    whole = np.zeros((12, 200, 200), bool)
    for mask, (x0, y0, x1, y1) in zip(whole, edges.astype(int), strict=True):
        mask[y0:y1, x0:x1] = True  # Python's slices are edges
    pixels = whole.reshape(12, -1).astype(np.float64)
    shared = pixels @ pixels.T
    union = pixels.sum(1)[:, None] + pixels.sum(1)[None] - shared
    ours = boxes_from_edges(edges)
    np.testing.assert_allclose(iou(ours, ours), shared / union, rtol=1e-5)
    centres = np.concatenate([(edges[:, :2] + edges[:, 2:]) / 2, edges[:, 2:] - edges[:, :2]], 1)
    batched = jax.jit(boxes_from_centres)(centres.reshape(3, 4, 4))
    np.testing.assert_allclose(batched.reshape(12, 4), ours, atol=1e-4)


@pytest.mark.parametrize("convert", [boxes_from_edges, boxes_to_edges, boxes_from_centres])
def test_what_is_no_list_of_boxes_is_not_converted(convert):
    with pytest.raises(ValueError, match="its last axis should be 4 long"):
        convert(np.zeros((4, 3), np.float32))
