"""Rules by which a table supports the paper's claims, each with its interval over images.

A difference of two columns is taken on sets of images drawn with replacement, the same sets for
both (`dag_jax.metrics.bootstrap`). The bound of 5% was set after differences of 1 to 3% had been
seen; the rule before it let wide intervals pass. So read the intervals, not the verdict alone.

- "One column is below another" holds if the whole interval of the difference is below 0. It does
  not hold if the whole interval is above 0.
- "Two columns are equal" holds if the whole interval is within 5% of the clean score to either side
  of 0. It does not hold if the whole interval is outside of that.
- In all other cases, and with fewer than 10 images, nothing is shown. Sets of few images are much
  alike, so their interval is as narrow as if there were many images.

A claim that cells are below others is judged on the mean of the cells. A claim that each of some
cells is unchanged is judged cell by cell, so that harm and gain do not cancel; the worst cell gives
the verdict.

Claims over a matrix are judged before rounding. Those of Table 1 are judged on its rows, which are
rounded to hundredths of a point. `dag_jax.report.findings` writes the verdicts as text.
"""

import math

from dag_jax import metrics

LEVEL = 0.95
FEWEST = 10  # images
EQUAL = 0.05  # share of the clean score that two equal scores differ by at most
HOLDS, FAILS, OPEN = "holds", "does not hold", "not shown"
FEW = f"{OPEN} (fewer than {FEWEST} images)"
_DIFFERENCES = {"advr_minus_orig": ("advr", "orig"), "perm_minus_orig": ("perm", "orig")}


def in_percent(scores) -> metrics.Interval:
    """Return the interval of f64[B + 1] scores in percent: of the images, and of sets of them."""
    return metrics.interval(scores, level=LEVEL, within=(0, 100))


def intervals_of(sets) -> dict[str, list[float]]:
    """Return the intervals of a row of Table 1.

    Args:
      sets: {column: scores f64[B + 1]}, such as of "orig", "advr", "perm", in percent, of the
        images themselves and of each set that `metrics.draw_images` drew.

    Returns:
      {name of a column or difference: [value, low, high]} in points.
    """
    intervals = {name: in_percent(scores) for name, scores in sets.items()}
    for name, (column, clean) in _DIFFERENCES.items():
        if column in sets and clean in sets:
            difference = sets[column] - sets[clean]
            intervals[name] = metrics.interval(difference, level=LEVEL, within=(-100, 100))
    return {name: as_list(interval) for name, interval in intervals.items()}


def as_list(interval) -> list[float]:
    """Return [value, low, high] of a `metrics.Interval`, rounded to hundredths."""
    return [round(number, 2) for number in interval]


def as_json(number, digits=2) -> float | None:
    """Return a rounded number as a JSON value: None for nan."""
    return None if math.isnan(number) else round(float(number), digits)


def below(difference, images=FEWEST) -> str:
    """Return the verdict on whether a difference, [value, low, high], is below 0."""
    _, low, high = difference
    if images < FEWEST:
        return FEW
    return HOLDS if high < 0 else FAILS if low > 0 else OPEN


def equal(difference, clean, images=FEWEST) -> str:
    """Return the verdict on whether a difference, [value, low, high], is close enough to 0.

    Args:
      difference: [value, low, high].
      clean: the score that `EQUAL` is a share of.
      images: number of images of the difference.
    """
    _, low, high = difference
    bound = EQUAL * clean
    if images < FEWEST:
        return FEW
    if bound > 0 and -bound <= low and high <= bound:
        return HOLDS
    return FAILS if bound > 0 and (low > bound or high < -bound) else OPEN
