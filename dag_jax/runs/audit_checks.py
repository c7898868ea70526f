"""Checks of a row of a table, by what its folder holds: each says one thing that must hold.

`dag_jax.audit` looks at the network on a few images; the rest reads a folder of results again:
attacks that go on, saved images scored anew, other networks' perturbations. Limits are the same for
every network. `audit` beside this runs them.

Shapes: `H W` pixels, `B` sets of images that `metrics.draw_images` draws.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

import dag_jax
from dag_jax import Finding, Status, files, metrics, networks
from dag_jax.runs import attacks, buckets, evaluation, rundir, scores
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
OTHERWISE = 1e-3  # of an image's pixels, or in a detection's score: what another kernel may change
ROUNDED = 5.0  # points by which PNGs may score above the images that were attacked

MORE_IMAGES = f"give at least {FEWEST} images (--limit): fewer do not tell"
UNDONE = (
    "rounding undoes the attack: let it score the image as it will be saved (--rounded), or go on "
    "until labels have lost by more (--margin, --max_steps)"
)
OPTIONS = (  # of `dag_jax.attack_stream`, which an attack that goes on has as before
    *("max_steps", "step_size", "margin", "rounded"),
    *("optimizer", "objective", "stop_fraction"),
)
WHITE_BOX = "white-box beats transfer"


class Subject(NamedTuple):
    """A row to audit."""

    network: networks.Network
    examples: list  # of all images of the run
    run: rundir.Run
    mesh: Mesh
    slots: int  # images under way at a time on each device
    targets_of: Callable = attacks.paper_targets  # as in `attacks.attack_inputs`
    options: dict = {}  # of `dag_jax.attack_stream`, where they are not what the manifest says

    @property
    def settings(self) -> dict:
        """The launch's settings, with max_steps, margin and options as this row had them."""
        manifest = self.run.manifest
        own = {name: manifest[name] for name in ("max_steps", "margin") if name in manifest}
        return manifest["settings"] | own | self.options

    def inputs(self, rows):
        """Yield (row, image, targets, inputs) of those rows that have any."""
        seed = self.settings.get("seed", 0)
        for one in attacks.attack_inputs(
            self.network, self.examples, seed, rows, targets_of=self.targets_of
        ):
            if not isinstance(one, dag_jax.Failure):
                yield one

    def with_targets(self):
        """Return the rows that were attacked, with their records."""
        records = enumerate(self.run.records)
        return {row: one for row, one in records if one["status"] != Status.NO_TARGETS.name}


def spread(rows, number):
    """Return that many of some rows, evenly spread; all where there are no more."""
    rows = list(rows)
    if len(rows) <= number:
        return rows
    return [rows[i] for i in np.linspace(0, len(rows) - 1, number).round().astype(int)]


def model(subject: Subject) -> list[Finding]:
    """Return what `dag_jax.audit` finds on a few images of one size."""
    shapes = [example["image"].shape for example in subject.examples]
    rows = list(subject.with_targets())
    same = [row for row in rows if shapes[row] == shapes[rows[0]]]
    by_image = {}
    for row, image, targets, inputs in subject.inputs(spread(same, MODEL_IMAGES)):
        score_fn = networks.score_fn(subject.network, *inputs)
        key = subject.examples[row]["image_id"]
        by_image[key] = dag_jax.audit(score_fn, image, targets)
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


def stops(subject: Subject) -> Finding:
    """No attack ended at a gradient of zero, or at a number that is none."""
    bad = (Status.ZERO_GRADIENT.name, Status.NON_FINITE.name)
    records = subject.run.records
    stopped = {one["key"]: one["status"] for one in records if one["status"] in bad}
    some = ", ".join(f"{key} {status}" for key, status in list(stopped.items())[:3])
    return Finding(
        "no attack ends at a zero or non-finite gradient",
        not stopped,
        f"{len(stopped)} of {len(records)} images" + (f", such as {some}" if stopped else ""),
        "what is said of gradients above; without it, find the layer that saturates on these "
        "images (--image_ids), and attack with a margin, so that targets rest later",
    )


def grows(subject: Subject) -> Finding:
    """After more of the steps, more of the targets are lost; in the end, at least half."""
    max_steps = subject.settings["max_steps"]
    counts = [record["active_counts"] for record in subject.with_targets().values()]
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


def goes_on(subject: Subject) -> list[Finding]:
    """Attacks that go on from the stored perturbations, for as many steps again.

    Returns:
      Two findings: whether stored perturbations leave the targets that their records say, and
      whether twice the steps would change the table.
    """
    max_steps = subject.settings["max_steps"]
    records = subject.with_targets()
    unfinished = [row for row, one in records.items() if one["status"] == Status.MAX_STEPS.name]
    finished = [row for row, one in records.items() if one["status"] == Status.FOOLED.name]
    some = spread(unfinished, CONTINUED)
    more = [*some, *spread(finished, CONTINUED - len(some) // 2)]
    found = _continue(subject, sorted(more))

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


def _continue(subject, rows) -> dict:
    """Return {row: Attack} of attacks that start from the images where they stopped."""
    settings = subject.settings

    def inputs():
        for row, _, targets, more in subject.inputs(rows):
            stopped = scores.adversarial([subject.run], subject.examples[row], False)
            yield row, stopped, targets, more

    own = len(subject.examples)
    stream = dag_jax.attack_stream(
        networks.score_fn(subject.network),
        inputs(),
        slots=subject.mesh.size * min(subject.slots, -(-own // subject.mesh.size)),
        mesh=subject.mesh,
        bucket=attacks.bucket_for(subject.examples),
        **{name: settings[name] for name in OPTIONS if name in settings},
    )
    return dict(stream) if rows else {}


def permuted(subject: Subject) -> Finding:
    """The score under the permuted perturbation is above the score under the perturbation."""
    examples, run = subject.examples, subject.run
    images = metrics.draw_images(subject.settings["seed"], len(examples))

    def sets(column):
        return evaluation.score_sets(examples, scores.join(examples, run, column), images)

    names = [f"perm_{i}" for i in range(scores.PERMUTATIONS)]
    advr, perm = sets("advr"), np.mean([sets(name) for name in names], axis=0)
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


def saved(subject: Subject) -> list[Finding]:
    """PNGs that are read back are clean + perturbation, rounded, and score as the table says.

    Where images have a score before rounding, a second one: rounding does not undo the attack.
    """
    examples, run = subject.examples, subject.run
    rows = spread(range(len(examples)), SCORED)
    check = "saved PNGs score as the table says"
    remedy = (
        "the images were written otherwise than rounded (truncated, scaled, compressed), or by "
        "another run: remove the folder's images, and let the same command make them anew"
    )
    try:
        images = [run.image(examples[row]["image_id"]) for row in rows]
    except ValueError as error:
        return [Finding(check, False, str(error), remedy)]
    wrong = sum(_wrong(subject, examples[row], png) for row, png in zip(rows, images, strict=True))
    table = scores.join(examples, run, "advr_uint8")
    stored, some = [table[row] for row in rows], [examples[row] for row in rows]
    anew = _evidence(subject, some, images)
    then, now = (evaluation.score_evidence(some, one) for one in (stored, anew))
    others = sum(not _alike(*pair) for pair in zip(stored, anew, strict=True))
    said = (
        f"{len(rows)} PNGs read back: {wrong / sum(image.size for image in images):.2%} of their "
        f"values are not the rounded image, {others} are predicted otherwise; they score "
        f"{now:.2f}, by the predictions that the table is of {then:.2f}"
    )
    found = [Finding(check, wrong == others == 0, said, remedy)]
    if any(name.startswith("advr-") for name in files.names_in(run.folder / "scores")):
        found.append(_rounding(examples, scores.join(examples, run, "advr"), table))
    return found


def _rounding(examples, before, after) -> Finding:
    """Return whether images score, rounded, as before: evidence of all of them, both times."""
    before, after = (evaluation.score_evidence(examples, one) for one in (before, after))
    undone, few = after - before > ROUNDED, len(examples) < FEWEST
    return Finding(
        "rounding does not undo the attack",
        not undone if not (undone and few) else None,
        f"the score of {len(examples)} images goes from {before:.2f} to {after:.2f} on the PNGs "
        f"({ROUNDED:g} points more are the most)",
        MORE_IMAGES if few else UNDONE,
    )


def _wrong(subject, example, png) -> int:
    """Return how many values of a PNG are not the perturbed image's, rounded."""
    change = subject.run.perturbation(example["image_id"])
    image = np.asarray(example["image"], np.float32)
    expected = np.asarray(dag_jax.perturb(image, change, rounded=True))
    return int((png != expected.astype(np.uint8)).sum())


def _alike(one, other):
    """Return whether two pieces of `evaluation.evidence` are of one prediction.

    A few pixels, or detections near a threshold, may differ: other kernels give other last bits.
    """

    def counts(found):
        if "confusion" in found:
            return found["confusion"].astype(np.float64)
        return np.bincount(found["classes"], found["scores"], evaluation.NUM_CLASSES)

    one, other = counts(one), counts(other)
    return np.abs(one - other).sum() / 2 <= OTHERWISE * max(one.sum(), other.sum(), 1)


def _evidence(subject, examples, images):
    predictions = evaluation.predict(subject.network, images, mesh=subject.mesh)
    return [evaluation.evidence(*pair) for pair in zip(examples, predictions, strict=True)]


def white_box(subject: Subject, rivals: dict[str, rundir.Run]) -> Finding:
    """No other network's perturbation does more harm than the network's own, and one does less.

    Where none does more, and none surely less, it could not be judged.

    Args:
      subject: the row.
      rivals: {title: run} of other networks, attacked on the same images.
    """
    examples = [subject.examples[row] for row in spread(range(len(subject.examples)), SCORED)]
    if not rivals:
        said = "there is no other network of its kind in the table"
        return Finding(WHITE_BOX, None, said, "add one to --networks")
    if len(examples) < FEWEST:
        said = f"images to compare it with {', '.join(rivals)} on: {len(examples)}"
        return Finding(WHITE_BOX, None, said, MORE_IMAGES)
    images = metrics.draw_images(subject.settings["seed"], len(examples))

    def sets(run):
        rounded = subject.settings["rounded"]
        adversarial = buckets.Computed(
            lambda one: scores.adversarial([run], one, rounded), examples
        )
        found = _evidence(subject, examples, adversarial)
        return evaluation.score_sets(examples, found, images)

    own, others = sets(subject.run), {title: sets(run) for title, run in rivals.items()}
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
