"""Where the cells of a map lie in the image, and how many of them are the image's.

Images of many sizes go through few compiled shapes: each is padded, below and on the right, to a
shape that it shares with others. Without care the padding would change the result: where the image
alone has a border of zeros, the next layer would see what the last one made of the padding. So each
map carries the number of cells that the image alone would have, and after every layer the cells
beyond them are set back to zero.

Shapes: `*B` no axis or one batch axis, `H W` cells of a map, `C` channels.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dag_jax.errors import UserError
from dag_jax.networks import operations


class Grid(NamedTuple):
    """The cells of a map: cell j is centred at pixel `stride * j + origin`, along both axes.

    The numbers of rows and columns are ints where a map holds nothing but the image, and traced
    i32[] where padding follows.
    """

    stride: float
    origin: float
    rows: int | jax.Array
    columns: int | jax.Array

    def convolved(self, kernel_size: int, stride: int = 1, padding: int = 0) -> "Grid":
        """Return the grid after a convolution."""
        return self._strided(operations.convolved_extent, kernel_size, stride, padding)

    def pooled(self, size: int, stride: int, padding: int = 0) -> "Grid":
        """Return the grid after a pool, whose last window may reach over the end."""
        return self._strided(operations.pooled_extent, size, stride, padding)

    def _strided(self, extent, size, stride, padding):
        shift = self.stride * ((size - 1) / 2 - padding)
        sides = (extent(side, size, stride, padding) for side in (self.rows, self.columns))
        return Grid(self.stride * stride, self.origin + shift, *sides)

    def upsampled(self, kernel_size: int, stride: int) -> "Grid":
        """Return the grid after a transposed convolution."""
        fine = self.stride / stride
        sides = ((side - 1) * stride + kernel_size for side in (self.rows, self.columns))
        return Grid(fine, self.origin - fine * (kernel_size - 1) / 2, *sides)

    def offset(self, target: "Grid") -> int:
        """Return which cell of this grid is cell 0 of `target` (Caffe's crop offset)."""
        return round((target.origin - self.origin) / self.stride)

    def cropped(self, offset: int, target: "Grid") -> "Grid":
        """Return the grid from cell `offset` on, no longer than `target`."""
        sides = (
            _least(axis - offset, target_axis)
            for axis, target_axis in ((self.rows, target.rows), (self.columns, target.columns))
        )
        return Grid(self.stride, self.origin + offset * self.stride, *sides)

    def cut(self, x):
        """Return f32[*B, H, W, C] with zeros where `x` has padding."""
        inside = None
        for axis, side in ((x.ndim - 3, self.rows), (x.ndim - 2, self.columns)):
            if not isinstance(side, int):
                within = lax.broadcasted_iota(jnp.int32, x.shape, axis) < side
                inside = within if inside is None else inside & within
        return x if inside is None else jnp.where(inside, x, 0)


class Map(NamedTuple):
    """A map and its grid."""

    cells: jax.Array  # f32[*B, H, W, C], zero beyond the grid
    grid: Grid


def _least(a, b):
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else jnp.minimum(a, b)


def pixels(shape: tuple[int, ...], extent=None) -> Grid:
    """Return the grid of an image.

    Args:
      shape: (*B, H, W, C) of the image's array.
      extent: i32[2], the rows and columns that are the image, at the top left; None for all. It is
        one image's: `vmap` gives each its own.

    Raises:
      ValueError: where `extent` is not two whole numbers, or, if they are known while tracing,
        does not lie in the array.
    """
    if extent is None:
        return Grid(1, 0, *shape[-3:-1])
    if np.shape(extent) != (2,) or not jnp.issubdtype(jnp.result_type(extent), jnp.integer):
        raise UserError(
            f"extent is {jnp.result_type(extent)}{list(np.shape(extent))}; it must be i32[2], the "
            "rows and columns of one image"
        )
    if not isinstance(extent, jax.core.Tracer):
        rows, columns = (int(side) for side in extent)
        height, width = shape[-3:-1]
        if not (1 <= rows <= height and 1 <= columns <= width):
            raise UserError(
                f"extent {(rows, columns)} does not lie in an array of {height} x {width} pixels"
            )
        extent = np.array([rows, columns], np.int32)
    return Grid(1, 0, *jnp.asarray(extent).astype(jnp.int32))


def poison(x, grid: Grid):
    """Return NaN where a grid does not lie in its array, f32[*B, H, W, C]; `x` where it does.

    Traced numbers cannot raise; an attack that meets a NaN says so by its status.
    """
    sides = ((grid.rows, x.shape[-3]), (grid.columns, x.shape[-2]))
    traced = [(side, length) for side, length in sides if not isinstance(side, int)]
    if not traced:
        return x
    fits = [(side >= 1) & (side <= length) for side, length in traced]
    return jnp.where(functools.reduce(jnp.logical_and, fits), x, jnp.nan)
