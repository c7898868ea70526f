r"""How many proposals an attack on a detector needs: mAP, steps and time against the RPN's NMS.

    python -m experiments.proposals --limit=100 --margin=0 --workdir=runs/proposals_margin_0
                                                   docs/results/proposals.md: the paper's rule
    python -m experiments.proposals                the margin that is usual for detectors
    python -m experiments.proposals --models=fr_zf_07 --thresholds=0.7,0.9 --proposals=300
    python -m experiments.proposals --nominiature --weights_dir=runs/weights --dataset=voc \
        --data_dir=VOCdevkit --limit=100

The paper raises the IoU threshold of the proposal network's suppression from 0.7 to 0.9 for the
attack alone, so that about 3,000 proposals are kept instead of 300, and says that denser proposals
make it work. Here the same images are attacked at several thresholds, with several limits on the
number kept. The evaluation stays what it is: the detector's own.

A detector of yours can be attacked so where its `propose` takes `nms_threshold` and
`max_proposals`.

Seconds are from one finished image to the next, on the wall's clock: they depend on what else the
machine does.

Results go to --workdir: proposals.md, proposals.json, proposals.png, and for each model and
setting a folder of what was attacked and its row. An image is kept as soon as it is finished:
whatever kills a launch, the same command goes on with the next. --models, --thresholds and
--proposals add settings to those that are there; a folder with results of other settings, weights,
versions or devices is refused.
"""

import functools
import inspect
import itertools

import numpy as np
from absl import app, flags

from dag_jax import metrics
from dag_jax.engine.method import Method
from dag_jax.errors import UserError
from dag_jax.models import DETECTION
from dag_jax.networks.network import ATTACK_NMS
from dag_jax.progress import progress
from dag_jax.report import density, findings, tables
from dag_jax.runs import attacks, audit, audit_checks, audit_scores, evaluation, scores
from dag_jax.runs import findings as rules
from dag_jax.runs.attacks import Plan
from dag_jax.runs.targets import candidate_targets, paper_targets
from experiments.common import console, inputs, options
from experiments.common.table import Entry, Table, rows_in, starting

PLAIN = 0.7  # the threshold of the evaluation, which the paper's attack raises
MOST = {True: ["100", "300"], False: ["300", "1000", "3000"]}  # proposals kept, miniature or not
# Flags that change no row.
UNRECORDED = ("models", "thresholds", "proposals", *options.UNRECORDED)


def parse_thresholds(texts) -> list[float]:
    """Return the numbers of --thresholds, sorted; UserError where one is none."""
    try:
        numbers = sorted({float(text) for text in texts})
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number <= 1 for number in numbers):
        raise UserError("numbers above 0, up to 1, are such as 0.7,0.9")
    return numbers


FLAGS = flags.FLAGS
options.strings(
    "thresholds",
    ["0.5", "0.6", "0.7", "0.8", "0.9", "0.95"],
    "IoU above which the lower of two proposals goes, in the attack: one setting each.",
    parse_thresholds,
)
options.strings(
    "proposals",
    None,
    f"The most proposals kept, in the attack: one setting each. Default: {','.join(MOST[True])} of "
    f"a miniature, {','.join(MOST[False])} of a full-size network.",
    options.whole_numbers,
)
options.define(
    __name__,
    *("models", "dataset", "split", "data_dir", "cache_dir", "canvas", "weights_dir", "miniature"),
    *("image_ids", "limit", "max_steps", "step_size", "margin", "rounded", "precision", "seed"),
    *("skip_bad", "slots", "audit", "accept_version", "workdir"),
    tasks=(DETECTION,),
    models=["fr_vgg_07"],
    workdir="runs/proposals",
)


def detector(name):
    """Return the subject of a detector whose proposals can be chosen.

    Raises:
      app.UsageError: where it segments, or proposes in a way of its own.
    """
    subject = inputs.subject(name)
    if not subject.about.detects:
        raise app.UsageError(f"--models: {name} segments, and has no proposals")
    known = inspect.signature(subject.model.propose).parameters
    if missing := {"nms_threshold", "max_proposals"} - known.keys():
        raise app.UsageError(
            f"--models: {name} proposes in a way of its own: its propose takes no "
            f"{' and no '.join(sorted(missing))}"
        )
    return subject


def entry_of(subject, threshold, most, *, first) -> Entry:
    """Return the row of a setting; only the first of a model's settings is audited as a model."""
    about = subject.about
    method = Method(
        step_size=FLAGS.step_size,
        margin=about.margin if FLAGS.margin is None else FLAGS.margin,
        max_steps=FLAGS.max_steps or about.max_steps,
        rounded=FLAGS.rounded,
    )
    targets_of = functools.partial(paper_targets, nms_threshold=threshold, most=most)
    return Entry(
        f"{subject.name} nms_{threshold:g}_kept_{most}",
        f"NMS {threshold:g}, at most {most}",
        Plan(subject, method, targets_of, FLAGS.seed),
        {
            "split": inputs.split_of(subject.model),
            "nms_threshold": threshold,
            "max_proposals": most,
        },
        columns=("orig", "advr_uint8", scores.ADVR),
        complete=_completed,
        checks=audit.checks_but(audit_scores.permuted, *(audit_checks.model,) * (not first)),
    )


def _completed(entry, results, row, beside):
    """Return a row with the numbers of proposals and targets, and its seconds."""
    del beside
    setting = {name: entry.manifest[name] for name in ("nms_threshold", "max_proposals")}
    proposals, targets = count_proposals(entry).mean(axis=0)
    return row | {
        **setting,
        "proposals": float(proposals),
        "targets": float(targets),
        "seconds": scores.seconds_of(results),
    }


def count_proposals(entry) -> np.ndarray:
    """Return i64[M, 2], a detector's proposals on each clean image and the targets among them."""
    subject, group_of = entry.plan.subject, attacks.grouping(entry.plan.subject)
    options_of_setting = entry.plan.targets_of.keywords
    counts = []
    for row in progress(range(len(subject.examples)), desc=f"{entry.title}: proposals"):
        targets, _, proposals = candidate_targets(
            subject, group_of(row), subject.examples[row], 0, **options_of_setting
        )
        counts.append((proposals, targets.valid.sum()))
    return np.array(counts, np.int64)


COLUMNS = (
    ("NMS", lambda row: f"{row['nms_threshold']:g}"),
    ("most kept", lambda row: f"{row['max_proposals']}"),
    ("proposals", lambda row: f"{row['proposals']:.1f}"),
    ("targets", lambda row: f"{row['targets']:.1f}"),
    ("ADVR", lambda row: findings.text(row["intervals"]["advr"])),
    ("ADVR uint8", lambda row: findings.text(row["intervals"]["advr_uint8"])),
    ("fooled", lambda row: f"{100 * row['fooled']:.0f}%"),
    ("fooled float", lambda row: f"{100 * row['fooled_float']:.0f}%"),
    ("steps", lambda row: f"{row['steps_median']:g}"),
    ("s an image", lambda row: "-" if row["seconds"] is None else f"{row['seconds']:.3g}"),
    ("p x1000", lambda row: f"{1000 * row['perceptibility']:.1f}"),
    ("largest", lambda row: f"{row['largest_change_median']:.1f}"),
    ("unfinished", lambda row: f"{row['unfinished']}"),
    ("no targets", lambda row: f"{row['no_targets']}"),
    ("images", lambda row: f"{row['images']}"),
)


def compare(table) -> list[dict]:
    """Return what the paper's denser suppression changes, on the same images.

    Returns:
      For each model and number kept of which both are there: ADVR at 0.9 minus ADVR at 0.7,
      [value, low, high] in points.
    """
    subjects = {entry.name: entry.plan.subject for entry in table.entries}
    rows = {(row["network"], row["max_proposals"], row["nms_threshold"]): row for row in table.rows}
    differences = []
    for network, most in dict.fromkeys(key[:2] for key in rows):
        pair = [rows.get((network, most, threshold)) for threshold in (ATTACK_NMS, PLAIN)]
        if None in pair:
            continue
        dense, plain = (_advr_of_sets(subjects[row["row"]], table.run(row)) for row in pair)
        difference = metrics.interval(dense - plain, level=rules.LEVEL)
        differences.append(
            {"network": network, "max_proposals": most, "difference": rules.as_list(difference)}
        )
    return differences


def _advr_of_sets(subject, run):
    detections = [run.get(scores.ADVR, str(key)) for key in subject.ids]
    images = metrics.draw_images(FLAGS.seed, len(detections))
    return evaluation.score_sets(subject, subject.examples, detections, images)


def line(entry, row) -> str:
    """Return the line that is printed for a finished row."""
    return f"{row['model']}, {entry.title}: ADVR {row['advr']:.2f}"


def report(table):
    """Return (proposals.md, a table for each model; what `compare` returns)."""
    settings, differences = table.settings, compare(table)
    kind = "rendered scenes" if settings["dataset"] == "scenes" else settings["dataset"]
    notes = [
        f"Images: {kind}. NMS, most kept: of the proposals attacked; the evaluation keeps its own. "
        "proposals, targets: means over the images, counted on the clean image; a target is a "
        "proposal that finds an object.",
        "ADVR: 11-point VOC mAP (%) of the whole detector run again, with [95% interval] by the "
        "bootstrap over images. uint8: on the saved PNG. fooled: share of images whose saved PNG "
        "leaves no target; fooled float: the same of the image that was attacked. steps, largest "
        "(grey levels): medians; p: mean perceptibility; these are over images with targets.",
        "s an image: wall-clock seconds from one finished image to the next (targets, attack, "
        f"writing it down); {console.machine()}.",
        *table.notes(),
    ]
    parts = ["# Density of proposals", "\n".join(f"{note}  " for note in notes)]
    for title, rows in table.models.items():
        row = rows[0]
        facts = f"ORIG {row['orig']:.2f}, margin {row['margin']:g}, M_0 {row['max_steps']}"
        parts += [f"## {title} ({facts})", tables.markdown(rows, COLUMNS)]
        for each in differences:
            if each["network"] == row["network"]:
                below = rules.below(each["difference"], row["images"])
                parts.append(
                    f"At most {each['max_proposals']} kept, ADVR at {ATTACK_NMS} is below ADVR at "
                    f"{PLAIN}: {below}, the difference is {findings.text(each['difference'])}."
                )
    return "\n\n".join(parts) + "\n", {"differences": differences}


def draw(table) -> None:
    """Draw mAP and cost of the settings, a picture for each model."""
    for number, (title, rows) in enumerate(table.models.items()):
        density.draw(rows, table.picture(number), title=title)


def main(argv):
    """Attack by each setting, print the table, draw the plot."""
    share = console.start_shared(argv)
    mesh = console.open_mesh()

    # 1. Everything that can be wrong is read before anything is written.
    settings = options.settings(__name__, UNRECORDED)
    with starting("proposals", settings, share):
        thresholds = parse_thresholds(FLAGS.thresholds)
        counts = options.whole_numbers(FLAGS.proposals or MOST[FLAGS.miniature])
        setting_pairs = list(itertools.product(counts, thresholds))
        finished, entries = rows_in(FLAGS.workdir, "proposals").values(), []
        for name in dict.fromkeys([*(row["network"] for row in finished), *FLAGS.models]):
            subject = detector(name)
            finished_settings = [
                (row["max_proposals"], row["nms_threshold"])
                for row in finished
                if row["network"] == name
            ]
            wanted = sorted({*finished_settings, *setting_pairs * (name in FLAGS.models)})
            entries += [
                entry_of(subject, threshold, most, first=(most, threshold) == wanted[0])
                for most, threshold in wanted
            ]
    table = Table("proposals", entries, settings=settings, share=share)

    # 2. A setting at a time; images and settings that are finished are kept.
    table.make(mesh, line)

    # 3. The table, the plots and the audit, of all settings that are there.
    table.finish(mesh, report, draw)


if __name__ == "__main__":
    console.run(main)
