"""Depthwise and grouped convolutions and what goes with them, on planes, with fast gradients.

Shapes: `B` images, `C` channels, `H W` cells, `G` groups.

Arrays are channels-first: a depthwise kernel is then one number for each tap and plane, whose sum
XLA vectorises along a row; a grouped 1x1 convolution is a batched product without a transposition;
what is concatenated is contiguous. XLA's own grouped convolution takes ten times as long on CPU,
its gradient more.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dag_jax.errors import UserError
from dag_jax.networks import operations

_TAPS = tuple(np.ndindex(3, 3))


class _Term(NamedTuple):
    """A summand of `_sum`: weights times one of the arrays, moved."""

    source: int
    weights: jax.Array  # of each plane, or to be broadcast to the planes
    rows: int
    columns: int


def _sum(sources, terms, shape):
    """Return the sum of terms: weights[c] source[c, y + rows, x + columns], zero beyond the border.

    Args:
      sources: arrays f32[..., H, W].
      terms: `_Term`s.
      shape: (H', W') of the result.
    """
    reach = max(max(abs(term.rows), abs(term.columns)) for term in terms)
    # Without the barriers XLA fuses the padding into the sum, and tests each cell for the border;
    # and the sum into all that reads it, which computes it anew, cell by cell.
    padding = [(0, 0)] * (sources[0].ndim - 2) + [(reach, reach)] * 2
    sources = lax.optimization_barrier([jnp.pad(source, padding) for source in sources])
    total = None
    for source, weights, row, column in terms:
        first, second = reach + row, reach + column
        part = sources[source][..., first : first + shape[0], second : second + shape[1]]
        part = part * weights.reshape(1, *weights.shape, 1, 1)
        total = part if total is None else total + part
    return lax.optimization_barrier(total)


def _split(x, stride):
    """Return the parts of f32[B, C, H, W] at each remainder of row and column by the stride."""
    if stride == 1:
        return [x]
    batch, channels, height, width = x.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (0, -height % stride), (0, -width % stride)))
    x = x.reshape(batch, channels, -(-height // stride), stride, -(-width // stride), stride)
    x = x.transpose(3, 5, 0, 1, 2, 4)
    return [x[row, column] for row, column in np.ndindex(stride, stride)]


def _interleave(parts, stride, shape):
    """Undo `_split`."""
    if stride == 1:
        return parts[0]
    batch, channels, height, width = parts[0].shape
    x = jnp.stack(parts).reshape(stride, stride, batch, channels, height, width)
    x = x.transpose(2, 3, 4, 0, 5, 1).reshape(batch, channels, height * stride, width * stride)
    return x[..., : shape[0], : shape[1]]


def _places(dilation, stride):
    """Return (tap, part, rows, columns): what each tap of a 3x3 kernel reads of `_split`."""
    places = []
    for tap in _TAPS:
        offsets = [divmod((index - 1) * dilation, stride) for index in tap]
        (rows, first), (columns, second) = offsets
        places.append((tap, first * stride + second, rows, columns))
    return places


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x, kernel, dilation, stride):
    parts = _split(x, stride)
    terms = [
        _Term(part, kernel[tap], rows, columns)
        for tap, part, rows, columns in _places(dilation, stride)
    ]
    return _sum(parts, terms, parts[0].shape[2:])


def _depthwise_forward(x, kernel, dilation, stride):
    return _depthwise(x, kernel, dilation, stride), (x, kernel)


def _depthwise_backward(dilation, stride, residuals, cotangent):
    x, kernel = residuals
    parts: list[list[_Term]] = [[] for _ in range(stride * stride)]
    for tap, part, rows, columns in _places(dilation, stride):
        parts[part].append(_Term(0, kernel[tap], -rows, -columns))
    sums = [
        _sum([cotangent], terms, cotangent.shape[2:]) if terms else jnp.zeros_like(cotangent)
        for terms in parts
    ]
    gradient = _interleave(sums, stride, x.shape[2:])
    # Only training uses the kernel's gradient; an attack's compiler drops it.
    _, kernel_vjp = jax.vjp(lambda kernel: _depthwise.fun(x, kernel, dilation, stride), kernel)
    return gradient, kernel_vjp(cotangent)[0]


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


# Compiled as a part of what calls it: blocks that repeat are then traced once.
@functools.partial(jax.jit, static_argnames=("dilation", "stride"))
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
    return _depthwise(x, kernel[:, :, 0], dilation, stride)


def pointwise(x, kernel, *, groups: int = 1):
    """Correlate planes with a 1x1 kernel, group by group.

    Args:
      x: f32[B, C, H, W].
      kernel: f32[1, 1, C / G, D].
      groups: G.

    Returns:
      f32[B, D, H, W].
    """
    batch, _, height, width = x.shape
    group_channels, features = kernel.shape[2:]
    kernel = kernel.reshape(group_channels, groups, features // groups).transpose(1, 2, 0)
    cells = x.reshape(batch, groups, group_channels, height * width)
    kernel = jnp.broadcast_to(kernel, (batch, *kernel.shape))
    return (kernel @ cells).reshape(batch, features, height, width)


@functools.partial(jax.jit, static_argnames=("groups", "stride"))
def convolve(x, kernel, *, groups: int = 1, stride: int = 1):
    """Correlate planes with a 3x3 kernel, group by group; the border is padded by zeros.

    Args:
      x: f32[B, C, H, W].
      kernel: f32[3, 3, C / G, D].
      groups: G.
      stride: cells between two outputs; 1 of several groups.

    Returns:
      f32[B, D, ceil(H / stride), ceil(W / stride)].

    Raises:
      ValueError: for a stride of several groups, which no network here has.
    """
    if groups > 1 and stride > 1:
        raise UserError(f"groups are {groups} and stride is {stride}; one of them has to be 1")
    if groups == 1:  # as one product, of what all taps read
        parts = [jnp.pad(part, _AROUND) for part in _split(x, stride)]
        patches = [_moved(parts[part], *place) for _, part, *place in _places(1, stride)]
        features = kernel.shape[-1]
        return pointwise(jnp.concatenate(patches, axis=1), kernel.reshape(1, 1, -1, features))
    if kernel.shape[2] * kernel.shape[3] // groups <= _FEW:
        return _by_member(x, kernel, groups)
    return _grouped(x, kernel, groups)


def _by_member(x, kernel, groups):
    """Convolve groups of few channels: each output is a sum of depthwise convolutions."""
    batch, _, *sides = x.shape
    channels, features = kernel.shape[2], kernel.shape[3] // groups
    # `split`, whose gradient is one concatenation.
    members = jnp.split(x.reshape(batch, groups, channels, *sides), channels, axis=2)
    kernels = kernel.reshape(3, 3, channels, groups, features)
    y = [
        sum(
            depthwise(member[:, :, 0], kernels[:, :, index, None, :, feature])
            for index, member in enumerate(members)
        )
        for feature in range(features)
    ]
    return jnp.stack(y, axis=2).reshape(batch, -1, *sides)


_FEW = 12  # channels times features of a group, up to which depthwise convolutions cost less
_AROUND = ((0, 0), (0, 0), (1, 1), (1, 1))


def _moved(x, row, column):
    """Return a map moved by (row, column); `x` is the map with one more cell on each side."""
    height, width = (side - 2 for side in x.shape[-2:])
    return x[..., 1 + row : 1 + row + height, 1 + column : 1 + column + width]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _grouped(x, kernel, groups):
    group_channels, features = kernel.shape[2:]
    # One product multiplies every cell by every tap; the products are then moved and added up.
    kernel = kernel.reshape(9, group_channels, groups, features // groups).transpose(1, 2, 0, 3)
    taps = pointwise(jnp.pad(x, _AROUND), kernel.reshape(1, 1, group_channels, -1), groups=groups)
    batch, _, *sides = taps.shape
    taps = taps.reshape(batch, groups, 9, features // groups, *sides)
    y = sum(_moved(taps[:, :, index], i - 1, j - 1) for index, (i, j) in enumerate(_TAPS))
    return y.reshape(batch, features, *x.shape[2:])


def _grouped_forward(x, kernel, groups):
    return _grouped(x, kernel, groups), (x, kernel)


def _grouped_backward(groups, residuals, cotangent):
    x, kernel = residuals
    group_channels, features = kernel.shape[2:]
    batch, _, *sides = x.shape
    padded = jnp.pad(cotangent, _AROUND)
    taps = jnp.stack([_moved(padded, 1 - i, 1 - j) for i, j in _TAPS], axis=1)
    taps = taps.reshape(batch, 9, groups, features // groups, *sides).swapaxes(1, 2)
    flipped = kernel.reshape(9, group_channels, groups, features // groups).transpose(0, 3, 2, 1)
    flipped = flipped.reshape(1, 1, -1, groups * group_channels)
    gradient = pointwise(taps.reshape(batch, -1, *sides), flipped, groups=groups)
    _, kernel_vjp = jax.vjp(lambda kernel: _grouped.fun(x, kernel, groups), kernel)
    return gradient, kernel_vjp(cotangent)[0]


_grouped.defvjp(_grouped_forward, _grouped_backward)


def prelu(x, slope):
    """Return max(x, 0) + slope min(x, 0) of f32[B, C, H, W] and f32[C]."""
    return x * jnp.where(x > 0, jnp.float32(1), slope[None, :, None, None])


def shuffle(x, groups: int):
    """Put the first channel of each group first, then the second of each, and so on.

    Args:
      x: f32[B, C, H, W].
      groups: G, of which C is a multiple.
    """
    batch, channels, height, width = x.shape
    x = x.reshape(batch, groups, channels // groups, height, width).swapaxes(1, 2)
    return x.reshape(batch, channels, height, width)


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
    exact = {"precision": operations.EXACT}
    y = jnp.matmul(x.reshape(batch * channels * height, width), columns.T, **exact)
    y = y.reshape(batch, channels, height, -1)
    return jnp.matmul(jnp.broadcast_to(rows, (batch, channels, *rows.shape)), y, **exact)


def corners_matrix(size: int, cells: int):
    """Return NumPy f32[size, cells] of PyTorch's bilinear resize with align_corners."""
    places = np.arange(size) * ((cells - 1) / max(size - 1, 1))
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(cells))).astype(np.float32)


def average_matrix(size: int, cells: int):
    """Return NumPy f32[size, cells] of PyTorch's adaptive average pooling."""
    out, cell = np.arange(size)[:, None], np.arange(cells)[None, :]
    inside = (cell >= out * cells // size) & (cell < -(-(out + 1) * cells // size))
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)


@functools.lru_cache(maxsize=64)
def _bands(side, enlarged, transposed):
    """Return what one axis of `correlate_enlarged` does, as bands of matrices.

    Returns:
      (NumPy f32[3, side, bands], cells): for each tap along the axis, how much of cell x + band -
      cells goes into cell x.
    """
    up = corners_matrix(enlarged, side).astype(np.float64)
    down = average_matrix(side, enlarged).astype(np.float64)
    matrices = np.stack([down @ np.eye(enlarged, k=tap) @ up for tap in (-1, 0, 1)])
    if transposed:
        matrices = matrices.swapaxes(1, 2)
    row, column = np.nonzero(matrices.any(axis=0))
    first, last = (column - row).min(), (column - row).max()
    padded = np.pad(matrices, ((0, 0), (0, 0), (max(0, -first), max(0, last))))
    cells = np.arange(side)[:, None] + np.arange(first, last + 1) + max(0, -first)
    return padded[:, np.arange(side)[:, None], cells].astype(np.float32), -int(first)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _correlate_enlarged(x, kernel, enlarged, transposed):
    sides = x.shape[2:]
    for axis, (side, enlarged_side) in enumerate(zip(sides, enlarged, strict=True)):
        bands, before = _bands(side, enlarged_side, transposed)
        count = bands.shape[2]
        padding = [(0, 0)] * x.ndim
        padding[axis - 2] = (before, count - 1 - before)
        x = lax.optimization_barrier(jnp.pad(x, padding))
        views = [lax.slice_in_dim(x, band, band + side, axis=axis - 2) for band in range(count)]
        if axis == 0:  # what each column of the kernel makes of the rows
            weights = jnp.einsum("ijc,ihd->jdch", kernel, bands)[:, :, None, ..., None]
            x = jnp.stack(
                [sum(v * weights[j, band] for band, v in enumerate(views)) for j in range(3)]
            )
        else:
            weights = bands.transpose(0, 2, 1)[:, :, None, None, None]
            x = sum(v[j] * weights[j, band] for band, v in enumerate(views) for j in range(3))
    return lax.optimization_barrier(x)


def _enlarged_forward(x, kernel, enlarged, transposed):
    return _correlate_enlarged(x, kernel, enlarged, transposed), (x, kernel)


def _enlarged_backward(enlarged, transposed, residuals, cotangent):
    x, kernel = residuals

    def plain(kernel):
        return _correlate_enlarged.fun(x, kernel, enlarged, transposed)

    x_gradient = _correlate_enlarged(cotangent, kernel, enlarged, not transposed)
    return x_gradient, jax.vjp(plain, kernel)[1](cotangent)[0]


_correlate_enlarged.defvjp(_enlarged_forward, _enlarged_backward)


@functools.partial(jax.jit, static_argnums=2)
def correlate_enlarged(x, kernel, enlarged: tuple[int, int]):
    """Correlate planes at a larger size: resize by `corners_matrix`, `depthwise`, average back.

    All three are linear, and a cell of the result depends on few of `x`: nothing is enlarged.

    Args:
      x: f32[B, C, H, W].
      kernel: f32[3, 3, 1, C].
      enlarged: (H', W'), not below H and W.

    Returns:
      f32[B, C, H, W].
    """
    return _correlate_enlarged(x, kernel[:, :, 0], enlarged, False)
