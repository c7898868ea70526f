"""Plots of the benchmark, each from the points that a part of it measured.

Nothing here touches pyplot, so nothing needs a display and nothing stays open.
"""

import itertools

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

_DPI = 150
_MARKERS = "os^Dv"
_WINDOWS = 12  # of the means over time; single chunks are a band


def draw(points: dict, folder) -> list[str]:
    """Draw what there are points for.

    Args:
      points: of `iterations.curves` ("lanes", "sizes", "proposals") and of the part "stream"
        ("slots", "busy"), as far as they were measured.
      folder: where the PNGs go.

    Returns:
      Their names.
    """
    drawn = []
    for name, curve, function in (
        ("time_against_batch", "lanes", _time_against_batch),
        ("memory_against_batch", "lanes", _memory_against_batch),
        ("cost_against_size", "sizes", _cost_against_size),
        ("cost_against_proposals", "proposals", _cost_against_proposals),
        ("speed_against_slots", "slots", _speed_against_slots),
        ("busy_over_time", "busy", _busy_over_time),
    ):
        if not points.get(curve):
            continue
        figure = function(points[curve])
        figure.savefig(folder / f"{name}.png", dpi=_DPI)
        drawn.append(f"{name}.png")
    return drawn


def _series(points, key, x, y, scale=1):
    """Yield (label, x values, y values) of points grouped by a key, those without a y left out."""
    for label, group in itertools.groupby(sorted(points, key=lambda p: p[key]), lambda p: p[key]):
        pairs = sorted((p[x], p[y] * scale) for p in group if p[y] is not None)
        if pairs:
            yield label, *zip(*pairs, strict=True)


def _panels(count, title):
    figure = Figure(figsize=(1.5 + 4.2 * count, 3.8), layout="constrained")
    figure.suptitle(title, fontsize=12)
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _lines(axes, series, *, xlabel, ylabel, doubling=True, log=True):
    """Draw series; x values that double are evenly spaced and all of them labelled."""
    shown = set()
    for (label, x, y), marker in zip(series, itertools.cycle(_MARKERS), strict=False):
        axes.plot(x, y, marker=marker, ms=5, label=label)
        shown |= set(x)
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
        axes.set_ylim(0, None)
    if doubling and shown:
        axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(shown), labels=[f"{x:g}" for x in sorted(shown)])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off() if not log else axes.tick_params(axis="x", which="minor", bottom=False)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _time_against_batch(points):
    figure, (whole, each) = _panels(2, "Time of one compiled iteration against its batch")
    xlabel = "images in the batch (lanes of a vmap)"
    _lines(whole, _series(points, "network", "lanes", "seconds", 1000), xlabel=xlabel, ylabel="ms")
    points = [p | {"each": p["seconds"] and p["seconds"] / p["lanes"]} for p in points]
    _lines(
        each,
        _series(points, "network", "lanes", "each", 1000),
        xlabel=xlabel,
        ylabel="ms an image",
        log=False,
    )
    return figure


def _memory_against_batch(points):
    figure, (axes,) = _panels(1, "Memory beside weights and arguments")
    _lines(
        axes,
        _series(points, "network", "lanes", "temporaries_mib"),
        xlabel="images in the batch (lanes of a vmap)",
        ylabel="MiB, by the compiler's account",
    )
    return figure


def _cost_pair(points, x, xlabel, title, **options):
    figure, (work, time) = _panels(2, title)
    series = _series(points, "network", x, "flops", 1e-9)
    _lines(work, series, xlabel=xlabel, ylabel="GFLOP an iteration", **options)
    series = _series(points, "network", x, "seconds")
    _lines(time, series, xlabel=xlabel, ylabel="seconds an iteration", **options)
    return figure


def _cost_against_size(points):
    return _cost_pair(
        points, "size", "pixels of the image's side", "Cost of an iteration against image size"
    )


def _cost_against_proposals(points):
    size = points[0]["size"]
    return _cost_pair(
        points,
        "proposals",
        "proposals",
        f"Cost of an iteration against proposals, {size} px",
        log=False,
        doubling=False,
    )


def _speed_against_slots(by_network):
    figure, panels = _panels(len(by_network), "Images attacked to completion")
    for axes, (network, points) in zip(panels, by_network.items(), strict=True):
        slots = [p["slots"] for p in points]
        series = [(kind, slots, [p[kind] for p in points]) for kind in ("stream", "lockstep")]
        _lines(axes, series, xlabel="slots", ylabel="images per second", log=False)
        axes.set_title(network, fontsize=10)
    return figure


def _windowed(points, width):
    """Return (edges, means): the mean of a step function in each window of x.

    Args:
      points: (end, value) of each step, from 0 on.
      width: of a window.
    """
    edges, means, start, total = [0], [], 0, 0.0
    for end, value in points:
        while end >= edges[-1] + width:
            edge = edges[-1] + width
            means.append((total + (edge - start) * value) / width)
            edges.append(edge)
            start, total = edge, 0.0
        total += (end - start) * value
        start = end
    if start > edges[-1]:
        means.append(total / (start - edges[-1]))
        edges.append(start)
    return edges, means


def _busy_over_time(by_network):
    figure, panels = _panels(len(by_network), "Slots with an image under way")
    for axes, (network, kinds) in zip(panels, by_network.items(), strict=True):
        last = max(points[-1][0] for points in kinds.values() if points)
        for (kind, points), colour in zip(kinds.items(), ("C0", "C1"), strict=True):
            if not points:
                continue
            ends, values = zip(*points, strict=True)
            axes.stairs(values, (0, *ends), color=colour, alpha=0.3, linewidth=0.7, baseline=None)
            edges, means = _windowed(points, last / _WINDOWS)
            mean = _windowed(points, ends[-1])[1][0]
            label = f"{kind}, mean {mean:.2f}"
            axes.stairs(means, edges, color=colour, linewidth=2.2, label=label, baseline=None)
        axes.set(xlabel="iterations since the start", ylabel="busy slots", ylim=(0, None))
        axes.set_title(network, fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower left")
    return figure
