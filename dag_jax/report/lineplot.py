"""Plots of what launches measure: panels side by side, a line for each of several things.

Nothing here touches pyplot, so nothing needs a display and nothing stays open. Matplotlib and what
else draws is imported by what uses it: it would be half of the time in which a launch starts.
"""

import io
import itertools
import textwrap
import warnings

from etils import epath

from dag_jax.errors import optional_import

# Told apart by colour-blind readers, too: matplotlib's petroff10.
COLOURS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
WIDTH = 8.32  # inches of a picture: 100 pixels each where it is shown, in a column of 832
MARKERS = "os^DvPX*<"  # one fewer than colours: pairs repeat after 90
HEADROOM = 1.1  # of the largest value: no marker is cut

_DPI = 200  # twice those pixels, for fine screens
_MOST_COLUMNS = 3
_TITLE_LETTERS = 96  # of a line of a title
_FONTS = (  # the first that has a letter gives it; the others are systems' own for East Asia
    *("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "IPAGothic"),
    *("Droid Sans Fallback", "Microsoft YaHei", "Malgun Gothic", "PingFang SC", "Hiragino Sans"),
    *("Arial Unicode MS",),
)


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


def panels(count, title, *, columns=None, height=2.9):
    """Return (matplotlib's Figure, list of its axes); the figure is `WIDTH` wide.

    Args:
      count: number of panels.
      title: above all of them.
      columns: panels side by side; None: up to three, as many in each line.
      height: inches of a panel.
    """
    with optional_import("experiments"):
        from matplotlib.figure import Figure

    columns = columns or -(-count // -(-count // _MOST_COLUMNS))
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, 0.3 + height * rows), layout="constrained")
    title = "\n".join(textwrap.fill(line, _TITLE_LETTERS) for line in title.splitlines())
    figure.suptitle(title, fontsize=9.5)
    every = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes in every:
        axes.set_prop_cycle(color=COLOURS)
        axes.tick_params(which="both", labelsize=8)
        for text in (axes.xaxis.label, axes.yaxis.label):
            text.set_fontsize(8.5)
    for axes in every[count:]:
        axes.set_visible(False)
    return figure, every[:count]


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
    from matplotlib.ticker import FuncFormatter, NullFormatter

    shown, largest = set(), 0.0
    for (label, x, y), marker in zip(series, itertools.cycle(MARKERS), strict=False):
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


def training_curve(points, title, path):
    """Draw the loss and the score of a training run over its updates.

    Args:
      points: dicts of step, loss and score (percent).
      title: the network's name.
      path: PNG file to write.
    """
    figure, (loss, score) = panels(2, title)
    for axes, entry, ylabel in (
        (loss, "loss", "training loss"),
        (score, "score", "test score (%)"),
    ):
        axes.plot([p["step"] for p in points], [p[entry] for p in points], marker="o", ms=3)
        axes.set(xlabel="updates", ylabel=ylabel)
        axes.grid(alpha=0.3)
    loss.set_ylim(0, None)
    score.set_ylim(0, 100)
    save(figure, path)


def png_of(figure) -> bytes:
    """Return a figure as a PNG.

    A letter that matplotlib's own font lacks comes from another that is installed here; where none
    has it, a box stands for it.
    """
    from matplotlib import font_manager
    from matplotlib.text import Text

    installed = font_manager.get_font_names()
    fonts = [name for name in _FONTS if name in installed]
    for text in figure.findobj(Text):
        text.set_fontfamily(fonts)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from font|.* does not support \\w+ nativ"
        )
        figure.savefig(file, format="png", dpi=_DPI)
    return file.getvalue()


def save(figure, path):
    """Write a figure as a PNG, to a bucket too; missing folders are made."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png_of(figure))
