"""Caffe's two local response normalisations.

Shapes: `*B` no axis or one batch axis, `H W` cells, `C` channels.

Arrays may be bfloat16 for f32; the sums of squares are float32.
"""

import jax.numpy as jnp
from jax import lax


def _normalise(x, total, scale):
    """Return x / (1 + scale total)^0.75 in the dtype of `x`."""
    root = lax.rsqrt(1 + scale * total)  # by roots: `power` costs several times as much.
    return x * (root * jnp.sqrt(root)).astype(x.dtype)


def across_channels(x, *, size: int = 5, alpha: float = 1e-4):
    """Normalise each cell by its neighbours in channel: x / (1 + alpha / size sum x^2)^0.75.

    Args:
      x: f32[*B, H, W, C].
      size: channels of the window, odd.
      alpha: weight of the window's sum of squares.

    Returns:
      f32[*B, H, W, C].

    Reference: Caffe's LRNLayer (ACROSS_CHANNELS), as CaffeNet has it.
    """
    half = size // 2
    squares = jnp.pad(jnp.square(x.astype(jnp.float32)), [(0, 0)] * (x.ndim - 1) + [(half, half)])
    channels = x.shape[-1]
    total = sum(squares[..., shift : shift + channels] for shift in range(size))
    return _normalise(x, total, alpha / size)


def within_channel(x, *, size: int = 3, alpha: float = 5e-5):
    """Normalise each cell by its neighbours in space: x / (1 + alpha mean x^2)^0.75.

    The mean is over size x size cells; cells outside the map count as zeros.

    Args:
      x: f32[*B, H, W, C].
      size: cells of the window's side, odd.
      alpha: weight of the window's mean of squares.

    Returns:
      f32[*B, H, W, C].

    Reference: Caffe's LRNLayer (WITHIN_CHANNEL), as the ZF of Faster R-CNN has it.
    """
    half = size // 2
    squares = jnp.square(x.astype(jnp.float32))
    squares = jnp.pad(squares, [(0, 0)] * (x.ndim - 3) + [(half, half)] * 2 + [(0, 0)])
    height, width = x.shape[-3:-1]
    rows = jnp.asarray(sum(squares[..., at : at + height, :, :] for at in range(size)))
    total = jnp.asarray(sum(rows[..., at : at + width, :] for at in range(size)))
    return _normalise(x, total, alpha / size**2)
