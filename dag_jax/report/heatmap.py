"""A matrix of transfer as a picture: what is left of each network's score.

Nothing here touches pyplot, so nothing needs a display and nothing stays open.
"""

import numpy as np
from etils import epath
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dag_jax.report import crosstable
from dag_jax.runs import evaluation

_CELL = 0.62, 0.3  # inches
_TITLE, _LABELS, _GAP = 0.3, 0.7, 0.25  # inches: above a table, and below it
_LEGEND = 2.0  # inches to the right of the widest table
_DPI = 130
_NOTE = (
    "Number: the score, percent.\nColour: share of the clean\nscore that is left.\n"
    "Red frame: the perturbation\nwas found for this network\n(white box)."
)


def draw(tables, path) -> None:
    """Draw a heat-map for each table, one below the other.

    A cell's colour is the share of the clean score that is left, its number the score itself in
    percent; cells with a frame are those of networks that the perturbation was found for.

    Args:
      tables: from `crosstable.blocks`.
      path: PNG to write.
    """
    longest = max(
        len(crosstable.row_title(one, table.sources)) for table in tables for one in table.sources
    )
    left = 0.072 * longest + 0.2
    width = left + _CELL[0] * max(len(table.targets) for table in tables) + _LEGEND
    heights = [_TITLE + _LABELS + _CELL[1] * len(table.sources) + _GAP for table in tables]
    figure = Figure((width, sum(heights)), dpi=_DPI)
    scale = np.array([width, sum(heights)] * 2)
    top = sum(heights)
    for table, height in zip(tables, heights, strict=True):
        size = _CELL[0] * len(table.targets), _CELL[1] * len(table.sources)
        axes = figure.add_axes(np.array([left, top - height + _GAP, *size]) / scale)
        shown = _matrix(axes, table)
        place = np.array([left, top - _TITLE]) / scale[:2]
        figure.text(*place, table.title, fontsize=12, fontweight="bold", va="bottom")
        top -= height
    right = width - _LEGEND + 0.2, sum(heights) - _TITLE - _LABELS
    legend = figure.add_axes(np.array([right[0], right[1] - 2.2, 0.18, 2.2]) / scale)
    bar = figure.colorbar(shown, cax=legend, format=lambda share, _: f"{100 * share:.0f}%")
    bar.ax.tick_params(labelsize=8)
    place = np.array([right[0], right[1] - 2.4]) / scale[:2]
    figure.text(*place, _NOTE, fontsize=7.5, va="top")
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, format="png", dpi=_DPI)


def _matrix(axes, table):
    cells = [[table.cells[source, target] for target in table.targets] for source in table.sources]
    shares = np.array([[cell.left[0] for cell in row] for row in cells])
    shown = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(
        range(len(table.targets)),
        [evaluation.TITLES[name] for name in table.targets],
        rotation=35,
        ha="left",
        rotation_mode="anchor",
        fontsize=8.5,
    )
    axes.xaxis.tick_top()
    rows = [crosstable.row_title(source, table.sources) for source in table.sources]
    axes.set_yticks(range(len(rows)), rows, fontsize=8.5)
    axes.tick_params(length=0)
    for y, source in enumerate(table.sources):
        for x, target in enumerate(table.targets):
            cell, share = cells[y][x], shares[y][x]
            colour = "white" if share <= 0.6 else "black"  # also on the white of no share
            text = f"{cell.scores[0]:.1f}" if cell.images else "-"
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color=colour)
            if source.is_white_box(target):
                axes.add_patch(
                    Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, fill=False, edgecolor="red", lw=1.6)
                )
    return shown
