"""What a table is evidence of: the paper's claims, each with its interval over images.

A difference of two columns is taken on sets of images drawn with replacement, the same sets for
both (`dag_jax.metrics.bootstrap`). A claim that one column is below another holds where the whole
interval of the difference is below 0; a claim that two are equal holds where the interval has 0 in
it, and is worth as much as the interval is narrow. Both rules were fixed before any table was made.
"""

import functools
from typing import NamedTuple

import numpy as np

from dag_jax import metrics, networks
from experiments import console

LEVEL = 0.95
HOLDS, FAILS, OPEN = "holds", "does not hold", "not shown"
# Share of the clean score: a sum that leaves this much more than a network's own perturbation alone
# does not keep its effect.
KEPT = 0.1
WHITE, TRAINING, NETWORK, TASK = "white box", "cross-training", "cross-network", "cross-task"
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


def table1(rows, titles, *, of="network") -> str:
    """Return what Table 1, or another of its columns, shows, as Markdown.

    Args:
      rows: dicts with "intervals" from `intervals_of`.
      titles: {network: what it is called}.
      of: what a row is of, and the entry that names it: `titles` has these.
    """
    columns = [(of, lambda row: titles[row[of]])]
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


class Claim(NamedTuple):
    """A claim of the paper, and what was found."""

    claim: str
    of: str  # the cells that it is of
    interval: list[float]  # [value, low, high] of the difference, percent of the clean score
    verdict: str


@functools.cache
def _module(name):
    return networks.build(name)


def kind_of(source, target) -> str:
    """Return how far a network is from those that a source was found for; the nearest counts.

    Cross-training: the same architecture, trained on other data. Cross-network: another
    architecture for the same task.
    """
    if target in source.members:
        return WHITE
    if _module(target) in map(_module, source.members):
        return TRAINING
    detects = {name.startswith("fr_") for name in source.members}
    return NETWORK if target.startswith("fr_") in detects else TASK


def of_transfer(cells) -> list[Claim]:
    """Return what a matrix of transfer shows.

    Means are over cells, each as the share of the clean score that is left.

    Args:
      cells: {(source, target): `matrix.Cell`}.
    """
    left = {pair: cell.left for pair, cell in cells.items() if cell.images and pair[0].members}
    alone = {
        pair: kind_of(*pair) for pair in left if len(pair[0].members) == 1 and not pair[0].permuted
    }
    found = []

    def add(claim, of, rule, shares):
        if shares:
            difference = as_list(metrics.interval(100 * np.mean(shares, axis=0), level=LEVEL))
            found.append(Claim(claim, f"{of} ({len(shares)})", difference, rule(difference)))

    for kind in (WHITE, TRAINING, NETWORK, TASK):
        shares = [left[pair] - 1 for pair, one in alone.items() if one == kind]
        claim = "fools the network itself" if kind == WHITE else "transfers"
        add(claim, kind, below, shares)
    for detects, task in ((False, "segmentation"), (True, "detection")):
        near, far = (
            [
                left[pair]
                for pair, one in alone.items()
                if one == kind and pair[1].startswith("fr_") == detects
            ]
            for kind in (TRAINING, NETWORK)
        )
        if near and far:
            difference = np.mean(near, axis=0) - np.mean(far, axis=0)
            of = f"{task}, {len(near)} against {len(far)} cells"
            add("cross-training transfer is stronger than cross-network", of, below, [difference])
    for source in dict.fromkeys(source for source, _ in left):
        if len(source.members) > 1:
            for claim, rule, shares in _of_sum(left, source):
                add(claim, source.title, rule, shares)
    return found


def _of_sum(left, source):
    """Yield (claim, rule, differences) of a sum, one difference for each cell that it is of."""
    own = {target: share for (of, target), share in left.items() if of == source}
    if source.permuted:
        yield "a permuted sum does nothing", equal, [share - 1 for share in own.values()]
        return

    def alone(name, target):
        return left[source._replace(members=(name,)), target]

    kept = [own[name] - alone(name, name) - KEPT for name in source.members if name in own]
    yield f"a sum keeps the white-box effects (to {KEPT:.0%} of the clean score)", below, kept
    stronger = {
        target: share
        - min((alone(name, target) for name in source.members), key=lambda one: one[0])
        for target, share in own.items()
        if target not in source.members
    }
    yield "a sum is stronger on other networks than its best member", below, [*stronger.values()]
    attacked = {name for one, _ in left for name in one.members}
    unseen = [share for target, share in stronger.items() if target not in attacked]
    yield "... and on networks that no attack has seen", below, unseen


def transfer(claims) -> str:
    """Return the claims as Markdown."""
    columns = [
        ("claim", lambda one: one.claim),
        ("of (cells)", lambda one: one.of),
        ("difference", lambda one: text(one.interval)),
        ("", lambda one: one.verdict),
    ]
    return (
        f"{LEVEL:.0%} intervals by the bootstrap over images; in percent of the clean score, means "
        "over cells. Differences are of a cell and the clean images, of two kinds of cells, or of "
        "a sum and the strongest of its members on the same network.\n\n"
        f"{console.markdown(claims, columns)}\n"
    )
