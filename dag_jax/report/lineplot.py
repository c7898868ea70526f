"""Plots of what launches measure: panels side by side, a line for each of several things, points.

Nothing here touches pyplot, so nothing needs a display and nothing stays open.
"""

import itertools

import numpy as np
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, NullFormatter
from matplotlib.transforms import Bbox

HEADROOM = 1.1  # of the largest value: no marker is cut

_DPI = 150
_MARKERS = "os^Dv"
_POINT = 6  # pixels of a figure around a point that a name stays out of
_AWAY = 7, 14, 24, 38, 56, 80  # points of type that a name may stand from its point
_STITCHES = np.linspace(0, 1, 30)[:, None]  # of a line from a name to its point


def series(points, key, x, y, scale=1):
    """Yield (label, x values, y values) of points grouped by a key, those without a y left out.

    Args:
      points: dicts.
      key: entry that points of one line share.
      x: entry.
      y: entry.
      scale: what to multiply y by.
    """
    for label, group in itertools.groupby(sorted(points, key=lambda p: p[key]), lambda p: p[key]):
        pairs = sorted((p[x], p[y] * scale) for p in group if p[y] is not None)
        if pairs:
            yield label, *zip(*pairs, strict=True)


def panels(count, title, *, columns=None, inches=(4.2, 3.5)):
    """Return (matplotlib's Figure, list of its axes).

    Args:
      count: number of panels.
      title: above all of them.
      columns: panels side by side; None: all.
      inches: width and height of a panel.
    """
    columns = columns or count
    rows = -(-count // columns)
    width, height = inches
    figure = Figure(figsize=(1.5 + width * columns, 0.3 + height * rows), layout="constrained")
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for one in axes[count:]:
        one.set_visible(False)
    return figure, axes[:count]


def lines(axes, series, *, xlabel, ylabel, doubling=True, log=True):
    """Draw series; x values that double are evenly spaced and all of them labelled.

    Args:
      axes: matplotlib's.
      series: (label, x values, y values) of each line.
      xlabel: name and unit.
      ylabel: name and unit.
      doubling: whether x values double from one to the next.
      log: whether y has a logarithmic scale; else it starts at 0.
    """
    shown, largest = set(), 0.0
    for (label, x, y), marker in zip(series, itertools.cycle(_MARKERS), strict=False):
        axes.plot(x, y, marker=marker, ms=5, label=label)
        shown |= set(x)
        largest = max(largest, *y)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if log:
        axes.set_yscale("log")
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        low, high = axes.get_ylim()
        if high / low < 30:  # less than two powers of ten: name some in between
            axes.yaxis.set_minor_formatter(
                FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
            )
    else:
        axes.set_ylim(0, HEADROOM * largest or 1)
    if doubling and shown:
        axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(shown), labels=[f"{x:g}" for x in sorted(shown)])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off() if not log else axes.tick_params(axis="x", which="minor", bottom=False)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def name_points(figure, axes, points, others=()):
    """Write names beside points, where they cover no name and no point, nor lines to points names.

    Args:
      figure: matplotlib's; all else is drawn into it before.
      axes: its.
      points: (x, y, name) of each.
      others: (x, y) of what has no name and is not to be covered either.

    Returns:
      The texts, matplotlib's.
    """
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()  # places depend on the layout
    frame = axes.get_window_extent()
    spots = axes.transData.transform([*((x, y) for x, y, _ in points), *others])
    dots = [Bbox([spot - _POINT, spot + _POINT]) for spot in spots]
    names, threads = [], []
    sides = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)]

    def place(x, y, name, away, right, up):
        line = {"arrowstyle": "-", "lw": 0.5, "color": "0.5", "shrinkA": 1}
        text = axes.annotate(
            name,
            (x, y),
            (right * away, up * away),
            textcoords="offset points",
            ha={1: "left", 0: "center", -1: "right"}[right],
            va={1: "bottom", 0: "center", -1: "top"}[up],
            fontsize=8,
            arrowprops=line if away > _AWAY[0] else None,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
        text.update_positions(renderer)
        return text, Text.get_window_extent(text)  # without the line to its point

    def free(box, thread, lines_too):
        crossed = [box.count_contains(one) for one in threads]
        crossed += [one.count_contains(thread) for one in names]
        return (
            (frame.contains(*box.min) and frame.contains(*box.max))
            and not any(box.overlaps(one) for one in dots + names)
            and not (lines_too and any(crossed))
        )

    texts = []
    for point, spot in zip(points, spots, strict=False):
        # Where nothing else is left, a line may cross a name.
        for lines_too, away, side in itertools.product((True, False), _AWAY, sides):
            text, box = place(*point, away, *side)
            thread = spot + _STITCHES * ((box.min + box.max) / 2 - spot)
            if free(box, thread, lines_too):
                break
            text.remove()
        else:
            text, box = place(*point, _AWAY[0], *sides[0])
        names.append(box)
        threads.append(thread)
        texts.append(text)
    return texts


def save(figure, path):
    """Write a figure as a PNG, to a bucket too."""
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, format="png", dpi=_DPI)
