"""The paper's claims about transfer, judged on the cells of a matrix; `findings` has the rules.

`dag_jax.report.claims` writes them as text.
"""

from typing import Any, NamedTuple

import numpy as np

from dag_jax import metrics
from dag_jax.runs.findings import FAILS, HOLDS, LEVEL, OPEN, as_json, below, equal

# Share of the clean score: a sum that leaves this much more than a network's own perturbation alone
# does not keep its effect.
KEPT = 0.1
WHITE, TRAINING, NETWORK, TASK = "white box", "cross-training", "cross-network", "cross-task"
CLEAN, PERMUTED = "clean", "permuted"


class Looker(NamedTuple):
    """The facts about a model that was attacked, or that is shown other models' perturbations."""

    title: str
    task: str  # "segmentation" or "detection"
    architecture: Any = None  # equal for models that differ in training alone; None: like no other


class Claim(NamedTuple):
    """A claim of the paper and its verdict."""

    statement: str
    cells: str  # the cells that it is judged on
    interval: metrics.Interval  # of the difference, percent of the clean score
    verdict: str
    left_out: tuple[str, ...] = ()  # cells without a clean score to compare with

    def as_json(self) -> dict:
        """Return the claim as JSON values, rounded."""
        interval = [as_json(number) for number in self.interval]
        return self._asdict() | {"interval": interval, "left_out": list(self.left_out)}


class _Change(NamedTuple):
    """A difference at a cell: f64[B + 1] shares of the clean score, over some images."""

    source: str  # titles
    target: str
    shares: np.ndarray
    images: int

    @property
    def title(self):
        return f"{self.source} on {self.target}"


def source_title(source, lookers) -> str:
    """Return the title of a source: 'FCN-VGG + FR-VGG-07, permuted'; 'none' for clean images.

    Args:
      source: `stored.Source`.
      lookers: {name: `Looker`} of its members.
    """
    titles = " + ".join(lookers[name].title for name in source.members)
    return (titles or "none") + ", permuted" * source.permuted


def kind_of(source, target, lookers) -> str:
    """Return the kind of transfer from a source to a network, by the source's nearest member.

    Cross-training: the same architecture, trained otherwise. Cross-network: another
    architecture for the same task. Clean images and permuted sources are kinds of their own.

    Args:
      source: `stored.Source`.
      target: name of the network.
      lookers: {name: `Looker`} of the network and of the source's members.
    """
    if not source.members:
        return CLEAN
    if source.permuted:
        return PERMUTED
    if source.is_white_box(target):
        return WHITE
    members = [lookers[name] for name in source.members]
    architecture = lookers[target].architecture
    if architecture is not None and architecture in [member.architecture for member in members]:
        return TRAINING
    return NETWORK if lookers[target].task in {member.task for member in members} else TASK


class _Judge:
    """The cells of a matrix, with the titles and scores that claims need."""

    def __init__(self, cells, lookers, score):
        self.cells, self.lookers, self.score = cells, lookers, score

    def change(self, pair, shares, images):
        """Return the `_Change` at a cell."""
        source, target = pair
        titles = source_title(source, self.lookers), self.lookers[target].title
        return _Change(*titles, shares, images)

    def together(self, pairs):
        """Return {pair: cell}, each cell scored on the images that all these cells have."""
        fewest, *other_keys = sorted((self.cells[pair].keys for pair in pairs), key=len)
        common = set(fewest).intersection(*other_keys)
        keys = tuple(key for key in fewest if key in common)
        return {
            (source, target): self.cells[source, target]
            if self.cells[source, target].keys == keys
            else self.score(target, source, keys)
            for source, target in pairs
        }


def of_transfer(cells, lookers, score=None) -> list[Claim]:
    """Judge the paper's claims on a matrix of transfer.

    Cells that are compared are scored on the images that all of them have, with the same sets.

    Args:
      cells: {(source, target): `matrix.Cell`}.
      lookers: {name: `Looker`} of all targets and of all members of sources.
      score: `matrix.Matrix.cell`, to score again cells that are compared but have other images.
    """
    cells = {pair: cell for pair, cell in cells.items() if cell.images and pair[0].members}
    judge = _Judge(cells, lookers, score)
    alone = [(source, target) for source, target in cells if len(source.members) == 1]
    kinds = {(source, target): kind_of(source, target, lookers) for source, target in alone}
    claims = []
    for kind in (WHITE, TRAINING, NETWORK, TASK):
        changes = [
            judge.change(pair, cells[pair].remaining_share - 1, cells[pair].images)
            for pair in kinds
            if kinds[pair] == kind
        ]
        statement = "fools the network itself" if kind == WHITE else "transfers"
        claims += _mean(statement, kind, changes)
    for task in dict.fromkeys(lookers[target].task for _, target in cells):
        near, far = (
            [pair for pair in kinds if kinds[pair] == kind and lookers[pair[1]].task == task]
            for kind in (TRAINING, NETWORK)
        )
        if near and far:
            common = judge.together(near + far)
            near, far = (
                [
                    judge.change(pair, common[pair].remaining_share, common[pair].images)
                    for pair in pairs
                ]
                for pairs in (near, far)
            )
            statement = "cross-training transfer is stronger than cross-network"
            claims += _mean(statement, task, near, far)
    for source in dict.fromkeys(source for source, _ in cells):
        if len(source.members) > 1:
            claims += (_of_permuted if source.permuted else _of_sum)(judge, source)
    return claims


def _scored(changes):
    """Return (changes with a clean score to compare with, titles of the changes without)."""
    scored = [change for change in changes if not np.isnan(change.shares[0])]
    return scored, tuple(change.title for change in changes if np.isnan(change.shares[0]))


def _interval(shares):
    return metrics.interval(100 * shares, level=LEVEL, within=(-100, np.inf))


def _mean(statement, title, changes, compared=None) -> list[Claim]:
    """Judge whether the mean of `changes` is below 0, or below the mean of `compared`."""
    if not changes:
        return []
    parts = [_scored(part) for part in ([changes] if compared is None else [changes, compared])]
    count = " against ".join(str(len(scored)) for scored, _ in parts)
    left_out = tuple(name for _, names in parts for name in names)
    cells = f"{title}: {count} cell{'s' * (count != '1')}"
    if not all(scored for scored, _ in parts):
        return [Claim(statement, cells, metrics.Interval(*[np.nan] * 3), OPEN, left_out)]
    means = [np.mean([change.shares for change in scored], axis=0) for scored, _ in parts]
    interval = _interval(means[0] if compared is None else means[0] - means[1])
    images = min(change.images for scored, _ in parts for change in scored)
    return [Claim(statement, cells, interval, below(interval, images), left_out)]


def _each(statement, title, changes, rule) -> list[Claim]:
    """Judge each change by `rule`, a function of (interval, images); the worst is the verdict."""
    scored, left_out = _scored(changes)
    if not scored:
        return _mean(statement, title, changes)
    judged = []
    for change in scored:
        interval = _interval(change.shares)
        judged.append((change, interval, rule(interval, change.images)))

    def badness(item):
        _, interval, verdict = item
        size = abs(interval.value) if rule == _unchanged else interval.value
        return verdict == FAILS, verdict != HOLDS, size

    worst, interval, verdict = max(judged, key=badness)
    good = sum(verdict == HOLDS for _, _, verdict in judged)
    cells = f"{title}: {good} of {len(judged)} cells hold; worst: {worst.target}"
    return [Claim(statement, cells, interval, verdict, left_out)]


def _unchanged(interval, images):
    return equal(interval, 100, images)


def _of_permuted(judge, source) -> list[Claim]:
    """Return the claim on a sum whose rows and columns are shuffled."""
    changes = [
        judge.change(pair, cell.remaining_share - 1, cell.images)
        for pair, cell in judge.cells.items()
        if pair[0] == source
    ]
    title = source_title(source, judge.lookers)
    return _each("a permuted sum does nothing", title, changes, _unchanged)


def _of_sum(judge, source) -> list[Claim]:
    """Return the claims on a sum that is not permuted."""
    cells, title = judge.cells, source_title(source, judge.lookers)
    attacked = {name for attack_source, _ in cells for name in attack_source.members}
    shuffled = source._replace(permuted=True)
    white_box, stronger, unseen, more = [], [], [], []
    for target in (target for cell_source, target in cells if cell_source == source):
        pair = source, target
        alone = [(source._replace(members=(name,)), target) for name in source.members]
        common = judge.together([pair, *(member for member in alone if member in cells)])
        whole, *members = common.values()
        if target in source.members:
            own_share = common[source._replace(members=(target,)), target].remaining_share
            white_box.append(
                judge.change(pair, whole.remaining_share - own_share - KEPT, whole.images)
            )
            continue
        best = min((cell.remaining_share for cell in members), key=lambda share: share[0])
        stronger.append(judge.change(pair, whole.remaining_share - best, whole.images))
        unseen += stronger[-1:] * (target not in attacked)
        if (shuffled, target) in cells:
            whole, permuted = judge.together([pair, (shuffled, target)]).values()
            more.append(
                judge.change(pair, whole.remaining_share - permuted.remaining_share, whole.images)
            )
    keeps = f"a sum keeps the white-box effects (to {KEPT:.0%} of the clean score)"
    return [
        *_each(keeps, title, white_box, below),
        *_mean("a sum is stronger on other networks than its best member", title, stronger),
        *_mean("... and on networks that no attack has seen", title, unseen),
        *_mean("a sum does more on other networks than its permuted form", title, more),
    ]
