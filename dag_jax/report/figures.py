"""Pictures of attacks: what went in, what was changed, what the network made of it.

Shapes: `H W` pixels, `C` classes. Images are 0-255 RGB. The panels draw into matplotlib axes;
`attack_figure` lays them out and writes a PNG. Nothing here touches pyplot, so nothing needs a
display and nothing stays open.

Classes have the colours that the caller gives. Since many colours are not told apart by every eye,
large regions and all boxes also carry the name of their class.
"""

from typing import Any, NamedTuple

import numpy as np

from dag_jax.errors import UserError, optional_import
from dag_jax.metrics import Detections
from dag_jax.report import lineplot

MAGNIFICATION = 10
MIN_SCORE = 0.5  # boxes below are not drawn

_COLUMNS = 5
_PANEL_INCHES = 2.3
_HEADING_INCHES = 0.62  # a row's title and the titles of its panels
_LEGEND_COLUMNS = 7
_LEGEND_LINE_INCHES = 0.24
_TEXT_POINTS = 7.5
_ROOM = 1 / 12  # of a panel: the radius of a disc that fits into a region which carries its name


class AttackRow(NamedTuple):
    """An attacked image, and what a model makes of it.

    A prediction is the class of each pixel, integer [H, W], or `Detections`.
    """

    title: str
    clean: Any  # [H, W, 3]
    adversarial: Any  # [H, W, 3]
    before: Any  # prediction on the clean image
    after: Any  # prediction on the adversarial image


def attack_figure(rows, path, *, class_names, palette, void=None, void_colour=None):
    """Write one PNG with a row per attack and one legend.

    The panels of a row: the clean image, the adversarial image, the change magnified ten times,
    the prediction before and the prediction after.

    Args:
      rows: `AttackRow`s.
      path: the PNG to write; missing folders are made.
      class_names: C names, by index.
      palette: u8[C, 3], the colour of each class: `dag_jax.datasets.palette(C)`.
      void: what pixels of no class hold; None where there are none.
      void_colour: RGB, theirs.

    Raises:
      UserError: where there is no row, or a prediction has a class without a name or colour.
    """
    with optional_import("experiments"):
        from matplotlib.figure import Figure

    rows = list(rows)
    if not rows:
        raise UserError("a figure needs at least one row")
    palette = _checked(rows, class_names, palette, void)
    names = {"class_names": class_names, "palette": palette}
    voids = {"void": void, "void_colour": void_colour}
    present = _classes_present(rows)
    legend_lines = -(-len(present) // _LEGEND_COLUMNS)
    heights = [
        _HEADING_INCHES + _PANEL_INCHES * np.shape(row.clean)[0] / np.shape(row.clean)[1]
        for row in rows
    ]
    heights.append(_LEGEND_LINE_INCHES * legend_lines + 0.05)
    figure = Figure((_COLUMNS * _PANEL_INCHES, sum(heights)), layout="constrained")
    *parts, bottom = figure.subfigures(len(rows) + 1, 1, height_ratios=heights)
    for part, row in zip(parts, rows, strict=True):
        # A title may hold a file's name, and that a dollar sign.
        part.suptitle(
            row.title, x=0.008, ha="left", fontsize=11, fontweight="bold", parse_math=False
        )
        panels = part.subplots(1, _COLUMNS)
        image_panel(panels[0], row.clean, "clean image")
        image_panel(panels[1], row.adversarial, "adversarial image")
        change_panel(panels[2], row.clean, row.adversarial)
        for axes, image, prediction, title in (
            (panels[3], row.clean, row.before, "prediction before"),
            (panels[4], row.adversarial, row.after, "prediction after"),
        ):
            if isinstance(prediction, Detections):
                detection_panel(axes, image, prediction, title, **names)
            else:
                segmentation_panel(axes, prediction, title, **names, **voids)
    if present:
        bottom.legend(
            handles=class_legend(present, **names, **voids),
            loc="center",
            ncols=min(len(present), _LEGEND_COLUMNS),
            fontsize=9,
            frameon=False,
        )
    lineplot.save(figure, path)


def image_panel(axes, image, title):
    """Draw an image [H, W, 3]."""
    _show(axes, _as_uint8(image), title)


def change_panel(axes, clean, adversarial):
    """Draw adversarial - clean, magnified around mid grey, and name its largest change."""
    change = np.asarray(adversarial, np.float32) - np.asarray(clean, np.float32)
    largest = np.abs(change).max(initial=0)
    title = f"change ×{MAGNIFICATION} (largest {largest:.1f} of 255)"
    _show(axes, _as_uint8(128 + MAGNIFICATION * change), title, smooth=False)


def segmentation_panel(axes, labels, title, *, class_names, palette, void, void_colour):
    """Draw class labels [H, W] in their colours, with the names of the classes of large regions.

    The other arguments are those of `attack_figure`.
    """
    with optional_import("experiments"):
        from scipy import ndimage

    labels = np.asarray(labels)
    shown = np.zeros((*labels.shape, 3), np.uint8)
    for index in np.unique(labels):
        region = labels == index
        shown[region] = void_colour if index == void else palette[index]
    _show(axes, shown, title, smooth=False)
    for index in np.unique(labels):
        if index == void:
            continue
        # Where a region is widest, in pixels from its border and the image's.
        depth = ndimage.distance_transform_edt(np.pad(labels == index, 1))[1:-1, 1:-1]
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        if depth[y, x] > _ROOM * max(labels.shape):
            share = x / labels.shape[1]  # a name near a side stays on the panel
            ha = "left" if share < 0.17 else "right" if share > 0.83 else "center"
            _label(axes, class_names[index], (x, y), palette[index], ha=ha, va="center")


def detection_panel(axes, image, detections, title, *, class_names, palette, min_score=MIN_SCORE):
    """Draw the boxes of `Detections` that score at least `min_score`, with names and scores.

    Names hang at the top, the bottom and the middle of their boxes in turn, so that those of boxes
    at one place do not cover each other; where they do, the name of the surest is on top.
    """
    from matplotlib.patches import Rectangle

    image = _as_uint8(image)
    _show(axes, image, title)
    height, width = image.shape[:2]
    boxes, classes, scores = (
        np.asarray(array) for array in (detections.boxes, detections.classes, detections.scores)
    )
    order = [row for row in np.argsort(-scores, kind="stable") if scores[row] >= min_score]
    if not order:
        text = f"no box scores {min_score:g}"
        _label(axes, text, (width / 2, height / 2), (0, 0, 0), ha="center", va="center")
    for number, row in enumerate(order):
        x0, y0, x1, y1 = boxes[row].astype(float)
        colour = palette[classes[row]]
        # White under the colour: the palette's dark half vanishes on dark photographs.
        for linewidth, edge in ((3.2, "white"), (1.6, np.divide(colour, 255))):
            axes.add_patch(
                Rectangle(
                    (x0 - 0.5, y0 - 0.5),
                    x1 - x0 + 1,
                    y1 - y0 + 1,
                    fill=False,
                    edgecolor=edge,
                    linewidth=linewidth,
                )
            )
        level, side = number % 3, (number // 3 + (x0 + x1 > width)) % 2
        place = (x0, x1)[side], (y0, y1, (y0 + y1) / 2)[level]
        # Towards the middle of the panel, so that no name leaves it.
        ha = "left" if place[0] < width / 2 else "right"
        va = "center" if level == 2 else "top" if place[1] < height / 2 else "bottom"
        text = f"{class_names[classes[row]]} {scores[row]:.2f}"
        _label(axes, text, place, colour, ha=ha, va=va, zorder=4 + scores[row])


def class_legend(labels, *, class_names, palette, void, void_colour):
    """Return legend handles for some labels; the other arguments are those of `attack_figure`."""
    from matplotlib.patches import Patch

    return [
        Patch(
            facecolor=np.divide(void_colour if index == void else palette[index], 255),
            edgecolor="black",
            linewidth=0.5,
            label="void" if index == void else class_names[index],
        )
        for index in labels
    ]


def _checked(rows, class_names, palette, void):
    """Return the palette as an array, once every class of the predictions has name and colour."""
    palette = np.asarray(palette)
    if palette.shape != (len(class_names), 3):
        raise UserError(
            f"the palette has shape {palette.shape}; {len(class_names)} classes need "
            f"({len(class_names)}, 3)"
        )
    for row in rows:
        for prediction in (row.before, row.after):
            detects = isinstance(prediction, Detections)
            indices = np.unique(prediction.classes if detects else prediction)
            indices = [index for index in indices.tolist() if detects or index != void]
            if wrong := [index for index in indices if not 0 <= index < len(class_names)]:
                raise UserError(
                    f"a prediction of {row.title!r} has class {wrong[0]}; there are names of the "
                    f"classes 0 to {len(class_names) - 1}"
                )
    return palette


def _classes_present(rows):
    """Return the labels of the segmentations, sorted; boxes carry their own names."""
    present = set()
    for row in rows:
        for prediction in (row.before, row.after):
            if not isinstance(prediction, Detections):
                present |= set(np.unique(prediction).tolist())
    return sorted(present)


def _as_uint8(image):
    return np.floor(np.clip(np.asarray(image, np.float32), 0, 255) + 0.5).astype(np.uint8)


def _show(axes, image, title, *, smooth=True):
    """Show u8[H, W, 3] filling the axes; `smooth` is for photographs."""
    # Not smooth: every colour shown is one of the data.
    axes.imshow(image, interpolation="auto" if smooth else "nearest")
    axes.set_title(title, fontsize=9.5, pad=3)
    axes.set_xticks([])
    axes.set_yticks([])


def _label(axes, text, place, colour, *, ha, va, zorder=4):
    """Write a text at a place, black or white on a tile of a colour."""
    dark = np.dot(colour, (0.299, 0.587, 0.114)) < 128
    pad = {"left": 2, "right": -2, "center": 0}[ha], {"top": -2, "bottom": 2, "center": 0}[va]
    axes.annotate(
        text,
        place,
        pad,
        textcoords="offset points",
        fontsize=_TEXT_POINTS,
        ha=ha,
        va=va,
        zorder=zorder,
        color="white" if dark else "black",
        bbox={
            "facecolor": np.divide(colour, 255),
            "edgecolor": "white",
            "linewidth": 0.6,
            "pad": 1.0,
        },
        parse_math=False,
    )
