"""What Caffe's layers do to arrays, with gradients that stay fast inside compiled loops.

Shapes: `*B` no axis or one batch axis, `H W` pixels or cells, `C` channels, `K` kernel size.

Arrays are channels-last without parameters; the Flax modules are in `layers`. What a network
computes below its scores may be bfloat16 for f32. Each function equals its Caffe namesake in value
and gradient. Two of them have a gradient of their own because XLA's is slow on CPU: the
convolution loses its plain kernel layout inside `while_loop`, and the pool's select-and-scatter is
an order of magnitude slower than the comparisons here.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dag_jax.errors import UserError

EXACT = "highest"  # the precision that is float32 on every platform
_FEW = 128  # channels of input times those of output, up to which a CPU correlates blocks of cells
_convolution = functools.partial(
    lax.conv_general_dilated, window_strides=(1, 1), dimension_numbers=("NHWC", "HWIO", "NHWC")
)


def batched(function, x):
    """Call `function` on [B, H, W, C] and give back the batch axes that `x` had."""
    y = function(x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:]))
    return y.reshape(*x.shape[:-3], *y.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _correlate(x, kernel, pads, dilation, precision):
    """Correlate f32[B, H, W, C] with f32[K, K, C, D] at every cell; the sums are float32."""
    sums = np.promote_types(x.dtype, jnp.float32)

    def run(x, kernel, pads=pads):
        spread = {"padding": pads, "rhs_dilation": (dilation, dilation), "precision": precision}
        return _convolution(x, kernel, **spread, preferred_element_type=sums)

    size, few = kernel.shape[0], math.prod(kernel.shape[2:]) <= _FEW
    in_blocks = few and dilation == 1 and size > 1 and size % 2
    if size == 1 or (any(sum(pads, ())) and not in_blocks):
        return run(x, kernel)

    def run_on_cpu(x, kernel):
        if in_blocks:
            return _correlate_blocks(run, x, kernel, pads)
        # Without any padding XLA's convolution takes up to ten times as long on CPU.
        return run(x, kernel, ((0, 0), (0, 1)))[:, :, :-1]

    return lax.platform_dependent(x, kernel, cpu=run_on_cpu, default=run)


def _correlate_blocks(run, x, kernel, pads):
    """Correlate blocks of 2 x 2 cells, of four times the channels: `kernel` has K odd.

    An output block reads (K + 1) / 2 input blocks along each axis. The products are more, by
    (K + 1)^2 / K^2, but of matrices that a CPU multiplies at its speed: 3 and 8 channels leave most
    of it idle.
    """
    batch, *sides, channels = x.shape
    size, features = kernel.shape[0], kernel.shape[3]
    cells = [side + sum(pad) - size + 1 for side, pad in zip(sides, pads, strict=True)]
    blocks = [-(-count // 2) for count in cells]
    reach = (size + 1) // 2
    config = [
        (first, 2 * (count + reach - 1) - side - first, 0)
        for count, side, (first, _) in zip(blocks, sides, pads, strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *config, (0, 0, 0)))
    x = _gather_blocks(x, 2)
    # Output cell (row, column) of a block reads from the same cell of the first input block on.
    parts = [
        jnp.pad(kernel, ((row, 1 - row), (column, 1 - column), (0, 0), (0, 0)))
        for row, column in np.ndindex(2, 2)
    ]
    kernel = jnp.stack(parts, axis=3).reshape(reach, 2, reach, 2, channels, 4 * features)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(reach, reach, 4 * channels, -1)
    kernel = lax.optimization_barrier(kernel)
    y = run(x, kernel, ((0, 0), (0, 1)))[:, :, :-1]
    y = y.reshape(batch, *blocks, 2, 2, features).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(batch, 2 * blocks[0], 2 * blocks[1], features)
    return y[:, : cells[0], : cells[1]]


def _gather_blocks(x, side):
    """Return f32[B, H, W, side side C]: the cells of each block of f32[B, side H, side W, C]."""
    batch, height, width, channels = x.shape
    height, width = height // side, width // side
    x = x.reshape(batch, height, side, width, side, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height, width, side * side * channels)


def _correlate_forward(x, kernel, pads, dilation, precision):
    return _correlate(x, kernel, pads, dilation, precision), (x, kernel)


def _correlate_backward(pads, dilation, precision, residuals, cotangent):
    x, kernel = residuals
    flipped = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    # Without the barrier XLA fuses the flip into the convolution, whose kernel then has no layout
    # that the CPU's fast path accepts: inside a loop the step is several times slower.
    flipped = lax.platform_dependent(
        flipped, cpu=lax.optimization_barrier, default=lambda kernel: kernel
    )
    last = dilation * (kernel.shape[0] - 1)
    cotangent = cotangent.astype(x.dtype)
    around = tuple((last - a, last - b) for a, b in pads)
    x_gradient = _correlate(cotangent, flipped, around, dilation, precision)
    # Only training uses the kernel's gradient; an attack's compiler drops it.
    spread = {"padding": pads, "rhs_dilation": (dilation, dilation), "precision": precision}
    _, kernel_vjp = jax.vjp(lambda weights: _convolution(x, weights, **spread), kernel)
    return x_gradient.astype(x.dtype), kernel_vjp(cotangent)[0]


_correlate.defvjp(_correlate_forward, _correlate_backward)


def default_precision() -> str | None:
    """Return JAX's default precision here, for what a backward pass traces elsewhere."""
    return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]


def _convolve(x, kernel, stride, pads, dilation, precision):
    if stride == 1:
        return _correlate(x, kernel, pads, dilation, precision)
    # A strided convolution of few channels (conv1 of AlexNet and ZF) is slow on CPU. Gathering each
    # block of stride x stride pixels into channels turns it into an equal one without a stride.
    size, _, channels, features = kernel.shape
    blocks = -(-size // stride)
    sides = list(zip(x.shape[1:3], pads, strict=True))
    cells = [(extent + sum(pad) - size) // stride + blocks for extent, pad in sides]
    config = [
        (pad[0], count * stride - extent - pad[0], 0)
        for count, (extent, pad) in zip(cells, sides, strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *config, (0, 0, 0)))
    x = _gather_blocks(x, stride)
    fill = blocks * stride - size
    kernel = jnp.pad(kernel, ((0, fill), (0, fill), (0, 0), (0, 0)))
    kernel = kernel.reshape(blocks, stride, blocks, stride, channels, features)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(blocks, blocks, -1, features)
    return _correlate(x, kernel, ((0, 0), (0, 0)), 1, precision)


def convolve(x, kernel, *, stride: int = 1, padding=0, dilation: int = 1, precision=None):
    """Correlate `x` with `kernel`, as Caffe's Convolution does.

    Args:
      x: f32[*B, H, W, C].
      kernel: f32[K, K, C, D], of the dtype of `x`.
      stride: cells between two outputs.
      padding: zero cells added on each side, or ((above, below), (left, right)).
      dilation: cells between two that the kernel reads.
      precision: of `jax.default_matmul_precision`; None is the one that holds here.

    Returns:
      f32[*B, (H + 2 padding - dilation (K - 1) - 1) // stride + 1, ..., D], float32 always.

    Raises:
      ValueError: where both stride and dilation are above 1.
    """
    if stride > 1 and dilation > 1:
        raise UserError(f"stride is {stride} and dilation {dilation}; one of them must be 1")
    pads = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    geometry = stride, pads, dilation, precision or default_precision()
    return batched(lambda batch: _convolve(batch, kernel, *geometry), x)


def divide(a, b):
    """Return a // b of ints, or of i32[] that are not negative.

    Where a or b is traced, `//` would bring a dozen operations for their signs. XLA fuses these
    into whatever a mask touches, layer upon layer, and then compiles for half a minute.
    """
    return (
        a // b if isinstance(a, int) and isinstance(b, int) else lax.div(a, jnp.asarray(b, a.dtype))
    )


def convolved_extent(extent, size: int, stride: int, padding: int):
    """Return the cells along an axis after a convolution: an int, or i32[] of an i32[] `extent`."""
    return divide(extent + 2 * padding - size, stride) + 1


def pooled_extent(extent, size: int, stride: int, padding: int):
    """Return the cells along an axis after Caffe's pooling (ceil mode), as `convolved_extent`."""
    out = divide(extent + 2 * padding - size + stride - 1, stride) + 1
    if not padding:
        return out
    # Caffe drops a last window that would start in the padding.
    limit = divide(extent + padding - 1, stride) + 1
    return min(out, limit) if isinstance(extent, int) else jnp.minimum(out, limit)


def _views(x, axis, size, stride, count):
    """Yield, for each position in a window, its cells of all `count` windows along an axis."""
    for first in range(size):
        last = first + (count - 1) * stride + 1
        yield lax.slice_in_dim(x, first, last, stride, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_along(x, axis, size, stride):
    """Pool maxima along one axis, without padding."""
    count = (x.shape[axis] - size) // stride + 1
    return functools.reduce(jnp.maximum, _views(x, axis, size, stride, count))


def _max_along_forward(x, axis, size, stride):
    y = _max_along(x, axis, size, stride)
    return y, (x, y)


def _max_along_backward(axis, size, stride, residuals, cotangent):
    x, y = residuals
    count, extent = y.shape[axis], x.shape[axis]
    blocks = -(-extent // stride)
    free = jnp.ones(y.shape, bool)  # windows whose first maximum is still to come
    zero = jnp.zeros((), x.dtype)
    gradients = [zero] * stride  # of the cells at each remainder by the stride
    for place, view in enumerate(_views(x, axis, size, stride, count)):
        first = free & (view == y)
        free = free & ~first
        config = [(0, 0, 0)] * x.ndim
        config[axis] = (place // stride, blocks - count - place // stride, 0)
        part = lax.pad(jnp.where(first, cotangent, 0), zero, config)
        gradients[place % stride] += part
    shape = y.shape[:axis] + (blocks,) + y.shape[axis + 1 :]
    gradients = [jnp.broadcast_to(gradient, shape) for gradient in gradients]
    gradient = jnp.stack(gradients, axis=axis + 1)
    gradient = gradient.reshape(*y.shape[:axis], blocks * stride, *y.shape[axis + 1 :])
    return (lax.slice_in_dim(gradient, 0, extent, axis=axis),)


_max_along.defvjp(_max_along_forward, _max_along_backward)


def _max_pool(x, size, stride, padding):
    config = []
    for extent in x.shape[1:3]:
        count = pooled_extent(extent, size, stride, padding)
        config.append((padding, (count - 1) * stride + size - extent - padding, 0))
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), *config, (0, 0, 0)))
    # Columns first: then the first row with the maximum gets the gradient, and in it the first
    # column, which is Caffe's row-major order.
    return _max_along(_max_along(x, 2, size, stride), 1, size, stride)


def max_pool(x, *, size: int, stride: int, padding: int = 0):
    """Pool maxima as Caffe does: ceil mode; the first maximum of a window takes its gradient.

    Args:
      x: f32[*B, H, W, C].
      size: cells of a window's side.
      stride: cells between two windows.
      padding: cells of minus infinity on each side.

    Returns:
      f32[*B, ceil((H + 2 padding - size) / stride) + 1, ..., C].

    Reference: Caffe's PoolingLayer (MAX).
    """
    return batched(lambda batch: _max_pool(batch, size, stride, padding), x)


def _check_crop(size, cells, stride, kernel_size, offset):
    extent = (cells - 1) * stride + kernel_size
    if offset < 0 or offset + size > extent:
        raise UserError(
            f"a crop of {size} pixels at {offset} does not fit into the {extent} pixels that "
            f"{cells} cells give: the image is too small for this network"
        )


def bilinear_matrix(size: int, cells: int, *, stride: int, kernel_size: int, offset: int):
    """Return the matrix of a bilinear transposed convolution along one axis, crop included.

    A bilinear Deconvolution with group = channels is separable, so `rows @ x @ columns.T` with two
    of these matrices is the layer followed by its crop.

    Args:
      size: pixels kept after the crop.
      cells: cells of the input.
      stride: pixels between two cells.
      kernel_size: pixels of the filter.
      offset: first pixel kept.

    Returns:
      NumPy f32[size, cells].

    Raises:
      ValueError: where the crop reaches outside the upsampled map.

    Reference: FCN's bilinear filler (Long et al., CVPR 2015) and Caffe's Crop layer.
    """
    _check_crop(size, cells, stride, kernel_size, offset)
    factor = (kernel_size + 1) // 2
    centre = factor - 1 if kernel_size % 2 else factor - 0.5
    tap = np.arange(size)[:, None] + offset - stride * np.arange(cells)[None, :]
    weight = 1 - np.abs(tap - centre) / factor
    return np.where((tap >= 0) & (tap < kernel_size), weight, 0).astype(np.float32)


def _separable(x, rows, columns):
    """Return rows @ x @ columns.T for each channel of f32[B, h, w, C]."""
    # Two plain batched products: einsum would transpose, which costs four times as much.
    count, height, width, channels = x.shape
    y = x.reshape(count * height, width, channels)
    across = jnp.broadcast_to(columns, (count * height, *columns.shape))
    y = jnp.matmul(across, y, precision=EXACT).reshape(count, height, len(columns) * channels)
    y = jnp.matmul(jnp.broadcast_to(rows, (count, *rows.shape)), y, precision=EXACT)
    return y.reshape(count, len(rows), len(columns), channels)


def upsample(x, shape: tuple[int, int], *, stride: int, kernel_size: int, offset: int):
    """Upsample bilinearly by a transposed convolution and crop.

    Args:
      x: f32[*B, h, w, C].
      shape: pixels (H, W) kept after the crop.
      stride: pixels between two cells.
      kernel_size: pixels of the filter's side.
      offset: first row and column kept.

    Returns:
      f32[*B, H, W, C].
    """
    rows, columns = (
        jnp.asarray(
            bilinear_matrix(size, cells, stride=stride, kernel_size=kernel_size, offset=offset)
        )
        for size, cells in zip(shape, x.shape[-3:-1], strict=True)
    )
    return batched(lambda batch: _separable(batch, rows, columns), x)


def upsample_dense(x, kernel, shape: tuple[int, int], *, stride: int, offset: int):
    """Upsample by a transposed convolution with any kernel, and crop: Caffe's Deconvolution.

    Pixel p of the upsampled map is the sum of x[y] kernel[p - stride y] over the cells y, in both
    axes.

    Args:
      x: f32[*B, h, w, C].
      kernel: f32[K, K, C, D], not flipped.
      shape: pixels (H, W) kept after the crop.
      stride: pixels between two cells.
      offset: first row and column kept.

    Returns:
      f32[*B, H, W, D].

    Raises:
      ValueError: where the crop reaches outside the upsampled map.
    """
    size, _, channels, features = kernel.shape
    for pixels, cells in zip(shape, x.shape[-3:-1], strict=True):
        _check_crop(pixels, cells, stride, size, offset)
    # Each of the stride x stride pixels of a cell has a convolution of its own, of few taps: one
    # convolution makes them as channels, and its gradient stays fast. XLA's dilated one is slow.
    blocks = -(-size // stride)
    fill = blocks * stride - size
    kernel = jnp.pad(kernel, ((0, fill), (0, fill), (0, 0), (0, 0)))
    kernel = kernel.reshape(blocks, stride, blocks, stride, channels, features)[::-1, :, ::-1]
    kernel = kernel.transpose(0, 2, 4, 1, 3, 5).reshape(blocks, blocks, channels, -1)

    def rise(batch):
        y = _correlate(batch, kernel, ((blocks - 1, blocks - 1),) * 2, 1, EXACT)
        count, height, width, _ = y.shape
        y = y.reshape(count, height, width, stride, stride, features).transpose(0, 1, 3, 2, 4, 5)
        y = y.reshape(count, height * stride, width * stride, features)
        return y[:, offset : offset + shape[0], offset : offset + shape[1]]

    return batched(rise, x)


def subtract_mean(image, mean_rgb: tuple[float, float, float]):
    """Return BGR less `mean_rgb` of an RGB image f32[*B, H, W, 3], as Caffe's networks read it."""
    mean = jnp.asarray(mean_rgb, jnp.float32).reshape((1,) * (image.ndim - 1) + (3,))
    return (image - mean)[..., ::-1]
