"""Plots of how attacks converge: targets left against iteration; steps, sizes and statuses.

Nothing here touches pyplot, so nothing needs a display and nothing stays open.
"""

import numpy as np

from dag_jax.report import lineplot

LINEAR_BELOW = 0.01  # share of targets: above, the plot's axis is logarithmic
ROOM = 0.09  # share of images: the part of a bar that a number fits into
# By Okabe and Ito, told apart by colour-blind readers.
STATUS_COLOURS = {
    "FOOLED": "#56b4e9",
    "MAX_STEPS": "#e69f00",
    "ZERO_GRADIENT": "#d55e00",
    "NON_FINITE": "#cc79a7",
    "NO_TARGETS": "#c4c4c4",
}
_FIRST, _MARGIN_0, *_ = lineplot.COLOURS


def draw_curves(pairs, path, *, paper_steps):
    """Draw the targets left against iteration: a panel for each network, a line for each task.

    Args:
      pairs: (row, curves) of each attack of a network, that with the network's own margin first.
        A row is a dict of "network", "title", "task", "margin", "max_steps", "images"; curves are
        {"low", "median", "high", "mean": shares at iterates 0 to max_steps}, {} where there are
        none.
      path: PNG to write.
      paper_steps: {task: the paper's M_0}; {} draws none.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    by_network = {}
    for pair in pairs:
        by_network.setdefault(pair[0]["network"], []).append(pair)
    by_task = {}
    for group in by_network.values():
        by_task.setdefault(group[0][0]["task"], []).append(group)
    columns = max(map(len, by_task.values()))
    counts = sorted({row["images"] for row, _ in pairs})
    images = " to ".join(f"{count}" for count in dict.fromkeys((counts[0], counts[-1])))
    title = (
        "Targets active after each iteration, as a share of those on the clean image "
        f"({images} images a network)"
    )
    figure, panels = lineplot.panels(columns * len(by_task), title, columns=columns, height=2.3)
    for line, (task, groups) in enumerate(by_task.items()):
        for column in range(columns):
            axes = panels[line * columns + column]
            axes.set_visible(column < len(groups))
            if column < len(groups):
                _draw_network(axes, groups[column], paper_steps.get(task), labelled=not column)
    margins = ", ".join(
        f"{groups[0][0][0]['margin']:g} ({task})" for task, groups in by_task.items()
    )
    handles = [
        Line2D([], [], color=_FIRST, lw=2, label=f"median of the images, margin {margins}"),
        Patch(color="0.35", alpha=0.25, lw=0, label="quartiles"),
        Line2D([], [], color="0.35", lw=1.2, ls=":", label="mean"),
    ]
    if paper_steps:
        handles.append(Line2D([], [], color="0.35", lw=1, ls="--", label="the paper's $M_0$"))
    if len(pairs) > len(by_network):
        text = "median of the images, margin 0 (the paper's rule)"
        handles.insert(1, Line2D([], [], color=_MARGIN_0, lw=2, label=text))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2,
        fontsize=8.5,
        frameon=False,
    )
    lineplot.save(figure, path)


def _draw_network(axes, pairs, paper_steps, *, labelled):
    from matplotlib.ticker import PercentFormatter

    last = max([paper_steps or 1, *(row["max_steps"] for row, _ in pairs)])
    for number, (row, curves) in enumerate(pairs):
        colour = _MARGIN_0 if number else _FIRST
        if curves:
            x = np.arange(row["max_steps"] + 1)
            axes.fill_between(x, curves["low"], curves["high"], color=colour, alpha=0.25, lw=0)
            axes.plot(x, curves["mean"], color=colour, lw=1.2, ls=":")
            axes.plot(x, curves["median"], color=colour, lw=2)
    if paper_steps:
        axes.axvline(paper_steps, color="0.35", lw=1, ls="--")
    axes.set_yscale("symlog", linthresh=LINEAR_BELOW, linscale=0.5)
    # From below 0, so that a line at 0 is seen.
    axes.set(xlim=(0, 1.03 * last), ylim=(-0.15 * LINEAR_BELOW, 1.15), xlabel="iteration")
    axes.set_yticks([0, 0.01, 0.1, 1], minor=False)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.tick_params(labelleft=labelled)
    if labelled:
        axes.set_ylabel(f"targets active (%)\n(linear below {LINEAR_BELOW:.0%})")
    axes.set_title(pairs[0][0]["title"], fontsize=8.5)
    axes.grid(alpha=0.3)


def draw_distributions(rows, records, path):
    """Draw the distributions of steps, perceptibility and statuses, a line for each row.

    Args:
      rows: as those of `draw_curves`, with "statuses": {name of a status: number of images}.
      records: those of each row's images, dicts of "active_counts", "num_steps" and
        "perceptibility".
      path: PNG to write.
    """
    from matplotlib.ticker import PercentFormatter

    networks = [row["network"] for row in rows]
    names = [
        row["title"] + (f", margin {row['margin']:g}" if networks.count(row["network"]) > 1 else "")
        for row in rows
    ]
    title = "How long the attack of an image takes, how large its perturbation is, how it ends"
    figure, (steps, sizes, statuses) = lineplot.panels(3, title, height=1.1 + 0.26 * len(rows))
    places = np.arange(len(rows))
    with_targets = [[record for record in some if record["active_counts"][0]] for some in records]
    for axes, entry, scale, label in (
        (steps, "num_steps", 1, "steps\n(box: quartiles; line: 5 to 95%)"),
        (sizes, "perceptibility", 1000, "perceptibility p × 1000\n(the same)"),
    ):
        axes.boxplot(
            [[record[entry] * scale for record in some] for some in with_targets],
            positions=places,
            orientation="horizontal",
            widths=0.6,
            whis=(5, 95),
            patch_artist=True,
            boxprops={"facecolor": "#c9dcec"},
            medianprops={"color": "black", "linewidth": 2},
            flierprops={"marker": ".", "markersize": 4},
        )
        axes.set(xlabel=label, xlim=(0, None))
        axes.grid(axis="x", alpha=0.3)
    starts = np.zeros(len(rows))
    for status, colour in STATUS_COLOURS.items():
        parts = np.array([row["statuses"].get(status, 0) / row["images"] for row in rows])
        if parts.any():
            bars = statuses.barh(places, parts, left=starts, color=colour, label=status, height=0.7)
            texts = [f"{part:.0%}" if part >= ROOM else "" for part in parts]
            statuses.bar_label(bars, texts, label_type="center", fontsize=8)
            starts += parts
    statuses.set(xlabel="share of the images,\nby status (%)", xlim=(0, 1))
    statuses.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axes in (steps, sizes, statuses):
        axes.set_yticks(places, labels=names if axes is steps else [""] * len(rows), fontsize=8)
        axes.set_ylim(len(rows) - 0.4, -0.6)  # the first on top
    figure.legend(loc="outside lower right", ncols=len(STATUS_COLOURS), fontsize=8, frameon=False)
    lineplot.save(figure, path)
