"""A plot of attacks: what each leaves of the score against the size of what it adds.

Nothing here touches pyplot, so nothing needs a display and nothing stays open.
"""

import itertools

import numpy as np

from dag_jax.report import lineplot


def draw(groups, path, *, title, ylabel):
    """Draw a mark for each attack, and a hollow one for its permutation.

    Args:
      groups: {heading in the legend: rows}. A row is a dict of "title", "perceptibility", and, in
        percent, "orig", "advr" and "perm".
      path: PNG to write.
      title: above the plot.
      ylabel: the score's name and unit.
    """
    from matplotlib.lines import Line2D

    figure, (axes,) = lineplot.panels(1, title, height=4.2)
    rows = [row for group in groups.values() for row in group]
    # Ever smaller, so that marks at one place are seen.
    sizes = iter(np.linspace(11, 6, len(rows)))
    marks = zip(itertools.cycle(lineplot.COLOURS), itertools.cycle(lineplot.MARKERS), sizes)
    clean = rows[0]["orig"]
    axes.axhline(clean, color="0.4", lw=1, ls="--", label=f"no attack: {clean:.1f}")
    handles = axes.get_lines()[:]
    for heading, group in groups.items():
        handles.append(Line2D([], [], ls="none", label=f"\n{heading}"))
        for row in group:
            colour, marker, points = next(marks)
            x, low, high = 1000 * row["perceptibility"], row["advr"], row["perm"]
            style = {"marker": marker, "color": colour, "ls": "none", "ms": points, "zorder": 3}
            axes.plot([x, x], [low, high], color=colour, lw=0.8, alpha=0.6)
            axes.plot(x, high, mfc="white", clip_on=False, **style)
            axes.plot(x, low, mec="black", mew=0.5, clip_on=False, **style)
            handles.append(Line2D([], [], label=row["title"], **style | {"ms": 8}))
    hollow = {"marker": "o", "color": "0.3", "mfc": "white", "ls": "none"}
    handles.append(Line2D([], [], label="\nhollow: the same perturbation,\nshuffled", **hollow))
    axes.set(
        xlabel="perceptibility p × 1000 (a change of one grey level everywhere: 6.8)",
        ylabel=ylabel,
        xlim=(0, 1100 * max(row["perceptibility"] for row in rows) + 1e-3),
        ylim=(-3, 100),
    )
    axes.grid(alpha=0.3)
    figure.legend(handles=handles, loc="outside right upper", fontsize=8.5, frameon=False)
    lineplot.save(figure, path)
