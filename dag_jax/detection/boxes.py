"""Boxes: overlap, clipping, and the offsets that Faster R-CNN regresses.

Shapes: `N M` boxes, `*S` any leading axes.

A box is float32 [x0, y0, x1, y1] in pixels, 0-based with inclusive corners, so that its width is
x1 - x0 + 1. All arguments of one call are in the same frame, whichever that is.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float, Integer

from dag_jax.arrays import Array
from dag_jax.errors import UserError


def _sides_and_centres(boxes):
    """Return f32[*S, 2] sides and centres, x before y."""
    sides = boxes[..., 2:] - boxes[..., :2] + 1
    return sides, boxes[..., :2] + 0.5 * sides


def _check(name, boxes):
    if boxes.shape[-1:] != (4,):
        raise UserError(f"{name} has shape {boxes.shape}, its last axis should be 4 long")


def iou(a: Float[Array, "N 4"], b: Float[Array, "M 4"]) -> Float[jax.Array, "N M"]:
    """Return the intersection over union of each box of `a` with each of `b`.

    Args:
      a: f32[N, 4], boxes in pixels.
      b: f32[M, 4], boxes in the same frame.

    Returns:
      f32[N, M], in [0, 1].

    Raises:
      ValueError: where an argument is no list of boxes.
    """
    _check("a", a)
    _check("b", b)
    # One coordinate at a time: slices of two coordinates cost ten times as much on CPU.
    ax0, ay0, ax1, ay1 = (a[:, i, None] for i in range(4))
    bx0, by0, bx1, by1 = (b[None, :, i] for i in range(4))
    width = jnp.maximum(jnp.minimum(ax1, bx1) - jnp.maximum(ax0, bx0) + 1, 0)
    height = jnp.maximum(jnp.minimum(ay1, by1) - jnp.maximum(ay0, by0) + 1, 0)
    intersection = width * height
    a_area = (ax1 - ax0 + 1) * (ay1 - ay0 + 1)
    b_area = (bx1 - bx0 + 1) * (by1 - by0 + 1)
    return intersection / (a_area + b_area - intersection)


def encode_boxes(
    boxes: Float[Array, "*S 4"], targets: Float[Array, "*S 4"]
) -> Float[jax.Array, "*S 4"]:
    """Return the offsets (dx, dy, dw, dh) that lead from `boxes` to `targets`.

    With w, h the sides and x, y the centre of a box and ' marking its target:
    dx = (x' - x) / w, dy = (y' - y) / h, dw = log(w' / w), dh = log(h' / h).

    Args:
      boxes: f32[*S, 4], boxes in pixels.
      targets: f32[*S, 4], where they should go, in the same frame.

    Returns:
      f32[*S, 4], without a unit.

    Raises:
      ValueError: where an argument is no list of boxes.

    Reference: `bbox_transform` of py-faster-rcnn.
    """
    _check("boxes", boxes)
    _check("targets", targets)
    sides, centres = _sides_and_centres(boxes)
    target_sides, target_centres = _sides_and_centres(targets)
    shift = (target_centres - centres) / sides
    return jnp.concatenate([shift, jnp.log(target_sides / sides)], axis=-1)


def decode_boxes(
    boxes: Float[Array, "*#S 4"], deltas: Float[Array, "*#S 4"]
) -> Float[jax.Array, "*S 4"]:
    """Move `boxes` by the offsets `deltas`, as py-faster-rcnn does.

    Its `bbox_transform_inv` ignores that corners are inclusive, so x1 and y1 are one pixel larger
    than `encode_boxes` means them. Published detectors were tested that way.

    Args:
      boxes: f32[*S, 4], boxes in pixels; axes of length 1 broadcast.
      deltas: f32[*S, 4], offsets.

    Returns:
      f32[*S, 4], boxes in the frame of `boxes`.

    Raises:
      ValueError: where an argument's last axis is not 4 long.

    Reference: `bbox_transform_inv` of py-faster-rcnn.
    """
    _check("boxes", boxes)
    _check("deltas", deltas)
    sides, centres = _sides_and_centres(boxes)
    centres = centres + deltas[..., :2] * sides
    sides = jnp.exp(deltas[..., 2:]) * sides
    return jnp.concatenate([centres - 0.5 * sides, centres + 0.5 * sides], axis=-1)


def clip_boxes(
    boxes: Float[Array, "*S 4"], shape: Sequence[int | Integer[Array, ""]] | Integer[Array, "2"]
) -> Float[jax.Array, "*S 4"]:
    """Clip boxes to an image.

    Args:
      boxes: f32[*S, 4], boxes in pixels of the image.
      shape: pixels (H, W) of the image: ints, or i32[2].

    Returns:
      f32[*S, 4], 0 <= x <= W - 1 and 0 <= y <= H - 1.

    Raises:
      ValueError: where `boxes` is no list of boxes.
    """
    _check("boxes", boxes)
    bottom, right = (jnp.asarray(side - 1, jnp.float32) for side in shape)
    x0, y0, x1, y1 = (boxes[..., i] for i in range(4))
    x0, x1 = (jnp.clip(x, 0, right) for x in (x0, x1))
    y0, y1 = (jnp.clip(y, 0, bottom) for y in (y0, y1))
    return jnp.stack([x0, y0, x1, y1], axis=-1)


def scale_boxes(
    boxes: Float[Array, "*S 4"], shape: Sequence[int | Integer[Array, ""]]
) -> Float[jax.Array, "*S 4"]:
    """Scale boxes given as fractions of an image's sides, 0..1, to pixels of the image.

    Args:
      boxes: f32[*S, 4], x before y, of any convention.
      shape: pixels (H, W) of the image.

    Returns:
      f32[*S, 4], of the same convention.

    Raises:
      ValueError: where `boxes` is no list of boxes.
    """
    _check("boxes", boxes)
    height, width = shape
    sides = jnp.stack([jnp.float32(side) for side in (width, height) * 2])
    return jnp.asarray(boxes) * jnp.broadcast_to(sides, boxes.shape)


def boxes_from_edges(boxes: Float[Array, "*S 4"]) -> Float[jax.Array, "*S 4"]:
    """Convert boxes with an exclusive last corner, such as torchvision's, to inclusive corners.

    Pixel i lies between the edges i and i + 1, so a box of one pixel is [i, i, i + 1, i + 1] there
    and [i, i, i, i] here.

    Args:
      boxes: f32[*S, 4], the edges [x0, y0, x1, y1] in pixels, of width x1 - x0.

    Returns:
      f32[*S, 4], inclusive corners of the same boxes.

    Raises:
      ValueError: where `boxes` is no list of boxes.
    """
    _check("boxes", boxes)
    return jnp.concatenate([boxes[..., :2], boxes[..., 2:] - 1], axis=-1)


def boxes_to_edges(boxes: Float[Array, "*S 4"]) -> Float[jax.Array, "*S 4"]:
    """Convert boxes with inclusive corners to edges: the inverse of `boxes_from_edges`.

    Args:
      boxes: f32[*S, 4], inclusive corners in pixels.

    Returns:
      f32[*S, 4], the edges of the same boxes.

    Raises:
      ValueError: where `boxes` is no list of boxes.
    """
    _check("boxes", boxes)
    return jnp.concatenate([boxes[..., :2], boxes[..., 2:] + 1], axis=-1)


def boxes_from_centres(boxes: Float[Array, "*S 4"]) -> Float[jax.Array, "*S 4"]:
    """Convert boxes given by centre and size, such as DETR's and YOLO's, to inclusive corners.

    Args:
      boxes: f32[*S, 4], [x, y, width, height] in pixels, the centre between edges as in
        `boxes_from_edges`.

    Returns:
      f32[*S, 4], inclusive corners of the same boxes.

    Raises:
      ValueError: where `boxes` is no list of boxes.
    """
    _check("boxes", boxes)
    centres, half = boxes[..., :2], 0.5 * boxes[..., 2:]
    return boxes_from_edges(jnp.concatenate([centres - half, centres + half], axis=-1))
