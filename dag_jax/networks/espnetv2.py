"""ESPNetv2 for segmentation, as its authors evaluate it.

Shapes: `*B` no axis or one batch axis, `H W` pixels of the user's image, `C` classes or channels,
`h w` cells of a map. Maps are channels-first, [B, C, h, w]; see `planes`.

An image is scaled to one size, whatever its shape, as Pillow scales it bilinearly (without its
rounding to whole grey levels); scores are brought to the image's size as the authors bring labels,
by nearest neighbours. Batch normalisation is frozen: it is folded into the convolution before it,
or, where sums of convolutions or parts of several are normalised, a gain and a shift.

Reference: Mehta, Rastegari, Shapiro, Hajishirzi, ESPNetv2: A Light-weight, Power Efficient, and
General Purpose Convolutional Neural Network, CVPR 2019; https://github.com/sacmehta/EdgeNets.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dag_jax.datasets.classes import CITYSCAPES_NAMES, CLASS_NAMES
from dag_jax.models import SEGMENTATION
from dag_jax.networks import operations, planes, resizing
from dag_jax.networks.entry import Entry
from dag_jax.networks.grids import pixels, poison

# Of ImageNet's RGB from 0 to 1, as torchvision rounds them.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
WIDTHS = {  # channels of the maps at strides 2, 4, 8 and 16
    0.5: (16, 32, 64, 128),
    1.0: (32, 64, 128, 256),
    1.25: (32, 80, 160, 320),
    1.5: (32, 96, 192, 384),
    2.0: (32, 128, 256, 512),
}
_BRANCHES = 4  # of a block; also its groups
_SCALES = (2.0, 1.5, 1.0, 0.5, 0.1)  # of a pyramid
_LEAST = 5  # cells of a pyramid's side
_BLOCKS = {3: 3, 4: 7}  # blocks that follow the one with a stride, by level
# By the cells that a block may see at most: a branch that would see more has no dilation.
_DILATIONS = {13: (1, 2, 3, 4), 11: (1, 2, 3, 4), 9: (1, 2, 3, 4), 7: (1, 1, 2, 3)}
_BLUR = np.full((3, 3, 1, 1), 1 / 9, np.float32)


class Layer(nn.Module):
    """A convolution or nothing, then a bias or a gain and a shift, then a PReLU if asked.

    Attributes:
      features: channels of the output.
      kernel_size: 0, 1 or 3 cells; 0 is no convolution, and has a gain.
      groups: parts that the channels fall into.
      stride: cells between two outputs.
      dilation: cells between two that the kernel reads, of a depthwise convolution.
      bias: whether something is added.
      slope: whether a PReLU follows.
    """

    features: int
    kernel_size: int = 1
    groups: int = 1
    stride: int = 1
    dilation: int = 1
    bias: bool = True
    slope: bool = True

    @nn.compact
    def __call__(self, x, more=None):
        """Map f32[B, C, h, w] to f32[B, features, h', w']; `more` is added before the PReLU."""
        size, channels = self.kernel_size, x.shape[1]
        if size:
            shape = (size, size, channels // self.groups, self.features)
            kernel = self.param("kernel", _he, shape)
            if size == 1:
                x = planes.pointwise(x, kernel, groups=self.groups)
            elif self.groups == channels == self.features:
                x = planes.depthwise(x, kernel, dilation=self.dilation, stride=self.stride)
            else:
                x = planes.convolve(x, kernel, groups=self.groups, stride=self.stride)
        else:
            x = x * _planes(self.param("scale", nn.initializers.ones, (self.features,)))
        if self.bias:
            x = x + _planes(self.param("bias", nn.initializers.zeros, (self.features,)))
        if more is not None:
            x = x + more
        if self.slope:
            x = planes.prelu(x, self.param("slope", _quarter, (self.features,)))
        return x


_he = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def _quarter(key, shape):
    return jnp.full(shape, 0.25)


def _planes(numbers):
    return numbers[None, :, None, None]


class Kernel(nn.Module):
    """A kernel by itself.

    Attributes:
      shape: [K, K, C / groups, D].
    """

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self):
        """Return the kernel."""
        return self.param("kernel", _he, self.shape)


class Activation(nn.Module):
    """A PReLU."""

    @nn.compact
    def __call__(self, x):
        """Map f32[B, C, h, w]."""
        return planes.prelu(x, self.param("slope", _quarter, (x.shape[1],)))


class Block(nn.Module):
    """An EESP unit: reduce, transform by dilated depthwise convolutions, sum up, expand.

    Attributes:
      features: channels of the result.
      reach: cells that its widest kernel sees, of `_DILATIONS`.
      stride: cells between two outputs; with 1, the input is added and a PReLU follows.
    """

    features: int
    reach: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        """Map f32[B, C, h, w] to f32[B, features, h', w']."""
        narrow = self.features // _BRANCHES
        y = Layer(narrow, groups=_BRANCHES, name="project")(x)
        branches: list[jax.Array] = []
        for index, dilation in enumerate(_DILATIONS[self.reach]):
            branch = Layer(
                *(narrow, 3, narrow, self.stride, dilation),
                bias=False,
                slope=False,
                name=f"dilated{index}",
            )(y)
            branches.append(branch + branches[-1] if branches else branch)
        y = Layer(self.features, 0, name="norm")(jnp.concatenate(branches, axis=1))
        expand = Layer(self.features, groups=_BRANCHES, slope=self.stride == 1, name="expand")
        return expand(y, x if self.stride == 1 else None)


class Down(nn.Module):
    """Halve a map: its average beside a block with a stride, and the image added.

    Attributes:
      features: channels of the result.
      reach: as in `Block`.
    """

    features: int
    reach: int

    @nn.compact
    def __call__(self, x, image):
        """Map f32[B, C, h, w] and the image at half its side to f32[B, features, h / 2, w / 2]."""
        channels = x.shape[1]
        y = Block(self.features - channels, self.reach, 2, name="block")(x)
        y = jnp.concatenate([_halved(x), y], axis=1)
        image = Layer(image.shape[1], 3, name="image0")(image)
        y = y + Layer(self.features, slope=False, name="image1")(image)
        return Activation(name="act")(y)


def _halved(x):
    """Average 3x3 cells, the padding's zeros counted, with a stride of 2."""
    blur = jnp.broadcast_to(_BLUR, (3, 3, 1, x.shape[1]))
    return planes.depthwise(x, blur, stride=2)


class Pyramid(nn.Module):
    """See a map at several scales at once, and merge what is seen.

    Attributes:
      features: channels of the result.
      narrow: channels at each scale.
      slope: whether a PReLU ends it.
    """

    features: int
    narrow: int
    slope: bool = True

    @nn.compact
    def __call__(self, x):
        """Map f32[B, C, h, w] to f32[B, features, h, w]."""
        x = Layer(self.narrow, name="project")(x)
        sides, shape = x.shape[2:], (3, 3, 1, self.narrow)
        views = []
        for index, scale in enumerate(_SCALES):
            kernel = Kernel(shape, name=f"scale{index}")()
            scaled = tuple(max(math.ceil(side * scale), _LEAST) for side in sides)
            if scale > 1:
                views.append(planes.correlate_enlarged(x, kernel, scaled))
                continue
            y = (
                x
                if scaled == sides
                else planes.resize(x, *map(planes.average_matrix, scaled, sides))
            )
            y = planes.depthwise(y, kernel)
            if scaled != sides:
                y = planes.resize(y, *map(planes.corners_matrix, sides, scaled))
            views.append(y)
        y = Layer(len(views) * self.narrow, 0, name="norm")(jnp.concatenate(views, axis=1))
        # Each channel of the result is of that channel at all scales: the authors shuffle channels
        # for it.
        y = Layer(self.narrow, 3, self.narrow, name="merge")(planes.shuffle(y, len(views)))
        return Layer(self.features, slope=self.slope, name="expand")(y)


class Skip(nn.Module):
    """Bring an encoder's map to the decoder's channels, weighted by its own averages."""

    features: int

    @nn.compact
    def __call__(self, x):
        """Map f32[B, C, h, w] to f32[B, features, h, w]."""
        means = jnp.mean(x, axis=(2, 3), keepdims=True)
        weights = Layer(self.features, bias=False, slope=False, name="weigh")(means)
        groups = math.gcd(x.shape[1], self.features)
        y = Layer(self.features, 3, groups, name="expand")(x)
        return y * jax.nn.sigmoid(weights)


class EspNetV2(nn.Module):
    """ESPNetv2 with its decoder.

    Attributes:
      width: factor of its channels, of `WIDTHS`.
      size: pixels (rows, columns) that an image is scaled to, multiples of 16.
      num_classes: classes with background.
    """

    width: float = 2.0
    size: tuple[int, int] = (384, 384)
    num_classes: int = 21

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
          ValueError: as `grids.pixels` says of an extent.
        """
        start = pixels(image.shape, extent)
        sides = start.rows, start.columns
        x = poison(image, start)
        *batch, height, width, channels = x.shape
        x = jnp.moveaxis(x.reshape(-1, height, width, channels), -1, 1)
        for axis, lengths in enumerate(zip(self.size, (height, width), sides, strict=True)):
            x = _scaled(x, *lengths, axis=axis + 2)
        x = self._layers((x / 255 - _planes(MEAN)) / _planes(STD))
        # As a product with the identity: XLA would fuse a transposition into all that reads it.
        identity = np.eye(self.num_classes, dtype=np.float32)
        scores = jnp.einsum("bchw,cd->bhwd", x, identity, precision=operations.EXACT)
        # Rows last: their gather, and what reads it, go along whole rows.
        scores = _enlarged(scores, width, self.size[1], sides[1], axis=2)
        scores = _enlarged(scores, height, self.size[0], sides[0], axis=1)
        return scores.reshape(*batch, height, width, self.num_classes)

    def _layers(self, image):
        """Map f32[B, 3, h, w] to the scores of every second row and column."""
        base = 16
        narrow = min(self.num_classes // 2, base)
        widths = WIDTHS[self.width]
        x = level1 = Layer(widths[0], 3, stride=2, name="level1")(image)
        image = _halved(_halved(image))
        x = level2 = Down(widths[1], 13, name="level2")(x, image)
        levels = [level1, level2]
        for level, reach, inner in ((3, 11, 9), (4, 9, 7)):
            image = _halved(image)
            features = widths[level - 1]
            x = Down(features, reach, name=f"level{level}")(x, image)
            for index in range(_BLOCKS[level]):
                x = Block(features, inner, name=f"level{level}_{index}")(x)
            levels.append(x)
        x = Pyramid(4 * base, narrow, name="decode1")(x)
        for number, skip in enumerate(reversed(levels[:-1]), start=2):
            doubled = (planes.corners_matrix(2 * side, side) for side in x.shape[2:])
            x = planes.resize(x, *doubled)
            x = x + Skip(x.shape[1], name=f"skip{number}")(skip)
            x = Layer(x.shape[1], 0, name=f"join{number}")(x)
            last = number == 4
            features = self.num_classes if last else (5 - number) * base
            x = Pyramid(features, narrow, not last, name=f"decode{number}")(x)
        return x


def _scaled(x, size, cells, extent, *, axis):
    """Scale an axis of `cells`, of which `extent` are the image, to `size`."""
    matrix = resizing.antialiased_matrix(size, cells, extent)
    # None is a product with the whole matrix: along columns a gather would read number by number,
    # and XLA would fuse what a gradient's gather reads, many sums, into each tap.
    row = None if axis == x.ndim - 1 else math.ceil(2 * max(1, cells / size))
    return resizing.banded(x, matrix, taps=(row, None), axis=axis)


def _enlarged(scores, pixels, size, extent, *, axis):
    """Bring an axis of scores to `size` and then to the `extent` of `pixels` that are the image."""
    cells = scores.shape[axis]
    matrix = resizing.nearest_corners_matrix(pixels, size, cells, extent)
    # So many of the `size` places read one cell, and ceil(pixels / size) pixels read a place.
    readers = math.floor(2 * (size - 1) / (cells - 1)) + 1
    return resizing.banded(scores, matrix, taps=(2, math.ceil(readers * pixels / size)), axis=axis)


def _entry(width, name, sides, score, split="voc2012_seg_val", classes=CLASS_NAMES):
    columns, rows = sides
    return Entry(
        f"ESPNetv2 {width} ({name})",
        SEGMENTATION,
        split,
        "Mehta, Rastegari, Shapiro and Hajishirzi, CVPR 2019",
        functools.partial(EspNetV2, width, (rows, columns), len(classes)),
        size=f"{columns} x {rows} pixels",
        score=score,
        classes=classes,
        precisions=("float32",),
    )


def _voc(width, side, score):
    return _entry(width, side, (side, side), f"mIoU {score} on VOC2012 val")


def _city(width, columns, rows, score=None):
    name, classes = f"Cityscapes {columns} x {rows}", (*CITYSCAPES_NAMES, "background")
    score = "none" if score is None else f"mIoU {score} on Cityscapes val"
    return _entry(width, name, (columns, rows), score, "val", classes)


ENTRIES = {
    "espnetv2_20_384": _voc(2.0, 384, 67.01),
    "espnetv2_20_256": _voc(2.0, 256, 63.36),
    "espnetv2_15_384": _voc(1.5, 384, 63.67),
    "espnetv2_15_256": _voc(1.5, 256, 59.39),
    "espnetv2_10_384": _voc(1.0, 384, 60.22),
    "espnetv2_10_256": _voc(1.0, 256, 54.14),
    "espnetv2_05_384": _voc(0.5, 384, 47.18),
    "espnetv2_05_256": _voc(0.5, 256, 39.82),
    # No pixel is labelled background: what is of no class is 255, which training left out.
    "espnetv2_20_city_1024x512": _city(2.0, 1024, 512, 66.4),
    "espnetv2_20_city_512x256": _city(2.0, 512, 256),
    "espnetv2_15_city_1024x512": _city(1.5, 1024, 512, 63.8),
    "espnetv2_15_city_512x256": _city(1.5, 512, 256, 54.6),
    "espnetv2_10_city_1024x512": _city(1.0, 1024, 512, 60.1),
    "espnetv2_10_city_512x256": _city(1.0, 512, 256, 52.2),
    "espnetv2_05_city_1024x512": _city(0.5, 1024, 512, 53.9),
    "espnetv2_05_city_512x256": _city(0.5, 512, 256, 47.3),
}
