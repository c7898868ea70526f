"""A pyramid of maps on a residual trunk, and what torchvision's detectors on one share.

Shapes: `H W` pixels of the user's image, `h w` cells of a map, `A` anchors of a cell, `N` boxes.

Two frames occur, both in inclusive corners: the user's, and the canvas's, which is the image as
torchvision scales it: its shorter side to 800 pixels, or less where its longer one would pass
1,333; bilinearly, without a blur. Normalised, it is padded with zeros to a multiple of 32. That
padding belongs to the network: layers see it, and it has anchors. Boxes are clipped to the canvas.
Batch normalisation is frozen, folded into the convolution before it.

Reference: Lin, Dollár, Girshick, He, Hariharan, Belongie, Feature Pyramid Networks for Object
Detection, CVPR 2017; https://github.com/pytorch/vision, torchvision.models.detection.
"""

import fractions
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from dag_jax import detection
from dag_jax.errors import UserError
from dag_jax.networks import layers, operations, resizing
from dag_jax.networks.espnetv2 import MEAN, STD
from dag_jax.networks.grids import Map, pixels, poison
from dag_jax.networks.network import DetectionNetwork, register
from dag_jax.networks.resnet import ResNet

_MULTIPLE = 32  # pixels: the stride of the trunk's last map
_CANVAS_STEP = 5 * _MULTIPLE  # pixels: the canvas has 800 on its shorter side
_LARGEST = math.log(1000 / 16)  # of the logarithm of a box's growth
# The numbers by which torchvision's outputs know COCO's categories; the others have no name.
_UNNAMED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_OUTPUTS = 91
COCO_COLUMNS = tuple(number for number in range(1, COCO_OUTPUTS) if number not in _UNNAMED)


class Pyramid(nn.Module):
    """Maps of one width, each the sum of a trunk's map and of the coarser one, enlarged.

    Attributes:
      features: channels of each map.
      stages: the trunk's maps, from the finest.
      convolutions: strided ones after the last, whose maps are two more levels; or 0: one more
        level is every second cell of the last.
    """

    features: int = 256
    stages: tuple[str, ...] = ("stage2", "stage3", "stage4", "stage5")
    convolutions: int = 0

    @nn.compact
    def __call__(self, maps) -> list[Map]:
        """Return the `Map`s, from the finest, of those that a trunk gives."""
        coarser = None
        levels: list[Map] = []
        for stage in reversed(self.stages):
            x, grid = maps[stage]
            x = layers.Conv(self.features, 1, relu=False, name=f"{stage}_inner")(x)
            if coarser is not None:
                x += resizing.enlarge(coarser, 2)
            coarser = grid.cut(x)
            x = layers.Conv(self.features, padding=1, relu=False, name=f"{stage}_outer")(coarser)
            levels.insert(0, Map(grid.cut(x), grid))
        x, grid = levels[-1]
        if not self.convolutions:
            return [*levels, Map(x[..., ::2, ::2, :], grid.convolved(1, 2))]
        for number in range(self.convolutions):
            conv = layers.Conv(self.features, 3, 2, 1, relu=False, name=f"extra{number}")
            x, grid = conv(jax.nn.relu(x) if number else x), grid.convolved(3, 2, 1)
            x = grid.cut(x)
            levels.append(Map(x, grid))
        return levels


class PyramidDetector(nn.Module):
    """A detector on a pyramid of maps; its subclasses have the heads.

    Attributes:
      backbone: trunk of a normalised image.
      pyramid: module of its maps.
      anchor_sizes: of each level, square roots of its anchors' areas in canvas pixels.
      outputs: classes that the heads know.
      columns: which of the outputs are the model's classes, in their order. The others were never
        trained; what they say is no detection.
      resize: pixels of the canvas's shorter side, and the most that its longer one may have.
      canvas_shape: pixels (height, width) of the array that the canvas lies in, at the top left,
        where images come with an `extent`.
    """

    backbone: nn.Module = ResNet()
    pyramid: Pyramid = Pyramid()
    anchor_sizes: tuple[tuple[int, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    outputs: int = COCO_OUTPUTS
    columns: tuple[int, ...] = COCO_COLUMNS
    resize: tuple[int, int] = (800, 1333)
    canvas_shape: tuple[int, int] | None = None

    def canvas(self, shape: tuple[int, ...], extent=None):
        """Return the canvas's pixels, and its pixels per pixel of the image; rows before columns.

        torchvision multiplies in float64 and rounds down, which leaves 799 pixels of 800 for a
        tenth of all sides; so does this.

        Args:
          shape: (H, W, 3), the shape of an image.
          extent: i32[2], the rows and columns that are the image where padding follows them.

        Returns:
          ((ints), (floats)), or i32[] and f32[] where there is an `extent`.
        """
        _, _, *sides = pixels(shape, extent)
        short, long = self.resize
        if isinstance(sides[0], int):
            scale = min(short / min(sides), long / max(sides))
            scaled = [math.floor(side * scale) for side in sides]
            return tuple(scaled), tuple(a / b for a, b in zip(scaled, sides, strict=True))
        shorter, longer = jnp.minimum(*sides), jnp.maximum(*sides)
        fits = short * longer <= long * shorter
        target, base = jnp.where(fits, short, long), jnp.where(fits, shorter, longer)
        errors = [jnp.asarray(_quotient_errors(side, max(shape[:2])))[base] for side in self.resize]
        error = jnp.where(fits, *errors)
        scaled = [_product(target, base, side, error) for side in sides]
        return tuple(scaled), tuple(
            jnp.asarray(a, jnp.float32) / jnp.asarray(b, jnp.float32)
            for a, b in zip(scaled, sides, strict=True)
        )

    def levels(self, image, extent=None) -> list[Map]:
        """Return the pyramid of an image.

        Args:
          image: f32[H, W, 3], grey levels 0-255, RGB.
          extent: i32[2], the rows and columns that are the image where padding follows them; the
            detector's outputs are then those for the image alone. None: all are.

        Raises:
          ValueError: where `image` has another shape, for an extent where there is no
            `canvas_shape`, and as `grids.pixels` says.
        """
        if image.ndim != 3 or image.shape[-1] != 3:
            raise UserError(f"image has shape {image.shape}, expected [H, W, 3]")
        start = pixels(image.shape, extent)
        (rows, columns), _ = self.canvas(image.shape, extent)
        canvas, shape = start._replace(rows=rows, columns=columns), (rows, columns)
        if extent is not None:
            if self.canvas_shape is None:
                raise UserError("an extent needs a network with a canvas_shape")
            shape = self.canvas_shape
        mean, std = (number.reshape(1, 1, 3) for number in (MEAN, STD))
        x = (poison(image, start) / 255 - mean) / std
        read = start.rows, start.columns
        ratios = (rows, start.rows), (columns, start.columns)
        x = poison(canvas.cut(resizing.resize(x, shape, ratios=ratios, extent=read)), canvas)
        x = jnp.pad(x, [*((0, _padded(side) - side) for side in shape), (0, 0)])
        grid = canvas._replace(rows=_padded(rows), columns=_padded(columns))
        return self.pyramid(self.backbone(x, False, grid))

    def anchors(self, levels: list[Map]):
        """Return the anchors of each of `levels`: a list of f32[h * w * A, 4], canvas pixels."""
        padded = levels[0].grid
        tall, wide = (int(padded.stride) * side for side in (padded.rows, padded.columns))
        anchors = []
        for (x, grid), sizes in zip(levels, self.anchor_sizes, strict=True):
            base = detection.centred_anchors(sizes)
            # Whole pixels, whatever the level's stride: 61 of 800 pixels, say, on 13 cells.
            strides = operations.divide(tall, grid.rows), operations.divide(wide, grid.columns)
            y, x = (
                jnp.arange(count) * stride for count, stride in zip(x.shape, strides, strict=False)
            )
            y, x = jnp.meshgrid(y, x, indexing="ij")
            shifts = jnp.stack([x, y, x, y], axis=-1).astype(jnp.float32)
            anchors.append((shifts[:, :, None] + base[None, None]).reshape(-1, 4))
        return anchors

    def present(self, levels: list[Map]):
        """Return which anchors lie in cells of the grids: a list of bool[h * w * A], by level."""
        return [
            jnp.repeat(grid.cut(jnp.ones((*x.shape[:2], 1))).reshape(-1) > 0, 3 * len(sizes))
            for (x, grid), sizes in zip(levels, self.anchor_sizes, strict=True)
        ]

    def decode(self, boxes, offsets, canvas):
        """Move boxes by offsets f32[N, 4], and clip them to the canvas."""
        growth = jnp.minimum(offsets[..., 2:], _LARGEST)
        edges = detection.decode_boxes(boxes, jnp.concatenate([offsets[..., :2], growth], axis=-1))
        return _inside(edges, canvas[0])

    def to_image(self, boxes, canvas, shape):
        """Return boxes of the canvas in pixels of the user's image, of (rows, columns) `shape`."""
        return _inside(detection.boxes_to_edges(boxes) / _ratios(canvas), shape)

    def to_canvas(self, boxes, canvas):
        """Return boxes of the user's image in pixels of the canvas."""
        return detection.boxes_from_edges(detection.boxes_to_edges(boxes) * _ratios(canvas))


@register
class PyramidNetwork(DetectionNetwork):
    """A `DetectionNetwork` whose module is a `PyramidDetector`."""

    def _canvas_step(self):
        return _CANVAS_STEP


def best_pairs(scores, valid, max_pairs):
    """Return the best pairs of a row and a column of f32[N, C].

    Returns:
      (scores f32[K], rows i32[K], columns i32[K], valid bool[K]), by falling score; K is
      `max_pairs`, or all there are.
    """
    count = scores.shape[1]
    scores = jnp.where(valid, scores, -jnp.inf).reshape(-1)
    scores, pairs = lax.top_k(scores, min(max_pairs, scores.size))
    return scores, pairs // count, pairs % count, scores > -jnp.inf


def _inside(edges, shape):
    """Return boxes by their edges, clipped to (rows, columns) `shape`, by their corners."""
    return detection.boxes_from_edges(detection.clip_boxes(edges, [side + 1 for side in shape]))


def _ratios(canvas):
    """Return f32[1, 4]: canvas pixels per pixel of the image, for each number of a box."""
    rows, columns = (jnp.asarray(ratio, jnp.float32) for ratio in canvas[1])
    return jnp.stack([columns, rows, columns, rows])[None]


def _padded(side):
    """Return an int or i32[], raised to the next multiple of 32."""
    return operations.divide(side + (_MULTIPLE - 1), _MULTIPLE) * _MULTIPLE


@functools.lru_cache(maxsize=32)
def _quotient_errors(target, longest):
    """Return the error of float64's target / n for n from 0 to `longest`: f32[longest + 1].

    It is relative, in units of 2^-53, and positive where the quotient is too large. At 0, which no
    side has, it is 0.
    """
    errors = [0.0]
    for n in range(1, longest + 1):
        quotient = fractions.Fraction(target / n) * n / target
        errors.append(float((quotient - 1) * 2**53))
    return np.float32(errors)


def _product(target, base, side, error):
    """Return floor(float64(target / base) * side) of i32[], by the quotient's error."""
    exact = target * side
    whole = lax.div(exact, base)
    # Only a product that is exactly a whole number can round down to the one below: it does where
    # its error is more than half of the distance to the float64 below. That distance is 2^-52 of
    # the power of two at or below the number; below a power of two itself it is half of that.
    power = (1 << (31 - lax.clz(whole))).astype(jnp.float32)
    size = whole.astype(jnp.float32)
    reach = jnp.where(size == power, power / 2, power)
    short = (exact == whole * base) & (-error * size > reach)
    return whole - short.astype(jnp.int32)
