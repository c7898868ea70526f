"""The three image classifiers underneath the eight networks, as convolutional trunks.

Shapes: `*B` no axis or one batch axis, `H W` pixels, `h w` cells, `C` channels.

Each trunk is one Flax module for every size: a miniature gives other widths and strides. Layer
names are Caffe's. `geometry()` says where a trunk's cells lie in the image, which FCN's crops need.
"""

from typing import NamedTuple

from flax import linen as nn

from dag_jax.networks import layers, operations


class Grid(NamedTuple):
    """Where the cells of a map lie: cell j is centred at pixel `stride * j + origin`."""

    stride: float
    origin: float

    def convolved(self, kernel_size: int, stride: int = 1, padding: int = 0) -> "Grid":
        """Return the grid after a convolution or a pool."""
        shift = self.stride * ((kernel_size - 1) / 2 - padding)
        return Grid(self.stride * stride, self.origin + shift)

    def upsampled(self, kernel_size: int, stride: int) -> "Grid":
        """Return the grid after a transposed convolution."""
        fine = self.stride / stride
        return Grid(fine, self.origin - fine * (kernel_size - 1) / 2)

    def offset(self, other: "Grid") -> int:
        """Return which cell of this grid is cell 0 of `other` (Caffe's crop offset)."""
        return round((other.origin - self.origin) / self.stride)


PIXELS = Grid(1, 0)


class Vgg16(nn.Module):
    """VGG-16's thirteen convolutions (Simonyan and Zisserman, ICLR 2015).

    Attributes:
      widths: channels of the five stages.
      pooled: the stages (1 to 5) that end with a 2x2 pool of stride 2.
      first_padding: zero pixels around the image; FCN has 100.
      batch_norm: as in `layers.Conv`.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    pooled: tuple[int, ...] = (1, 2, 3, 4, 5)
    first_padding: int = 1
    batch_norm: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Map a mean-subtracted image f32[*B, H, W, 3] to a dict of each stage's map.

        Stage n is at key "stage{n}", pooled where the stage is pooled.
        """
        maps = {}
        for stage, width in enumerate(self.widths, start=1):
            for index in range(1, 3 if stage < 3 else 4):
                first = stage == index == 1
                conv = layers.Conv(
                    width,
                    padding=self.first_padding if first else 1,
                    batch_norm=self.batch_norm,
                    name=f"conv{stage}_{index}",
                )
                x = conv(x, train)
            if stage in self.pooled:
                x = operations.max_pool(x, size=2, stride=2)
            maps[f"stage{stage}"] = x
        return maps

    def geometry(self) -> dict[str, Grid]:
        """Return the grid of each stage's map."""
        grid = PIXELS.convolved(3, 1, self.first_padding)
        grids = {}
        for stage in range(1, 6):
            if stage in self.pooled:
                grid = grid.convolved(2, 2)
            grids[f"stage{stage}"] = grid
        return grids


class AlexNet(nn.Module):
    """CaffeNet's five convolutions (Krizhevsky et al., NIPS 2012; pool before norm, as Caffe's).

    Attributes:
      widths: channels of the five convolutions.
      first_stride: pixels between two outputs of the 11x11 convolution.
      first_padding: zero pixels around the image; FCN has 100.
      batch_norm: as in `layers.Conv`.
    """

    widths: tuple[int, ...] = (96, 256, 384, 384, 256)
    first_stride: int = 4
    first_padding: int = 0
    batch_norm: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Map a mean-subtracted image f32[*B, H, W, 3] to {"stage5": the map after pool5}."""

        def conv(index, kernel_size, **options):
            return layers.Conv(
                self.widths[index - 1],
                kernel_size,
                batch_norm=self.batch_norm,
                name=f"conv{index}",
                **options,
            )

        x = conv(1, 11, stride=self.first_stride, padding=self.first_padding)(x, train)
        x = operations.lrn_across_channels(operations.max_pool(x, size=3, stride=2))
        x = conv(2, 5, padding=2, groups=2)(x, train)
        x = operations.lrn_across_channels(operations.max_pool(x, size=3, stride=2))
        x = conv(3, 3, padding=1)(x, train)
        x = conv(4, 3, padding=1, groups=2)(x, train)
        x = conv(5, 3, padding=1, groups=2)(x, train)
        return {"stage5": operations.max_pool(x, size=3, stride=2)}

    def geometry(self) -> dict[str, Grid]:
        """Return the grid of the map after pool5."""
        grid = PIXELS.convolved(11, self.first_stride, self.first_padding)
        for _ in range(3):
            grid = grid.convolved(3, 2)
        return {"stage5": grid}


class Zf(nn.Module):
    """Zeiler and Fergus's five convolutions, as Faster R-CNN has them (ECCV 2014).

    Attributes:
      widths: channels of the five convolutions.
      second_stride: cells between two outputs of the second convolution; 2 at full size.
      batch_norm: as in `layers.Conv`.
    """

    widths: tuple[int, ...] = (96, 256, 384, 384, 256)
    second_stride: int = 2
    batch_norm: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Map a mean-subtracted image f32[*B, H, W, 3] to {"stage5": the map of conv5}."""

        def conv(index, kernel_size, stride=1):
            return layers.Conv(
                self.widths[index - 1],
                kernel_size,
                stride,
                kernel_size // 2,
                batch_norm=self.batch_norm,
                name=f"conv{index}",
            )

        x = operations.lrn_within_channel(conv(1, 7, 2)(x, train))
        x = operations.max_pool(x, size=3, stride=2, padding=1)
        x = operations.lrn_within_channel(conv(2, 5, self.second_stride)(x, train))
        x = operations.max_pool(x, size=3, stride=2, padding=1)
        for index in (3, 4, 5):
            x = conv(index, 3)(x, train)
        return {"stage5": x}
