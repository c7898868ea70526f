"""Anchors: the boxes that a region proposal network starts from.

Shapes: `A` anchors of a cell, `h w` cells of a feature map.

Anchors depend on sizes alone, so all of this is NumPy: they enter a compiled function as constants
with Caffe's roundings, which XLA's arithmetic would not keep.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32

from dag_jax.errors import UserError

RATIOS = (0.5, 1.0, 2.0)


def generate_anchors(
    sizes: Sequence[float] = (128, 256, 512), *, ratios: Sequence[float] = RATIOS, base: int = 16
) -> Float32[np.ndarray, "A 4"]:
    """Return the anchors of the cell at the origin, ratio by ratio, then size by size.

    The box [0, 0, base - 1, base - 1] is reshaped to each ratio, its sides rounded to whole
    pixels, and then scaled by size / base around its centre. The defaults are py-faster-rcnn's
    nine (base 16, scales 8, 16 and 32); a miniature gives its stride and smaller sizes.

    Args:
      sizes: side of the square anchors, in pixels.
      ratios: height over width.
      base: side of the first box, in pixels: the stride of the map.

    Returns:
      NumPy f32[A, 4], boxes in pixels.

    Raises:
      ValueError: where a size, a ratio or the base is not positive.

    Reference: `generate_anchors` of py-faster-rcnn.
    """
    if min(*sizes, *ratios, base) <= 0:
        raise UserError(f"sizes {sizes}, ratios {ratios} and base {base} should be positive")
    ratio, size = (grid.reshape(-1) for grid in np.meshgrid(ratios, sizes, indexing="ij"))
    width = np.round(np.sqrt(base * base / ratio))
    height = np.round(width * ratio)
    half = (np.stack([width, height], axis=-1) * (size / base)[:, None] - 1) / 2
    centre = (base - 1) / 2
    return np.concatenate([centre - half, centre + half], axis=-1).astype(np.float32)


def centred_anchors(
    sizes: Sequence[float], *, ratios: Sequence[float] = RATIOS
) -> Float32[np.ndarray, "A 4"]:
    """Return anchors around the upper left corner of the first pixel, as torchvision has them.

    They are in the order of `generate_anchors`, and their edges are rounded to whole pixels.

    Args:
      sizes: square root of the area of each anchor, in pixels.
      ratios: height over width.

    Returns:
      NumPy f32[A, 4], boxes in pixels.

    Raises:
      ValueError: where a size or a ratio is not positive.

    Reference: `AnchorGenerator` of torchvision.models.detection, all of it in float32.
    """
    if min(*sizes, *ratios) <= 0:
        raise UserError(f"sizes {sizes} and ratios {ratios} should be positive")
    heights = np.sqrt(np.asarray(ratios, np.float32))[:, None]
    sides = np.asarray(sizes, np.float32)[None, :, None]
    half = np.stack([1 / heights, heights], axis=-1) * sides / 2
    edges = np.round(half.reshape(-1, 2))
    return np.concatenate([-edges, edges - 1], axis=-1)


def tile_anchors(
    anchors: Float[np.ndarray, "A 4"], shape: tuple[int, int], *, stride: int
) -> Float32[np.ndarray, "{shape[0]}*{shape[1]}*A 4"]:
    """Return the anchors of each cell of a map, row by row, cell by cell.

    Args:
      anchors: f32[A, 4], the anchors of the cell at the origin.
      shape: cells (h, w) of the map.
      stride: pixels between two cells.

    Returns:
      NumPy f32[h * w * A, 4], boxes in pixels; many reach over the border.

    Raises:
      ValueError: where `anchors` is no list of boxes.
    """
    if anchors.ndim != 2 or anchors.shape[1] != 4:
        raise UserError(f"anchors has shape {anchors.shape}, expected [A, 4]")
    y, x = np.mgrid[: shape[0], : shape[1]] * stride
    shift = np.stack([x, y, x, y], axis=-1).astype(np.float32)
    return (shift[:, :, None] + anchors[None, None]).reshape(-1, 4)
