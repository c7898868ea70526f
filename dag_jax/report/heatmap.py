"""A matrix of transfer as a picture: what is left of each network's score.

Nothing here touches pyplot, so nothing needs a display and nothing stays open.
"""

import textwrap

import numpy as np

from dag_jax.errors import optional_import
from dag_jax.report import lineplot

_ROW = 0.27  # inches
_AROUND = 1.6  # inches of the title, the names of the columns and the colour scale
_TITLE_LETTERS = 35  # of a line of a row's title, which has two of them
_NOTE = "cells: the score, percent; bold with °: the perturbation was found for this network"


def draw(blocks, path) -> None:
    """Draw the table of all tasks as a heat-map; where there is none, the only one of a task.

    A cell's colour is the share of the clean score that is left, its number the score itself in
    percent; those of networks that the perturbation was found for are bold, with a '°'. Lines part
    clean images, perturbations of a network, sums, and those that are permuted.

    Args:
      blocks: from `crosstable.blocks`.
      path: PNG to write.
    """
    with optional_import("experiments"):
        from matplotlib.figure import Figure

    *_, block = blocks  # that across tasks is the last
    height = _AROUND + _ROW * len(block.sources)
    figure = Figure((lineplot.WIDTH, height), layout="constrained")
    axes = figure.subplots()
    shown = _draw_block(axes, block)
    bar = figure.colorbar(
        shown,
        ax=axes,
        orientation="horizontal",
        format=lambda share, _: f"{100 * share:.0f}%",
        aspect=50,
        shrink=0.7,
    )
    bar.ax.tick_params(labelsize=8)
    bar.set_label(f"colours: left of the clean score\n{_NOTE}", fontsize=8)
    lineplot.save(figure, path)


def _draw_block(axes, block):
    sources = list(block.sources)
    cells = [[block.cells[source, target] for target in block.targets] for source in sources]
    shares = np.array([[cell.remaining_share[0] for cell in row] for row in cells])
    # Viridis is told apart by colour-blind readers, and in print without colours.
    shown = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    columns = list(block.targets.values())
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="left", rotation_mode="anchor")
    lines = textwrap.TextWrapper(_TITLE_LETTERS, break_on_hyphens=False)
    titles = [lines.fill(title) for title in block.sources.values()]
    axes.set_yticks(range(len(titles)), titles, linespacing=0.95)
    axes.tick_params(length=0, labelsize=7.5, top=True, labeltop=True, labelbottom=False)
    title = f"{block.title}: what is added to images (rows) and networks that see it (columns)"
    axes.set_title(title, loc="right", fontsize=9)
    kinds = [(bool(source.members), len(source.members) > 1, source.permuted) for source in sources]
    for y in range(1, len(sources)):
        if kinds[y] != kinds[y - 1]:
            axes.axhline(y - 0.5, color="white", lw=2.5)
    for y, source in enumerate(sources):
        for x, target in enumerate(block.targets):
            cell, white = cells[y][x], source.is_white_box(target)
            axes.text(
                x,
                y,
                f"{cell.scores[0]:.1f}" + "°" * white if cell.images else "-",
                ha="center",
                va="center",
                fontsize=7.5,
                fontweight="bold" if white else "normal",
                color="white" if shares[y, x] <= 0.6 else "black",  # black where no share is known
            )
    return shown
