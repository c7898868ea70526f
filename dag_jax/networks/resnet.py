"""A residual trunk, which none of the paper's networks has.

Shapes: `*B` no axis or one batch axis, `H W` pixels, `h w` cells, `C` channels.

It is one Flax module for every size, with its grids, as those of `backbones`. What is added to a
map has its shape: every convolution is padded by zeros, and cell j is centred at pixel
`stride * j`.

Reference: He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, CVPR 2016; strides,
dilations and the pool are torchvision's, or those of the authors' Caffe files, a little different.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dag_jax.errors import UserError
from dag_jax.networks import layers, operations
from dag_jax.networks.grids import Map, pixels

STRIDES = (4, 8, 16, 32)


class Bottleneck(nn.Module):
    """A residual block: relu(x + what three convolutions make of x).

    Attributes:
      features: channels of the result, which is four times what the first two convolutions have.
      stride: cells of `x` between two of the result; the 3x3 convolution has it.
      dilation: cells between two that the 3x3 convolution reads.
      batch_norm: as in `layers.Conv`.
      caffe: whether the first convolution has the stride instead.
    """

    features: int
    stride: int = 1
    dilation: int = 1
    batch_norm: bool = False
    caffe: bool = False

    @nn.compact
    def __call__(self, x, grid, train: bool = False):
        """Map f32[*B, h, w, C] and its grid to f32[*B, h', w', features] and its own.

        Where shape or stride changes, a 1x1 convolution of x takes the place of x in the sum.
        """
        narrow, dilation = self.features // 4, self.dilation
        norm: dict[str, Any] = {"batch_norm": self.batch_norm}
        shortcut = x.astype(np.promote_types(x.dtype, jnp.float32))
        if self.stride > 1 or x.shape[-1] != self.features:
            layer = layers.Conv(self.features, 1, self.stride, relu=False, name="shortcut", **norm)
            shortcut = layer(x, train)
        first, second = (self.stride, 1) if self.caffe else (1, self.stride)
        grid = grid.convolved(1, first)
        y = grid.cut(layers.Conv(narrow, 1, first, name="conv1", **norm)(x, train))
        layer = layers.Conv(
            narrow, 3, second, padding=dilation, dilation=dilation, name="conv2", **norm
        )
        y, grid = layer(y, train), grid.convolved(2 * dilation + 1, second, dilation)
        # Of sixteen blocks that each add as much as they are given, random scores would be huge.
        y = layers.Conv(self.features, 1, relu=False, scale=0.5, name="conv3", **norm)(y, train)
        return grid.cut(jax.nn.relu(shortcut + y).astype(x.dtype)), grid


class ResNet(nn.Module):
    """ResNet-50's convolutions, or those of a smaller one.

    Attributes:
      widths: channels of the first convolution, and of the four stages' results.
      blocks: residual blocks of the four stages.
      stride: pixels between two cells of the last map, one of `STRIDES`. A stage that would leave
        fewer keeps its cells and spreads its kernels instead, so that they see as far; its first
        block spreads no more than the stage before.
      batch_norm: as in `layers.Conv`.
      dtype: as in `backbones.Vgg16`.
      caffe: whether it is as in the authors' Caffe files: the pool without padding, its last window
        reaching over the end; a block's stride in its first convolution; and the first block of a
        stage that keeps its cells spreads as the others do.
    """

    widths: tuple[int, ...] = (64, 256, 512, 1024, 2048)
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    stride: int = 32
    batch_norm: bool = False
    dtype: str = "float32"
    caffe: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False, grid=None):
        """Map a mean-subtracted image f32[*B, H, W, 3] to {"stage2", ... "stage5": their `Map`s}.

        `grid` is the image's; None is that of an image without padding.

        Raises:
          ValueError: where `stride` is not one of `STRIDES`.
        """
        if self.stride not in STRIDES:
            raise UserError(f"stride is {self.stride}; it must be one of {STRIDES}")
        norm, exact = self.batch_norm, operations.EXACT
        layer = layers.Conv(self.widths[0], 7, 2, 3, batch_norm=norm, precision=exact, name="conv1")
        grid = (grid or pixels(x.shape)).convolved(7, 2, 3)
        x = grid.cut(layer(x, train).astype(self.dtype))
        if self.caffe:
            x, grid = operations.max_pool(x, size=3, stride=2), grid.pooled(3, 2)
        else:
            # PyTorch's pool rounds down, as convolutions do; Caffe's may have one cell more.
            height, width = (operations.convolved_extent(side, 3, 2, 1) for side in x.shape[-3:-1])
            x = operations.max_pool(x, size=3, stride=2, padding=1)[..., :height, :width, :]
            grid = grid.convolved(3, 2, 1)
        x, dilation, maps = grid.cut(x), 1, {}
        for stage, (features, count) in enumerate(
            zip(self.widths[1:], self.blocks, strict=True), start=2
        ):
            stride, first = 1 if stage == 2 else 2, dilation
            if stride * grid.stride > self.stride:
                stride, dilation = 1, stride * dilation
            if self.caffe:
                first = dilation
            for index in range(1, count + 1):
                block = Bottleneck(
                    features,
                    stride if index == 1 else 1,
                    first if index == 1 else dilation,
                    self.batch_norm,
                    self.caffe,
                    name=f"stage{stage}_{index}",
                )
                x, grid = block(x, grid, train)
            maps[f"stage{stage}"] = Map(x, grid)
        return maps
