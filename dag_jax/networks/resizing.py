"""Maps scaled bilinearly, and cells repeated.

Shapes: `*B` no axis or one batch axis, `h w` cells, `H W` pixels, `C` channels.
"""

import functools

import jax
import jax.numpy as jnp

from dag_jax.networks import operations


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _mix(x, pairs, share, axis):
    """Mix the cells pairs[0] and pairs[1] of an axis by 1 - share and share, f32[size]."""
    # A product with a matrix of the weights takes fifty times as long for few channels.
    first, second = (
        jnp.take(x, place, axis=axis, mode="clip", indices_are_sorted=True) for place in pairs
    )
    share = jnp.expand_dims(share, [place for place in range(x.ndim) if place != axis])
    return first * (1 - share) + second * share


def _mix_forward(x, pairs, share, axis):
    return _mix(x, pairs, share, axis), (jnp.zeros(x.shape[axis], bool), pairs, share)


def _mix_backward(axis, residuals, cotangent):
    cells, pairs, share = residuals
    # Here the product is as fast as a sum into the cells, whose order a GPU would not keep.
    cells = jnp.arange(cells.size)[:, None]
    weights = zip(pairs, (1 - share, share), strict=True)
    matrix = sum(
        jnp.where(place[None, :] == cells, weight[None, :], 0) for place, weight in weights
    )
    cotangent = jnp.moveaxis(cotangent, axis, 0)
    x = jnp.matmul(matrix, cotangent.reshape(cotangent.shape[0], -1), precision=operations.EXACT)
    return jnp.moveaxis(x.reshape(-1, *cotangent.shape[1:]), 0, axis), None, None


_mix.defvjp(_mix_forward, _mix_backward)


def _interpolate(x, axis, size, ratio, extent):
    """Scale one axis to `size` pixels, of which each is read from two."""
    numerator, denominator = ratio
    # Pixel i is at (i + 1/2) denominator / numerator - 1/2, in whole numbers as far as it goes:
    # float32 would misplace the last pixels of a long side.
    places = (2 * jnp.arange(size) + 1) * denominator - numerator
    first, remainder = places // (2 * numerator), places % (2 * numerator)
    share = remainder.astype(jnp.float32) / jnp.asarray(2 * numerator, jnp.float32)
    pairs = [jnp.clip(place, 0, extent - 1) for place in (first, first + 1)]
    return _mix(x, pairs, share, axis)


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

    def scale(batch):
        for axis in (0, 1):
            batch = _interpolate(batch, axis + 1, shape[axis], ratios[axis], extent[axis])
        return batch

    return operations.batched(scale, x)


def enlarge(x, times: int):
    """Return f32[*B, times H, times W, C]: f32[*B, H, W, C] with each cell repeated."""
    *batch, height, width, channels = x.shape
    shape = (*batch, height, times, width, times, channels)
    x = jnp.broadcast_to(x[..., :, None, :, None, :], shape)
    return x.reshape(*batch, height * times, width * times, channels)
