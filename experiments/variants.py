r"""Attack variants compared on one network: what each leaves of the score, and at what size.

    python -m experiments.variants --limit=100            what the README shows
    python -m experiments.variants --network=fr_vgg_07    a detector: those that are not of pixels
    python -m experiments.variants --variants=dag,pgd --epsilon=4 --workdir=runs/variants_4
    python -m experiments.variants --nominiature --checkpoints=runs/weights --dataset=voc \
        --data_dir=VOCdevkit --limit=100

All attack the same images of one network, which is scored before and after:

    dag         the paper: targets that are still right, driven to one permutation of the classes
    release     the authors' code: driven to classes that the image lacks until they are seen; for
                segmentation, stops when 1% of the pixels is left
    best_other  adversarial-library: the margin of the label over the best other class
    momentum    dag, with 0.9 of the direction of earlier steps
    fgsm        one step of --epsilon by the sign of the gradient of the cross-entropy
    pgd         --bounded_steps such steps of --bounded_step_size, never further than --epsilon
    segpgd      pgd that turns from pixels that are right to those that are wrong; segmentation only
    cospgd      pgd that weighs pixels by how well they agree with the label; segmentation only

The first four stop by themselves, after at most --max_steps, and bound no change; the last four
have their steps and their bound given, so that their size says how much they were allowed, not how
much they needed. `dag_jax.variants` has each in a few lines, with its reference.

Results go to --workdir: variants.md, variants.json, variants.png, and for each variant a folder of
what was attacked and its row. An image is kept as soon as it is finished: whatever kills a launch,
the same command goes on with the next. --variants adds rows to those that are there; a folder with
results of another network, other settings, weights, versions or devices is refused.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from absl import app, flags

from dag_jax import files, metrics, networks, variants
from dag_jax.errors import UserError
from dag_jax.report import lineplot, tables
from dag_jax.runs import (
    attacks,
    audit,
    audit_checks,
    evaluation,
    findings,
    provenance,
    rundir,
    scores,
)
from experiments.common import console, options
from experiments.measure import timed

NAMES = ("dag", "release", "best_other", "momentum", "fgsm", "pgd", "segpgd", "cospgd")
OF_PIXELS = ("segpgd", "cospgd")
FEW = 0.01  # share of targets that may be right in an image that counts as lost
# Flags that change no row.
UNRECORDED = ("variants", *options.UNRECORDED)

FLAGS = flags.FLAGS
flags.DEFINE_enum("network", "fcn_vgg", networks.NAMES, "The network to fool.")
flags.DEFINE_list(
    "variants",
    None,
    f"Which attacks, some of {', '.join(NAMES)}. Default: all; of a detector, all but "
    f"{', '.join(OF_PIXELS)}.",
)
flags.DEFINE_float("epsilon", 8.0, "Largest change of fgsm, pgd, segpgd, cospgd, in grey levels.")
flags.DEFINE_integer("bounded_steps", 40, "Steps of pgd, segpgd and cospgd.", 1)
flags.DEFINE_float("bounded_step_size", 2.0, "Length of each of these, in grey levels.")
options.check(options.positive, "epsilon", "bounded_step_size")
options.check(options.not_empty, "variants")
options.define(
    __name__,
    *("dataset", "split", "data_dir", "cache_dir", "canvas", "checkpoints", "miniature"),
    *("image_ids", "limit", "max_steps", "step_size", "margin", "rounded", "precision", "seed"),
    *("slots", "audit", "workdir"),
    workdir="runs/variants",
)


class Variant(NamedTuple):
    """One attack.

    Attributes:
      title: what it is called.
      bounded: whether its size was given.
      options: of `dag_jax.attack_stream`, max_steps among them.
      targets_of: as in `attacks.attack_inputs`.
    """

    title: str
    bounded: bool
    options: dict
    targets_of: Callable = attacks.paper_targets


def variants_of(detects) -> dict[str, Variant]:
    """Return the attacks by name, as the flags have them.

    Args:
      detects: whether the network does.
    """
    steps = {
        "max_steps": FLAGS.max_steps or evaluation.MAX_STEPS[detects],
        "step_size": FLAGS.step_size,
    }
    ball = FLAGS.epsilon, FLAGS.bounded_step_size, FLAGS.bounded_steps
    release = steps | variants.release(detects=detects)
    best_other = steps | variants.best_other()
    momentum = steps | variants.momentum(step_size=FLAGS.step_size)
    return {
        "dag": Variant("DAG", False, steps),
        "release": Variant("DAG, authors' release", False, release, attacks.absent_targets),
        "best_other": Variant("DAG, best other class", False, best_other),
        "momentum": Variant("DAG, momentum", False, momentum),
        "fgsm": Variant("FGSM", True, variants.fgsm(FLAGS.epsilon)),
        "pgd": Variant("PGD", True, variants.pgd(*ball)),
        "segpgd": Variant("SegPGD", True, variants.segpgd(*ball)),
        "cospgd": Variant("CosPGD", True, variants.cospgd(*ball)),
    }


def asked_for(texts, network) -> list[str]:
    """Return the names of --variants.

    Raises:
      app.UsageError: for a name that there is not, or that makes no sense for the network.
    """
    detects = network.startswith("fr_")
    known = [name for name in NAMES if not (detects and name in OF_PIXELS)]
    asked = known if texts is None else texts
    console.check_names("variants", asked, NAMES)
    if senseless := [name for name in asked if name not in known]:
        raise app.UsageError(
            f"--variants: {', '.join(senseless)} weigh the pixels of a segmentation, and "
            f"--network={network} detects; leave them out"
        )
    return [name for name in NAMES if name in asked]


COLUMNS = (
    ("variant", lambda row: row["title"]),
    ("ORIG", lambda row: f"{row['orig']:.2f}"),
    ("ADVR", lambda row: findings.text(row["intervals"]["advr"])),
    ("ADVR uint8", lambda row: f"{row['advr_uint8']:.2f}"),
    ("PERM", lambda row: findings.text(row["intervals"]["perm"])),
    ("FOOLED", lambda row: f"{100 * row['success']:.0f}%"),
    ("right <= 1%", lambda row: f"{100 * row['lost']:.0f}%"),
    ("still right", lambda row: f"{100 * row['right']:.2f}%"),
    ("steps", lambda row: f"{row['steps_median']:g}"),
    ("p x1000", lambda row: f"{1000 * row['perceptibility']:.1f}"),
    ("largest", lambda row: f"{row['largest_change_median']:.1f}"),
    ("s an image", lambda row: "-" if row["seconds"] is None else f"{row['seconds']:.3g}"),
    ("no targets", lambda row: f"{row['no_targets']}"),
    ("images", lambda row: f"{row['images']}"),
)


def report(rows, about) -> str:
    """Return variants.md.

    Args:
      rows: of variants.
      about: the run's manifest.
    """
    settings, detects = about["settings"], about["network"].startswith("fr_")
    title = evaluation.TITLES[about["network"]]
    size = "miniature" if settings["miniature"] else "full size"
    of = "rendered scenes" if settings["dataset"] == "scenes" else about["splits"]
    score = "11-point VOC mAP" if detects else "mIoU"
    right = (
        f"targets whose label still leads, or has lost by less than the margin of "
        f"{about['margin']:g} logits, of those on the clean image"
        if detects
        else "pixels that have their class, of those that are not void"
    )
    stop = (
        f"; the release at {variants.release()['stop_fraction']:.0%} of its own kind, pixels that "
        "are not yet what they are driven to"
        if not detects
        else ""
    )
    notes = [
        f"{title} ({size}) on {of}. {score} in percent; ADVR and PERM (mean over "
        f"{scores.PERMUTATIONS} shuffles of the rows and columns of the perturbation) with "
        f"[{findings.LEVEL:.0%} interval] by the bootstrap over images. uint8: the saved PNG.",
        f"DAG: steps of {settings['step_size']:g} grey levels, at most {about['max_steps']}, no "
        f"bound. FGSM: one step of {settings['epsilon']:g}. PGD and its kin: "
        f"{settings['bounded_steps']} steps of {settings['bounded_step_size']:g}, within "
        f"{settings['epsilon']:g}, from the clean image.",
        f"FOOLED: share of images whose attack ended with no target left{stop}. still right: "
        f"{right}; right <= {FEW:.0%}: share of images where that is all.",
        "steps, largest (grey levels): medians; p: mean perceptibility of the image that was "
        "attacked, within 0 to 255; these are over images with targets. s an image: wall-clock "
        "seconds of targets, attack and writing it down, without compiling; "
        f"{about['device']}, {about['cores']} cores.",
    ]
    text = "\n".join(f"{note}  " for note in notes)
    table = tables.markdown(rows, COLUMNS)
    titles = {row["variant"]: row["title"] for row in rows}
    shown = findings.table1(rows, titles, of="variant")
    return f"# Attack variants ({title}, {size})\n\n{text}\n\n{table}\n\n## What holds\n\n{shown}"


def right_of(examples, results, records, *, detects) -> tuple[np.ndarray, np.ndarray]:
    """Return how many targets of each image are right under the attack, and of how many.

    Args:
      examples: all of them.
      results: `rundir.Results`, all there.
      records: from `results.finalise`.
      detects: whether the network does: then these are its proposals, by the margin of the run.

    Returns:
      (i64[M], i64[M]).
    """
    if detects:
        counts = [record["active_counts"] for record in records]
        return np.array([one[-1] for one in counts]), np.array([one[0] for one in counts])
    confusions = [one["confusion"] for one in scores.join(examples, results, "advr")]
    return tuple(
        np.array([function(one) for one in confusions], np.int64) for function in (np.trace, np.sum)
    )


def row_of(name, variant, examples, results, *, detects, seconds) -> dict:
    """Return the row of a variant once all its images are there."""
    images = metrics.draw_images(FLAGS.seed, len(examples))
    shuffles = [f"perm_{i}" for i in range(scores.PERMUTATIONS)]
    sets = {
        column: evaluation.score_sets(examples, scores.join(examples, results, column), images)
        for column in ("orig", "advr", "advr_uint8", *shuffles)
    }
    sets["perm"] = np.mean([sets.pop(column) for column in shuffles], axis=0)
    records = results.finalise()
    right, of = right_of(examples, results, records, detects=detects)
    summary = scores.summary_of(records)
    with_targets = summary["images"] - summary["no_targets"]
    return {
        "variant": name,
        "title": variant.title,
        "bounded": variant.bounded,
        "detects": detects,
        **{column: round(float(one[0]), 2) for column, one in sets.items()},
        "intervals": findings.intervals_of(sets),
        "success": (with_targets - summary["unfinished"]) / max(with_targets, 1),
        "lost": float(np.mean(right[of > 0] <= FEW * of[of > 0])) if of.any() else 0.0,
        "right": float(right.sum() / max(of.sum(), 1)),
        "seconds": seconds,
        **summary,
    }


def draw(rows, about, path):
    """Draw what each variant leaves of the score against the size of what it adds."""
    title, unit = evaluation.TITLES[about["network"]], "mAP" if rows[0]["detects"] else "mIoU"
    figure, (axes,) = lineplot.panels(
        1, f"{title} under attack ({rows[0]['images']} images)", inches=(6.5, 4.8)
    )
    orig = rows[0]["orig"]
    axes.axhline(0, color="0.4", lw=0.5)
    axes.axhline(orig, color="0.4", lw=1, ls="--", label=f"no attack: {orig:.1f}")
    for bounded, marker, colour, label in (
        (False, "o", "C0", "DAG and its kin, which stop by themselves"),
        (True, "s", "C1", f"within {about['settings']['epsilon']:g} grey levels"),
    ):
        some = [row for row in rows if row["bounded"] == bounded]
        sizes = [1000 * row["perceptibility"] for row in some]
        ends = [[row[column] for row in some] for column in ("advr", "perm")]
        axes.vlines(sizes, *ends, color=colour, lw=0.7, alpha=0.5, zorder=2)  # of one variant
        for column, face, text in (
            ("advr", colour, label),
            (
                "perm",
                "none",
                f"the same, rows and columns shuffled ({('DAG', 'bounded')[bounded]})",
            ),
        ):
            if some:
                scores_of = [row[column] for row in some]
                style = {"marker": marker, "color": colour, "mfc": face, "ls": "none"}
                axes.plot(sizes, scores_of, label=text, zorder=3, clip_on=False, **style)
    axes.set(
        xlabel="perceptibility p x 1000 (a change of one grey level everywhere: 6.8)",
        ylabel=f"{unit} left (%)",
        yticks=range(0, 101, 20),
        ylim=(-9, 100),  # room for names below
        xlim=(0, 1200 * max(row["perceptibility"] for row in rows) + 1e-3),
    )
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2, frameon=False)
    points = [(1000 * row["perceptibility"], row["advr"], row["title"]) for row in rows]
    shuffled = [(1000 * row["perceptibility"], row["perm"]) for row in rows]
    lineplot.name_points(figure, axes, points, shuffled)
    lineplot.save(figure, path)


def measure(name, variant, network, examples, results, *, margin, mesh) -> dict:
    """Attack what a variant's folder lacks of the images, score them, return the row."""
    seconds = timed.attack_all(
        network,
        examples,
        results,
        seed=FLAGS.seed,
        label=variant.title,
        targets_of=variant.targets_of,
        slots=options.slots(),
        mesh=mesh,
        rounded=FLAGS.rounded,
        margin=margin,
        **variant.options,
    )
    scores.keep(
        network,
        examples,
        results,
        seed=FLAGS.seed,
        rounded=FLAGS.rounded,
        all_of_them=True,
        mesh=mesh,
    )
    return row_of(name, variant, examples, results, detects=network.detects, seconds=seconds)


def audit_of(workdir, rows, known, network, examples, mesh):
    """Return what `audit.of_table` finds of the rows, of the network once.

    Steps that are given need not suffice; what momentum had gathered is not stored, so that it
    cannot go on from where it stopped.
    """
    audited = {}
    for row in rows:
        name, variant = row["variant"], known[row["variant"]]
        out = (audit_checks.model,) * (row is not rows[0])
        out += (audit_checks.grows,) * variant.bounded
        out += (audit_checks.goes_on,) * (variant.bounded or name == "momentum")
        how = {"targets_of": variant.targets_of, "options": variant.options}
        checks = audit.checks_but(*out)
        audited[name] = audit.Row(variant.title, network, examples, checks, **how)
    return audit.of_table(workdir, audited, mesh=mesh, slots=options.slots())


def write_table(workdir, rows, about, found):
    """Write the table and what its audit found; return the text."""
    titles = {row["variant"]: row["title"] for row in rows}
    content, shown = {**about, "rows": rows}, report(rows, about)
    return audit.write(workdir, "variants", shown, content, titles=titles, found=found)


def main(argv):
    """Attack by each variant, print the table, draw the plot."""
    console.start(argv)
    mesh = console.open_mesh()

    # 1. Everything that can be wrong is read before anything is written.
    names = asked_for(FLAGS.variants, FLAGS.network)
    detects = FLAGS.network.startswith("fr_")
    margin = evaluation.MARGINS[detects] if FLAGS.margin is None else FLAGS.margin
    max_steps = FLAGS.max_steps or evaluation.MAX_STEPS[detects]
    known = variants_of(detects)
    network, weights = options.load_model(FLAGS.network)
    examples = options.load_examples(network)
    about = {
        "launch": "variants",
        "network": network.name,
        "weights_sha256": weights,
        "margin": margin,
        "max_steps": max_steps,
        "splits": FLAGS.split or evaluation.TEST_SPLITS[detects],
        "settings": options.settings(__name__, UNRECORDED),
        **provenance.environment(),
    }
    workdir = attacks.claim(FLAGS.workdir, about, examples)

    # 2. A variant at a time; images and rows that are finished are kept.
    keys, errors = [example["image_id"] for example in examples], []
    for name in names:
        folder, variant = workdir / name, known[name]
        if (folder / "row.json").exists():
            continue
        results = rundir.Results(folder, about | {"variant": name}, keys)
        try:
            row = measure(name, variant, network, examples, results, margin=margin, mesh=mesh)
        except ValueError as error:  # this variant's; the others go on
            errors.append(f"{variant.title}: {error}")
            continue
        rundir.write(folder / "row.json", json.dumps(row, indent=2) + "\n")

    # 3. The table and the plot, of all variants that are there.
    finished = rundir.folders_in(workdir, "row.json")
    rows = [files.load_json(workdir / name / "row.json") for name in NAMES if name in finished]
    if rows:
        about |= {"cores": console.cores()}
        text = write_table(workdir, rows, about, {})  # an audit can be interrupted
        draw(rows, about, workdir / "variants.png")
        if FLAGS.audit:
            found = audit_of(workdir, rows, known, network, examples, mesh)
            text = write_table(workdir, rows, about, found)
        print(text)
        print(f"results: {workdir}/")
    if errors:
        raise UserError("no row of " + "; no row of ".join(errors))


if __name__ == "__main__":
    console.run(main)
