r"""Table 1: models before the attack (ORIG), under it (ADVR), under its permutation (PERM).

    python -m experiments.table1                 20 images a network: what `make table1` runs
    python -m experiments.table1 --limit=100     80 more in the same folder: docs/results/table1.md
    python -m experiments.table1 --models=fcn_vgg,my_package.my_module:load      a model of yours
    python -m experiments.table1 --noaudit       without the checks under the table
    python -m experiments.table1 --rounded       attack the image as the saved PNG will be
    python -m experiments.table1 --method=clipped_best_other --workdir=runs/table1_clipped
    python -m experiments.table1 --dataset=voc --data_dir=VOCdevkit --split=voc2012_seg_val \
        --canvas=128 --weights_dir=runs/photographs --models=fcn_vgg,fr_vgg_07
    python -m experiments.table1 --nominiature --dataset=voc --data_dir=VOCdevkit --limit=0 \
        --weights_dir=runs/weights       the paper's own table: full-size networks, all of its lists

    python -m experiments.table1 --distributed ...      one of many: docs/how_to/many_hosts.md

Photographs keep their sizes unless --canvas scales them: they go through a few compiled shapes, by
padding that changes no score.

Results go to --workdir: report.html, table1.md, table1.json, examples.png, and for each model a
folder of what was attacked (where its margin is not 0 a second one, with margin 0): its manifest,
and a file for each image and kind: perturbation with its record, adversarial PNG, what its scores
are made of; its row and its audit, which is printed under the table: whether it measures the attack
at all. `dag_jax.runs.read` reads a folder. An image is kept as soon as it is finished: whatever
kills a launch, the same command goes on with the next image, and ends with the same files. --models
adds rows to those that are there, --limit and --image_ids choose images; a folder with results of
other settings, weights, versions or devices is refused.
"""

import functools

from absl import flags

from dag_jax import methods, networks
from dag_jax.datasets.classes import FREQUENT
from dag_jax.report import findings, pictures, tables
from dag_jax.runs import audit, audit_checks, scores
from dag_jax.runs.attacks import Plan
from dag_jax.runs.stored import table_order
from experiments.common import console, inputs, options
from experiments.common.table import Entry, Table, rows_in, starting

# ORIG, ADVR, PERM of Xie et al., ICCV 2017, table 1: full-size networks on PASCAL VOC.
PAPER = {
    "fcn_alex": (48.04, 3.98, 48.04),
    "fcn_alex_star": (48.92, 3.98, 48.91),
    "fcn_vgg": (65.49, 4.09, 65.47),
    "fcn_vgg_star": (67.09, 4.18, 67.08),
    "fr_zf_07": (58.70, 3.61, 58.33),
    "fr_zf_0712": (61.07, 1.95, 60.94),
    "fr_vgg_07": (69.14, 5.92, 68.68),
    "fr_vgg_0712": (72.07, 3.36, 71.97),
}
# Flags that change no row.
UNRECORDED = ("models", *options.UNRECORDED)

FLAGS = flags.FLAGS
options.define(
    __name__,
    *("models", "dataset", "split", "data_dir", "cache_dir", "canvas", "weights_dir", "miniature"),
    *("image_ids", "limit", "method", "max_steps", "step_size", "margin", "rounded", "precision"),
    *("seed", "store", "skip_bad", "slots", "audit", "accept_version", "workdir"),
    models=list(networks.NAMES),
    limit=20,
    workdir="runs/table1",
)


def entry_of(subject, rivals) -> Entry:
    """Return the row of a model, with that of margin 0, the paper's rule, beside it.

    Args:
      subject: from `inputs.subject`.
      rivals: names of other models of its task.
    """
    about = subject.about
    margin = about.margin if FLAGS.margin is None else FLAGS.margin
    method = methods.UNBOUNDED[FLAGS.method]().replace(
        step_size=FLAGS.step_size,
        margin=margin,
        max_steps=FLAGS.max_steps or about.max_steps,
        rounded=FLAGS.rounded,
    )
    manifest = {"split": inputs.split_of(subject.model)}
    by_paper = None
    if margin:
        plan = Plan(subject, method.replace(margin=0.0), seed=FLAGS.seed, store=FLAGS.store)
        name, title = f"{subject.name}_margin_0", f"{about.title}, margin 0"
        by_paper = Entry(name, title, plan, manifest, columns=(scores.ADVR,))
    return Entry(
        subject.name,
        about.title,
        Plan(subject, method, seed=FLAGS.seed, store=FLAGS.store),
        manifest,
        subsets={"_frequent": FREQUENT},
        beside=by_paper,
        complete=_with_paper_rule,
        rivals=rivals,
        checks=audit.checks_but(*(audit_checks.goes_on,) * method.keeps_state()),
    )


def _with_paper_rule(entry, results, row, beside):
    del entry, results
    return row | {"advr_margin_0": (beside or row)["advr"]}


COLUMNS = (
    ("network", lambda row: row["title"]),
    ("ORIG", lambda row: f"{row['orig']:.2f}"),
    ("ADVR", lambda row: f"{row['advr']:.2f}"),
    ("PERM", lambda row: f"{row['perm']:.2f}"),
    ("margin", lambda row: f"{row['margin']:g}"),
    ("ADVR margin 0", lambda row: f"{row['advr_margin_0']:.2f}"),
    ("ADVR uint8", lambda row: f"{row['advr_uint8']:.2f}"),
    ("fooled", lambda row: f"{100 * row['fooled']:.0f}%"),
    ("fooled float", lambda row: f"{100 * row['fooled_float']:.0f}%"),
    ("steps", lambda row: f"{row['steps_median']:g}"),
    ("p x1000", lambda row: f"{1000 * row['perceptibility']:.1f}"),
    ("largest", lambda row: f"{row['largest_change_median']:.1f}"),
    (f">={scores.NOTICEABLE}", lambda row: f"{100 * row['noticeable']:.0f}%"),
    ("unfinished", lambda row: f"{row['unfinished']}"),
    ("no targets", lambda row: f"{row['no_targets']}"),
    ("images", lambda row: f"{row['images']}"),
)
FREQUENT_COLUMNS = tuple(
    (f"{name} 7", lambda row, key=key: f"{row[key + '_frequent']:.2f}")
    for name, key in (("ORIG", "orig"), ("ADVR", "advr"), ("PERM", "perm"))
)
PAPER_COLUMNS = tuple(
    (
        f"paper {name}",
        lambda row, i=i: f"{PAPER[row['network']][i]:.2f}" if row["network"] in PAPER else "-",
    )
    for i, name in enumerate(("ORIG", "ADVR", "PERM"))
)


def line(entry, row) -> str:
    """Return the line that is printed for a finished row."""
    scores_of_row = f"ORIG {row['orig']:.2f} ADVR {row['advr']:.2f} PERM {row['perm']:.2f}"
    return f"{entry.title}: {scores_of_row}"


def report(table):
    """Return table1.md, and nothing more for table1.json."""
    rows, settings = table.rows, table.settings
    scenes = settings["dataset"] == "scenes"
    small = settings["miniature"] and all(row["network"] in networks.MINIATURES for row in rows)
    size = "miniatures" if small else "models"
    kind = "rendered scenes" if scenes else settings["dataset"]
    columns = COLUMNS + (() if scenes else FREQUENT_COLUMNS)
    if any(row["network"] in PAPER for row in rows):
        columns += PAPER_COLUMNS
    method_note = tables.method_notes(settings)
    rule = "what the paper calls fooled" if method_note else "the paper's rule"
    notes = [
        *method_note,
        f"These are {size} on {kind}"
        + (": compare rows with each other, not with published figures." if small else "."),
        "mIoU (segmentation) and 11-point VOC mAP (detection) in percent. ADVR at the row's "
        f"margin; margin 0 is {rule}. PERM: mean over 3 shuffles of the rows and columns "
        "of the perturbation.",
        "uint8: the saved PNGs, images rounded to whole grey levels. fooled: share of images whose "
        "saved PNG leaves no target active; fooled float: the same of the images before rounding, "
        "which is the paper's. steps, largest (grey levels): medians; p: mean perceptibility; "
        f">={scores.NOTICEABLE}: share of images with a change of that many grey levels. All three "
        "are of the image that was attacked, so within 0 to 255.",
        "The audit below is of ADVR at the row's margin, not of margin 0.",
        *table.notes(),
    ]
    if any(row["network"] in PAPER for row in rows):
        notes.append(
            "The columns 'paper' are the paper's own: full-size networks, PASCAL VOC (Xie et al., "
            "ICCV 2017)."
        )
    if not scenes:
        notes.append(f"The columns '7' average over {', '.join(FREQUENT)} alone.")
    text = "\n".join(f"{note}  " for note in notes)
    shown = findings.table1(rows)
    cells = tables.markdown(rows, columns)
    return f"# Table 1 ({size}, {kind})\n\n{text}\n\n{cells}\n\n## What holds\n\n{shown}", {}


def draw(table, mesh) -> None:
    """Draw examples.png, a picture of each structure of model; models of other classes apart."""
    shown, by_classes = {}, {}
    for entry in table.entries:
        if entry.name in table.made:
            shown[pictures.kind_of(entry.plan.subject)] = entry
    for (_, classes), entry in shown.items():
        by_classes.setdefault(classes, []).append(entry)
    for number, entries in enumerate(by_classes.values()):
        drawn = ((entry.plan, table.run(table.made[entry.name])) for entry in entries)
        rows = pictures.attack_rows(drawn, mesh=mesh)
        pictures.draw(rows, table.picture(number, "examples"), entries[0].plan.subject)


def main(argv):
    """Attack each model, print the table, write everything."""
    share = console.start_shared(argv)
    mesh = console.open_mesh()

    # 1. Everything that can be wrong is read before anything is written. Rows that the folder has
    # stay in the table.
    settings = options.settings(__name__, UNRECORDED)
    with starting("table1", settings, share):
        finished = {row["network"] for row in rows_in(FLAGS.workdir, "table1").values()}
        names = sorted({*finished, *FLAGS.models}, key=table_order)
        subjects = {name: inputs.subject(name) for name in names}
        entries = []
        for name, subject in subjects.items():
            same = [rival for rival in names if subjects[rival].about.task == subject.about.task]
            entries.append(entry_of(subject, tuple(rival for rival in same if rival != name)))
    table = Table("table1", entries, settings=settings, share=share)

    # 2. A model at a time. Each process keeps its own images and waits for no other; process 0
    # joins what all have kept as soon as it is there.
    table.make(mesh, line)

    # 3. The table, its pictures, its audit.
    table.finish(mesh, report, functools.partial(draw, mesh=mesh))


if __name__ == "__main__":
    console.run(main)
