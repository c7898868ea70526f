"""Scale maps, make the matrices that maps are scaled by, and repeat cells.

Shapes: `*B` no axis or one batch axis, `h w` cells, `H W` pixels, `C` channels.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dag_jax.networks import operations


def resize(x, shape: tuple[int, int], *, ratios, extent=None):
    """Scale bilinearly, the border continued and without a blur: cv2.resize with fy, fx = ratios.

    Args:
      x: f32[*B, h, w, C].
      shape: pixels (H, W) of the result.
      ratios: (numerator, denominator) of the scale of rows, and that of columns; ints or i32[].
      extent: rows and columns of `x` that are read, at the top left; None for all.

    Returns:
      f32[*B, H, W, C].
    """
    extent = x.shape[-3:-1] if extent is None else extent
    matrices = list(map(scaling_matrix, shape, x.shape[-3:-1], ratios, extent))

    def scale(batch):
        for axis, matrix in enumerate(matrices, 1):
            batch = banded(batch, matrix, taps=(2, None), axis=axis)
        return batch

    return operations.batched(scale, x)


def scaling_matrix(size: int, cells: int, ratio, extent):
    """Return f32[size, cells] of `resize` for one axis; NumPy's where all numbers are ints.

    Args:
      size: of the array of the result.
      cells: of the array that is read.
      ratio: (numerator, denominator) of the scale, ints or i32[].
      extent: int or i32[], how many of the cells are read.
    """
    library = _library(*ratio, extent)
    numerator, denominator, extent = (library.asarray(x, np.int32) for x in (*ratio, extent))
    # Pixel i is at (i + 1/2) denominator / numerator - 1/2, in whole numbers as far as it goes:
    # float32 would misplace the last pixels of a long side.
    place = (2 * np.arange(size, dtype=np.int32) + 1) * denominator - numerator
    first, remainder = place // (2 * numerator), place % (2 * numerator)
    share = (remainder.astype(np.float32) / (2 * numerator).astype(np.float32))[:, None]
    matrix, cell = np.float32(0), np.arange(cells, dtype=np.int32)[None, :]
    for near, weight in ((first, 1 - share), (first + 1, share)):
        near = library.clip(near, 0, extent - 1)[:, None]
        matrix += library.where(near == cell, weight, np.float32(0))
    return matrix


def _bands(matrix, taps):
    """Return i32[P], where each row's first number but 0 is, and f32[P, taps] from there on."""
    library = jnp if isinstance(matrix, jax.Array) else np
    taps = min(taps, matrix.shape[1])
    first = library.minimum(library.argmax(matrix != 0, axis=1), matrix.shape[1] - taps)
    places = first[:, None] + np.arange(taps)[None, :]
    return first.astype(np.int32), library.take_along_axis(matrix, places, axis=1)


def _weigh(x, weights, axis):
    """Multiply an axis by a matrix, or by what `_bands` returns of it."""
    if not isinstance(weights, tuple):
        if axis == x.ndim - 1:
            return jnp.matmul(x, weights.T, precision=operations.EXACT)
        y = jnp.matmul(weights, jnp.moveaxis(x, axis, -2), precision=operations.EXACT)
        return jnp.moveaxis(y, -2, axis)
    first, weights = weights
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    x = x.reshape(math.prod(before), -1, math.prod(after))
    y = sum(
        jnp.take(x, first + tap, axis=1, mode="clip") * weights[None, :, tap, None]
        for tap in range(weights.shape[1])
    )
    return y.reshape(*before, -1, *after)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _product(x, forward, backward, axis):
    del backward
    return _weigh(x, forward, axis)


def _product_forward(x, forward, backward, axis):
    return _weigh(x, forward, axis), backward


def _product_backward(axis, backward, cotangent):
    return _weigh(cotangent, backward, axis), None, None


_product.defvjp(_product_forward, _product_backward)


def banded(x, matrix, *, taps: tuple[int | None, int | None], axis: int):
    """Multiply one axis by a matrix of few numbers that are not 0: a resize's weights.

    Args:
      x: f32[..., h, ...].
      matrix: f32[H, h]; what is not 0 in a row or a column lies in a band. NumPy's where it is
        known while compiling.
      taps: numbers of the longest band of a row, and of a column; with None for a row's the result
        is a product with the whole matrix, with None for a column's its gradient.
      axis: of the h, counted from the front.

    Returns:
      f32[..., H, ...].
    """
    rows, columns = (
        whole if number is None else _bands(whole, number)
        for whole, number in zip((matrix, matrix.T), taps, strict=True)
    )
    return _product(x, rows, columns, axis)


def antialiased_matrix(size: int, cells: int, extent, scaled=None):
    """Return f32[size, cells] of Pillow's bilinear resize, which blurs where it shrinks.

    Args:
      size: of the array of the result.
      cells: of the array that is read.
      extent: int or i32[], how many of them are the image.
      scaled: int or i32[], how many of the result are; None for all. Rows beyond them are zero.
    """
    scaled = size if scaled is None else scaled
    library = _library(extent, scaled)
    extent, scaled = (library.asarray(number, np.int32) for number in (extent, scaled))
    cell, out = np.arange(cells, dtype=np.int32)[None, :], np.arange(size, dtype=np.int32)[:, None]
    # Twice the distance of (cell + 1/2) scaled from (out + 1/2) extent, in whole numbers.
    away = (2 * cell + 1) * scaled - (2 * out + 1) * extent
    reach = 2 * library.maximum(extent, scaled)
    weight = 1 - library.abs(away).astype(np.float32) / reach.astype(np.float32)
    is_read = (cell < extent) & (out < scaled)
    weight = library.where(is_read, library.maximum(np.float32(0), weight), np.float32(0))
    total = weight.sum(axis=1, keepdims=True)
    return weight / library.where(out < scaled, total, np.float32(1))


def _library(*numbers):
    """Return NumPy where all numbers are known while compiling, else JAX's."""
    return jnp if any(isinstance(number, jax.Array) for number in numbers) else np


def nearest_corners_matrix(pixels: int, size: int, cells: int, extent):
    """Return f32[pixels, cells] of `planes.corners_matrix` to `size`, then of nearest neighbours.

    The latter bring `size` to `extent`; rows beyond it are zero. NumPy's where it is an int.
    """
    library = _library(extent)
    divide = np.floor_divide if library is np else lax.div
    extent = library.asarray(extent, np.int32)
    pixel, cell = np.arange(pixels, dtype=np.int32), np.arange(cells, dtype=np.int32)[None, :]
    middle = library.minimum(divide((2 * pixel + 1) * np.int32(size), 2 * extent), size - 1)
    place = middle * np.int32(cells - 1)
    first = divide(place, np.int32(size - 1))
    share = (place - first * np.int32(size - 1)).astype(np.float32) / np.float32(size - 1)
    matrix = library.where(cell == first[:, None], 1 - share[:, None], np.float32(0))
    matrix += library.where(cell == first[:, None] + 1, share[:, None], np.float32(0))
    return library.where(pixel[:, None] < extent, matrix, np.float32(0))


def enlarge(x, times: int):
    """Return f32[*B, times H, times W, C]: f32[*B, H, W, C] with each cell repeated."""
    *batch, height, width, channels = x.shape
    shape = (*batch, height, times, width, times, channels)
    x = jnp.broadcast_to(x[..., :, None, :, None, :], shape)
    return x.reshape(*batch, height * times, width * times, channels)
