"""What a table is evidence of: the paper's claims, each with its interval over images.

A difference of two columns is taken on sets of images drawn with replacement, the same sets for
both (`dag_jax.metrics.bootstrap`). A claim that one column is below another holds where the whole
interval of the difference is below 0; a claim that two are equal holds where the interval has 0 in
it, and is worth as much as the interval is narrow. Both rules were fixed before any table was made.
"""

from dag_jax import metrics
from experiments import console

LEVEL = 0.95
HOLDS, FAILS, OPEN = "holds", "does not hold", "not shown"
_DIFFERENCES = {"advr_minus_orig": ("advr", "orig"), "perm_minus_orig": ("perm", "orig")}


def intervals_of(sets) -> dict[str, list[float]]:
    """Return the intervals of a row of Table 1.

    Args:
      sets: {column: scores f64[B + 1]} of "orig", "advr", "perm" in percent, of the images
        themselves and of each set that `metrics.draw_images` drew.

    Returns:
      {column or difference: [value, low, high]} in points.
    """
    values = {name: sets[name] for name in ("orig", "advr", "perm")}
    values |= {name: sets[one] - sets[other] for name, (one, other) in _DIFFERENCES.items()}
    return {name: as_list(metrics.interval(one, level=LEVEL)) for name, one in values.items()}


def as_list(interval) -> list[float]:
    """Return [value, low, high] of a `metrics.Interval`, rounded to hundredths."""
    return [round(number, 2) for number in interval]


def below(difference) -> str:
    """Return whether [value, low, high] of a difference shows that it is below 0."""
    _, low, high = difference
    return HOLDS if high < 0 else FAILS if low > 0 else OPEN


def equal(difference) -> str:
    """Return whether [value, low, high] of a difference leaves 0 possible."""
    _, low, high = difference
    return HOLDS if low <= 0 <= high else FAILS if low > 0 or high < 0 else OPEN


def text(interval) -> str:
    """Return '-1.65 [-2.30, -0.91]'."""
    value, low, high = interval
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def table1(rows, titles) -> str:
    """Return what Table 1 shows, as Markdown.

    Args:
      rows: of table1.json.
      titles: {network: what it is called}.
    """
    columns = [("network", lambda row: titles[row["network"]])]
    columns += [
        (name.upper(), lambda row, name=name: text(row["intervals"][name]))
        for name in ("orig", "advr", "perm")
    ]
    for claim, verdict, name in (
        ("adversarial below original", below, "advr_minus_orig"),
        ("permuted equal to original", equal, "perm_minus_orig"),
    ):
        columns.append(
            (
                claim,
                lambda row, verdict=verdict, name=name: (
                    f"{verdict(row['intervals'][name])}: {text(row['intervals'][name])}"
                ),
            )
        )
    return (
        f"{LEVEL:.0%} intervals by the bootstrap over images, in points; behind each claim the "
        "difference from ORIG on the same images. Below: the whole interval is below 0. Equal: 0 "
        f"is in the interval.\n\n{console.markdown(rows, columns)}\n"
    )
