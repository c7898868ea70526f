r"""Attack variants compared on one network: what each leaves of the score, and at what size.

    python -m experiments.variants --limit=100            docs/results/variants.md
    python -m experiments.variants --models=fr_vgg_07     a detector: those that are not of pixels
    python -m experiments.variants --variants=dag,pgd --epsilon=4 --workdir=runs/variants_4
    python -m experiments.variants --nominiature --weights_dir=runs/weights --dataset=voc \
        --data_dir=VOCdevkit --limit=100

All attack the same images of each model, which is scored before and after:

    dag         the paper: targets that are still right, driven to one permutation of the classes
    release     the authors' code: driven to classes that the image lacks until they are seen; for
                segmentation, stops when 1% of the pixels is left
    best_other  adversarial-library: the margin of the label over the best other class
    momentum    dag, with 0.9 of the direction of earlier steps
    clipped     dag, a step's gradient clipped at 4 times its root mean square, not divided by its
                largest number
    clipped_best_other, momentum_best_other, clipped_momentum
                both of two
    fgsm        one step of --epsilon by the sign of the gradient of the cross-entropy
    pgd         --bounded_steps such steps of --bounded_step_size, never further than --epsilon
    segpgd      pgd that turns from pixels that are right to those that are wrong; segmentation only
    cospgd      pgd that weighs pixels by how well they agree with the label; segmentation only

The first nine stop by themselves, after at most --max_steps, and bound no change; the last four
have their steps and their bound given, so that their size says how much they were allowed, not how
much they needed. `dag_jax.methods` has each in a few lines, with its reference.

Results go to --workdir: report.html, variants.md, variants.json, variants.png, and for each model
and variant a folder of what was attacked and its row. An image is kept as soon as it is finished:
whatever kills a launch, the same command goes on with the next. --models and --variants add rows to
those that are there, --limit and --image_ids choose images; a folder with results of other
settings, weights, versions or devices is refused.
"""

import functools

import numpy as np
from absl import app, flags

from dag_jax import methods, metrics
from dag_jax.engine.method import Method
from dag_jax.models import DETECTION
from dag_jax.report import findings, tables, tradeoff
from dag_jax.runs import audit, audit_checks, scores
from dag_jax.runs.attacks import Plan
from dag_jax.runs.targets import absent_targets, paper_targets
from experiments.common import console, inputs, options
from experiments.common.table import Entry, Table, rows_in, starting

FEW = 0.01  # share of targets that may be right in an image that counts as lost
TITLES = {
    "dag": "DAG",
    "release": "DAG, authors' release",
    "best_other": "DAG, best other class",
    "momentum": "DAG, momentum",
    "clipped": "DAG, clipped",
    "clipped_best_other": "DAG, clipped, best other class",
    "momentum_best_other": "DAG, momentum, best other class",
    "clipped_momentum": "DAG, clipped, momentum",
    "fgsm": "FGSM",
    "pgd": "PGD",
    "segpgd": "SegPGD",
    "cospgd": "CosPGD",
}
OF_PIXELS = ("segpgd", "cospgd")
BOUNDED = ("fgsm", "pgd", "segpgd", "cospgd")
COMPARED = ("num_steps", "perceptibility", "largest_change")  # entries of records
# Flags that change no row.
UNRECORDED = ("models", "variants", *options.UNRECORDED)

FLAGS = flags.FLAGS
options.strings(
    "variants",
    None,
    f"Which attacks, some of {', '.join(TITLES)}. Default: all; of a detector, all but "
    f"{', '.join(OF_PIXELS)}.",
)
options.number(
    "epsilon",
    8.0,
    "Largest change of fgsm, pgd, segpgd, cospgd, in grey levels.",
    options.grey_levels,
)
options.integer("bounded_steps", 40, "Steps of pgd, segpgd and cospgd.")
options.number(
    "bounded_step_size",
    2.0,
    "Length of each of these, in grey levels.",
    options.grey_levels,
)
options.define(
    __name__,
    *("models", "dataset", "split", "data_dir", "cache_dir", "canvas", "weights_dir", "miniature"),
    *("image_ids", "limit", "max_steps", "step_size", "margin", "rounded", "precision", "seed"),
    *("skip_bad", "slots", "audit", "accept_version", "workdir"),
    models=["fcn_vgg"],
    workdir="runs/variants",
)


def method_of(variant, about) -> Method:
    """Return a variant as the flags have it, for a model of which `about` says what it is."""
    ball = FLAGS.epsilon, FLAGS.bounded_step_size, FLAGS.bounded_steps
    if variant in BOUNDED:
        known = {
            "fgsm": lambda: methods.fgsm(FLAGS.epsilon),
            "pgd": lambda: methods.pgd(*ball),
            "segpgd": lambda: methods.segpgd(*ball),
            "cospgd": lambda: methods.cospgd(*ball),
        }
        method = known[variant]()
    else:
        known = methods.UNBOUNDED | {
            "release": lambda: methods.release(about.background if about.detects else None)
        }
        method = known[variant]().replace(
            step_size=FLAGS.step_size, max_steps=FLAGS.max_steps or about.max_steps
        )
    margin = about.margin if FLAGS.margin is None else FLAGS.margin
    return method.replace(margin=margin, rounded=FLAGS.rounded)


def chosen_variants(about) -> list[str]:
    """Return the names of --variants for a model.

    Raises:
      app.UsageError: for a name that there is not, or that makes no sense for the model.
    """
    known = [name for name in TITLES if not (about.detects and name in OF_PIXELS)]
    chosen = known if FLAGS.variants is None else FLAGS.variants
    console.check_names("variants", chosen, TITLES)
    if senseless := [name for name in chosen if name not in known]:
        raise app.UsageError(
            f"--variants: {', '.join(senseless)} weigh the pixels of a segmentation, and "
            f"{about.title} detects; leave them out"
        )
    return [name for name in TITLES if name in chosen]


def entry_of(variant, subject, *, first) -> Entry:
    """Return the row of a variant on a model; what an audit finds of the model is said once.

    Steps that are given need not suffice.
    """
    bounded, method = variant in BOUNDED, method_of(variant, subject.about)
    out = (audit_checks.model,) * (not first)
    out += (audit_checks.grows,) * bounded
    out += (audit_checks.goes_on,) * (bounded or method.keeps_state())
    targets_of = absent_targets if variant == "release" else paper_targets
    return Entry(
        f"{subject.name} {variant}",
        TITLES[variant],
        Plan(subject, method, targets_of, FLAGS.seed),
        {"split": inputs.split_of(subject.model), "variant": variant},
        complete=_completed,
        checks=audit.checks_but(*out),
    )


def _completed(entry, results, row, beside):
    """Return a row with how many targets are still right, and with its seconds."""
    del beside
    right, count = _right(entry, results)
    records = results.records()
    return row | {
        "each": {name: [record[name] for record in records] for name in COMPARED},
        "variant": entry.manifest["variant"],
        "bounded": entry.manifest["variant"] in BOUNDED,
        "lost": float(np.mean(right[count > 0] <= FEW * count[count > 0])) if count.any() else 0.0,
        "right": float(right.sum() / max(count.sum(), 1)),
        "seconds": scores.seconds_of(results),
    }


def _right(entry, results) -> tuple[np.ndarray, np.ndarray]:
    """Return how many targets of each image are right under the attack, and of how many.

    A detector's are its candidates, by the margin of the run.
    """
    if entry.plan.subject.about.detects:
        counts = [record["active_counts"] for record in results.records()]
        return np.array([each[-1] for each in counts]), np.array([each[0] for each in counts])
    confusions = [arrays["confusion"] for arrays in scores.join(results, scores.ADVR)]
    return tuple(
        np.array([function(counts) for counts in confusions], np.int64)
        for function in (np.trace, np.sum)
    )


def against_dag(rows) -> str:
    """Return the table of what variants need, each divided by what the paper's attack needs.

    Args:
      rows: of one model.

    Returns:
      A table of medians over the images in which the paper's attack took a step; "" where it has no
      row, or is the only one, or took no step.
    """
    compared = [row for row in rows if "each" in row and row["variant"] != "dag"]
    papers = next((row["each"] for row in rows if row["variant"] == "dag"), {})
    moved = np.array(papers.get("num_steps", ())) > 0
    if not compared or not moved.any():
        return ""
    images = metrics.draw_images(0, int(moved.sum()))

    def medians(each, name):
        return metrics.median_of_sets(np.array(each[name])[moved], images)

    def ratio(row, name):
        scores = medians(row["each"], name) / medians(papers, name)
        return findings.text(metrics.interval(scores))

    headings = {"num_steps": "steps", "perceptibility": "p", "largest_change": "largest change"}
    columns = [("variant", lambda row: row["title"])]
    columns += [(headings[name], functools.partial(ratio, name=name)) for name in COMPARED]
    return tables.markdown(compared, columns)


COLUMNS = (
    ("variant", lambda row: row["title"]),
    ("ORIG", lambda row: f"{row['orig']:.2f}"),
    ("ADVR", lambda row: findings.text(row["intervals"]["advr"])),
    ("ADVR uint8", lambda row: f"{row['advr_uint8']:.2f}"),
    ("PERM", lambda row: findings.text(row["intervals"]["perm"])),
    ("fooled", lambda row: f"{100 * row['fooled']:.0f}%"),
    ("fooled float", lambda row: f"{100 * row['fooled_float']:.0f}%"),
    ("right <= 1%", lambda row: f"{100 * row['lost']:.0f}%"),
    ("still right", lambda row: f"{100 * row['right']:.2f}%"),
    ("steps", lambda row: f"{row['steps_median']:g}"),
    ("p x1000", lambda row: f"{1000 * row['perceptibility']:.1f}"),
    ("largest", lambda row: f"{row['largest_change_median']:.1f}"),
    ("s an image", lambda row: "-" if row["seconds"] is None else f"{row['seconds']:.3g}"),
    ("no targets", lambda row: f"{row['no_targets']}"),
    ("images", lambda row: f"{row['images']}"),
)


def line(entry, row) -> str:
    """Return what is said of a row once it is there."""
    return f"{row['model']}, {entry.title}: ORIG {row['orig']:.2f} ADVR {row['advr']:.2f}"


def report(table):
    """Return variants.md, a table for each model, and nothing more for variants.json."""
    parts = [f"# Attack variants\n\n{_notes(table)}\n"]
    for title, rows in table.models.items():
        cells = tables.markdown(rows, COLUMNS)
        shown = findings.table1(rows, heading="variant")
        parts.append(f"## {title}\n\n{cells}\n\n### What holds of {title}\n\n{shown}")
        if ratios := against_dag(rows):
            note = "Medians over images, divided by DAG's, with [95% interval] by the bootstrap."
            parts.append(f"### {title}: what it takes\n\n{note}\n\n{ratios}")
    return "\n".join(parts), {}


def _notes(table) -> str:
    settings = table.settings
    kind = "rendered scenes" if settings["dataset"] == "scenes" else settings["dataset"]
    notes = [
        f"Images: {kind}. mIoU of a segmentation, 11-point VOC mAP of a detector, in percent; ADVR "
        f"and PERM (mean over {scores.PERMUTATIONS} shuffles of the rows and columns of the "
        "perturbation) with [95% interval] by the bootstrap over images. uint8: the saved PNG.",
        f"DAG: steps of {settings['step_size']:g} grey levels, no bound. FGSM: one step of "
        f"{settings['epsilon']:g}. PGD and its kin: {settings['bounded_steps']} steps of "
        f"{settings['bounded_step_size']:g}, within {settings['epsilon']:g}, from the clean image.",
        "fooled: share of images whose saved PNG leaves no target; fooled float: the same of the "
        "image that was attacked. The release at "
        f"{methods.release().stop_fraction:.0%} of its own kind, pixels that are not yet what they "
        "are driven to. still right: pixels that have their class, of those that are not void; of "
        "a detector, targets that are active, of those on the clean image. right <= "
        f"{FEW:.0%}: share of images where that is all.",
        "steps, largest (grey levels): medians; p: mean perceptibility of the image that was "
        "attacked, within 0 to 255; these are over images with targets. s an image: wall-clock "
        "seconds from one finished image to the next (targets, attack, writing it down); "
        f"{console.machine()}.",
        *table.notes(),
    ]
    return "\n".join(f"{note}  " for note in notes)


def draw(table) -> None:
    """Draw what each variant leaves of the score against the size of what it adds."""
    epsilon = table.settings["epsilon"]
    for number, (title, rows) in enumerate(table.models.items()):
        groups = {
            "stop by themselves": [row for row in rows if not row["bounded"]],
            f"within {epsilon:g} grey levels": [row for row in rows if row["bounded"]],
        }
        tradeoff.draw(
            {heading: group for heading, group in groups.items() if group},
            table.picture(number),
            title=f"{title} under attack ({rows[0]['images']} images)",
            ylabel=f"{'mAP' if rows[0]['task'] == DETECTION else 'mIoU'} left (%)",
        )


def main(argv):
    """Attack by each variant, print the table, draw the plot."""
    share = console.start_shared(argv)
    mesh = console.open_mesh()

    # 1. Everything that can be wrong is read before anything is written.
    settings = options.settings(__name__, UNRECORDED)
    with starting("variants", settings, share):
        finished = rows_in(FLAGS.workdir, "variants")
        entries = []
        for name in dict.fromkeys([*(row["network"] for row in finished.values()), *FLAGS.models]):
            subject = inputs.subject(name)
            chosen = chosen_variants(subject.about) if name in FLAGS.models else []
            earlier = [variant for variant in TITLES if f"{name} {variant}" in finished]
            wanted = [variant for variant in TITLES if variant in earlier or variant in chosen]
            entries += [entry_of(each, subject, first=each == wanted[0]) for each in wanted]
    table = Table("variants", entries, settings=settings, share=share)

    # 2. A variant at a time; images and rows that are finished are kept.
    table.make(mesh, line)

    # 3. The table, the plots and the audit, of all variants that are there.
    table.finish(mesh, report, draw)


if __name__ == "__main__":
    console.run(main)
