import functools

import jax
import numpy as np
import pytest

from dag_jax.detection import pyramid_levels, roi_align

STRIDES = (4, 8, 16)
SHAPES = ((24, 31), (12, 16), (6, 8))  # cells; 96 x 124 pixels

pool = jax.jit(
    functools.partial(roi_align, scales=tuple(1 / stride for stride in STRIDES)),
    static_argnames=("size", "samples", "aligned"),
)


def at(cells, y, x):
    """The bilinear value of a map at a point; the border is continued by a cell, 0 follows."""
    height, width = cells.shape[:2]
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(cells.shape[2])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, along = y - top, x - left
    upper = (1 - along) * cells[top, left] + along * cells[top, right]
    lower = (1 - along) * cells[bottom, left] + along * cells[bottom, right]
    return (1 - down) * upper + down * lower


def loop(maps, boxes, levels, rows, columns, samples, aligned):
    """The definition, point by point, in float64."""
    out = np.zeros((len(boxes), rows, columns, maps[0].shape[2]))
    shortest, shift = (0, 0.5) if aligned else (1, 0)
    for region, (box, level) in enumerate(zip(boxes.astype(np.float64), levels, strict=True)):
        x0, y0, x1, y1 = (box + [0, 0, 1, 1]) / STRIDES[level] - shift
        tall, wide = max(y1 - y0, shortest) / rows, max(x1 - x0, shortest) / columns
        for i, j in np.ndindex(rows, columns):
            points = [
                at(maps[level], y0 + (i + down) * tall, x0 + (j + along) * wide)
                for down in (np.arange(samples) + 0.5) / samples
                for along in (np.arange(samples) + 0.5) / samples
            ]
            out[region, i, j] = np.mean(points, axis=0)
    return out


@pytest.fixture
def maps(rng):
    return [rng.normal(size=(*shape, 3)).astype(np.float32) for shape in SHAPES]


@pytest.fixture
def boxes(rng):
    """Regions inside, over every border, far outside, of one pixel and of less."""
    corners = np.sort(rng.uniform(-30, 150, (40, 2, 2)), axis=1).reshape(-1, 4)
    corners[0] = [0, 0, 123, 95]
    corners[1] = [5, 5, 5, 5]
    corners[2] = [40, 40, 39.2, 39.5]
    corners[3] = [400, 300, 500, 390]
    corners[4] = [-3, -3, 130, 99]
    return corners.astype(np.float32)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("rows", "columns", "samples"), [(7, 7, 2), (3, 3, 1), (2, 5, 3)])
def test_equals_the_loop(maps, boxes, rows, columns, samples, aligned):
    levels = np.arange(len(boxes), dtype=np.int32) % 3
    size = rows if rows == columns else (rows, columns)
    pooled = pool(maps, boxes, levels, size=size, samples=samples, aligned=aligned)
    expected = loop(maps, boxes, levels, rows, columns, samples, aligned)
    np.testing.assert_allclose(pooled, expected, atol=2e-5)
    assert not pooled[3].any()


def test_a_slope_is_pooled_to_the_middles_of_the_bins():
    row, column = np.mgrid[:24, :31].astype(np.float32)
    slope = np.stack([row, column, np.ones_like(row)], axis=-1)
    maps = [slope, *(np.zeros((*shape, 3), np.float32) for shape in SHAPES[1:])]
    pooled = pool(maps, np.float32([[8, 16, 63, 71]]), np.int32([0]), size=7)
    np.testing.assert_allclose(pooled[0, :, 0, 0], 4 + 2 * np.arange(7) + 1, atol=1e-5)
    np.testing.assert_allclose(pooled[0, 0, :, 1], 2 + 2 * np.arange(7) + 1, atol=1e-5)
    np.testing.assert_allclose(pooled[0, :, :, 2], 1, atol=1e-6)


def test_each_region_alone_and_under_vmap_is_the_same(maps, boxes):
    levels = np.arange(len(boxes), dtype=np.int32)[::-1] % 3
    together = pool(maps, boxes, levels, size=7)
    alone = jax.vmap(lambda box, level: pool(maps, box[None], level[None], size=7)[0])
    np.testing.assert_allclose(alone(boxes, levels), together, atol=1e-6)


def test_what_lies_beyond_the_cells_is_not_seen(maps, boxes):
    levels = np.arange(len(boxes), dtype=np.int32) % 3
    padded = [
        np.pad(cells, ((0, 5 - level), (0, 2 + level), (0, 0)), constant_values=9)
        for level, cells in enumerate(maps)
    ]
    pooled = pool(padded, boxes, levels, np.int32(SHAPES), size=7)
    np.testing.assert_allclose(pooled, pool(maps, boxes, levels, size=7), atol=1e-6)


def test_the_gradient_is_the_transpose_and_none_passes_to_boxes(maps, boxes, rng):
    levels = np.arange(len(boxes), dtype=np.int32) % 3
    cotangent = rng.normal(size=(len(boxes), 7, 7, 3)).astype(np.float32)

    def total(maps, boxes):
        return (pool(maps, boxes, levels, size=7) * cotangent).sum()

    gradient, of_boxes = jax.jit(jax.grad(total, argnums=(0, 1)))(maps, boxes)
    assert not of_boxes.any()
    # Pooling is linear, so this says all of the gradient but what any map leaves at 0.
    for _ in range(3):
        directions = [rng.normal(size=cells.shape).astype(np.float32) for cells in maps]
        inner = sum(float((a * b).sum()) for a, b in zip(gradient, directions, strict=True))
        assert inner == pytest.approx(float(total(directions, boxes)), rel=1e-3, abs=1e-2)


@pytest.mark.parametrize("side", [10, 111, 112, 223, 224, 447, 448, 900, 2000])
def test_levels_are_the_papers(side):
    expected = np.clip(np.floor(4 + np.log2(side / 224) + 1e-6), 2, 5) - 2
    box = np.float32([[3, 5, 2 + side, 4 + side]])
    assert int(pyramid_levels(box, 4)[0]) == expected
    assert int(pyramid_levels(box, 2, first=3)[0]) == np.clip(expected - 1, 0, 1)


def test_a_region_of_another_shape_counts_by_its_area(rng):
    sides = rng.uniform(1, 1300, (2000, 2)).astype(np.float32)
    boxes = np.concatenate([np.zeros_like(sides), sides - 1], axis=1)
    expected = np.floor(4 + np.log2(np.sqrt(sides.astype(np.float64).prod(axis=1)) / 224) + 1e-6)
    np.testing.assert_array_equal(pyramid_levels(boxes, 4), np.clip(expected, 2, 5) - 2)


def test_wrong_shapes_are_named(maps):
    box, level = np.zeros((1, 4), np.float32), np.zeros(1, np.int32)
    with pytest.raises(ValueError, match="scales are 1; each map is"):
        roi_align(maps, box, level, size=7, scales=(1.0,))
    with pytest.raises(ValueError, match=r"boxes has shape \(1, 4\), levels \(3,\)"):
        roi_align(maps, box, np.zeros(3, np.int32), size=7, scales=(1.0, 1.0, 1.0))
