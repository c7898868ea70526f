"""What a matrix of transfer shows: the paper's claims over cells; `findings` has the rules."""

import functools
from typing import NamedTuple

import numpy as np

from dag_jax import metrics, networks
from dag_jax.report import tables
from dag_jax.runs import evaluation
from dag_jax.runs.findings import (
    EQUAL,
    FAILS,
    FEWEST,
    HOLDS,
    LEVEL,
    OPEN,
    as_json,
    below,
    equal,
    text,
)

# Share of the clean score: a sum that leaves this much more than a network's own perturbation alone
# does not keep its effect.
KEPT = 0.1
WHITE, TRAINING, NETWORK, TASK = "white box", "cross-training", "cross-network", "cross-task"
CLEAN, PERMUTED = "clean", "permuted"

_TERMS = f"""\
- cell: what one network (column) scores on images with one thing added (row), as percent of what it
  scores on the same images without it.
- white box: what is added was found for this network. cross-training: for the same architecture,
  trained on other data. cross-network: for another architecture of the same task, columns that no
  attack has seen (black boxes) included. cross-task: for a network of the other task. Of a sum, the
  nearest of its members counts.
- difference: value and {LEVEL:.0%} interval by the bootstrap over images, in percent of the clean
  score. Of "fools", "transfers" and "does nothing": the cell minus the clean images. Of "stronger
  than cross-network": the mean of cross-training cells minus the mean of cross-network cells. Of
  "keeps": the sum minus its member's own white-box cell, minus {KEPT:.0%}. Of "best member": the
  sum minus the strongest of its members on the same network. Of "permuted form": the sum minus the
  same sum with rows and columns shuffled. Cells that are compared are scored on the images that
  all of them have. "Other networks" are those that the sum was not found for.
- holds: the whole interval is below 0; does not hold: all of it is above 0. For "does nothing":
  holds where the whole interval is within {EQUAL:.0%} of the clean score to either side of 0, does
  not hold where all of it is outside of that. Else, and of fewer than {FEWEST} images: not shown.
- "keeps" and "does nothing" are judged cell by cell: they hold if all cells do, do not hold if one
  does not, and the difference is that of the worst cell, which is named. The others are of the mean
  over their cells."""


class Claim(NamedTuple):
    """A claim of the paper, and what was found."""

    claim: str
    of: str  # the cells that it is of
    interval: metrics.Interval  # of the difference, percent of the clean score
    verdict: str
    left_out: tuple[str, ...] = ()  # cells without a clean score to compare with

    def as_json(self) -> dict:
        """Return it as what JSON can hold, rounded."""
        interval = [as_json(number) for number in self.interval]
        return self._asdict() | {"interval": interval, "left_out": list(self.left_out)}


class _Change(NamedTuple):
    """A difference at a cell: f64[B + 1] shares of the clean score, over some images."""

    source: object  # `stored.Source`
    target: str
    shares: np.ndarray
    images: int

    @property
    def title(self):
        return f"{self.source.title} on {evaluation.TITLES[self.target]}"


@functools.cache
def _module(name):
    return networks.build(name)


def kind_of(source, target) -> str:
    """Return how far a network is from those that a source was found for; the nearest counts.

    Cross-training: the same architecture, trained on other data. Cross-network: another
    architecture for the same task. Clean images and permuted sources are kinds of their own.
    """
    if not source.members:
        return CLEAN
    if source.permuted:
        return PERMUTED
    if source.is_white_box(target):
        return WHITE
    if _module(target) in map(_module, source.members):
        return TRAINING
    detects = {name.startswith("fr_") for name in source.members}
    return NETWORK if target.startswith("fr_") in detects else TASK


def of_transfer(cells, score=None) -> list[Claim]:
    """Return what a matrix of transfer shows.

    Cells that are compared are scored on the images that all of them have, with the same sets.

    Args:
      cells: {(source, target): `matrix.Cell`}.
      score: `matrix.Matrix.cell`, for cells that are compared with others of other images.
    """
    cells = {pair: cell for pair, cell in cells.items() if cell.images and pair[0].members}
    alone = {pair: kind_of(*pair) for pair in cells if len(pair[0].members) == 1}
    found = []
    for kind in (WHITE, TRAINING, NETWORK, TASK):
        changes = [
            _Change(*pair, cells[pair].left - 1, cells[pair].images)
            for pair, one in alone.items()
            if one == kind
        ]
        claim = "fools the network itself" if kind == WHITE else "transfers"
        found += _mean(claim, kind, changes)
    for detects, task in ((False, "segmentation"), (True, "detection")):
        pairs = {
            kind: [
                pair
                for pair, one in alone.items()
                if one == kind and pair[1].startswith("fr_") == detects
            ]
            for kind in (TRAINING, NETWORK)
        }
        if all(pairs.values()):
            both = _together(cells, pairs[TRAINING] + pairs[NETWORK], score)
            near, far = (
                [_Change(*pair, both[pair].left, both[pair].images) for pair in pairs[kind]]
                for kind in (TRAINING, NETWORK)
            )
            claim = "cross-training transfer is stronger than cross-network"
            found += _mean(claim, task, near, far)
    for source in dict.fromkeys(source for source, _ in cells):
        if len(source.members) > 1:
            found += _of_permuted(cells, source) if source.permuted else []
            found += [] if source.permuted else _of_sum(cells, source, score)
    return found


def _together(cells, pairs, score):
    """Return {pair: its cell, scored on the images that the cells of all pairs have}."""
    fewest, *others = sorted((cells[pair].keys for pair in pairs), key=len)
    common = set(fewest).intersection(*others)
    keys = tuple(key for key in fewest if key in common)
    return {
        (source, target): cells[source, target]
        if cells[source, target].keys == keys
        else score(target, source, keys)
        for source, target in pairs
    }


def _scored(changes):
    """Return (those changes that have a clean score to compare with, titles of the others)."""
    there = [one for one in changes if not np.isnan(one.shares[0])]
    return there, tuple(one.title for one in changes if np.isnan(one.shares[0]))


def _interval(shares):
    return metrics.interval(100 * shares, level=LEVEL, within=(-100, np.inf))


def _mean(claim, of, changes, others=None) -> list[Claim]:
    """Judge whether the mean of some changes is below 0, or below the mean of others."""
    if not changes:
        return []
    parts = [changes] if others is None else [changes, others]
    scored = [_scored(part) for part in parts]
    count = " against ".join(str(len(there)) for there, _ in scored)
    left_out = tuple(title for _, titles in scored for title in titles)
    of = f"{of}: {count} cell{'s' * (count != '1')}"
    if not all(there for there, _ in scored):
        return [Claim(claim, of, metrics.Interval(*[np.nan] * 3), OPEN, left_out)]
    means = [np.mean([one.shares for one in there], axis=0) for there, _ in scored]
    interval = _interval(means[0] if others is None else means[0] - means[1])
    images = min(one.images for there, _ in scored for one in there)
    return [Claim(claim, of, interval, below(interval, images), left_out)]


def _each(claim, of, changes, rule) -> list[Claim]:
    """Judge each change by a rule of (interval, images); the verdict is that of the worst."""
    there, left_out = _scored(changes)
    if not there:
        return _mean(claim, of, changes)
    judged = [(one, _interval(one.shares)) for one in there]
    judged = [(one, interval, rule(interval, one.images)) for one, interval in judged]

    def badness(one):
        _, interval, verdict = one
        size = abs(interval.value) if rule == _unchanged else interval.value
        return verdict == FAILS, verdict != HOLDS, size

    worst, interval, verdict = max(judged, key=badness)
    good = sum(verdict == HOLDS for _, _, verdict in judged)
    of = f"{of}: {good} of {len(judged)} cells hold; worst: {evaluation.TITLES[worst.target]}"
    return [Claim(claim, of, interval, verdict, left_out)]


def _unchanged(interval, images):
    return equal(interval, 100, images)


def _of_permuted(cells, source):
    changes = [
        _Change(*pair, cell.left - 1, cell.images)
        for pair, cell in cells.items()
        if pair[0] == source
    ]
    return _each("a permuted sum does nothing", source.title, changes, _unchanged)


def _of_sum(cells, source, score) -> list[Claim]:
    """Return the claims on a sum that is not permuted."""
    attacked = {name for one, _ in cells for name in one.members}
    shuffled = source._replace(permuted=True)
    kept, stronger, more = [], [], []
    for target in (target for one, target in cells if one == source):
        alone = [(source._replace(members=(name,)), target) for name in source.members]
        pairs = [(source, target), *(pair for pair in alone if pair in cells)]
        both = _together(cells, pairs, score)
        own, *others = both.values()
        if target in source.members:
            left = both[source._replace(members=(target,)), target].left
            kept.append(_Change(source, target, own.left - left - KEPT, own.images))
            continue
        best = min((cell.left for cell in others), key=lambda left: left[0])
        stronger.append(_Change(source, target, own.left - best, own.images))
        if (shuffled, target) in cells:
            pairs = [(source, target), (shuffled, target)]
            one, other = _together(cells, pairs, score).values()
            more.append(_Change(source, target, one.left - other.left, one.images))
    unseen = [one for one in stronger if one.target not in attacked]
    keeps = f"a sum keeps the white-box effects (to {KEPT:.0%} of the clean score)"
    return [
        *_each(keeps, source.title, kept, below),
        *_mean("a sum is stronger on other networks than its best member", source.title, stronger),
        *_mean("... and on networks that no attack has seen", source.title, unseen),
        *_mean("a sum does more on other networks than its permuted form", source.title, more),
    ]


def markdown(claims) -> str:
    """Return the claims as Markdown, after what their words mean."""
    columns = [
        ("claim", lambda one: one.claim),
        ("of", lambda one: one.of),
        ("difference", lambda one: "-" if np.isnan(one.interval[0]) else text(one.interval)),
        ("", lambda one: one.verdict),
    ]
    left_out = list(dict.fromkeys(title for one in claims for title in one.left_out))
    missing = f"Left out, without a clean score to compare with: {'; '.join(left_out)}.\n\n"
    return f"{_TERMS}\n\n{missing if left_out else ''}{tables.markdown(claims, columns)}\n"
