"""Checks of a row of a table; each asks one thing that must hold.

`dag_jax.audit` looks at the model on a few images. The others use the row's folder: they continue
attacks, score saved images again, and try other models' perturbations. Limits are the same for
every model. `dag_jax.runs.audit` runs the checks.

Shapes: `H W` pixels, `B` sets of images that `metrics.draw_images` draws.
"""

from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from dag_jax import metrics, models
from dag_jax.engine import audit as model_audit
from dag_jax.engine.algorithm import Status, perturb
from dag_jax.engine.audit import Finding
from dag_jax.engine.feed import Failure
from dag_jax.errors import DamagedError, MissingError
from dag_jax.runs import attacks, buckets, evaluation, rundir, scores
from dag_jax.runs.attacks import Plan
from dag_jax.runs.findings import FEWEST

MODEL_IMAGES = 3  # that `dag_jax.audit` looks at
CONTINUED = 4  # images whose attack goes on, unfinished ones first
SCORED = 32  # images scored anew: as many as go through a network at a time
STILL_LEFT = 0.01  # of all targets, that more steps may take at most
LEFT_OFF = 0.01  # of an image's targets, by which a stored perturbation may miss its record
# Of all targets, that an attack must take: without a bound on the perturbation it takes all of any
# network in the end (Athalye et al., ICML 2018, section 3.1).
LOST = 0.5
NOT_LESS = 0.01  # of all targets, by which success may fall while steps grow
STANDING = 0.05  # of the images: right detections on so many may have no target
OTHERWISE = 1e-3  # of an image's pixels, or in a detection's score: what another kernel may change
ROUNDED = 5.0  # points by which PNGs may score above the images that were attacked

MORE_IMAGES = f"give at least {FEWEST} images (--limit): fewer do not tell"
UNDONE = (
    "rounding undoes the attack: let it score the image as it will be saved (--rounded), or go on "
    "until labels have lost by more (--margin, --max_steps)"
)
WHITE_BOX = "white-box beats transfer"


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


def permuted(row: Row) -> Finding:
    """The score under the permuted perturbation is above the score under the perturbation."""
    examples = row.examples
    images = metrics.draw_images(row.plan.seed, len(examples))

    def sets(column):
        evidence = row.evidence(column)
        return evaluation.score_sets(row.plan.subject, examples, evidence, images)

    advr, perm = sets("advr"), np.mean([sets(name) for name in scores.SHUFFLED], axis=0)
    value, low, high = metrics.interval(perm - advr)
    few = len(examples) < FEWEST
    return Finding(
        "permuted noise does worse",
        None if few else bool(low > 0),
        f"ADVR {advr[0]:.2f}, PERM {perm[0]:.2f}: {value:.2f} [{low:.2f}, {high:.2f}] higher, on "
        f"{len(examples)} images",
        MORE_IMAGES
        if few
        else "size alone does what the attack does, or it does nothing: see to the gradients and "
        "--max_steps, and that ORIG is worth attacking",
    )


def saved(row: Row) -> list[Finding]:
    """Saved PNGs are clean + perturbation, rounded, and score as the table says.

    A second finding, if images have a score before rounding: rounding does not undo the attack.
    """
    examples, run = row.examples, row.run
    rows = spread(range(len(examples)), SCORED)
    check = "saved PNGs score as the table says"
    remedy = (
        "the images were written otherwise than rounded (truncated, scaled, compressed), or by "
        "another run: remove the folder's images, and let the same command make them anew"
    )
    try:
        images = [run.image(examples[place]["image_id"]) for place in rows]
    except (DamagedError, MissingError) as error:
        return [Finding(check, False, str(error), remedy)]
    chosen = [examples[place] for place in rows]
    wrong = sum(_wrong(row, *pair) for pair in zip(chosen, images, strict=True))
    table = row.evidence("advr_uint8")
    stored, anew = [table[place] for place in rows], _evidence(row, chosen, images)
    subject = row.plan.subject
    then, now = (evaluation.score_evidence(subject, chosen, pieces) for pieces in (stored, anew))
    count = len(subject.about.classes)
    changed = sum(not _alike(count, *pair) for pair in zip(stored, anew, strict=True))
    detail = (
        f"{len(rows)} PNGs read back: {wrong / sum(image.size for image in images):.2%} of their "
        f"values are not the rounded image, {changed} are predicted otherwise; they score "
        f"{now:.2f}, by the predictions that the table is of {then:.2f}"
    )
    findings = [Finding(check, wrong == changed == 0, detail, remedy)]
    if all(run.has(scores.ADVR, str(name)) for name in subject.ids):
        findings.append(_rounding(row, row.evidence(scores.ADVR), table))
    return findings


def _rounding(row, before, after) -> Finding:
    """Return whether rounded images still score as low; arguments are evidence of all images."""
    subject, examples = row.plan.subject, row.examples
    before, after = (evaluation.score_evidence(subject, examples, part) for part in (before, after))
    undone, few = after - before > ROUNDED, len(examples) < FEWEST
    return Finding(
        "rounding does not undo the attack",
        not undone if not (undone and few) else None,
        f"the score of {len(examples)} images goes from {before:.2f} to {after:.2f} on the PNGs "
        f"({ROUNDED:g} points more are the most)",
        MORE_IMAGES if few else UNDONE,
    )


def _wrong(row, example, png) -> int:
    """Return how many values of a PNG differ from the rounded perturbed image."""
    change = row.run.perturbation(example["image_id"])
    expected = np.asarray(perturb(np.asarray(example["image"], np.float32), change, rounded=True))
    return int((png != expected.astype(np.uint8)).sum())


def _alike(num_classes, before, after):
    """Return whether two pieces of `evaluation.evidence` are of the same prediction.

    A few pixels, or detections near a threshold, may differ, as other kernels round differently.
    """

    def counts(evidence):
        if "confusion" in evidence:
            return evidence["confusion"].astype(np.float64)
        return np.bincount(evidence["classes"], evidence["scores"], num_classes)

    before, after = counts(before), counts(after)
    return np.abs(before - after).sum() / 2 <= OTHERWISE * max(before.sum(), after.sum(), 1)


def _evidence(row, examples, images):
    subject = row.plan.subject
    predictions = evaluation.predict(subject.model, images, mesh=row.mesh)
    pairs = zip(examples, predictions, strict=True)
    return [evaluation.evidence(subject, *pair) for pair in pairs]


def white_box(row: Row, rivals: dict[str, rundir.Run]) -> Finding:
    """No other model's perturbation harms a model more than its own, and at least one harms less.

    If none does more and none surely does less, the finding could not be judged.

    Args:
      row: the row.
      rivals: {title: run} of other models, attacked on the same images.
    """
    examples = [row.examples[place] for place in spread(range(len(row.examples)), SCORED)]
    if not rivals:
        detail = "there is no other model of its task in the table"
        return Finding(WHITE_BOX, None, detail, "add one to --models")
    if len(examples) < FEWEST:
        detail = f"images to compare it with {', '.join(rivals)} on: {len(examples)}"
        return Finding(WHITE_BOX, None, detail, MORE_IMAGES)
    images = metrics.draw_images(row.plan.seed, len(examples))
    rounded = row.plan.method.rounded

    def sets(run):
        attacked = buckets.Computed(
            lambda example: scores.adversarial([run], example, rounded), examples
        )
        evidence = _evidence(row, examples, attacked)
        return evaluation.score_sets(row.plan.subject, examples, evidence, images)

    own_scores, rival_scores = sets(row.run), {title: sets(run) for title, run in rivals.items()}
    off = {title: metrics.interval(own_scores - rival) for title, rival in rival_scores.items()}
    stronger = [title for title, interval in off.items() if interval.low > 0]
    weaker = [title for title, interval in off.items() if interval.high < 0]
    open_ = not stronger and not weaker
    numbers = ", ".join(f"{rival_scores[title][0]:.2f} under that of {title}" for title in rivals)
    more = f"; more harm by {', '.join(stronger)}" if stronger else ""
    return Finding(
        WHITE_BOX,
        None if open_ else not stronger,
        f"{own_scores[0]:.2f} under its own perturbation, {numbers}{more} ({len(examples)} images)",
        "take more images (--limit) or networks: on these the perturbations differ by chance alone"
        if open_
        else "gradients are masked (see above), the attack is too short (--max_steps), or folders "
        "are mixed up",
    )
