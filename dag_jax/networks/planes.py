"""What networks of depthwise and grouped convolutions do to planes, with fast gradients.

Shapes: `B` images, `C` channels, `H W` cells, `G` groups.

Arrays are channels-first: a depthwise kernel is then one number for each tap and plane, whose sum
XLA vectorises along a row; a grouped 1x1 convolution is a batched product without a transposition;
what is concatenated is contiguous. XLA's own grouped convolution takes ten times as long on CPU,
its gradient more.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_TAPS = tuple(np.ndindex(3, 3))


def _per_plane(numbers):
    """Return [C] as [C, 1, 1]."""
    return numbers[:, None, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x, kernel, dilation):
    height, width = x.shape[2:]
    around = ((dilation, dilation),) * 2
    padded = jnp.pad(x, ((0, 0), (0, 0), *around))
    return sum(
        padded[..., i * dilation :, j * dilation :][..., :height, :width]
        * kernel[i, j][None, :, None, None]
        for i, j in _TAPS
    )


def _depthwise_forward(x, kernel, dilation):
    return _depthwise(x, kernel, dilation), (x, kernel)


def _depthwise_backward(dilation, residuals, cotangent):
    # The transposed sum of slices, as XLA has it from JAX, tests each cell for the padding.
    x, kernel = residuals
    height, width = x.shape[2:]
    padded = jnp.pad(x, ((0, 0), (0, 0), *((dilation, dilation),) * 2))
    kernel_gradient = jnp.stack(
        [
            jnp.sum(
                padded[..., i * dilation :, j * dilation :][..., :height, :width] * cotangent,
                axis=(0, 2, 3),
            )
            for i, j in _TAPS
        ]
    )
    return (
        _depthwise(cotangent, kernel[::-1, ::-1], dilation),
        kernel_gradient.reshape(kernel.shape),
    )


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def depthwise(x, kernel, *, dilation: int = 1, stride: int = 1):
    """Correlate each plane with a 3x3 kernel of its own; the border is padded by zeros.

    Args:
      x: f32[B, C, H, W].
      kernel: f32[3, 3, 1, C].
      dilation: cells between two that the kernel reads.
      stride: cells between two outputs.

    Returns:
      f32[B, C, ceil(H / stride), ceil(W / stride)].
    """
    y = _depthwise(x, kernel[:, :, 0], dilation)
    return y[..., ::stride, ::stride]


def pointwise(x, kernel, *, groups: int = 1):
    """Correlate planes with a 1x1 kernel, group by group.

    Args:
      x: f32[B, C, H, W].
      kernel: f32[1, 1, C / G, D].
      groups: G.

    Returns:
      f32[B, D, H, W].
    """
    batch, channels, height, width = x.shape
    each, features = kernel.shape[2:]
    kernel = kernel.reshape(each, groups, features // groups).transpose(1, 2, 0)
    cells = x.reshape(batch, groups, each, height * width)
    kernel = jnp.broadcast_to(kernel, (batch, *kernel.shape))
    return (kernel @ cells).reshape(batch, features, height, width)


def convolve(x, kernel, *, groups: int = 1, stride: int = 1):
    """Correlate planes with a 3x3 kernel, group by group; the border is padded by zeros.

    Args:
      x: f32[B, C, H, W].
      kernel: f32[3, 3, C / G, D].
      groups: G.
      stride: cells between two outputs.

    Returns:
      f32[B, D, ceil(H / stride), ceil(W / stride)].
    """
    height, width = x.shape[2:]
    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return sum(
        pointwise(
            padded[..., i : i + height : stride, j : j + width : stride],
            kernel[i : i + 1, j : j + 1],
            groups=groups,
        )
        for i, j in _TAPS
    )


def prelu(x, slope):
    """Return max(x, 0) + slope min(x, 0) of f32[B, C, H, W] and f32[C]."""
    return x * jnp.where(x > 0, jnp.float32(1), slope[None, :, None, None])


def resize(x, rows, columns):
    """Return rows @ plane @ columns.T of each plane.

    Args:
      x: f32[B, C, H, W].
      rows: f32[H', H].
      columns: f32[W', W].

    Returns:
      f32[B, C, H', W'].
    """
    batch, channels, height, width = x.shape
    y = x.reshape(batch * channels * height, width) @ columns.T
    y = y.reshape(batch, channels, height, -1)
    return jnp.broadcast_to(rows, (batch, channels, *rows.shape)) @ y


def corners_matrix(size: int, cells: int):
    """Return NumPy f32[size, cells] of PyTorch's bilinear resize with align_corners."""
    places = np.arange(size) * ((cells - 1) / max(size - 1, 1))
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(cells))).astype(np.float32)


def average_matrix(size: int, cells: int):
    """Return NumPy f32[size, cells] of PyTorch's adaptive average pooling."""
    out, cell = np.arange(size)[:, None], np.arange(cells)[None, :]
    inside = (cell >= out * cells // size) & (cell < -(-(out + 1) * cells // size))
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)


def antialiased_matrix(size: int, cells: int, extent):
    """Return f32[size, cells] of Pillow's bilinear resize, which blurs where it shrinks.

    Args:
      size: of the result.
      cells: of the array that is read.
      extent: int or i32[], how many of them are the image.
    """
    extent = jnp.asarray(extent, jnp.int32)
    cell = jnp.arange(cells, dtype=jnp.int32)[None, :]
    # Twice the distance of (cell + 1/2) size from (out + 1/2) extent, in whole numbers.
    away = (2 * cell + 1) * size - ((2 * jnp.arange(size, dtype=jnp.int32) + 1) * extent)[:, None]
    reach = 2 * jnp.maximum(extent, size)
    weight = jnp.maximum(0, 1 - jnp.abs(away).astype(jnp.float32) / reach.astype(jnp.float32))
    weight = jnp.where(cell < extent, weight, 0)
    return weight / jnp.sum(weight, axis=1, keepdims=True)


def nearest_corners_matrix(pixels: int, size: int, cells: int, extent):
    """Return f32[pixels, cells]: `corners_matrix` to `size`, and to `extent` by nearest neighbours.

    Rows beyond the extent are zero.
    """
    extent = jnp.asarray(extent, jnp.int32)
    pixel = jnp.arange(pixels, dtype=jnp.int32)
    middle = jnp.minimum(lax.div((2 * pixel + 1) * size, 2 * extent), size - 1)
    place = middle * (cells - 1)
    first = lax.div(place, jnp.int32(size - 1))
    rest = (place - first * (size - 1)).astype(jnp.float32) / np.float32(size - 1)
    cell = jnp.arange(cells, dtype=jnp.int32)[None, :]
    matrix = jnp.where(cell == first[:, None], 1 - rest[:, None], 0)
    matrix += jnp.where(cell == first[:, None] + 1, rest[:, None], 0)
    return jnp.where(pixel[:, None] < extent, matrix, 0)
