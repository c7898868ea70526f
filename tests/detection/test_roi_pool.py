import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax.detection import roi_max_pool
from dag_jax.detection import roi_pool as roi_pool_module

pool = jax.jit(roi_max_pool, static_argnames=("size", "scale"))


def caffe_loop(features, boxes, size, scale, cotangent=None):
    """Caffe's ROIPooling, forward and backward, in float32 as its C++ has it."""
    height, width, channels = features.shape
    out = np.zeros((len(boxes), size, size, channels), np.float32)
    gradient = np.zeros_like(features)
    for r, box in enumerate(boxes):
        x0, y0, x1, y1 = np.floor(box * np.float32(scale) + np.float32(0.5)).astype(int)
        bin_h = np.float32(max(y1 - y0 + 1, 1)) / np.float32(size)
        bin_w = np.float32(max(x1 - x0 + 1, 1)) / np.float32(size)
        for i, j in np.ndindex(size, size):
            top, bottom = int(np.floor(np.float32(i) * bin_h)), int(np.ceil((i + 1) * bin_h))
            left, right = int(np.floor(np.float32(j) * bin_w)), int(np.ceil((j + 1) * bin_w))
            top, bottom = (min(max(y + y0, 0), height) for y in (top, bottom))
            left, right = (min(max(x + x0, 0), width) for x in (left, right))
            if bottom <= top or right <= left:
                continue
            cells = features[top:bottom, left:right].reshape(-1, channels)
            out[r, i, j] = cells.max(0)
            if cotangent is not None:
                y, x = np.divmod(cells.argmax(0), right - left)
                np.add.at(gradient, (top + y, left + x, np.arange(channels)), cotangent[r, i, j])
    return out, gradient


def regions(rng, count, shape, stride, *, beyond=0):
    """Boxes of every kind: inside, as large as the image, one pixel, malformed, outside."""
    extent = np.array(shape[::-1]) * stride
    first = rng.uniform(-beyond, extent + beyond, (count, 2))
    last = rng.uniform(-beyond, extent + beyond, (count, 2))
    boxes = np.concatenate([np.minimum(first, last), np.maximum(first, last)], 1)
    boxes[0] = [0, 0, *(extent - 1)]
    boxes[1] = [5, 5, 5, 5]
    boxes[2] = [40, 40, 8, 8]  # malformed: the corners are swapped
    boxes[3:8] = np.round(boxes[3:8] / stride) * stride + stride / 2  # corners on a rounding edge
    return boxes.astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "size", "stride", "beyond"),
    [((16, 16), 7, 8, 0), ((16, 16), 6, 8, 40), ((11, 23), 7, 16, 0), ((38, 63), 7, 16, 100)],
)
def test_equals_the_loop_bit_for_bit(rng, shape, size, stride, beyond):
    features = rng.normal(size=(*shape, 3)).astype(np.float32)
    boxes = regions(rng, 80, shape, stride, beyond=beyond)
    pooled = pool(features, boxes, size=size, scale=1 / stride)
    np.testing.assert_array_equal(pooled, caffe_loop(features, boxes, size, 1 / stride)[0])


def test_edges_of_every_length_are_caffes():
    for size in (6, 7):
        for length in range(1, 130):
            width = np.float32(length) / np.float32(size)
            bins = np.arange(size + 1, dtype=np.float32)
            first, last = roi_pool_module._edge_table(size, 130)[length]
            np.testing.assert_array_equal(first, np.floor(bins[:-1] * width))
            np.testing.assert_array_equal(last, np.ceil(bins[1:] * width))


def test_a_small_case_by_hand():
    features = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    boxes = np.float32([[0, 0, 3, 2], [1, 1, 1, 1], [3, 2, 9, 9]])
    pooled = pool(features, boxes, size=2, scale=1.0)[..., 0]
    expected = [
        [[5, 7], [9, 11]],  # rows 0-1 and 1-2: the middle row belongs to both
        [[5, 5], [5, 5]],
        [[11, 0], [0, 0]],  # all but the first bin lie outside
    ]
    np.testing.assert_array_equal(pooled, expected)


@pytest.mark.parametrize("chunk", [10**6, 700])
def test_gradient_equals_caffes(rng, monkeypatch, chunk):
    monkeypatch.setattr(roi_pool_module, "_CHUNK", chunk)
    features = rng.permutation(13 * 17 * 4).reshape(13, 17, 4).astype(np.float32)  # no ties
    boxes = regions(rng, 60, (13, 17), 16, beyond=20)
    cotangent = rng.normal(size=(60, 7, 7, 4)).astype(np.float32)

    @jax.jit
    def both_ways(features, cotangent):
        def forward(features):
            return roi_max_pool(features, boxes, size=7, scale=1 / 16)

        pooled, vjp = jax.vjp(forward, features)
        return pooled, vjp(cotangent)[0]

    pooled, gradient = both_ways(features, cotangent)
    expected, expected_gradient = caffe_loop(features, boxes, 7, 1 / 16, cotangent)
    np.testing.assert_array_equal(pooled, expected)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-5)


def test_gradient_of_equal_cells_goes_to_one_of_them():
    def total(features):
        return jnp.sum(roi_max_pool(features, jnp.float32([[0, 0, 7, 7]]), size=1, scale=1.0))

    gradient = np.asarray(jax.jit(jax.grad(total))(jnp.ones((8, 8, 2))))
    np.testing.assert_array_equal(np.sort(gradient.reshape(64, 2), axis=0)[-2:], [[0, 0], [1, 1]])


@pytest.mark.slow
def test_vmap_equals_one_at_a_time(rng):
    features = rng.normal(size=(3, 16, 16, 5)).astype(np.float32)
    boxes = np.stack([regions(rng, 20, (16, 16), 8) for _ in range(3)])

    def square_sum(features, boxes):
        return jnp.sum(roi_max_pool(features, boxes, size=6, scale=1 / 8) ** 2)

    both = jax.value_and_grad(square_sum)
    together, alone = jax.jit(jax.vmap(both))(features, boxes), jax.jit(both)
    for i in range(3):
        value, gradient = alone(features[i], boxes[i])
        np.testing.assert_allclose(together[0][i], value, rtol=1e-6)
        np.testing.assert_allclose(together[1][i], gradient, rtol=1e-5, atol=1e-6)


def test_regions_do_not_know_each_other(rng):
    features = rng.normal(size=(9, 9, 2)).astype(np.float32)
    boxes = regions(rng, 12, (9, 9), 8)
    regions_alone = functools.partial(pool, features, size=7, scale=1 / 8)
    order = rng.permutation(12)
    np.testing.assert_array_equal(
        regions_alone(boxes[order]), np.asarray(regions_alone(boxes))[order]
    )
    np.testing.assert_array_equal(regions_alone(boxes[:1])[0], regions_alone(boxes)[0])


def test_wrong_shapes_are_named():
    boxes = np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match=r"\(1, 8, 8, 3\)"):
        roi_max_pool(np.zeros((1, 8, 8, 3), np.float32), boxes, size=7, scale=1.0)
    with pytest.raises(ValueError, match=r"\(2, 5\)"):
        roi_max_pool(np.zeros((8, 8, 3), np.float32), np.zeros((2, 5)), size=7, scale=1.0)
