"""MobileNetV3's trunk, as torchvision's segmenters have it.

Shapes: `*B` no axis or one batch axis, `H W` pixels, `h w` cells, `C` channels, `K` kernel size.

It is one Flax module for every size, with its grids, as that of `resnet`.

Reference: Howard et al., Searching for MobileNetV3, ICCV 2019; numbers of channels, where
activations lie and the dilation of the last blocks are torchvision's.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from dag_jax.networks import depthwise, layers, operations
from dag_jax.networks.grids import Map, pixels


class Row(NamedTuple):
    """One line of the paper's table: a block.

    Attributes:
      kernel_size: K of the depthwise convolution.
      expanded: channels of that convolution.
      features: channels of the result.
      squeeze: whether channels are weighted by their own averages.
      swish: whether the activation is a hard swish; else a ReLU.
      stride: cells between two of the result.
      dilation: cells between two that the depthwise kernel reads.
    """

    kernel_size: int
    expanded: int
    features: int
    squeeze: bool
    swish: bool
    stride: int = 1
    dilation: int = 1


LARGE = (
    Row(3, 16, 16, False, False),
    Row(3, 64, 24, False, False, stride=2),
    Row(3, 72, 24, False, False),
    Row(5, 72, 40, True, False, stride=2),
    Row(5, 120, 40, True, False),
    Row(5, 120, 40, True, False),
    Row(3, 240, 80, False, True, stride=2),
    Row(3, 200, 80, False, True),
    Row(3, 184, 80, False, True),
    Row(3, 184, 80, False, True),
    Row(3, 480, 112, True, True),
    Row(3, 672, 112, True, True),
    # The paper halves here; torchvision's segmenters spread the kernels instead.
    *(Row(5, expanded, 160, True, True, dilation=2) for expanded in (672, 960, 960)),
)


def _activate(x, swish):
    return jax.nn.hard_swish(x) if swish else jax.nn.relu(x)


def averages(x, grid):
    """Return the averages f32[*B, 1, 1, C] of f32[*B, h, w, C], which is zero beyond its grid."""
    cells = jnp.asarray(grid.rows * grid.columns, jnp.float32)
    return jnp.sum(x, axis=(-3, -2), keepdims=True) / cells


class _Depthwise(nn.Module):
    """A convolution of each channel by itself, with a bias."""

    kernel_size: int
    stride: int
    dilation: int

    @nn.compact
    def __call__(self, x, grid):
        """Map f32[*B, h, w, C] and its grid to f32[*B, h', w', C] and its own."""
        size, channels = self.kernel_size, x.shape[-1]
        he = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        kernel = self.param("kernel", he, (size, size, 1, channels))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        reach = self.dilation * (size - 1)
        x = depthwise.convolve(
            *(x, kernel[:, :, 0]),
            stride=self.stride,
            padding=reach // 2,
            dilation=self.dilation,
        )
        x = x + bias.reshape((1,) * (x.ndim - 1) + (-1,))
        return x, grid.convolved(reach + 1, self.stride, reach // 2)


class Block(nn.Module):
    """An inverted residual block: expand, convolve each channel, weigh channels, project."""

    row: Row

    @nn.compact
    def __call__(self, x, grid):
        """Map f32[*B, h, w, C] and its grid to f32[*B, h', w', features] and its own."""
        row, y = self.row, x
        if row.expanded != x.shape[-1]:
            y = layers.Conv(row.expanded, 1, relu=False, name="expand")(y)
            y = grid.cut(_activate(y, row.swish))
        convolve = _Depthwise(row.kernel_size, row.stride, row.dilation, name="depthwise")
        y, grid = convolve(y, grid)
        y = grid.cut(_activate(y, row.swish))
        if row.squeeze:
            weights = layers.Conv(_squeezed(row.expanded), 1, name="squeeze")(averages(y, grid))
            weights = layers.Conv(row.expanded, 1, relu=False, name="excite")(weights)
            y = y * jax.nn.hard_sigmoid(weights)
        y = layers.Conv(row.features, 1, relu=False, scale=0.5, name="project")(y)
        if y.shape == x.shape:
            y = y + x
        return grid.cut(y), grid


def _squeezed(expanded):
    """Return a quarter of channels, as the multiple of 8 that is nearest and not a tenth below."""
    quarter = expanded // 4
    nearest = max(8, (quarter + 4) // 8 * 8)
    return nearest + 8 * (nearest < 0.9 * quarter)


class MobileNetV3(nn.Module):
    """MobileNetV3's convolutions.

    Attributes:
      rows: its blocks.
      first: channels of the first convolution.
      last: channels of the last one.
    """

    rows: tuple[Row, ...] = LARGE
    first: int = 16
    last: int = 960

    @nn.compact
    def __call__(self, x, train: bool = False, grid=None):
        """Map a normalised image f32[*B, H, W, 3] to {"stage3" and "stage5": the `Map`s}.

        The first is what the first block of stride 8 gives, which is the one that the heads read.
        `train` is for trunks that train here, as this one does not; `grid` is the image's, and
        None is that of an image without padding.
        """
        grid = (grid or pixels(x.shape)).convolved(3, 2, 1)
        exact = operations.EXACT
        x = layers.Conv(self.first, 3, 2, 1, relu=False, precision=exact, name="conv1")(x)
        x, maps = grid.cut(jax.nn.hard_swish(x)), {}
        for number, row in enumerate(self.rows, start=1):
            x, grid = Block(row, name=f"block{number}")(x, grid)
            if row.stride > 1 and grid.stride == 8:
                maps["stage3"] = Map(x, grid)
        x = layers.Conv(self.last, 1, relu=False, name="last")(x)
        return maps | {"stage5": Map(grid.cut(jax.nn.hard_swish(x)), grid)}
