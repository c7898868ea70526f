"""The plain XLA forms of what `dag_jax.networks` does in another way because it is faster.

Equal to ours in value and gradient; the tests say so, and the benchmark says what they cost.

Shapes: `B` images, `H W` pixels or cells, `C D` channels, `K` kernel size.
"""

import jax
import jax.numpy as jnp
from jax import lax

from dag_jax.networks import operations

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def convolve(x, kernel, *, stride=1, padding=0, groups=1):
    """Correlate f32[B, H, W, C] with f32[K, K, C / groups, D]."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((padding, padding),) * 2,
        dimension_numbers=_DIMENSIONS,
        feature_group_count=groups,
    )


def layer(x, kernel, bias, *, padding=0, groups=1):
    """Convolve, add a bias and rectify: `layers.Conv`, and with no padding `layers.PatchDense`."""
    y = convolve(x, kernel, padding=padding, groups=groups)
    return jax.nn.relu(y + bias.reshape(1, 1, 1, -1))


def max_pool(x, *, size, stride):
    """Pool maxima in ceil mode by XLA's window reduction, whose gradient is select-and-scatter."""
    grow = [
        (0, (operations.pooled_extent(extent, size, stride, 0) - 1) * stride + size - extent)
        for extent in x.shape[1:3]
    ]
    return lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        (1, size, size, 1),
        (1, stride, stride, 1),
        ((0, 0), *grow, (0, 0)),
    )


def upsample(x, shape, *, stride, kernel_size, offset):
    """Upsample f32[B, h, w, C] by a transposed convolution, and crop to (H, W).

    Its kernel f32[K, K, C, C] is diagonal, as FCN's: XLA's convolution in C groups is slower yet.
    """
    factor = (kernel_size + 1) // 2
    centre = factor - 1 if kernel_size % 2 else factor - 0.5
    line = 1 - jnp.abs(jnp.arange(kernel_size, dtype=jnp.float32) - centre) / factor
    kernel = jnp.outer(line, line)[:, :, None, None] * jnp.eye(x.shape[3])[None, None]
    whole = lax.conv_transpose(
        x,
        kernel,
        (stride, stride),
        ((kernel_size - 1,) * 2,) * 2,  # the whole of it, as Caffe has it
        dimension_numbers=_DIMENSIONS,
    )
    return whole[:, offset : offset + shape[0], offset : offset + shape[1]]
