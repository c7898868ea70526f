"""Pictures of attacks: what went in, what was added, what the network made of it.

Shapes: H W pixels. Images are 0-255 RGB. The panels draw into matplotlib axes; `attack_figure`
lays them out and writes a PNG. Nothing here touches pyplot, so nothing needs a display and nothing
stays open.

Classes have the colours of the PASCAL VOC development kit, which readers know; since those are not
told apart by every eye, large regions and all boxes also carry the name of their class.
"""

import dataclasses
from typing import Any

import numpy as np
from etils import epath
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from dag_jax.datasets.classes import CLASS_NAMES
from dag_jax.errors import UserError
from dag_jax.metrics import Detections
from dag_jax.metrics.segmentation import VOID

MAGNIFICATION = 10
MIN_SCORE = 0.5  # boxes below are not drawn

_COLUMNS = 5
_PANEL_INCHES = 2.3
_HEADING_INCHES = 0.62  # a row's title and the titles of its panels
_LEGEND_COLUMNS = 7
_LEGEND_LINE_INCHES = 0.24
_TEXT_POINTS = 8
_DPI = 150


@dataclasses.dataclass(frozen=True)
class AttackRow:
    """One attacked image.

    title: the network's name, the steps, the largest change. clean, adversarial: [H, W, 3].
    perturbation: [H, W, 3], grey levels. before, after: integer labels [H, W] of a segmentation,
    or `Detections`.
    """

    title: str
    clean: Any
    adversarial: Any
    perturbation: Any
    before: Any
    after: Any


def voc_palette():
    """Return the colours of the VOC kit, uint8 [256, 3]: bit k of a channel comes from bit 3k."""
    index = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(
                np.uint8
            )
    return palette


def image_panel(axes, image, title):
    """Draw an image."""
    _show(axes, _as_uint8(image), title)


def perturbation_panel(axes, perturbation):
    """Draw a perturbation, magnified around mid grey, and name its largest change."""
    perturbation = np.asarray(perturbation, np.float32)
    largest = np.abs(perturbation).max(initial=0)
    title = f"perturbation ×{MAGNIFICATION} (largest {largest:.1f})"
    _show(axes, _as_uint8(128 + MAGNIFICATION * perturbation), title, smooth=False)


def segmentation_panel(axes, labels, title):
    """Draw class labels [H, W] in VOC colours, with the names of the classes of large regions."""
    labels = np.asarray(labels)
    palette = voc_palette()
    _show(axes, palette[labels], title, smooth=False)
    for index in np.unique(labels):
        y, x, radius = _innermost(labels == index)
        # A name needs room: a region that a circle of a fifteenth of the panel fits into.
        if index != VOID and radius > max(labels.shape) / 15:
            name = CLASS_NAMES[index]
            x, y = _inside(labels.shape, x, y, *_text_room(labels.shape, name))
            _write(axes, x, y, name, palette[index])


def detection_panel(axes, image, detections, title, *, min_score=MIN_SCORE):
    """Draw the boxes of `Detections` that score at least `min_score`, with names and scores."""
    image = _as_uint8(image)
    _show(axes, image, title)
    palette = voc_palette()
    scores = np.asarray(detections.scores, np.float64)
    order = [row for row in np.argsort(-scores, kind="stable") if scores[row] >= min_score]
    if not order:
        height, width = image.shape[:2]
        _write(axes, width / 2, height / 2, f"no box scores {min_score:g}", palette[0])
    taken = []
    for row in order:
        x0, y0, x1, y1 = np.asarray(detections.boxes, np.float64)[row]
        index = int(np.asarray(detections.classes)[row])
        # White under the colour: the palette's dark half vanishes on dark photographs.
        for width, colour in ((3.2, "white"), (1.6, palette[index] / 255)):
            corner = (x0 - 0.5, y0 - 0.5)
            axes.add_patch(
                Rectangle(
                    corner, x1 - x0 + 1, y1 - y0 + 1, fill=False, edgecolor=colour, linewidth=width
                )
            )
        text = f"{CLASS_NAMES[index]} {scores[row]:.2f}"
        x, y = _free_place(image.shape, (x0, y0, x1, y1), text, taken)
        _write(axes, x, y, text, palette[index])


def attack_figure(rows, path):
    """Write one PNG with a row per attack and one legend.

    The panels of a row: the clean image, the adversarial image, the perturbation magnified ten
    times, the prediction before and the prediction after.

    Args:
      rows: `AttackRow`s.
      path: the PNG to write; missing folders are made.

    Raises:
      ValueError: if there is no row.
    """
    rows = list(rows)
    if not rows:
        raise UserError("a figure needs at least one row")
    present = _classes_present(rows)
    legend_lines = -(-len(present) // _LEGEND_COLUMNS)
    heights = [
        _HEADING_INCHES + _PANEL_INCHES * np.shape(row.clean)[0] / np.shape(row.clean)[1]
        for row in rows
    ]
    heights.append(_LEGEND_LINE_INCHES * legend_lines + 0.05)
    figure = Figure((_COLUMNS * _PANEL_INCHES, sum(heights)), dpi=_DPI, layout="constrained")
    *parts, bottom = figure.subfigures(len(rows) + 1, 1, height_ratios=heights)
    for part, row in zip(parts, rows, strict=True):
        # A title may hold a file's name, and that a dollar sign.
        part.suptitle(
            row.title, x=0.008, ha="left", fontsize=11, fontweight="bold", parse_math=False
        )
        panels = part.subplots(1, _COLUMNS)
        image_panel(panels[0], row.clean, "clean image")
        image_panel(panels[1], row.adversarial, "adversarial image")
        perturbation_panel(panels[2], row.perturbation)
        _prediction_panel(panels[3], row.clean, row.before, "prediction before")
        _prediction_panel(panels[4], row.adversarial, row.after, "prediction after")
    if present:
        bottom.legend(
            handles=class_legend(present),
            loc="center",
            ncols=min(len(present), _LEGEND_COLUMNS),
            fontsize=9,
            frameon=False,
        )
    path = epath.Path(path)  # a bucket's, too
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        figure.savefig(file, format="png")


def class_legend(classes):
    """Return legend handles for some classes, by index; 255 is void."""
    palette = voc_palette()
    return [
        Patch(
            facecolor=palette[index] / 255,
            edgecolor="black",
            linewidth=0.5,
            label="void" if index == VOID else CLASS_NAMES[index],
        )
        for index in classes
    ]


def _prediction_panel(axes, image, prediction, title):
    if isinstance(prediction, Detections):
        detection_panel(axes, image, prediction, title)
    else:
        segmentation_panel(axes, prediction, title)


def _classes_present(rows):
    """Return the classes of the segmentations, sorted; boxes carry their own names."""
    present = set()
    for row in rows:
        for prediction in (row.before, row.after):
            if not isinstance(prediction, Detections):
                present |= set(np.unique(np.asarray(prediction)).tolist())
    return sorted(present)


def _as_uint8(image):
    return np.floor(np.clip(np.asarray(image, np.float32), 0, 255) + 0.5).astype(np.uint8)


def _show(axes, image, title, *, smooth=True):
    """Show uint8 [H, W, 3] filling the axes; `smooth` is for photographs."""
    if not smooth:
        interpolation = "nearest"  # every colour shown is one of the data
    elif max(image.shape) < _PANEL_INCHES * _DPI:
        interpolation = "lanczos"
    else:
        interpolation = "auto"
    axes.imshow(image, interpolation=interpolation)
    axes.set_title(title, fontsize=9.5, pad=3)
    axes.set_xticks([])
    axes.set_yticks([])


def _write(axes, x, y, text, colour):
    """Write `text` around (x, y), black or white on a tile of the class's colour."""
    dark = np.dot(colour, (0.299, 0.587, 0.114)) < 128
    tile = {"facecolor": colour / 255, "edgecolor": "white", "linewidth": 0.6, "pad": 1.0}
    axes.text(
        x,
        y,
        text,
        fontsize=_TEXT_POINTS,
        ha="center",
        va="center",
        color="white" if dark else "black",
        bbox=tile,
    )


def _text_room(shape, text):
    """Return half the width and half the height of a label, in pixels of an image of `shape`."""
    pixels_per_point = shape[1] / (_PANEL_INCHES * 0.95 * 72)
    # DejaVu Sans: a letter is about 0.58 of the size wide, a line 1.2; and the tile's rim.
    half_width = (len(text) * 0.58 * _TEXT_POINTS / 2 + 2) * pixels_per_point
    return half_width, (1.2 * _TEXT_POINTS / 2 + 2) * pixels_per_point


def _inside(shape, x, y, half_width, half_height):
    """Return the middle of a label, moved into the image where it fits."""
    height, width = shape[:2]
    x = np.clip(x, half_width, max(width - half_width, half_width))
    return x, np.clip(y, half_height, max(height - half_height, half_height))


def _innermost(region):
    """Return (row, column, radius): the pixel of a region that is farthest from its border.

    The radius is counted in pixels by peeling one layer at a time.
    """
    radius = 0
    peeled = np.pad(region, 1)
    while True:
        inner = peeled.copy()
        inner[1:-1, 1:-1] &= (
            peeled[:-2, 1:-1] & peeled[2:, 1:-1] & peeled[1:-1, :-2] & peeled[1:-1, 2:]
        )
        if not inner.any():
            rows, columns = np.nonzero(peeled)
            middle = len(rows) // 2
            return rows[middle] - 1, columns[middle] - 1, radius
        peeled, radius = inner, radius + 1


def _free_place(shape, box, text, taken):
    """Return the middle of a place for a box's label that no earlier label covers, if there is one.

    Tried in turn: above the box, inside its top, inside its bottom, below, each at the left and at
    the right; then down the image in lines. `taken` collects the places given away.
    """
    half_width, half_height = _text_room(shape, text)
    x0, y0, x1, y1 = box
    lines = [y0 - half_height, y0 + half_height, y1 - half_height, y1 + half_height]
    lines += list(np.arange(half_height, shape[0], 2 * half_height))
    places = [
        _inside(shape, x, y, half_width, half_height)
        for y in lines
        for x in (x0 + half_width, x1 - half_width)
    ]
    for x, y in places:
        if all(
            abs(x - other_x) >= half_width + other_half_width
            or abs(y - other_y) >= half_height + other_half_height
            for other_x, other_y, other_half_width, other_half_height in taken
        ):
            break
    else:
        x, y = places[0]
    taken.append((x, y, half_width, half_height))
    return x, y


def training_curve(points, title, path):
    """Draw the loss and the score of a training run over its updates.

    Args:
      points: dicts of step, loss and score (percent).
      title: the network's name.
      path: PNG file to write.
    """
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    steps = [point["step"] for point in points]
    axes.plot(steps, [point["loss"] for point in points], color="C0", marker="o", ms=3)
    axes.set(xlabel="updates", title=title, ylim=(0, None))
    axes.set_ylabel("training loss", color="C0")
    right = axes.twinx()
    right.plot(steps, [point["score"] for point in points], color="C1", marker="s", ms=3)
    right.set_ylabel("test score (%)", color="C1")
    right.set_ylim(0, 100)
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, format="png", dpi=_DPI)
