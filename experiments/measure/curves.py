"""Plots of the benchmark, each from the points that a part of it measured.

Nothing here touches pyplot, so nothing needs a display and nothing stays open.
"""

from dag_jax.report import lineplot

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
        lineplot.save(figure, folder / f"{name}.png")
        drawn.append(f"{name}.png")
    return drawn


def _time_against_batch(points):
    figure, (whole, each) = lineplot.panels(2, "Time of one compiled iteration against its batch")
    xlabel = "images in the batch (lanes of a vmap)"
    lineplot.lines(
        whole,
        lineplot.series(points, "network", "lanes", "seconds", 1000),
        xlabel=xlabel,
        ylabel="ms an iteration",
    )
    points = [p | {"each": p["seconds"] and p["seconds"] / p["lanes"]} for p in points]
    lineplot.lines(
        each,
        lineplot.series(points, "network", "lanes", "each", 1000),
        xlabel=xlabel,
        ylabel="ms an iteration of an image",
        log=False,
    )
    return figure


def _memory_against_batch(points):
    figure, (axes,) = lineplot.panels(1, "Memory beside weights and arguments")
    lineplot.lines(
        axes,
        lineplot.series(points, "network", "lanes", "temporaries_mib"),
        xlabel="images in the batch (lanes of a vmap)",
        ylabel="MiB, by the compiler's account",
    )
    return figure


def _cost_pair(points, x, xlabel, title, **options):
    figure, (work, time) = lineplot.panels(2, title)
    series = lineplot.series(points, "network", x, "flops", 1e-9)
    lineplot.lines(work, series, xlabel=xlabel, ylabel="GFLOP an iteration", **options)
    series = lineplot.series(points, "network", x, "seconds")
    lineplot.lines(time, series, xlabel=xlabel, ylabel="seconds an iteration", **options)
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
    figure, panels = lineplot.panels(len(by_network), "Images attacked to completion")
    for axes, (network, points) in zip(panels, by_network.items(), strict=True):
        slots = [p["slots"] for p in points]
        series = [(kind, slots, [p[kind] for p in points]) for kind in ("stream", "lockstep")]
        lineplot.lines(axes, series, xlabel="slots", ylabel="images per second", log=False)
        axes.set_title(network, fontsize=8.5)
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
    figure, panels = lineplot.panels(len(by_network), "Slots with an image under way")
    for axes, (network, kinds) in zip(panels, by_network.items(), strict=True):
        last = max(points[-1][0] for points in kinds.values() if points)
        for (kind, points), colour in zip(kinds.items(), lineplot.COLOURS[:2], strict=True):
            if not points:
                continue
            ends, values = zip(*points, strict=True)
            axes.stairs(values, (0, *ends), color=colour, alpha=0.3, linewidth=0.7, baseline=None)
            edges, means = _windowed(points, last / _WINDOWS)
            mean = _windowed(points, ends[-1])[1][0]
            label = f"{kind}, mean {mean:.2f}"
            axes.stairs(means, edges, color=colour, linewidth=2.2, label=label, baseline=None)
        axes.set(xlabel="iterations since the start", ylabel="busy slots", ylim=(0, None))
        axes.set_title(network, fontsize=8.5)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower left")
    return figure
