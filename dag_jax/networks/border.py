"""Compute only the cells that the image reaches; the others of a padded map do not depend on it.

FCN has 100 zeros around the image, and most cells of the first maps see nothing but zeros. The
value of such a cell depends on the weights and on how far it is from the edges of its map. Far from
the edges all are equal; each layer widens the border in which an edge is felt by about a cell. So
one small map, which costs next to nothing to compute, has every value that occurs. A layer then
runs on the window that the image reaches, and looks up the cells that it reads around the window.

Shapes: `*B` no axis or one batch axis, `h w` cells of the window, `n m` cells that are asked for,
`D` the depth of the border, `C` channels.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dag_jax.networks import operations
from dag_jax.networks.grids import Grid, Map

# A window above this part of its map is left: on CPU, anything from 0.75 to 0.9 is as fast
# within what can be measured, and the least leaves the miniature FCN-8s as it was.
_WORTH = 0.75


class Reach(NamedTuple):
    """A map of which only a window is computed, that which the image reaches.

    Where `border` is None the window is the whole map. Else, along an axis, rows 0 to D - 1 of
    `border` are the first D cells of the map, row D is any cell in between, rows D + 1 to 2 D are
    the last D cells, and row 2 D + 1 is zero: what lies outside the map.
    """

    cells: jax.Array  # f32[*B, h, w, C], the window; zero beyond the grid
    first: tuple[int, int]  # row and column of the map at which the window begins
    grid: Grid  # of the map
    array: Grid  # the same for an image that fills its array: ints
    smallest: Grid  # the same for the smallest image that may come: ints
    border: jax.Array | None = None  # f32[2 D + 2, 2 D + 2, C]
    worth: float = _WORTH  # part of a map up to which a window is computed alone

    @classmethod
    def start(cls, x, grid: Grid, *, everywhere: bool = False) -> "Reach":
        """Return the first map: the image, whose window is all of it.

        Args:
          x: f32[*B, H, W, C], the image less its mean; zero beyond the grid.
          grid: the image's.
          everywhere: whether to compute every map as a whole.
        """
        sides = grid.rows, grid.columns
        smallest_sides = (side if isinstance(side, int) else 1 for side in sides)
        array = Grid(grid.stride, grid.origin, *x.shape[-3:-1])
        smallest = Grid(grid.stride, grid.origin, *smallest_sides)
        return cls(x, (0, 0), grid, array, smallest, worth=0 if everywhere else _WORTH)

    def convolved(self, layer, train: bool = False) -> "Reach":
        """Return the map after a `layers.Conv`."""
        geometry = layer.kernel_size, layer.stride, layer.padding

        def run(x, padding=None):
            return layer(x, train, padding)

        return self._after(run, Grid.convolved, geometry)

    def pooled(self, size: int, stride: int) -> "Reach":
        """Return the map after Caffe's max pool.

        No cell may be negative: the zeros outside the map then change no maximum.
        """

        def run(x, _=None):
            return operations.max_pool(x, size=size, stride=stride)

        return self._after(run, Grid.pooled, (size, stride, 0))

    def each(self, function) -> "Reach":
        """Return the map after a function of single cells, f32[*, C] -> f32[*, C]; 0 stays 0."""
        border = None if self.border is None else function(self.border)
        return self._replace(cells=function(self.cells), border=border)

    def astype(self, dtype) -> "Reach":
        """Return the map in another dtype."""
        return self.each(lambda x: x.astype(dtype))

    def whole(self) -> Map:
        """Return the whole map, border and all."""
        if self.border is None:
            return Map(self.cells, self.grid)
        cells = self._read(range(self.array.rows), range(self.array.columns))
        return Map(cells, self.grid)

    def _after(self, run, extend, geometry):
        """Return the map after a layer: `run` of cells, `extend` of grids."""
        grids = self.grid, self.array, self.smallest
        grid, array, smallest = (extend(each, *geometry) for each in grids)
        size, stride, padding = geometry
        depth = 0
        if self.border is not None:
            # The most that either edge is felt. Below, a ceil-mode pool may begin stride - 1 cells
            # later than above.
            depth = (len(self.border) // 2 - 1 + padding + 2 * (stride - 1)) // stride
        spans = [
            _reached(begin, begin + count, size, stride, padding, end)
            for begin, count, end in zip(
                self.first, self.cells.shape[-3:-1], (array.rows, array.columns), strict=True
            )
        ]
        part = math.prod(map(len, spans)) / (array.rows * array.columns)
        # The two edges of an axis need a cell between them that neither is felt at.
        if part > self.worth or min(smallest.rows, smallest.columns) <= 2 * depth:
            x = grid.cut(run(self.whole().cells))
            return Reach(x, (0, 0), grid, array, smallest, worth=self.worth)
        read = [
            range(stride * span.start - padding, stride * (span.stop - 1) - padding + size)
            for span in spans
        ]
        first = tuple(span.start for span in spans)
        x = (
            run(self.cells, self._around(*read))
            if self.border is None
            else run(self._read(*read), 0)
        )
        x = grid._replace(rows=grid.rows - first[0], columns=grid.columns - first[1]).cut(x)
        border = self._border_after(run, grid, depth, geometry)
        return Reach(x, first, grid, array, smallest, border, self.worth)

    def _border_after(self, run, grid, depth, geometry):
        """Return `border` after a layer, `depth` cells deep."""
        size, stride, padding = geometry
        if self.border is None:  # around the image, where all is zero
            y = run(jnp.zeros((size, size, self.cells.shape[-1]), self.cells.dtype), 0)
            return jnp.pad(y, ((0, 1), (0, 1), (0, 0)))
        # The first depth + 1 cells of the result, and its last ones, in one go: what the former
        # read fills whole strides, so that the latter's follow in step.
        strides = depth + -(-size // stride)
        above = np.arange(stride * strides) - padding
        below = np.arange(stride * (depth - 1) + size) - padding
        places = []
        for side in (grid.rows, grid.columns):
            last = stride * (side - depth)
            if isinstance(side, int):
                places.append(np.concatenate([above, below + last]))
            else:
                places.append(jnp.concatenate([jnp.int32(above), jnp.int32(below) + last]))
        y = run(self._look_up(*places), 0)
        for axis in (0, 1):
            ends = (0, depth + 1), (strides, strides + depth)
            y = jnp.concatenate([lax.slice_in_dim(y, *end, axis=axis) for end in ends], axis)
        return jnp.pad(y, ((0, 1), (0, 1), (0, 0)))

    def _look_up(self, rows, columns):
        """Return the values that cells at i32[n] rows and i32[m] columns have out of reach."""
        depth = len(self.border) // 2 - 1
        y = self.border
        for axis, (places, side) in enumerate(
            ((rows, self.grid.rows), (columns, self.grid.columns))
        ):
            is_static = isinstance(side, int) and isinstance(places, np.ndarray)
            xp = np if is_static else jnp
            places = places if is_static else jnp.asarray(places, jnp.int32)
            outside = 2 * depth + 1
            kinds = xp.clip(places - side + outside, xp.minimum(places, depth), outside)
            kinds = xp.where(places < 0, outside, kinds)
            y = jnp.take(y, kinds, axis, mode="clip")
        return y

    def _around(self, rows: range, columns: range):
        """Return the cells from the window's sides to the ends of rows and columns around it."""
        return tuple(
            (begin - places.start, places.stop - begin - count)
            for begin, count, places in zip(
                self.first, self.cells.shape[-3:-1], (rows, columns), strict=True
            )
        )

    def _read(self, rows: range, columns: range):
        """Return the map's cells f32[*B, n, m, C] at rows and columns around the window."""
        height, width = self.cells.shape[-3:-1]
        (top, _), (left, _) = self._around(rows, columns)
        batch = self.cells.shape[:-3]
        ys, xs = np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop)

        def strip(rows, columns):
            y = self._look_up(rows, columns)
            return jnp.broadcast_to(y, (*batch, *y.shape))

        beside = ys[top : top + height]
        x = jnp.concatenate(
            [
                strip(beside, xs[:left]),
                self.cells,
                strip(beside, xs[left + width :]),
            ],
            axis=-2,
        )
        return jnp.concatenate([strip(ys[:top], xs), x, strip(ys[top + height :], xs)], axis=-3)


def _reached(begin, end, size, stride, padding, cells):
    """Return the outputs, of `cells` along an axis, that read any of the inputs [begin, end)."""
    first = -(-(begin + padding - size + 1) // stride)
    last = (end - 1 + padding) // stride
    return range(max(0, first), min(cells, last + 1))
