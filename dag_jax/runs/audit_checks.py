"""Checks of a row of a table; each asks one thing that must hold.

`dag_jax.audit` looks at the model on a few images. The others use the row's folder, and continue
attacks. Limits are the same for every model. `audit_scores` has the checks of scores, and
`dag_jax.runs.audit` runs them all.
"""

from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from dag_jax import models
from dag_jax.engine import audit as model_audit
from dag_jax.engine.algorithm import Status
from dag_jax.engine.audit import Finding
from dag_jax.engine.feed import Failure
from dag_jax.runs import attacks, evaluation, rundir, scores
from dag_jax.runs.attacks import Plan
from dag_jax.runs.findings import FEWEST

MODEL_IMAGES = 3  # that `dag_jax.audit` looks at
CONTINUED = 4  # images whose attack goes on, unfinished ones first
STILL_LEFT = 0.01  # of all targets, that more steps may take at most
LEFT_OFF = 0.01  # of an image's targets, by which a stored perturbation may miss its record
# Of all targets, that an attack must take: without a bound on the perturbation it takes all of any
# network in the end (Athalye et al., ICML 2018, section 3.1).
LOST = 0.5
NOT_LESS = 0.01  # of all targets, by which success may fall while steps grow
STANDING = 0.05  # of the images: right detections on so many may have no target

MORE_IMAGES = f"give at least {FEWEST} images (--limit): fewer do not tell"


class Row(NamedTuple):
    """A row to audit: how it was attacked, and what its folder holds."""

    plan: Plan
    run: rundir.Run
    mesh: Mesh | None = None
    slots: int | None = None  # images under way at a time on each device

    @property
    def examples(self):
        """The examples of the row."""
        return self.plan.subject.examples

    @property
    def records(self) -> list[dict]:
        """The records of the examples, in their order."""
        return [self.run.record(str(name)) for name in self.plan.subject.ids]

    def evidence(self, column) -> list[dict]:
        """Return the evidence of a column of each example."""
        return [self.run.get(column, str(name)) for name in self.plan.subject.ids]

    def inputs(self, rows):
        """Yield (row, image, targets, inputs) of those rows that can be attacked."""
        for item in attacks.attack_inputs(self.plan, rows):
            if not isinstance(item, Failure):
                yield item

    def with_targets(self):
        """Return the rows that were attacked, with their records."""
        records = enumerate(self.records)
        return {i: record for i, record in records if record["status"] != Status.NO_TARGETS.name}


def spread(rows, number):
    """Return at most `number` of some rows, evenly spread."""
    rows = list(rows)
    if len(rows) <= number:
        return rows
    return [rows[i] for i in np.linspace(0, len(rows) - 1, number).round().astype(int)]


def model(row: Row) -> list[Finding]:
    """Return the findings of `dag_jax.audit` on a few images of one size."""
    shapes = [example["image"].shape for example in row.examples]
    rows = list(row.with_targets())
    same = [place for place in rows if shapes[place] == shapes[rows[0]]]
    by_image = {}
    for place, image, targets, inputs in row.inputs(spread(same, MODEL_IMAGES)):
        score_fn = models.score_fn(row.plan.subject.model, *inputs)
        key = row.examples[place]["image_id"]
        by_image[key] = model_audit.audit(score_fn, image, targets)
    if not by_image:
        remedy = "give images that the network gets right"
        return [Finding("the network on an image", None, "no image has a target", remedy)]
    return combine(by_image)


def combine(by_image) -> list[Finding]:
    """Return one finding for each check over several images: the worst, with its count.

    Args:
      by_image: {key: findings of `dag_jax.audit`}.
    """
    combined = []
    for same in zip(*by_image.values(), strict=True):
        worst = min(same, key=lambda finding: (finding.passed is not False, finding.passed is None))
        key = list(by_image)[same.index(worst)]
        count = sum(finding.passed is worst.passed for finding in same)
        share = f"{count} of {len(same)} images" if len(same) > 1 else "1 image"
        combined.append(worst._replace(detail=f"{share}, such as {key}: {worst.detail}"))
    return combined


def stops(row: Row) -> Finding:
    """No attack ended at a gradient of zero or at a value that is not finite."""
    bad = (Status.ZERO_GRADIENT.name, Status.NON_FINITE.name)
    records = row.records
    stopped = {record["key"]: record["status"] for record in records if record["status"] in bad}
    examples = ", ".join(f"{key} {status}" for key, status in list(stopped.items())[:3])
    return Finding(
        "no attack ends at a zero or non-finite gradient",
        not stopped,
        f"{len(stopped)} of {len(records)} images" + (f", such as {examples}" if stopped else ""),
        "what is said of gradients above; without it, find the layer that saturates on these "
        "images (--image_ids), and attack with a margin, so that targets rest later",
    )


def stands(row: Row) -> list[Finding]:
    """Where a detector is right about an object, the image has a target.

    A segmenter has no such finding: the pixels that it gets right are its targets.
    """
    if not row.plan.subject.about.detects:
        return []
    idle = [i for i, record in enumerate(row.records) if record["status"] == Status.NO_TARGETS.name]
    evidence = row.evidence("orig")
    stands = [place for place in idle if _is_right(row, place, evidence[place])]
    detail = f"{len(idle)} of {len(row.examples)} images have no active target"
    if stands:
        detail += (
            f", and on {len(stands)} of them, such as {row.examples[stands[0]]['image_id']}, there "
            f"are right detections all the same ({STANDING:.0%} of the images are the most)"
        )
    return [
        Finding(
            "what is detected is a target",
            len(stands) <= STANDING * len(row.examples),
            detail,
            "what is attacked is not what the model detects: of a sigmoid head, scores are "
            "f32[N, C, 2], the logit of each class and that of its threshold, and candidates are "
            "all anchors; of a softmax head, `scores` and `detect` have to agree about a box",
        )
    ]


def _is_right(row, place, evidence) -> bool:
    """Return whether a detection of an image is one of its objects."""
    return evaluation.score_evidence(row.plan.subject, [row.examples[place]], [evidence]) > 0


def grows(row: Row) -> Finding:
    """More steps fool more of the targets; in the end, at least half."""
    after = [row.plan.method.max_steps // part for part in (4, 2, 1)]
    counts = [record["active_counts"] for record in row.with_targets().values()]

    def active_after(m):
        return sum(series[min(m, len(series) - 1)] for series in counts)

    lost = [1 - active_after(m) / max(active_after(0), 1) for m in after]
    falls = max(a - b for a, b in zip(lost, lost[1:], strict=False))
    numbers = ", ".join(f"{share:.1%} after {m}" for m, share in zip(after, lost, strict=True))
    return Finding(
        "success grows with steps",
        bool(lost[-1] >= LOST and falls <= NOT_LESS) if counts else None,
        f"targets that the attack is done with: {numbers} steps ({LOST:.0%} are the least)",
        "give more steps (--max_steps) or shorter ones (--step_size); where that does not help, "
        "the gradient does not lead downhill: see to the checks of gradients",
    )


def goes_on(audited: Row) -> list[Finding]:
    """Continue attacks from the stored perturbations, for as many steps again.

    It makes no sense of a method that `keeps_state`: what that holds is not stored.

    Returns:
      Two findings: whether stored perturbations leave as many targets as their records say, and
      whether twice the steps would change the table.
    """
    max_steps = audited.plan.method.max_steps
    records = audited.with_targets()
    statuses = {row: record["status"] for row, record in records.items()}
    unfinished = [row for row in statuses if statuses[row] == Status.MAX_STEPS.name]
    finished = [row for row in statuses if statuses[row] == Status.FOOLED.name]
    continued = spread(unfinished, CONTINUED)
    more = [*continued, *spread(finished, CONTINUED - len(continued) // 2)]
    attacks = _continue(audited, sorted(more))

    def share_left(row, count):
        return int(count) / max(records[row]["active_counts"][0], 1)

    then = {row: share_left(row, records[row]["active_counts"][-1]) for row in attacks}
    # What the stored perturbation leaves, against its record.
    off = {row: share_left(row, attacks[row].active_counts[0]) - then[row] for row in attacks}
    worst = max(off, key=lambda row: abs(off[row]), default=None)
    stored = Finding(
        "stored perturbations do what their records say",
        bool(abs(off[worst]) <= LEFT_OFF) if off else None,
        f"attacked anew from there, {len(off)} images have shares of their targets left that "
        f"differ from the records by up to {abs(off[worst]):.2%}"
        if off
        else "no image's attack could go on",
        "the folder holds other perturbations than the attack's, or the network is another: remove "
        "the folder, and let the same command make it anew",
    )
    check = "twice the steps change little"
    remedy = f"raise --max_steps from {max_steps}: its attacks have not converged"
    count = f"{len(unfinished)} of {len(records)} images are unfinished after {max_steps} steps"
    if not unfinished or not records:
        return [stored, Finding(check, True if records else None, count, remedy)]
    continued = [row for row in continued if row in attacks]
    before = float(np.mean([then[row] for row in continued]))
    after = float(np.mean([share_left(row, attacks[row].active.sum()) for row in continued]))
    ended = sum(int(attacks[row].status) == Status.FOOLED for row in continued)
    share = len(unfinished) / len(records)
    detail = (
        f"{count}; of {len(continued)} that went on for {max_steps} more, {ended} finish, and the "
        f"targets left go from {before:.2%} to {after:.2%}: about {share * (before - after):.2%} "
        f"of the targets active on all clean images ({STILL_LEFT:.0%} is the most)"
    )
    return [stored, Finding(check, share * (before - after) <= STILL_LEFT, detail, remedy)]


def _continue(audited, rows) -> dict:
    """Return {row: Attack} of attacks that start from the images where the stored ones stopped."""

    def inputs():
        for row, _, targets, more in audited.inputs(rows):
            stopped = scores.adversarial([audited.run], audited.examples[row], False)
            yield row, stopped, targets, more

    stream = attacks.open_stream(
        audited.plan,
        inputs(),
        count=len(audited.examples),
        slots=audited.slots,
        mesh=audited.mesh,
    )
    return dict(stream) if rows else {}
