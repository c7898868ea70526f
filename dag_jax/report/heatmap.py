"""A matrix of transfer as a picture: what is left of each network's score.

Nothing here touches pyplot, so nothing needs a display and nothing stays open.
"""

import numpy as np

from dag_jax.errors import optional_import
from dag_jax.report import lineplot

_CELL = 0.66, 0.3  # inches
_AROUND = 1.2  # inches of a table's title and the names of its columns
_LETTER = 0.075  # inches of a row's title
_SCALE = 1.6  # inches of the colour scale
_NOTE = "cells: the score, percent; bold with °: the perturbation was found for this network"


def draw(blocks, path) -> None:
    """Draw a heat-map for each table, one below the other.

    A cell's colour is the share of the clean score that is left, its number the score itself in
    percent; those of networks that the perturbation was found for are bold, with a '°'.

    Args:
      blocks: from `crosstable.blocks`.
      path: PNG to write.
    """
    with optional_import("experiments"):
        from matplotlib.figure import Figure

    longest = max(len(title) for block in blocks for title in block.sources.values())
    width = _LETTER * longest + _CELL[0] * max(len(block.targets) for block in blocks) + _SCALE
    heights = [_AROUND + _CELL[1] * len(block.sources) for block in blocks]
    figure = Figure((width, sum(heights) + 0.3), layout="constrained")
    panels = figure.subplots(len(blocks), 1, height_ratios=heights, squeeze=False).ravel().tolist()
    for axes, block in zip(panels, blocks, strict=True):
        shown = _draw_block(axes, block)
    bar = figure.colorbar(
        shown, ax=panels, format=lambda share, _: f"{100 * share:.0f}%", aspect=40
    )
    bar.set_label("left of the clean score")
    figure.supxlabel(_NOTE, fontsize=9)
    lineplot.save(figure, path)


def _draw_block(axes, block):
    cells = [[block.cells[source, target] for target in block.targets] for source in block.sources]
    shares = np.array([[cell.left[0] for cell in row] for row in cells])
    shown = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    columns = list(block.targets.values())
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(block.sources)), list(block.sources.values()))
    axes.tick_params(length=0, labelsize=8.5, top=True, labeltop=True, labelbottom=False)
    axes.set_title(block.title, loc="left", fontsize=12, fontweight="bold")
    for y, source in enumerate(block.sources):
        for x, target in enumerate(block.targets):
            cell, white = cells[y][x], source.is_white_box(target)
            axes.text(
                x,
                y,
                f"{cell.scores[0]:.1f}" + "°" * white if cell.images else "-",
                ha="center",
                va="center",
                fontsize=8,
                fontweight="bold" if white else "normal",
                color="white" if shares[y, x] <= 0.6 else "black",  # black where no share is known
            )
    return shown
