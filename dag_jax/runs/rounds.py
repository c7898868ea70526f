"""An attack in rounds: each proposes again on the attacked image, and continues from there.

The targets of a detector are fixed during an attack. Once they have lost their object, another
anchor, query or proposal may find it. A further round adds those, found on the attacked image, to
the targets, and continues from the perturbation so far.

Shapes: `H W` pixels, `N` candidates of all rounds, `K` objects.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Num, PRNGKeyArray

from dag_jax import detection, models
from dag_jax.arrays import Array
from dag_jax.engine.algorithm import Attack, Status
from dag_jax.engine.door import attack
from dag_jax.engine.method import Method
from dag_jax.engine.scoring import kind_of
from dag_jax.engine.targets import Targets
from dag_jax.errors import UserError
from dag_jax.metrics import Truths
from dag_jax.runs.dataset import paper_method
from dag_jax.runs.targets import padded_length, targets_and_handle

_STANDS = 0.5  # least score of a detection, and its least IoU with the object


class Round(NamedTuple):
    """The numbers of one round."""

    new: int  # candidates with targets that this round added
    targets: int  # of these and of all rounds before
    active: int  # targets active at its begin
    active_at_end: int
    num_steps: int
    status: Status


class Rounds(NamedTuple):
    """A finished attack in rounds.

    Attributes:
      attack: the last round's. Its perturbation is the sum of all rounds; its number of steps is
        that of the last round.
      targets: `Targets` of the last round, [N] or for a sigmoid head [N, C], with padding.
      rounds: a `Round` for each.
      standing: bool[K], the objects that are detected on the attacked image: a detection of the
        class with a score of 0.5 or more, at an intersection over union of 0.5 or more.
      settled: whether no target was active in the end, no new one was found and no object stands.
        False if the rounds ran out. An object may stand without an active target where `scores`
        and `detect` do not agree about a candidate, or where none was labelled as the object.
    """

    attack: Attack
    targets: Targets
    rounds: tuple[Round, ...]
    standing: Bool[np.ndarray, " K"]
    settled: bool


def attack_rounds(
    model: models.Detector,
    image: Num[Array, "H W 3"],
    truths: Truths,
    method: Method | None = None,
    *,
    key: PRNGKeyArray,
    rounds: int = 5,
    iou: float = 0.1,
    confidence: float = 0.1,
) -> Rounds:
    """Attack a detector in rounds until it proposes no new target on the attacked image.

    The first round is `detector_targets` and `attack`. Each later round proposes and labels on the
    attacked image, adds the new candidates to the targets, and attacks with `start=` the
    perturbation so far. A candidate is new if no target has its handle and labels.

    Args:
      model: a `models.Detector`.
      image: f32[H, W, 3], RGB grey levels.
      truths: `metrics.Truths`, the objects and their classes, indices of the model's.
      method: the attack; its `max_steps` are those of one round. None is `paper_method`.
      key: JAX key of the permutation of classes, the same in all rounds.
      rounds: the most rounds, at least 1.
      iou: as in `detector_targets`.
      confidence: as in `detector_targets`.

    Raises:
      ValueError: as `detector_targets` and `attack` say; for less than one round; for a detector of
        no candidates.
    """
    if rounds < 1:
        raise UserError(f"rounds is {rounds}; it must be 1 or more")
    method = paper_method(model) if method is None else method
    rows: dict[bytes, tuple] = {}  # (targets, handle) of each candidate with a target, on the host
    history: list[Round] = []
    result: Attack | None = None
    settled = False
    for _ in range(rounds):
        seen = image if result is None else result.adversarial
        candidates = jax.device_get(targets_and_handle(model, seen, truths, key, iou, confidence))
        if not len(candidates[0].valid):
            raise UserError(f"{models.about(model).title} proposes arrays of no candidate")
        before = len(rows)
        for row in _rows_with_targets(candidates):
            rows.setdefault(_bytes_of(row), row)
        if result is not None and len(rows) == before:
            settled = history[-1].active_at_end == 0
            break
        joined, handle = _stacked(list(rows.values()), candidates)
        start = None if result is None else result.perturbation
        attacked = attack(models.score_fn(model, handle), image, joined, method, start=start)
        if result is not None and int(attacked.status) == Status.NO_TARGETS:
            settled = True
            break
        result, targets = attacked, joined
        reached = np.asarray(result.active_counts)
        reached = reached[reached >= 0]
        counts = len(rows) - before, int(targets.valid.sum()), int(reached[0]), int(reached[-1])
        history.append(Round(*counts, int(result.num_steps), Status(int(result.status))))
    assert result is not None  # there is at least one round
    standing = _standing(model, result.adversarial, truths)
    return Rounds(result, targets, tuple(history), standing, settled and not standing.any())


def _standing(model, image, truths):
    """Return bool[K], the objects that the whole model detects, each as what it is."""
    detections = _detect(model, image, kind=kind_of(model)).without_padding()
    boxes = np.asarray(truths.boxes, np.float32).reshape(-1, 4)
    hits = np.asarray(detection.iou(detections.boxes, boxes)) >= _STANDS
    hits &= detections.classes[:, None] == np.asarray(truths.classes)[None, :]
    hits &= detections.scores[:, None] >= _STANDS
    return hits.any(axis=0)


@functools.partial(jax.jit, static_argnames="kind")
def _detect(model, image, *, kind):
    del kind  # `kind_of` the model
    return model.detect(image)


def _rows_with_targets(candidates):
    """Yield (targets, handle) of each candidate that has a target."""
    valid = candidates[0].valid
    for index in np.flatnonzero(valid.reshape(len(valid), -1).any(axis=1)):
        yield jax.tree.map(lambda leaf, i=index: leaf[i], candidates)


def _bytes_of(row):
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(row))


def _stacked(rows, candidates):
    """Return rows as (targets, handle) of one of few lengths; the padding has no targets."""
    padding = jax.tree.map(lambda leaf: leaf[0], candidates)
    padding = dataclasses.replace(padding[0], valid=np.zeros_like(padding[0].valid)), padding[1]
    rows = rows + [padding] * (padded_length(len(rows)) - len(rows))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
