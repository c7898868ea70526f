"""torchvision's segmenters: FCN, DeepLabV3 and LR-ASPP.

Shapes: `*B` no axis or one batch axis, `H W` pixels of the user's image, `h w` cells of a map, `C`
classes or channels.

An image is scaled as torchvision's transforms scale it, its shorter side to 520 pixels, bilinearly
and blurred where it shrinks, without their rounding to whole grey levels. Scores of cells become
those of the user's pixels at once, bilinearly, the border continued: what PyTorch's interpolate
gives without align_corners. Batch normalisation is frozen, folded into the convolution before it.

Reference: Long, Shelhamer, Darrell, CVPR 2015; Chen, Papandreou, Schroff, Adam, Rethinking Atrous
Convolution for Semantic Image Segmentation, 2017; Howard et al., ICCV 2019;
https://github.com/pytorch/vision, torchvision.models.segmentation.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from dag_jax.errors import UserError
from dag_jax.models import SEGMENTATION
from dag_jax.networks import layers, operations, planes, resizing
from dag_jax.networks.entry import Entry
from dag_jax.networks.espnetv2 import MEAN, STD
from dag_jax.networks.grids import Map, pixels, poison
from dag_jax.networks.mobilenetv3 import MobileNetV3, averages
from dag_jax.networks.resnet import ResNet

_RATES = (12, 24, 36)  # cells between two that the kernels of DeepLabV3's pyramid read


def _scores(num_classes, name):
    return layers.Conv(num_classes, 1, relu=False, scale=0.1, name=name)


class FcnHead(nn.Module):
    """A convolution, and the scores.

    Attributes:
      features: channels of the convolution.
    """

    features: int = 512

    @nn.compact
    def __call__(self, maps, num_classes: int) -> Map:
        """Return the scores of each cell of "stage5"."""
        x, grid = maps["stage5"]
        x = layers.Conv(self.features, padding=1, name="conv")(x)
        return Map(_scores(num_classes, "score")(x), grid)


class DeepLabHead(nn.Module):
    """A pyramid of convolutions that see as far as their dilation, another one, and the scores.

    Attributes:
      features: channels of each convolution.
    """

    features: int = 256

    @nn.compact
    def __call__(self, maps, num_classes: int) -> Map:
        """Return the scores of each cell of "stage5"."""
        x, grid = maps["stage5"]
        views = [layers.Conv(self.features, 1, name="view0")(x)]
        for number, rate in enumerate(_RATES, start=1):
            layer = layers.Conv(self.features, padding=rate, dilation=rate, name=f"view{number}")
            views.append(layer(x))
        whole = layers.Conv(self.features, 1, name="whole")(averages(x, grid))
        views.append(jnp.broadcast_to(whole, views[0].shape))
        x = layers.Conv(self.features, 1, name="project")(jnp.concatenate(views, axis=-1))
        x = layers.Conv(self.features, padding=1, name="conv")(grid.cut(x))
        return Map(_scores(num_classes, "score")(x), grid)


class LrasppHead(nn.Module):
    """Scores of a fine map and of a coarse one, whose channels are weighted by its averages.

    Attributes:
      features: channels of the coarse map before its scores.
    """

    features: int = 128

    @nn.compact
    def __call__(self, maps, num_classes: int) -> Map:
        """Return the scores of each cell of "stage3"."""
        (low, fine), (high, coarse) = maps["stage3"], maps["stage5"]
        weigh = nn.Conv(self.features, (1, 1), use_bias=False, name="weigh")
        x = layers.Conv(self.features, 1, name="conv")(high)
        x = x * jax.nn.sigmoid(weigh(averages(high, coarse)))
        # torchvision enlarges the map before its scores, which is the same: both are linear, and
        # the weights of a place sum up to 1.
        x = _enlarge(Map(_scores(num_classes, "score_high")(x), coarse), low.shape, fine)
        return Map(x + _scores(num_classes, "score_low")(low), fine)


def _enlarge(cells, shape, grid):
    """Bring a `Map` to the cells of another grid, in an array of `shape`; see `Segmenter`."""
    x, own_grid = cells
    sides = (grid.rows, own_grid.rows), (grid.columns, own_grid.columns)
    extent = own_grid.rows, own_grid.columns
    return resizing.resize(x, shape[-3:-1], ratios=sides, extent=extent)


class Segmenter(nn.Module):
    """A trunk and a head on an image whose shorter side is scaled to a fixed number of pixels.

    Attributes:
      backbone: a trunk of normalised images, `ResNet` or `MobileNetV3`.
      head: module of its maps and of a number of classes: the `Map` of the scores.
      short_side: pixels of the shorter side after scaling.
      num_classes: classes with background.
      canvas_shape: pixels (rows, columns) of the array that the scaled image lies in, at the top
        left, where images come with an `extent`.
    """

    backbone: nn.Module
    head: nn.Module
    short_side: int = 520
    num_classes: int = 21
    canvas_shape: tuple[int, int] | None = None

    def canvas(self, rows, columns):
        """Return rows and columns of the scaled image; of ints or i32[], the same."""
        traced = not isinstance(rows, int)
        shorter = jnp.minimum(rows, columns) if traced else min(rows, columns)
        return tuple(operations.divide(self.short_side * side, shorter) for side in (rows, columns))

    @nn.compact
    def __call__(self, image, extent=None):
        """Score every pixel.

        Args:
          image: f32[*B, H, W, 3], RGB grey levels 0-255.
          extent: i32[2], the rows and columns that are the image where padding follows them; its
            scores are then those of the image alone, and zero in the padding. None: all are.

        Returns:
          f32[*B, H, W, C], pre-softmax.

        Raises:
          ValueError: for an extent where there is no `canvas_shape`, and as `grids.pixels` says.
        """
        start = pixels(image.shape, extent)
        rows, columns = self.canvas(start.rows, start.columns)
        canvas, shape = start._replace(rows=rows, columns=columns), (rows, columns)
        if extent is not None:
            if self.canvas_shape is None:
                raise UserError("an extent needs a network with a canvas_shape")
            shape = self.canvas_shape
        *batch, height, width, channels = poison(image, start).shape
        x = jnp.moveaxis(poison(image, start).reshape(-1, height, width, channels), -1, 1)
        sides = zip(shape, (height, width), start[2:], canvas[2:], strict=True)
        x = planes.resize(x, *(resizing.antialiased_matrix(*side) for side in sides))
        x = jnp.moveaxis(x, 1, -1).reshape(*batch, *shape, channels)
        mean, std = (number.reshape((1,) * (x.ndim - 1) + (-1,)) for number in (MEAN, STD))
        x = poison(canvas.cut((x / 255 - mean) / std), canvas)  # NaN: of another bucket's canvas
        scores = self.head(self.backbone(x, False, canvas), self.num_classes)
        return start.cut(_enlarge(scores, image.shape, start))


_FCN, _DEEPLAB = "Long, Shelhamer and Darrell, CVPR 2015", "Chen et al., arXiv 1706.05587, 2017"
_RESNET50, _RESNET101 = ResNet(stride=8), ResNet(blocks=(3, 4, 23, 3), stride=8)


def _entry(title, paper, score, backbone, head):
    return Entry(
        title,
        SEGMENTATION,
        "voc2012_seg_val",
        paper,
        functools.partial(Segmenter, backbone, head),
        size="520 pixels the short side",
        score=f"mIoU {score} on COCO val2017, of VOC's classes",
        precisions=("float32", "tf32"),
    )


ENTRIES = {
    "lraspp_mobilenet_v3_large": _entry(
        "LR-ASPP-MobileNetV3", "Howard et al., ICCV 2019", 57.9, MobileNetV3(), LrasppHead()
    ),
    "deeplabv3_mobilenet_v3_large": _entry(
        "DeepLabV3-MobileNetV3", _DEEPLAB, 60.3, MobileNetV3(), DeepLabHead()
    ),
    "fcn_resnet50": _entry("FCN-ResNet-50", _FCN, 60.5, _RESNET50, FcnHead()),
    "fcn_resnet101": _entry("FCN-ResNet-101", _FCN, 63.7, _RESNET101, FcnHead()),
    "deeplabv3_resnet50": _entry("DeepLabV3-ResNet-50", _DEEPLAB, 66.4, _RESNET50, DeepLabHead()),
    "deeplabv3_resnet101": _entry(
        "DeepLabV3-ResNet-101", _DEEPLAB, 67.4, _RESNET101, DeepLabHead()
    ),
}
