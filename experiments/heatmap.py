"""A matrix of transfer as a picture: what is left of each network's score.

Nothing here touches pyplot, so nothing needs a display and nothing stays open.
"""

import numpy as np
from etils import epath
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments import evaluation
from experiments.runs import crosstable

_CELL = 0.62, 0.3  # inches
_DPI = 150


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
    margin = 0.075 * longest + 0.2
    most = max(len(table.targets) for table in tables)
    heights = [_CELL[1] * len(table.sources) + 1.35 for table in tables]
    width = margin + _CELL[0] * most + 1.4
    figure = Figure((width, sum(heights) + 0.3), dpi=_DPI)
    top = sum(heights) + 0.3
    for table, height in zip(tables, heights, strict=True):
        below = top - height
        inches = (
            *(margin, below + 0.1),
            *(_CELL[0] * len(table.targets), _CELL[1] * len(table.sources)),
        )
        whole = np.array([width, sum(heights) + 0.3] * 2)
        axes = figure.add_axes(np.array(inches) / whole)
        shown = _matrix(axes, table)
        top = below
    legend = figure.add_axes(
        np.array([width - 0.9, sum(heights) / 2 - 1.2, 0.18, 2.4])
        / [width, sum(heights) + 0.3, width, sum(heights) + 0.3]
    )
    bar = figure.colorbar(shown, cax=legend, format=lambda share, _: f"{100 * share:.0f}%")
    bar.set_label("of the clean score left", fontsize=9)
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, format="png", dpi=_DPI)


def _matrix(axes, table):
    cells = [[table.cells[source, target] for target in table.targets] for source in table.sources]
    shares = np.array([[cell.left[0] for cell in row] for row in cells])
    shown = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_title(table.title, loc="left", fontsize=11, fontweight="bold", pad=42)
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
            colour = "black" if share > 0.6 else "white"
            text = f"{cell.scores[0]:.1f}" if cell.images else "-"
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color=colour)
            if target in source.members and not source.permuted:
                axes.add_patch(
                    Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, fill=False, edgecolor="red", lw=1.6)
                )
    return shown
