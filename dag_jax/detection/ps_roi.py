"""Position-sensitive region pooling and its vote, the head of R-FCN.

Shapes: `R` regions, `P` bins along a region's side, `H W` cells of a map, `D` outputs.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int

from dag_jax.arrays import Array
from dag_jax.errors import UserError


def _edge_table(size, scale, longest):
    """Return f32[longest + 1, P + 1]: where the bins of a side of n pixels lie, in cells.

    Caffe computes them in float32; a last bit more takes another cell in. XLA would multiply by the
    reciprocal of P, and fuse: hence a NumPy table.
    """
    sides = np.arange(longest + 1, dtype=np.float32)[:, None] * np.float32(scale)
    bins = np.maximum(sides, np.float32(0.1)) / np.float32(size)  # Caffe's least side
    return np.arange(size + 1, dtype=np.float32)[None, :] * bins


def _shares(first, last, extent, cells, size, scale):
    """Return f32[R, P, extent]: 1 / n at the n cells of each bin of a side, zeros elsewhere."""
    longest = int(2 * extent / scale) + 1
    first = jnp.floor(first + 0.5)
    length = jnp.clip(jnp.floor(last + 0.5) + 1 - first, 0, longest).astype(jnp.int32)
    edges = jnp.asarray(_edge_table(size, scale, longest))[length] + (first * scale)[:, None]
    begin = jnp.clip(jnp.floor(edges[:, :-1]), 0, cells)[..., None]
    end = jnp.clip(jnp.ceil(edges[:, 1:]), 0, cells)[..., None]
    place = jnp.arange(extent, dtype=jnp.float32)[None, None, :]
    inside = (place >= begin) & (place < end)
    return jnp.where(inside, 1 / jnp.maximum(end - begin, 1), 0)


def ps_roi_vote(
    features: Float[Array, "H W K"],
    boxes: Float[Array, "R 4"],
    cells: Int[Array, "2"] | tuple[int, int] | None = None,
    *,
    size: int,
    scale: float,
) -> Float[jax.Array, "R D"]:
    """Average each bin of a region over the bin's own channels, then average the bins.

    Output d of a region is the mean over its size x size bins (i, j) of the mean over the bin's
    cells of channel (d * size + i) * size + j. Corners round to whole pixels; a region from x0 to
    x1 has bins from floor(p * w + scale * x0) to ceil((p + 1) * w + scale * x0) along each axis,
    w = scale * (x1 + 1 - x0) / size. A bin that has no cell of the map counts as 0. No gradient
    passes to `boxes`.

    Both means are sums with weights that fall into one of rows and one of columns, so this is a
    matrix product, as is its gradient.

    Args:
      features: f32[H, W, D * size * size].
      boxes: f32[R, 4], regions in pixels.
      cells: the rows and columns that are the map, at its top left; None for all of them.
      size: P.
      scale: cells per pixel: the inverse of the map's stride.

    Returns:
      f32[R, D].

    Raises:
      ValueError: where a shape is not as above.

    Reference: Dai, Li, He, Sun, R-FCN, NIPS 2016; the PSROIPooling and average Pooling layers of
    Microsoft's Caffe.
    """
    if features.ndim != 3 or features.shape[2] % size**2:
        raise UserError(
            f"features has shape {features.shape}, expected [H, W, D * {size} * {size}]"
        )
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise UserError(f"boxes has shape {boxes.shape}, expected [R, 4]")
    height, width, channels = features.shape
    rows, columns = jnp.asarray((height, width) if cells is None else cells).astype(jnp.float32)
    boxes = lax.stop_gradient(boxes)
    down = _shares(boxes[:, 1], boxes[:, 3], height, rows, size, scale)
    along = _shares(boxes[:, 0], boxes[:, 2], width, columns, size, scale)
    maps = features.reshape(height, width, channels // size**2, size, size)
    sums = jnp.einsum("rjw,hwdij->rhdi", along, maps)
    return jnp.einsum("rih,rhdi->rd", down, sums) / size**2
