"""Pictures of attacks: what went in, what was changed, what the network made of it.

Shapes: `H W` pixels, `C` classes. Images are 0-255 RGB. The panels draw into matplotlib axes;
`attack_figure` lays them out. Nothing here touches pyplot, so nothing needs a display and nothing
stays open.

Classes have the colours that the caller gives. Since many colours are not told apart by every eye,
large regions and all boxes also carry the name of their class.
"""

import textwrap
from typing import Any, NamedTuple

import numpy as np

from dag_jax.errors import UserError, optional_import
from dag_jax.metrics import Detections
from dag_jax.report import lineplot
from dag_jax.report.labels import POINTS, Labels

MAGNIFICATION = 10
MIN_SCORE = 0.5  # boxes below are not drawn

_COLUMNS = 5  # panels of an attack; 3 without predictions
_PANEL_POINTS = 0.97 * lineplot.WIDTH / _COLUMNS * 72  # width of a prediction
_HEADING_INCHES = 0.46  # titles of a row's panels, and what stands below one
_TITLE_INCHES = 0.18  # a line of a row's title
_TITLE_LETTERS = 110  # of such a line
_LEGEND_COLUMNS = 6
_LEGEND_LINE_INCHES = 0.2


class AttackRow(NamedTuple):
    """An attacked image, and what a model makes of it.

    A prediction is the class of each pixel, integer [H, W], or `Detections`.
    """

    title: str
    clean: Any  # [H, W, 3]
    adversarial: Any  # [H, W, 3]
    before: Any = None  # prediction on the clean image
    after: Any = None  # prediction on the adversarial image; both are there or neither


def attack_figure(rows, *, class_names, palette, void=None, void_colour=None):
    """Return a matplotlib figure with a row per attack and one legend.

    The panels of a row: the clean image, the adversarial image, the change magnified ten times,
    the prediction before and the prediction after, where there are predictions.

    Args:
      rows: `AttackRow`s, all with predictions or all without.
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
    columns = 3 if rows[0].before is None else _COLUMNS
    panel_inches = lineplot.WIDTH / columns
    titles = [textwrap.fill(row.title, _TITLE_LETTERS) for row in rows]
    heights = [
        _HEADING_INCHES
        + _TITLE_INCHES * (1 + title.count("\n"))
        + panel_inches * np.shape(row.clean)[0] / np.shape(row.clean)[1]
        for title, row in zip(titles, rows, strict=True)
    ]
    heights.append(_LEGEND_LINE_INCHES * legend_lines + 0.05)
    figure = Figure((lineplot.WIDTH, sum(heights)), layout="constrained")
    *parts, bottom = figure.subfigures(len(rows) + 1, 1, height_ratios=heights)
    for part, title, row in zip(parts, titles, rows, strict=True):
        # A title may hold a file's name, and that a dollar sign.
        part.suptitle(title, x=0.008, ha="left", fontsize=9, fontweight="bold", parse_math=False)
        panels = part.subplots(1, columns)
        image_panel(panels[0], row.clean, "clean image")
        image_panel(panels[1], row.adversarial, "adversarial image")
        change_panel(panels[2], row.clean, row.adversarial)
        for axes, image, prediction, title in zip(
            panels[3:],
            (row.clean, row.adversarial),
            (row.before, row.after),
            ("prediction before", "prediction after"),
            strict=False,
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
            fontsize=8,
            frameon=False,
        )
    return figure


def image_panel(axes, image, title):
    """Draw an image [H, W, 3]."""
    _show(axes, _as_uint8(image), title)


def change_panel(axes, clean, adversarial):
    """Draw adversarial - clean, magnified around mid grey, with its largest change below."""
    change = np.asarray(adversarial, np.float32) - np.asarray(clean, np.float32)
    largest = np.abs(change).max(initial=0)
    _show(axes, _as_uint8(128 + MAGNIFICATION * change), f"change ×{MAGNIFICATION}", smooth=False)
    axes.set_xlabel(f"at most {largest:.1f} grey levels", fontsize=8, labelpad=2)


def segmentation_panel(axes, labels, title, *, class_names, palette, void, void_colour):
    """Draw class labels [H, W] in their colours, with names on the regions that have room for them.

    The other arguments are those of `attack_figure`.
    """
    labels = np.asarray(labels)
    shown = np.zeros((*labels.shape, 3), np.uint8)
    for index in np.unique(labels):
        region = labels == index
        shown[region] = void_colour if index == void else palette[index]
    _show(axes, shown, title, smooth=False)
    names = Labels(labels.shape, _PANEL_POINTS)
    values, counts = np.unique(labels, return_counts=True)
    for index in values[np.argsort(-counts, kind="stable")]:
        if index == void:
            continue
        if place := names.inside(class_names[index], labels == index):
            _label(axes, class_names[index], place, palette[index])


def detection_panel(axes, image, detections, title, *, class_names, palette, min_score=MIN_SCORE):
    """Draw the boxes of `Detections` that score at least `min_score`, with names and scores.

    Names stand above their boxes, below or inside, so that they do not cover each other; where they
    do, the name of the surest is on top.
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
        _label(axes, text, (width / 2, height / 2), (0, 0, 0))
    names = Labels((height, width), _PANEL_POINTS)
    for row in order:
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
        text = f"{class_names[classes[row]]} {scores[row]:.2f}"
        _label(axes, text, names.beside(text, boxes[row]), colour, zorder=4 + scores[row])


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


def _predictions(row):
    return [] if row.before is None else [row.before, row.after]


def _checked(rows, class_names, palette, void):
    """Return the palette as an array, once every class of the predictions has name and colour."""
    palette = np.asarray(palette)
    if palette.shape != (len(class_names), 3):
        raise UserError(
            f"the palette has shape {palette.shape}; {len(class_names)} classes need "
            f"({len(class_names)}, 3)"
        )
    for row in rows:
        for prediction in _predictions(row):
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
        for prediction in _predictions(row):
            if not isinstance(prediction, Detections):
                present |= set(np.unique(prediction).tolist())
    return sorted(present)


def _as_uint8(image):
    return np.floor(np.clip(np.asarray(image, np.float32), 0, 255) + 0.5).astype(np.uint8)


def _show(axes, image, title, *, smooth=True):
    """Show u8[H, W, 3] filling the axes; `smooth` is for photographs."""
    # Not smooth: every colour shown is one of the data.
    axes.imshow(image, interpolation="auto" if smooth else "nearest")
    axes.set_title(title, fontsize=8.5, pad=3)
    axes.set_xticks([])
    axes.set_yticks([])


def _label(axes, text, place, colour, *, zorder=4):
    """Write a text around a place, black or white on a tile of a colour."""
    dark = np.dot(colour, (0.299, 0.587, 0.114)) < 128
    axes.text(
        *place,
        text,
        fontsize=POINTS,
        ha="center",
        va="center",
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
