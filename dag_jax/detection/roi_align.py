"""RoIAlign on a pyramid of maps: bilinear samples of each region, from the map for its size.

Shapes: `R` regions, `P Q` bins down and along a region, `S` samples along a bin's side, `L` maps,
`H W` cells of a map, `C` channels, `M` = R * P * Q bins.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int, Int32

from dag_jax.arrays import Array
from dag_jax.detection.boxes import boxes_to_edges
from dag_jax.errors import UserError


def pyramid_levels(
    boxes: Float[Array, "R 4"], count: int, *, first: int = 2
) -> Int32[jax.Array, " R"]:
    """Return the pyramid map that each region is pooled from.

    A region of w x h pixels is of level floor(4 + log2(sqrt(w h) / 224) + 1e-6), or of the nearest
    level that exists. torchvision's 1e-6 keeps a region of 224 at its level if rounding made it
    slightly smaller.

    Args:
      boxes: f32[R, 4], regions in pixels of what the pyramid was computed of.
      count: L.
      first: level of the finest map, whose stride is 2**first pixels.

    Returns:
      i32[R], from 0, the finest map.

    Raises:
      ValueError: where `boxes` is no list of boxes.

    Reference: Lin, Dollár, Girshick, He, Hariharan, Belongie, Feature Pyramid Networks for Object
    Detection, CVPR 2017, equation 1.
    """
    edges = boxes_to_edges(lax.stop_gradient(boxes))
    sides = edges[:, 2:] - edges[:, :2]
    length = jnp.sqrt(sides[:, 0] * sides[:, 1])
    # Without the logarithm, whose last bit XLA and PyTorch do not share.
    starts = 224 * np.exp2(np.arange(first + 1, first + count) - 4 - 1e-6)
    return jnp.sum(length[:, None] >= starts.astype(np.float32)[None], axis=1, dtype=jnp.int32)


def _taps(first, last, extent, bins, samples, shortest):
    """Place the samples of each region along one axis.

    Args:
      first: f32[R], first edge of each region, in cells.
      last: f32[R], last edge.
      extent: i32[R], cells of the region's map along this axis.
      bins: P or Q.
      samples: S.
      shortest: cells that a region has at least.

    Returns:
      places: i32[R, bins, 2 S], the two cells that each sample lies between.
      weights: f32[R, bins, 2 S], the weights of these cells in a bin's mean.
    """
    length = jnp.maximum(last - first, shortest)
    steps = ((np.arange(bins * samples) + 0.5) / (bins * samples)).astype(first.dtype)
    place = first[:, None] + length[:, None] * steps[None]
    extent = extent[:, None]
    inside = (place >= -1) & (place <= extent.astype(place.dtype))
    place = jnp.maximum(place, 0)
    low = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, extent - 1)
    share = jnp.minimum(place - low.astype(place.dtype), 1)  # beyond the last cell both are that
    weights = jnp.stack([1 - share, share], axis=-1)
    weights = jnp.where(inside[..., None], weights / samples, 0)
    places = jnp.stack([low, jnp.minimum(low + 1, extent - 1)], axis=-1)
    shape = (len(first), bins, 2 * samples)
    return places.reshape(shape), weights.reshape(shape)


def roi_align(
    maps: Sequence[Float[Array, "_ _ C"]],
    boxes: Float[Array, "R 4"],
    levels: Int[Array, " R"],
    cells: Int[Array, "L 2"] | Sequence[tuple[int, int]] | None = None,
    *,
    size: int | tuple[int, int],
    scales: Sequence[float],
    samples: int = 2,
    aligned: bool = False,
) -> Float[jax.Array, "R _ _ C"]:
    """Divide each region into P x Q bins and take the mean of each bin's samples.

    A region goes from edge x0 to edge x1 + 1, times its map's scale, without any rounding, and is
    at least a cell wide. Each bin has samples x samples points, evenly spread; a point's value is
    bilinear between the four cells around it, where cell j lies at j, not at j + 1/2. The border
    is continued for one cell; what lies further out is 0. No gradient passes to `boxes`.

    Args:
      maps: L maps f32[H, W, C].
      boxes: f32[R, 4], regions in pixels.
      levels: i32[R], the map of each region.
      cells: i32[L, 2], the rows and columns that are each map, at its top left; None for all.
      size: P and Q, or what both are.
      scales: of each map, cells per pixel: the inverse of its stride.
      samples: S.
      aligned: cell j lies at j + 1/2 after all, and a region is as narrow as it is.

    Returns:
      f32[R, P, Q, C].

    Raises:
      ValueError: where a shape is not as above.

    Reference: He, Gkioxari, Dollár, Girshick, Mask R-CNN, ICCV 2017; torchvision.ops.roi_align,
    whose detectors were trained with aligned=False.
    """
    if any(each.ndim != 3 for each in maps) or len(scales) != len(maps):
        known = ", ".join(str(each.shape) for each in maps)
        raise UserError(
            f"maps have shapes {known}, scales are {len(scales)}; each map is [H, W, C] and has one"
        )
    if boxes.shape != (*levels.shape, 4):
        raise UserError(f"boxes has shape {boxes.shape}, levels {levels.shape}: they must agree")
    boxes = lax.stop_gradient(boxes)
    channels = maps[0].shape[2]
    shapes = np.array([each.shape[:2] for each in maps], np.int32)
    extents = jnp.asarray(shapes if cells is None else cells).astype(jnp.int32)[levels]
    scale = jnp.asarray(scales, boxes.dtype)[levels][:, None]
    edges = boxes_to_edges(boxes) * scale - (0.5 if aligned else 0)
    shortest = 0 if aligned else 1
    rows, columns = (size, size) if isinstance(size, int) else size
    tops, down = _taps(edges[:, 1], edges[:, 3], extents[:, 0], rows, samples, shortest)
    lefts, along = _taps(edges[:, 0], edges[:, 2], extents[:, 1], columns, samples, shortest)
    starts = np.cumsum([0, *shapes.prod(axis=1)[:-1]], dtype=np.int32)
    tops = (
        jnp.asarray(starts)[levels][:, None, None]
        + tops * jnp.asarray(shapes[:, 1])[levels][:, None, None]
    )
    places = tops[:, :, None, :, None] + lefts[:, None, :, None, :]  # [R, P, Q, 2 S, 2 S]
    weights = down[:, :, None, :, None] * along[:, None, :, None, :]
    # One gather of whole rows of channels: its gradient is one sum into the table.
    table = jnp.concatenate([each.reshape(-1, channels) for each in maps])
    count = 4 * samples * samples
    values = table.at[places.reshape(-1, count)].get(mode="promise_in_bounds")
    pooled = jnp.einsum("mk,mkc->mc", weights.reshape(-1, count).astype(table.dtype), values)
    return pooled.reshape(boxes.shape[0], rows, columns, channels)
