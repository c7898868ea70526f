"""The three image classifiers underneath the eight networks, as convolutional trunks.

Shapes: `*B` no axis or one batch axis, `H W` pixels, `h w` cells, `C` channels.

Each trunk is one Flax module for every size: a miniature gives other widths and strides. Layer
names are Caffe's. Each map comes with its grid: FCN's crops follow from where the cells lie, and
what an image's padding would make of the cells beyond it is put back to zero after every layer.

The first layer, which sees the image, always multiplies in float32: bfloat16 would leave no
perturbation below a quarter of a grey level, TF32 none below a sixteenth.
"""

from flax import linen as nn

from dag_jax.networks import layers, lrn, operations
from dag_jax.networks.border import Reach
from dag_jax.networks.grids import Map, pixels


class Vgg16(nn.Module):
    """VGG-16's thirteen convolutions (Simonyan and Zisserman, ICLR 2015).

    Attributes:
      widths: channels of the five stages.
      pooled: the stages (1 to 5) that end with a 2x2 pool of stride 2.
      first_padding: zero pixels around the image; FCN has 100.
      batch_norm: as in `layers.Conv`.
      dtype: in which all layers but the first multiply.
      everywhere: whether to compute what the image does not reach, too, cell by cell. The maps are
        the same; with `batch_norm` they are always computed so, as its statistics see every cell.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    pooled: tuple[int, ...] = (1, 2, 3, 4, 5)
    first_padding: int = 1
    batch_norm: bool = False
    dtype: str = "float32"
    everywhere: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False, grid=None):
        """Map a mean-subtracted image f32[*B, H, W, 3] to a dict of each stage's `Map`.

        Stage n is at key "stage{n}", pooled where the stage is pooled. `grid` is the image's; None
        is that of an image without padding.
        """
        everywhere = self.everywhere or self.batch_norm
        reach = Reach.start(x, grid or pixels(x.shape), everywhere=everywhere)
        maps = {}
        for stage, width in enumerate(self.widths, start=1):
            for index in range(1, 3 if stage < 3 else 4):
                first = stage == index == 1
                conv = layers.Conv(
                    width,
                    padding=self.first_padding if first else 1,
                    batch_norm=self.batch_norm,
                    precision=operations.EXACT if first else None,
                    name=f"conv{stage}_{index}",
                )
                reach = reach.convolved(conv, train).astype(self.dtype)
            if stage in self.pooled:
                reach = reach.pooled(2, 2)
            maps[f"stage{stage}"] = reach.whole()
        return maps


class AlexNet(nn.Module):
    """CaffeNet's five convolutions (Krizhevsky et al., NIPS 2012; pool before norm, as Caffe's).

    Attributes:
      widths: channels of the five convolutions.
      first_stride: pixels between two outputs of the 11x11 convolution.
      first_padding: zero pixels around the image; FCN has 100.
      batch_norm: as in `layers.Conv`.
      dtype: as in `Vgg16`.
      everywhere: as in `Vgg16`.
    """

    widths: tuple[int, ...] = (96, 256, 384, 384, 256)
    first_stride: int = 4
    first_padding: int = 0
    batch_norm: bool = False
    dtype: str = "float32"
    everywhere: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False, grid=None):
        """Map a mean-subtracted image f32[*B, H, W, 3] to {"stage5": the `Map` after pool5}.

        `grid` is as in `Vgg16`.
        """
        everywhere = self.everywhere or self.batch_norm
        reach = Reach.start(x, grid or pixels(x.shape), everywhere=everywhere)

        def conv(reach, index, kernel_size, stride=1, padding=0, groups=1):
            layer = layers.Conv(
                self.widths[index - 1],
                kernel_size,
                stride,
                padding,
                groups,
                self.batch_norm,
                precision=operations.EXACT if index == 1 else None,
                name=f"conv{index}",
            )
            return reach.convolved(layer, train)

        reach = conv(reach, 1, 11, self.first_stride, self.first_padding).astype(self.dtype)
        reach = reach.pooled(3, 2).each(lrn.across_channels)
        reach = conv(reach, 2, 5, padding=2, groups=2)
        reach = reach.pooled(3, 2).each(lrn.across_channels)
        reach = conv(reach, 3, 3, padding=1)
        reach = conv(reach, 4, 3, padding=1, groups=2)
        reach = conv(reach, 5, 3, padding=1, groups=2).pooled(3, 2)
        return {"stage5": reach.whole()}


class Zf(nn.Module):
    """Zeiler and Fergus's five convolutions, as Faster R-CNN has them (ECCV 2014).

    Attributes:
      widths: channels of the five convolutions.
      second_stride: cells between two outputs of the second convolution; 2 at full size.
      batch_norm: as in `layers.Conv`.
      dtype: as in `Vgg16`.
    """

    widths: tuple[int, ...] = (96, 256, 384, 384, 256)
    second_stride: int = 2
    batch_norm: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, train: bool = False, grid=None):
        """Map a mean-subtracted image f32[*B, H, W, 3] to {"stage5": the `Map` of conv5}.

        `grid` is as in `Vgg16`.
        """
        grid = grid or pixels(x.shape)

        def conv(x, grid, index, kernel_size, stride=1):
            padding = kernel_size // 2
            layer = layers.Conv(
                self.widths[index - 1],
                kernel_size,
                stride,
                padding,
                batch_norm=self.batch_norm,
                precision=operations.EXACT if index == 1 else None,
                name=f"conv{index}",
            )
            grid = grid.convolved(kernel_size, stride, padding)
            return grid.cut(layer(x, train).astype(self.dtype)), grid

        def norm_and_pool(x, grid):
            grid = grid.pooled(3, 2, 1)
            x = lrn.within_channel(x)
            return grid.cut(operations.max_pool(x, size=3, stride=2, padding=1)), grid

        x, grid = norm_and_pool(*conv(x, grid, 1, 7, 2))
        x, grid = norm_and_pool(*conv(x, grid, 2, 5, self.second_stride))
        for index in (3, 4, 5):
            x, grid = conv(x, grid, index, 3)
        return {"stage5": Map(x, grid)}
