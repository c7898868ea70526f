"""The score cards of a row in the HTML report, each with its interval.

Shapes: M images, B sets of them.
"""

import numpy as np
from jaxtyping import Float64, Int64

from dag_jax import metrics
from dag_jax.runs import findings as rules
from dag_jax.runs import scores

_SCORES = (
    ("orig", "clean", "ORIG: what the model scores on the images as they are"),
    ("advr", "attacked", "ADVR: what it scores on the attacked images, before rounding"),
    ("advr_uint8", "attacked, PNG", "ADVR of the saved files, which hold whole grey levels"),
    ("perm", "shuffled", "PERM: rows and columns of the change shuffled, noise of its size"),
)


def cards(row, records) -> list[dict]:
    """Return the cards of a row: {"name", "value", "unit", "range", "help"}, texts.

    Scores and their intervals are the row's; steps, p and theirs are of the records.

    Args:
      row: of the table.
      records: of its images that had targets.
    """
    score = "mAP" if row["task"] == "detection" else "mIoU"
    shown = []
    for column, name, explained in _SCORES:
        if column in row.get("intervals", {}):
            _, *ends = row["intervals"][column]
            shown.append(_card(name, f"{row[column]:.2f}", f"% {score}", ends, ".2f", explained))
    if records:
        steps = np.array([record["num_steps"] for record in records], np.float64)
        sizes = 1000 * np.array([record["perceptibility"] for record in records], np.float64)
        value, *ends = median_interval(steps)
        explained = "iterations of the attack"
        shown.append(_card("steps, median", f"{value:g}", "", ends, "g", explained))
        value, *ends = scores.mean_interval(sizes, within=(0, np.inf))
        explained = "perceptibility: the root mean square of the change, where 1 is white"
        shown.append(_card("p × 1000, mean", f"{value:.1f}", "", ends, ".1f", explained))
    return shown


def _card(name, value, unit, ends, kind, explained):
    low, high = (f"{end:{kind}}" for end in ends)
    between = f"{rules.LEVEL:.0%} interval {low} to {high}"
    return {"name": name, "value": value, "unit": unit, "range": between, "help": explained}


def median_interval(values: Float64[np.ndarray, " M"]) -> metrics.Interval:
    """Return the median of one number an image, and its percentile interval by the bootstrap.

    A median of sets has no bias that the basic interval of `metrics.interval` would take off: of
    skewed numbers that one has the true median in it less often (tests/report/test_cards.py).

    Args:
      values: float64 [M].
    """
    medians = medians_of_sets(values, metrics.draw_images(0, len(values)))
    low, high = np.quantile(medians[1:], [(1 - rules.LEVEL) / 2, (1 + rules.LEVEL) / 2])
    return metrics.Interval(float(medians[0]), float(low), float(high))


def medians_of_sets(
    values: Float64[np.ndarray, " M"], images: Int64[np.ndarray, "B M"]
) -> Float64[np.ndarray, " B"]:
    """Return the medians of sets of images.

    Args:
      values: float64 [M], one number an image.
      images: int64 [B, M], how often each image is in each set.
    """
    order = np.argsort(values, kind="stable")
    ranked, counts = values[order], np.cumsum(images[:, order], axis=1)
    last = counts[:, -1:]
    lower = (counts > (last - 1) // 2).argmax(axis=1)
    upper = (counts > last // 2).argmax(axis=1)
    return (ranked[lower] + ranked[upper]) / 2
