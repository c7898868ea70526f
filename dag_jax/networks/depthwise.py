"""Convolution of each channel by itself, as sums of shifted products.

On CPU, XLA's grouped convolution with one channel a group takes up to a hundred times as long as
its arithmetic needs, and its gradient longer still. K x K products of shifted maps do not: XLA
fuses them into one loop over the channels.

Shapes: `*B` no axis or one batch axis, `H W` cells, `C` channels, `K` kernel size.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def _shifted(x, kernel, taps, shape, stride):
    """Return the sum over (row, column, place in the kernel) of `taps` of shifted products."""
    height, width = shape
    y = jnp.zeros((), jnp.float32)
    for row, column, place in taps:
        first = (0,) * (x.ndim - 3) + (row, column, 0)
        last = (row + stride * (height - 1) + 1, column + stride * (width - 1) + 1, x.shape[-1])
        steps = (1,) * (x.ndim - 3) + (stride, stride, 1)
        view = lax.slice(x, first, x.shape[:-3] + last, steps)
        y += view * kernel[place].reshape((1,) * (x.ndim - 1) + (-1,))
    return y


def _pad(x, rows, columns):
    """Pad with zeros, or crop where a number is negative; XLA keeps the result as an array."""
    config = [(0, 0, 0)] * (x.ndim - 3) + [(*rows, 0), (*columns, 0), (0, 0, 0)]
    # Fused into the loop, the padding would be asked for at each product.
    return lax.optimization_barrier(lax.pad(x, jnp.zeros((), x.dtype), config))


def _extent(side, size, stride, padding, dilation):
    return (side + 2 * padding - dilation * (size - 1) - 1) // stride + 1


def _correlate(x, kernel, stride, padding, dilation):
    size = kernel.shape[0]
    shape = tuple(_extent(side, size, stride, padding, dilation) for side in x.shape[-3:-1])
    taps = [(dilation * i, dilation * j, (i, j)) for i in range(size) for j in range(size)]
    return _shifted(_pad(x, *((padding, padding),) * 2), kernel, taps, shape, stride)


_convolve = jax.custom_vjp(_correlate, nondiff_argnums=(2, 3, 4))


def _forward(x, kernel, stride, padding, dilation):
    return _correlate(x, kernel, stride, padding, dilation), (x, kernel)


def _backward(stride, padding, dilation, residuals, cotangent):
    x, kernel = residuals
    size, reach = kernel.shape[0], dilation * (kernel.shape[0] - 1)
    # Row q of the padded map is read by output (q - dilation i) / stride at place i, where that is
    # whole: rows of each remainder by the stride have places of their own.
    blocks = [-(-(side + 2 * padding) // stride) for side in x.shape[-3:-1]]
    before = -(-reach // stride)
    sides = zip(blocks, cotangent.shape[-3:-1], strict=True)
    spread = _pad(cotangent, *((before, block - cells) for block, cells in sides))
    taps: list[list] = [[] for _ in range(stride)]  # (first of `spread`, place) by remainder
    for phase, i in np.ndindex(stride, size):
        block, remainder = divmod(phase - dilation * i, stride)
        if not remainder:
            taps[phase].append((before + block, i))
    shape = (*x.shape[:-3], *blocks, x.shape[-1])
    rows = []
    for down in taps:
        columns = []
        for right in taps:
            places = [(row, column, (i, j)) for row, i in down for column, j in right]
            part = _shifted(spread, kernel, places, blocks, 1)
            columns.append(jnp.broadcast_to(part, shape))
        rows.append(jnp.stack(columns, axis=-2))
    gradient = jnp.stack(rows, axis=-4)
    sides = (block * stride for block in blocks)
    gradient = gradient.reshape(*x.shape[:-3], *sides, x.shape[-1])
    gradient = gradient[..., padding : padding + x.shape[-3], padding : padding + x.shape[-2], :]
    # Only training uses the kernel's gradient; an attack's compiler drops it.
    _, pull = jax.vjp(lambda weights: _correlate(x, weights, stride, padding, dilation), kernel)
    return gradient.astype(x.dtype), pull(cotangent)[0]


_convolve.defvjp(_forward, _backward)


def convolve(x, kernel, *, stride: int = 1, padding: int = 0, dilation: int = 1):
    """Correlate each channel with a kernel of its own.

    Args:
      x: f32[*B, H, W, C].
      kernel: f32[K, K, C].
      stride: cells between two outputs.
      padding: zero cells added on each side.
      dilation: cells between two that the kernel reads.

    Returns:
      f32[*B, (H + 2 padding - dilation (K - 1) - 1) // stride + 1, ..., C].
    """
    return _convolve(x, kernel, stride, padding, dilation)
