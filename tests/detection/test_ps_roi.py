import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax.detection import ps_roi_vote

SIZE, OUTPUTS = 3, 4
vote = jax.jit(ps_roi_vote, static_argnames=("size", "scale"))


def caffe_loop(features, boxes, size, scale):
    """PSROIPooling and its average, in float32 as the C++ has them; and weights of each cell."""
    height, width, channels = features.shape
    pooled = np.zeros((len(boxes), size, size, channels // size**2), np.float32)
    weights = np.zeros((len(boxes), *features.shape), np.float32)
    for r, box in enumerate(np.floor(boxes + np.float32(0.5))):
        x0, y0 = box[:2] * np.float32(scale)
        x1, y1 = (box[2:] + 1) * np.float32(scale)
        bin_h = max(y1 - y0, np.float32(0.1)) / np.float32(size)
        bin_w = max(x1 - x0, np.float32(0.1)) / np.float32(size)
        for i, j in np.ndindex(size, size):
            top, bottom = np.floor(np.float32(i) * bin_h + y0), np.ceil((i + 1) * bin_h + y0)
            left, right = np.floor(np.float32(j) * bin_w + x0), np.ceil((j + 1) * bin_w + x0)
            top, bottom = (int(np.clip(y, 0, height)) for y in (top, bottom))
            left, right = (int(np.clip(x, 0, width)) for x in (left, right))
            bin_channels = slice(i * size + j, None, size**2)  # of every output
            if bottom > top and right > left:
                cells = features[top:bottom, left:right, bin_channels]
                pooled[r, i, j] = cells.mean((0, 1))
                weights[r, top:bottom, left:right, bin_channels] = 1 / cells[..., 0].size / size**2
    return pooled.mean((1, 2)), weights


def regions(rng, count, extent):
    first, last = rng.uniform(-9, np.array(extent) * 16 + 9, (2, count, 2))
    boxes = np.concatenate([np.minimum(first, last), np.maximum(first, last)], 1)
    boxes[0] = [0, 0, extent[0] * 16 - 1, extent[1] * 16 - 1]
    boxes[1] = [5, 5, 5, 5]
    boxes[2] = [60, 60, 8, 8]  # malformed: the corners are swapped
    boxes[3:30] = np.round(boxes[3:30] / 16) * 16 - [0, 0, 1, 1]  # edges on cells
    return boxes.astype(np.float32)


@pytest.fixture
def case(rng):
    features = rng.normal(size=(9, 13, OUTPUTS * SIZE**2)).astype(np.float32)
    return features, regions(rng, 60, (13, 9))


def test_equals_the_loop_and_so_does_its_gradient(case, rng):
    features, boxes = case
    expected, weights = caffe_loop(features, boxes, SIZE, 1 / 16)
    np.testing.assert_allclose(vote(features, boxes, size=SIZE, scale=1 / 16), expected, atol=1e-6)
    cotangent = rng.normal(size=expected.shape).astype(np.float32)

    def total(features):
        return jnp.sum(ps_roi_vote(features, boxes, size=SIZE, scale=1 / 16) * cotangent)

    gradient = jax.jit(jax.grad(total))(features)
    spread = np.repeat(cotangent, SIZE**2, axis=1)[:, None, None]
    np.testing.assert_allclose(gradient, (weights * spread).sum(0), atol=1e-5)


def test_a_small_case_by_hand():
    features = np.arange(16, dtype=np.float32).reshape(2, 2, 4)  # one output, 2 x 2 bins
    boxes = np.float32([[0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 2, 1], [9, 9, 9, 9]])
    # Bin (i, j) of the first reads channel 2 i + j of cell (i, j): 0, 5, 10, 15.
    votes = vote(features, boxes, size=2, scale=1.0)[:, 0]
    np.testing.assert_allclose(votes, [7.5, 1.5, (4 + 0 + 14 + 0) / 4, 0])


def test_padding_below_and_right_changes_nothing(case, rng):
    features, boxes = case
    padded = np.pad(features, ((0, 4), (0, 2), (0, 0)), constant_values=7)
    cells = np.array([9, 13], np.int32)
    votes = vote(padded, boxes, cells, size=SIZE, scale=1 / 16)
    np.testing.assert_allclose(votes, vote(features, boxes, size=SIZE, scale=1 / 16), atol=1e-6)


def test_shapes_are_checked(case):
    features, boxes = case
    with pytest.raises(ValueError, match=r"expected \[H, W, D \* 5 \* 5\]"):
        ps_roi_vote(features, boxes, size=5, scale=1.0)
