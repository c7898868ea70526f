"""A plot of attacks on denser and sparser proposals: what each costs, and what it leaves."""

import itertools

from dag_jax.report import lineplot
from dag_jax.runs import findings

_PANELS = (
    ("proposals", "proposals of an image (mean)"),
    ("targets", "targets of an image (mean)"),
    ("advr", "mAP after the attack (%)"),
    ("steps_median", "steps of an image (median)"),
)


def by_kept(rows):
    """Return [(the most kept, its rows by rising threshold)] of rows."""
    rows = sorted(rows, key=lambda row: (row["max_proposals"], row["nms_threshold"]))
    grouped = itertools.groupby(rows, lambda row: row["max_proposals"])
    return [(most, list(group)) for most, group in grouped]


def draw(rows, path, *, title) -> None:
    """Draw what rows say against the threshold, a line for each number kept.

    Args:
      rows: of one detector, each with "nms_threshold" and "max_proposals".
      path: PNG to write.
      title: of the detector.
    """
    most_left = max(row["unfinished"] for row in rows)
    ends = f"at most {most_left} of a setting end" if most_left else "none ends"
    heading = (
        f"{title} attacked on the proposals of sparser and denser suppression\n"
        f"(margin {rows[0]['margin']:g}; {rows[0]['images']} images, {ends} with targets left; its "
        "evaluation stays as it is)"
    )
    panels = [panel for panel in _PANELS if any(row[panel[0]] is not None for row in rows)]
    figure, places = lineplot.panels(len(panels), heading, columns=2, height=2.6)
    for axes, (entry, label) in zip(places, panels, strict=True):
        some = [row for row in rows if row[entry] is not None]
        lines = [
            (
                f"at most {most} kept",
                [row["nms_threshold"] for row in group],
                [row[entry] for row in group],
            )
            for most, group in by_kept(some)
        ]
        xlabel = "NMS threshold of the attack (IoU)"
        lineplot.lines(axes, lines, xlabel=xlabel, ylabel=label, doubling=False, log=False)
        axes.get_legend().remove()  # one for all panels, where it covers nothing
        if entry == "advr":
            _bands(axes, rows)
            handles, _ = axes.get_legend_handles_labels()
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        fontsize=8.5,
        frameon=False,
    )
    lineplot.save(figure, path)


def _bands(axes, rows):
    """Add intervals and the score before the attack."""
    for number, (_, group) in enumerate(by_kept(rows)):
        ends = [(row["nms_threshold"], *row["intervals"]["advr"][1:]) for row in group]
        colour = lineplot.COLOURS[number % len(lineplot.COLOURS)]
        axes.fill_between(*zip(*ends, strict=True), color=colour, alpha=0.15, lw=0)
    clean = rows[0]["orig"]
    label = f"ORIG {clean:.1f}, the mAP before the attack"
    axes.axhline(clean, color="0.35", lw=1, ls="--", label=label)
    axes.set_title(f"bands: {findings.LEVEL:.0%} intervals", fontsize=8.5)
    largest = max(clean, *(row["intervals"]["advr"][2] for row in rows))
    axes.set_ylim(0, lineplot.HEADROOM * largest or 1)
