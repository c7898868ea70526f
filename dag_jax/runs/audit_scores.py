"""Checks of a row's scores: those of shuffled, saved and other models' perturbations.

Limits are the same for every model. `audit_checks` has the others.

Shapes: `B` sets of images that `metrics.draw_images` draws.
"""

import numpy as np

from dag_jax import metrics
from dag_jax.engine.algorithm import perturb
from dag_jax.engine.audit import Finding
from dag_jax.errors import DamagedError, MissingError
from dag_jax.runs import buckets, evaluation, rundir, scores
from dag_jax.runs.audit_checks import MORE_IMAGES, Row, spread
from dag_jax.runs.findings import FEWEST

SCORED = 32  # images scored anew: as many as go through a network at a time
OTHERWISE = 1e-3  # of an image's pixels, or in a detection's score: what another kernel may change
ROUNDED = 5.0  # points by which PNGs may score above the images that were attacked

UNDONE = (
    "rounding undoes the attack: let it score the image as it will be saved (--rounded), or go on "
    "until labels have lost by more (--margin, --max_steps)"
)
WHITE_BOX = "white-box beats transfer"


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
