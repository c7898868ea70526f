"""Region-of-interest max pooling, equal to Caffe's loop and fast on CPU and accelerators.

Shapes: `R` regions, `P` bins along a region's side, `H W` cells of a map, `C` channels,
`M` = R * P * P bins, `T` rows of the table.

A bin is a rectangle of cells whose place depends on the data. Its maximum is that of four windows
of 2^k x 2^l cells that cover it, so all such windows' maxima are tabled once (a sparse table) and
each bin takes four gathers of whole rows of channels.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from dag_jax.arrays import Array
from dag_jax.errors import UserError

# Bins whose gradient is added at a time: it bounds the memory of thousands of regions.
_CHUNK = 128 * 49


def _edge_table(size: int, longest: int) -> np.ndarray:
    """Return i32[longest + 1, 2, P]: where the bins of a side of n cells begin and end.

    Caffe computes these edges in float32. XLA would multiply by the reciprocal of the constant P
    instead of dividing by it, which moves many an edge by one cell: hence a NumPy table.
    """
    cells = np.arange(longest + 1, dtype=np.float32)[:, None]
    bins = np.arange(size + 1, dtype=np.float32)[None, :]
    edges = bins * (cells / np.float32(size))
    return np.stack([np.floor(edges[:, :-1]), np.ceil(edges[:, 1:])], axis=1).astype(np.int32)


def _log2_table(longest: int) -> np.ndarray:
    """Return i32[longest + 1]: the floor of the logarithm; 0 at 0, the empty bin."""
    return np.array([max(n, 1).bit_length() - 1 for n in range(longest + 1)], np.int32)


def _limits(extent, size):
    """Return the longest side that a region may have, and the longest bin, in cells."""
    # A region may reach outside the map. Sides of more than twice the map's count as that long.
    longest = 2 * extent + 1
    return longest, min(extent, -(-longest // size) + 1)


def _bins_along(first, last, scale, size, extent):
    """Place the bins of each region along one axis.

    Args:
      first: f32[R], first coordinate of each region in pixels.
      last: f32[R], last coordinate.
      scale: cells per pixel.
      size: P.
      extent: cells of the map along this axis.

    Returns:
      starts: (i32[R, P], i32[R, P]), first cells of the two windows that cover each bin.
      level: i32[R, P], the windows are 2^level cells long.
      empty: bool[R, P], the bin has no cell.
    """
    longest, widest = _limits(extent, size)
    first = jnp.floor(first * scale + 0.5).astype(jnp.int32)
    last = jnp.floor(last * scale + 0.5).astype(jnp.int32)
    length = jnp.clip(last - first + 1, 1, longest)  # Caffe forces malformed regions to 1 x 1.
    edges = jnp.asarray(_edge_table(size, longest))[length] + first[:, None, None]
    edges = jnp.clip(edges, 0, extent)
    begin, end = edges[:, 0], edges[:, 1]
    level = jnp.asarray(_log2_table(widest))[end - begin]
    # An empty bin at the far border begins outside; its gather reads any cell and is dropped.
    starts = jnp.minimum(begin, extent - 1), jnp.maximum(end - (1 << level), 0)
    return starts, level, end <= begin


def _doubled(x, count, axis):
    """Return `count` arrays like `x`: maxima over 1, 2, 4... cells along `axis`.

    Zeros stand where a window would reach over the end; no bin reads them.
    """
    extent = x.shape[axis]
    levels = [x]
    for level in range(count - 1):
        shift = 1 << level
        # Arrays that get shorter: wrapping around instead triples the time of a large map.
        here = lax.slice_in_dim(x, 0, x.shape[axis] - shift, axis=axis)
        shifted = lax.slice_in_dim(x, shift, None, axis=axis)
        # Unlike jnp.maximum, this passes all of the gradient to the first of two equals.
        x = jnp.where(here >= shifted, here, shifted)
        config = [(0, 0, 0)] * x.ndim
        config[axis] = (0, extent - x.shape[axis], 0)
        levels.append(lax.pad(x, jnp.zeros((), x.dtype), config))
    return levels


@jax.custom_vjp
def _gather_maxima(table, rows, empty):
    """Return the maximum f32[M, C] of the rows i32[4, M] of table f32[T, C]; 0 where `empty`."""
    return _gather_maxima_forward(table, rows, empty)[0]


def _gather_maxima_forward(table, rows, empty):
    best = table.at[rows[0]].get(mode="promise_in_bounds")
    choice = jnp.zeros(best.shape, jnp.int8)
    for corner in range(1, 4):
        value = table.at[rows[corner]].get(mode="promise_in_bounds")
        higher = value > best
        best = jnp.where(higher, value, best)
        choice = jnp.where(higher, jnp.int8(corner), choice)
    empty = empty[:, None]
    return jnp.where(empty, 0, best), (jnp.where(empty, -1, choice), rows, table[:, :0])


def _gather_maxima_backward(residuals, cotangent):
    choice, rows, table = residuals
    gradient = jnp.zeros((table.shape[0], cotangent.shape[1]), cotangent.dtype)

    def add(gradient, part):
        # Rows of C channels scatter an order of magnitude faster than single channels do.
        choice, rows, cotangent = part
        updates = [jnp.where(choice == corner, cotangent, 0) for corner in range(4)]
        scatter = gradient.at[rows.reshape(-1)]
        return scatter.add(jnp.concatenate(updates), mode="promise_in_bounds"), None

    count, channels = choice.shape
    chunks = -(-count // _CHUNK)
    if chunks <= 1:
        return add(gradient, (choice, rows, cotangent))[0], None, None
    length = -(-count // chunks)
    padding = (0, chunks * length - count)
    choice = jnp.pad(choice, (padding, (0, 0)), constant_values=-1)
    cotangent = jnp.pad(cotangent, (padding, (0, 0)))
    rows = jnp.pad(rows, ((0, 0), padding)).reshape(4, chunks, length).swapaxes(0, 1)
    parts = (
        choice.reshape(chunks, length, channels),
        rows,
        cotangent.reshape(chunks, length, channels),
    )
    return lax.scan(add, gradient, parts)[0], None, None


_gather_maxima.defvjp(_gather_maxima_forward, _gather_maxima_backward)


def max_windows(features: Float[Array, "H W C"], *, size: int) -> Float[jax.Array, "K L H W C"]:
    """Return the maxima over all windows of 2^k x 2^l cells that bins of `roi_max_pool` need.

    Args:
      features: f32[H, W, C].
      size: P.

    Returns:
      f32[K, L, H, W, C]: at [k, l, y, x] that of the window which begins at cell (y, x), and zeros
      where it would reach over the end.

    Raises:
      ValueError: where `features` has another number of axes.
    """
    if features.ndim != 3:
        raise UserError(f"features has shape {features.shape}, expected [H, W, C]")
    row_levels, column_levels = (
        _limits(extent, size)[1].bit_length() for extent in features.shape[:2]
    )
    return jnp.stack(
        [
            jnp.stack(_doubled(strips, column_levels, axis=1))
            for strips in _doubled(features, row_levels, axis=0)
        ]
    )


def pool_windows(
    windows: Float[Array, "K L H W C"], boxes: Float[Array, "R 4"], *, size: int, scale: float
) -> Float[jax.Array, "R {size} {size} C"]:
    """Return `roi_max_pool` of a map from its `max_windows`.

    This lets callers pool the regions of one map in several parts.

    Args:
      windows: f32[K, L, H, W, C].
      boxes: f32[R, 4].
      size: P.
      scale: cells per pixel.

    Returns:
      f32[R, P, P, C].

    Raises:
      ValueError: where `boxes` is no list of boxes.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise UserError(f"boxes has shape {boxes.shape}, expected [R, 4]")
    _, column_levels, height, width, channels = windows.shape
    boxes = lax.stop_gradient(boxes)
    tops, row_level, row_empty = _bins_along(boxes[:, 1], boxes[:, 3], scale, size, height)
    lefts, column_level, column_empty = _bins_along(boxes[:, 0], boxes[:, 2], scale, size, width)
    level = row_level[:, :, None] * column_levels + column_level[:, None, :]
    rows = [
        ((level * height + top[:, :, None]) * width + left[:, None, :]).reshape(-1)
        for top in tops
        for left in lefts
    ]
    empty = row_empty[:, :, None] | column_empty[:, None, :]
    table = windows.reshape(-1, channels)
    pooled = _gather_maxima(table, jnp.stack(rows), empty.reshape(-1))
    return pooled.reshape(boxes.shape[0], size, size, channels)


def roi_max_pool(
    features: Float[Array, "H W C"], boxes: Float[Array, "R 4"], *, size: int, scale: float
) -> Float[jax.Array, "R {size} {size} C"]:
    """Divide each region into size x size bins and take the maximum of each.

    Corners round to cells by floor(scale * x + 0.5). A region of n cells has bins from
    floor(p * n / size) to ceil((p + 1) * n / size) along each axis, the division in float32; they
    overlap by up to a cell. A bin that lies outside the map is 0.

    The cell with the maximum gets the bin's gradient; no gradient passes to `boxes`. Between
    exactly equal cells Caffe takes the first in row order, this function one of them: in a map
    that ends with a ReLU, equals are zeros, where no gradient passes.

    Args:
      features: f32[H, W, C].
      boxes: f32[R, 4], regions in pixels. A side of more than twice the map's counts as one of
        twice and one cell; boxes clipped to the image never have one.
      size: P.
      scale: cells per pixel: the inverse of the map's stride.

    Returns:
      f32[R, P, P, C].

    Raises:
      ValueError: where a shape is not as above.

    Reference: Caffe's ROIPoolingLayer (Girshick, Fast R-CNN, ICCV 2015).
    """
    return pool_windows(max_windows(features, size=size), boxes, size=size, scale=scale)
