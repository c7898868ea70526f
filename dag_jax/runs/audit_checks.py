"""Checks of a row of a table, by what its folder holds: each says one thing that must hold.

`dag_jax.audit` looks at the model on a few images; the rest reads a folder of results again:
attacks that go on, saved images scored anew, other models' perturbations. Limits are the same for
every model. `audit` beside this runs them.

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
CONTINUED = 8  # images whose attack goes on, unfinished ones first
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
        """Yield (row, image, targets, inputs) of those rows that have any."""
        for item in attacks.attack_inputs(self.plan, rows):
            if not isinstance(item, Failure):
                yield item

    def with_targets(self):
        """Return the rows that were attacked, with their records."""
        records = enumerate(self.records)
        return {i: record for i, record in records if record["status"] != Status.NO_TARGETS.name}


def spread(rows, number):
    """Return that many of some rows, evenly spread; all where there are no more."""
    rows = list(rows)
    if len(rows) <= number:
        return rows
    return [rows[i] for i in np.linspace(0, len(rows) - 1, number).round().astype(int)]


def model(row: Row) -> list[Finding]:
    """Return what `dag_jax.audit` finds on a few images of one size."""
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
    """Return one finding for each check of several images: the first that fires, if one does.

    Args:
      by_image: {key: findings of `dag_jax.audit`}.
    """
    found = []
    for same in zip(*by_image.values(), strict=True):
        worst = min(same, key=lambda one: (one.passed is not False, one.passed is None))
        key = list(by_image)[same.index(worst)]
        count = sum(one.passed is worst.passed for one in same)
        others = f"{count} of {len(same)} images" if len(same) > 1 else "1 image"
        found.append(worst._replace(said=f"{others}, such as {key}: {worst.said}"))
    return found


def stops(row: Row) -> Finding:
    """No attack ended at a gradient of zero, or at a number that is none."""
    bad = (Status.ZERO_GRADIENT.name, Status.NON_FINITE.name)
    records = row.records
    stopped = {one["key"]: one["status"] for one in records if one["status"] in bad}
    some = ", ".join(f"{key} {status}" for key, status in list(stopped.items())[:3])
    return Finding(
        "no attack ends at a zero or non-finite gradient",
        not stopped,
        f"{len(stopped)} of {len(records)} images" + (f", such as {some}" if stopped else ""),
        "what is said of gradients above; without it, find the layer that saturates on these "
        "images (--image_ids), and attack with a margin, so that targets rest later",
    )


def stands(row: Row) -> list[Finding]:
    """Where a detector is right about an object, something of the image is a target.

    Of a segmenter there is no finding: the pixels that it gets right are its targets.
    """
    if not row.plan.subject.about.detects:
        return []
    idle = [i for i, one in enumerate(row.records) if one["status"] == Status.NO_TARGETS.name]
    found = row.evidence("orig")
    stands = [place for place in idle if _is_right(row, place, found[place])]
    said = f"{len(idle)} of {len(row.examples)} images have no active target"
    if stands:
        said += (
            f", and on {len(stands)} of them, such as {row.examples[stands[0]]['image_id']}, there "
            f"are right detections all the same ({STANDING:.0%} of the images are the most)"
        )
    return [
        Finding(
            "what is detected is a target",
            len(stands) <= STANDING * len(row.examples),
            said,
            "what is attacked is not what the model detects: of a sigmoid head, scores are "
            "f32[N, C, 2], the logit of each class and that of its threshold, and candidates are "
            "all anchors; of a softmax head, `scores` and `detect` have to agree about a box",
        )
    ]


def _is_right(row, place, found) -> bool:
    """Return whether a detection of an image is one of its objects."""
    score = evaluation.score_evidence(row.plan.subject, [row.examples[place]], [found])
    return bool(score > 0)


def grows(row: Row) -> Finding:
    """After more of the steps, more of the targets are lost; in the end, at least half."""
    max_steps = row.plan.method.max_steps
    counts = [record["active_counts"] for record in row.with_targets().values()]
    after = [max_steps // 4, max_steps // 2, max_steps]
    first = sum(one[0] for one in counts)
    lost = [1 - sum(one[min(m, len(one) - 1)] for one in counts) / max(first, 1) for m in after]
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
    """Attacks that go on from the stored perturbations, for as many steps again.

    Returns:
      Two findings: whether stored perturbations leave the targets that their records say, and
      whether twice the steps would change the table.
    """
    max_steps = audited.plan.method.max_steps
    records = audited.with_targets()
    unfinished = [row for row, one in records.items() if one["status"] == Status.MAX_STEPS.name]
    finished = [row for row, one in records.items() if one["status"] == Status.FOOLED.name]
    some = spread(unfinished, CONTINUED)
    more = [*some, *spread(finished, CONTINUED - len(some) // 2)]
    found = _continue(audited, sorted(more))

    def left(row, count):
        return int(count) / max(records[row]["active_counts"][0], 1)

    then = {row: left(row, records[row]["active_counts"][-1]) for row in found}
    # What the stored perturbation leaves, against its record.
    off = {row: left(row, one.active_counts[0]) - then[row] for row, one in found.items()}
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
    some = [row for row in some if row in found]
    before = float(np.mean([then[row] for row in some]))
    after = float(np.mean([left(row, found[row].active.sum()) for row in some]))
    ended = sum(int(found[row].status) == Status.FOOLED for row in some)
    share = len(unfinished) / len(records)
    said = (
        f"{count}; of {len(some)} that went on for {max_steps} more, {ended} finish, and the "
        f"targets left go from {before:.2%} to {after:.2%}: about {share * (before - after):.2%} "
        f"of the targets active on all clean images ({STILL_LEFT:.0%} is the most)"
    )
    return [stored, Finding(check, share * (before - after) <= STILL_LEFT, said, remedy)]


def _continue(audited, rows) -> dict:
    """Return {row: Attack} of attacks that start from the images where they stopped."""

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
        found = row.evidence(column)
        return evaluation.score_sets(row.plan.subject, examples, found, images)

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
    """PNGs that are read back are clean + perturbation, rounded, and score as the table says.

    Where images have a score before rounding, a second one: rounding does not undo the attack.
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
    some = [examples[place] for place in rows]
    wrong = sum(_wrong(row, *pair) for pair in zip(some, images, strict=True))
    table = row.evidence("advr_uint8")
    stored, anew = [table[place] for place in rows], _evidence(row, some, images)
    subject = row.plan.subject
    then, now = (evaluation.score_evidence(subject, some, found) for found in (stored, anew))
    count = len(subject.about.classes)
    others = sum(not _alike(count, *pair) for pair in zip(stored, anew, strict=True))
    said = (
        f"{len(rows)} PNGs read back: {wrong / sum(image.size for image in images):.2%} of their "
        f"values are not the rounded image, {others} are predicted otherwise; they score "
        f"{now:.2f}, by the predictions that the table is of {then:.2f}"
    )
    found = [Finding(check, wrong == others == 0, said, remedy)]
    if all(run.has(scores.ADVR, str(name)) for name in subject.ids):
        found.append(_rounding(row, row.evidence(scores.ADVR), table))
    return found


def _rounding(row, before, after) -> Finding:
    """Return whether images score, rounded, as before: evidence of all of them, both times."""
    subject, examples = row.plan.subject, row.examples
    before, after = (
        evaluation.score_evidence(subject, examples, found) for found in (before, after)
    )
    undone, few = after - before > ROUNDED, len(examples) < FEWEST
    return Finding(
        "rounding does not undo the attack",
        not undone if not (undone and few) else None,
        f"the score of {len(examples)} images goes from {before:.2f} to {after:.2f} on the PNGs "
        f"({ROUNDED:g} points more are the most)",
        MORE_IMAGES if few else UNDONE,
    )


def _wrong(row, example, png) -> int:
    """Return how many values of a PNG are not the perturbed image's, rounded."""
    change = row.run.perturbation(example["image_id"])
    expected = np.asarray(perturb(np.asarray(example["image"], np.float32), change, rounded=True))
    return int((png != expected.astype(np.uint8)).sum())


def _alike(num_classes, before, after):
    """Return whether two pieces of `evaluation.evidence` are of one prediction.

    A few pixels, or detections near a threshold, may differ: other kernels give other last bits.
    """

    def counts(found):
        if "confusion" in found:
            return found["confusion"].astype(np.float64)
        return np.bincount(found["classes"], found["scores"], num_classes)

    before, after = counts(before), counts(after)
    return np.abs(before - after).sum() / 2 <= OTHERWISE * max(before.sum(), after.sum(), 1)


def _evidence(row, examples, images):
    subject = row.plan.subject
    predictions = evaluation.predict(subject.model, images, mesh=row.mesh)
    pairs = zip(examples, predictions, strict=True)
    return [evaluation.evidence(subject, *pair) for pair in pairs]


def white_box(row: Row, rivals: dict[str, rundir.Run]) -> Finding:
    """No other model's perturbation does more harm than the model's own, and one does less.

    Where none does more, and none surely less, it could not be judged.

    Args:
      row: the row.
      rivals: {title: run} of other models, attacked on the same images.
    """
    examples = [row.examples[place] for place in spread(range(len(row.examples)), SCORED)]
    if not rivals:
        said = "there is no other model of its task in the table"
        return Finding(WHITE_BOX, None, said, "add one to --models")
    if len(examples) < FEWEST:
        said = f"images to compare it with {', '.join(rivals)} on: {len(examples)}"
        return Finding(WHITE_BOX, None, said, MORE_IMAGES)
    images = metrics.draw_images(row.plan.seed, len(examples))
    rounded = row.plan.method.rounded

    def sets(run):
        attacked = buckets.Computed(
            lambda example: scores.adversarial([run], example, rounded), examples
        )
        found = _evidence(row, examples, attacked)
        return evaluation.score_sets(row.plan.subject, examples, found, images)

    own, others = sets(row.run), {title: sets(run) for title, run in rivals.items()}
    off = {title: metrics.interval(own - other) for title, other in others.items()}
    stronger = [title for title, one in off.items() if one.low > 0]
    weaker = [title for title, one in off.items() if one.high < 0]
    open_ = not stronger and not weaker
    numbers = ", ".join(f"{other[0]:.2f} under that of {title}" for title, other in others.items())
    more = f"; more harm by {', '.join(stronger)}" if stronger else ""
    return Finding(
        WHITE_BOX,
        None if open_ else not stronger,
        f"{own[0]:.2f} under its own perturbation, {numbers}{more} ({len(examples)} images)",
        "take more images (--limit) or networks: on these the perturbations differ by chance alone"
        if open_
        else "gradients are masked (see above), the attack is too short (--max_steps), or folders "
        "are mixed up",
    )
