"""Plots of how attacks converge: targets left against iteration; steps, sizes and statuses."""

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from dag_jax.report import lineplot
from dag_jax.runs import evaluation

LINEAR_BELOW = 0.01  # share of targets: above, the plot's axis is logarithmic
LEAST_INCHES = 7  # width of a plot, for its title and legend
STATUS_COLOURS = {
    "FOOLED": "#4c9f70",
    "MAX_STEPS": "#e8a33d",
    "ZERO_GRADIENT": "#b35c44",
    "NON_FINITE": "#5b4a8a",
    "NO_TARGETS": "#c4c4c4",
}


def draw_curves(pairs, path):
    """Draw the targets left against iteration, a panel for each network.

    Args:
      pairs: (row, curves) of `convergence.row_of`.
      path: PNG to write.
    """
    by_kind = [
        list(dict.fromkeys(row["network"] for row, _ in pairs if row["network"].startswith(kind)))
        for kind in ("fcn_", "fr_")
    ]
    by_kind = [names for names in by_kind if names]
    columns = max(map(len, by_kind))
    counts = sorted({row["images"] for row, _ in pairs})
    images = " to ".join(f"{count}" for count in dict.fromkeys((counts[0], counts[-1])))
    title = (
        "Targets active after each iteration, as a share of those on the clean image "
        f"({images} images a network)"
    )
    inches = max(3.1, LEAST_INCHES / columns), 2.8
    figure, axes = lineplot.panels(columns * len(by_kind), title, columns=columns, inches=inches)
    for place, one in enumerate(axes):
        kind, column = divmod(place, columns)
        if column >= len(by_kind[kind]):
            one.set_visible(False)
            continue
        name = by_kind[kind][column]
        of_network = [(row, curves) for row, curves in pairs if row["network"] == name]
        _draw_network(one, name, of_network, labelled=column == 0)
    # The first row of a network is of its own margin, another is of margin 0.
    own = {row["network"]: row for row, _ in reversed(pairs)}.values()
    margins = {row["network"].startswith("fr_"): row["margin"] for row in own}
    said = [f"{margins[kind]:g} ({('FCN', 'detectors')[kind]})" for kind in sorted(margins)]
    handles = [
        Line2D([], [], color="C0", lw=2, label=f"median of the images, margin {', '.join(said)}"),
        Patch(color="0.35", alpha=0.25, lw=0, label="quartiles"),
        Line2D([], [], color="0.35", lw=1.2, ls=":", label="mean"),
        Line2D([], [], color="0.35", lw=1, ls="--", label="the paper's $M_0$"),
    ]
    if len(pairs) > len(own):
        text = "median of the images, margin 0 (the paper's rule)"
        handles.insert(1, Line2D([], [], color="C1", lw=2, label=text))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles) if columns > 3 else 3,
        fontsize=9,
        frameon=False,
    )
    lineplot.save(figure, path)


def _draw_network(axes, name, pairs, *, labelled):
    detects = name.startswith("fr_")
    by_margin = len(pairs) > 1
    last = evaluation.MAX_STEPS[detects]
    for row, curves in pairs:
        last = max(last, row["max_steps"])
        colour = "C1" if by_margin and not row["margin"] else "C0"
        if curves:
            x = np.arange(row["max_steps"] + 1)
            axes.fill_between(x, curves["low"], curves["high"], color=colour, alpha=0.25, lw=0)
            axes.plot(x, curves["mean"], color=colour, lw=1.2, ls=":")
            axes.plot(x, curves["median"], color=colour, lw=2)
    axes.axvline(evaluation.MAX_STEPS[detects], color="0.35", lw=1, ls="--")
    axes.set_yscale("symlog", linthresh=LINEAR_BELOW, linscale=0.5)
    # From below 0, so that a line at 0 is seen.
    axes.set(xlim=(0, 1.03 * last), ylim=(-0.15 * LINEAR_BELOW, 1.15), xlabel="iteration")
    axes.set_yticks([0, 0.01, 0.1, 1], minor=False)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.tick_params(labelleft=labelled)
    if labelled:
        axes.set_ylabel(f"targets active\n(linear below {LINEAR_BELOW:.0%})")
    axes.set_title(evaluation.TITLES[name], fontsize=9.5)
    axes.grid(alpha=0.3)


def draw_distributions(rows, found, path):
    """Draw the distributions of steps, perceptibility and statuses, a line for each row.

    Args:
      rows: of `convergence.row_of`.
      found: `convergence.Attacked` of each.
      path: PNG to write.
    """
    names = [
        evaluation.TITLES[row["network"]] + (f", margin {row['margin']:g}" if split else "")
        for row in rows
        for split in [sum(other["network"] == row["network"] for other in rows) > 1]
    ]
    title = "How long the attack of an image takes, how large its perturbation is, how it ends"
    figure, (steps, sizes, statuses) = lineplot.panels(
        3, title, inches=(3.6, 0.9 + 0.32 * len(rows))
    )
    places = np.arange(len(rows))
    some = [[one for one in a.records if one["active_counts"][0]] for a in found]
    for axes, entry, scale, label in (
        (steps, "num_steps", 1, "steps (box: quartiles; line: 5 to 95%)"),
        (sizes, "perceptibility", 1000, "perceptibility p × 1000 (the same)"),
    ):
        values = [[record[entry] * scale for record in records] for records in some]
        axes.boxplot(
            values,
            positions=places,
            orientation="horizontal",
            widths=0.6,
            whis=(5, 95),
            patch_artist=True,
            boxprops={"facecolor": "#c9dcec"},
            medianprops={"color": "C3", "linewidth": 2},
            flierprops={"marker": ".", "markersize": 4},
        )
        axes.set(xlabel=label, xlim=(0, None))
        axes.grid(axis="x", alpha=0.3)
    starts = np.zeros(len(rows))
    for name, colour in STATUS_COLOURS.items():
        parts = np.array([row["statuses"].get(name, 0) / row["images"] for row in rows])
        if not parts.any():
            continue
        statuses.barh(places, parts, left=starts, color=colour, label=name, height=0.7)
        for place, start, part in zip(places, starts, parts, strict=True):
            if part >= 0.07:  # below, there is no room for it
                middle = start + part / 2
                statuses.text(middle, place, f"{part:.0%}", ha="center", va="center", fontsize=8)
        starts += parts
    statuses.set(xlabel="images by status", xlim=(0, 1))
    statuses.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    statuses.legend(fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    for axes in (steps, sizes, statuses):
        axes.set_yticks(places, labels=names if axes is steps else [""] * len(rows), fontsize=9)
        axes.set_ylim(len(rows) - 0.4, -0.6)  # the first on top
    lineplot.save(figure, path)
