"""What the HTML report draws without a script: histograms as SVG, bars, the heat-map."""

import numpy as np

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 360, 190, 44, 40, 12, 16  # of a histogram
_BINS = 20
# Lightness rises from one end to the other, and no eye confuses the ends: matplotlib's cividis.
_CIVIDIS = (
    *((0, 34, 78), (53, 69, 108), (102, 105, 112)),
    *((148, 142, 119), (200, 184, 102), (254, 232, 56)),
)
_DARK = 0.179  # relative luminance below which white text has the higher contrast


def histograms(records) -> list[dict]:
    """Return how p, steps and the largest change are spread over images.

    Args:
      records: of the images that had targets.

    Returns:
      [{"title", "unit", "bars": [{"x", "y", "width", "height", "text"}], "xticks", "yticks",
      "summary"}], places in pixels of an SVG of `size`.
    """
    if not records:
        return []
    return [
        _histogram("Perceptibility p", "p × 1000", [1000 * r["perceptibility"] for r in records]),
        _histogram("Steps", "iterations", [r["num_steps"] for r in records], whole=True),
        _histogram("Largest change", "grey levels", [r["largest_change"] for r in records]),
    ]


def _histogram(title, unit, values, *, whole=False):
    top = max(float(np.max(values)), 1e-9)
    step = _nice(top / _BINS, whole)
    edges = np.arange(0, top + step * 1.001, step)
    counts, edges = np.histogram(values, edges)
    most = int(counts.max())
    across, down = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _BOTTOM - _TOP
    left = _LEFT + across * edges[:-1] / edges[-1]
    bars = [
        {
            "x": round(float(x), 2),
            "y": round(_TOP + down * (1 - count / most), 2),
            "width": round(across / len(counts) - 1, 2),
            "height": round(down * count / most, 2),
            "text": f"{low:g} to {high:g}: {count} image{'s' * (count != 1)}",
        }
        for x, count, low, high in zip(left, counts.tolist(), edges[:-1], edges[1:], strict=True)
        if count
    ]
    tick = _nice(edges[-1] / 4, whole)
    xticks = np.arange(0, edges[-1] * 1.001, tick)
    high = _nice(most / 3, True)
    yticks = np.arange(0, most * 1.001, high)
    low, middle, large = np.percentile(values, (25, 50, 75))
    return {
        "title": title,
        "unit": unit,
        "size": (_WIDTH, _HEIGHT),
        "axis": (_LEFT, _HEIGHT - _BOTTOM, _WIDTH - _RIGHT),
        "bars": bars,
        "xticks": [(round(_LEFT + across * v / edges[-1], 2), f"{v:g}") for v in xticks.tolist()],
        "yticks": [(round(_TOP + down * (1 - v / most), 2), f"{v:g}") for v in yticks.tolist()],
        "summary": f"median {middle:.4g}, half of the {len(values)} images between {low:.4g} and "
        f"{large:.4g} {unit}",
    }


def _nice(number, whole):
    """Return 1, 2, 2.5 or 5 times a power of ten, not below a number; with `whole`, whole."""
    power = 10.0 ** np.floor(np.log10(max(number, 1e-12)))
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= number * 0.999)
    return float(max(np.ceil(step), 1)) if whole else float(step)


def class_scores(row) -> list[dict]:
    """Return the score of each class of a row, where it keeps them: {"name", "before", "after"}.

    A class that no image has is left out.
    """
    kept = row.get("class_scores", {})
    if not {"orig", "advr"} <= kept.keys():
        return []
    triples = zip(row["classes"], kept["orig"], kept["advr"], strict=True)
    return [
        {"name": name, "before": before, "after": after or 0.0}
        for name, before, after in triples
        if before is not None
    ]


def transfer_blocks(cells) -> list[dict]:
    """Return the matrix of a transfer as tables: one for each split, shuffled sums apart.

    Args:
      cells: the "cells" of transfer.json.

    Returns:
      [{"title", "targets": names, "sources": [{"name", "cells": [None or {"score", "share",
      "white", "colour", "text", "hover"}]}]}].
    """
    blocks: dict = {}
    for cell in cells:
        if cell["score"] is None:
            continue
        title = (
            f"{cell['split']}, {'rows and columns shuffled' if cell['permuted'] else 'as found'}"
        )
        blocks.setdefault(title, []).append(cell)
    shown = []
    for title, some in blocks.items():
        targets = list(dict.fromkeys(cell["network"] for cell in some))
        sources: dict = {}
        for cell in some:
            sources.setdefault("+".join(cell["added"]) or "none", {})[cell["network"]] = _heat(cell)
        lines = [
            {"name": name, "cells": [line.get(target) for target in targets]}
            for name, line in sources.items()
        ]
        shown.append({"title": title, "targets": targets, "sources": lines})
    return shown


def _heat(cell):
    share = cell["score"] / cell["clean"] if cell["clean"] else None
    colour, text = _colour(share)
    added = "+".join(cell["added"]) or "nothing"
    hover = (
        f"{added} added, {cell['network']} looks: {cell['score']:.2f}% "
        f"[{cell['low']:.2f}, {cell['high']:.2f}] of {cell['images']} images, {cell['kind']}"
    )
    left = "" if share is None else f"; {share:.0%} of the clean score is left"
    return {
        "score": f"{cell['score']:.1f}",
        "white": cell["kind"] == "white box",
        "colour": colour,
        "text": text,
        "hover": hover + left,
    }


def _colour(share):
    """Return the colours (of a cell, of its text), as CSS has them, of a share of 0 to 1."""
    if share is None:
        return "transparent", "inherit"
    place = min(max(share, 0), 1) * (len(_CIVIDIS) - 1)
    low = min(int(place), len(_CIVIDIS) - 2)
    colour = [
        round(a + (b - a) * (place - low))
        for a, b in zip(_CIVIDIS[low], _CIVIDIS[low + 1], strict=True)
    ]
    linear = [(v / 255 / 12.92) if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return f"rgb({', '.join(map(str, colour))})", "#fff" if luminance < _DARK else "#000"
