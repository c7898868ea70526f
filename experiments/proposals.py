r"""How many proposals an attack on a detector needs: mAP, steps and time against the RPN's NMS.

    python -m experiments.proposals --limit=100 --margin=0 --workdir=runs/proposals_margin_0
                                                   what the README shows: the paper's rule
    python -m experiments.proposals                the margin that is usual for detectors
    python -m experiments.proposals --network=fr_zf_07 --thresholds=0.7,0.9 --proposals=300
    python -m experiments.proposals --nominiature --checkpoints=runs/weights --dataset=voc \
        --data_dir=VOCdevkit --limit=100

The paper raises the IoU threshold of the proposal network's suppression from 0.7 to 0.9 for the
attack alone, so that about 3,000 proposals are kept instead of 300, and says that denser proposals
make it work. Here the same images are attacked at several thresholds, with several limits on the
number kept. The evaluation stays what it is: 0.7, and as many proposals as the detector takes.

Seconds are of finding the targets, of the attack and of writing what it found; what has to be
compiled is compiled before, by attacks without a target. They depend on what else the machine does.

Results go to --workdir: proposals.md, proposals.json, proposals.png, and for each setting a folder
of what was attacked and its row. An image is kept as soon as it is finished: whatever kills a
launch, the same command goes on with the next. --thresholds and --proposals add settings to those
that are there; a folder with results of another network, other settings, weights, versions or
devices is refused.
"""

import functools
import itertools
import json

from absl import app, flags
from matplotlib.ticker import MaxNLocator

from dag_jax import files, metrics, networks
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

DETECTORS = [name for name in networks.NAMES if name.startswith("fr_")]
PLAIN = 0.7  # the threshold of the evaluation, which the paper's attack raises
SETS = "sets.safetensors"  # ADVR of the sets of images that intervals are over
MOST = {True: (100, 300), False: (300, 1000, 3000)}  # proposals kept, miniature or not
# Flags that change no row.
UNRECORDED = ("thresholds", "proposals", *options.UNRECORDED)

FLAGS = flags.FLAGS
flags.DEFINE_enum("network", "fr_vgg_07", DETECTORS, "The detector.")
flags.DEFINE_list(
    "thresholds",
    ["0.5", "0.6", "0.7", "0.8", "0.9", "0.95"],
    "IoU above which the lower of two proposals goes, in the attack: one setting each.",
)
flags.DEFINE_list(
    "proposals",
    None,
    "The most proposals kept, in the attack: one setting each. Default: "
    f"{','.join(map(str, MOST[True]))} of a miniature, {','.join(map(str, MOST[False]))} of a "
    "full-size network.",
)
options.define(
    __name__,
    *("dataset", "split", "data_dir", "cache_dir", "canvas", "checkpoints", "miniature"),
    *("image_ids", "limit", "max_steps", "step_size", "margin", "rounded", "precision", "seed"),
    *("slots", "audit", "workdir"),
    tasks=("detection",),
    workdir="runs/proposals",
)


def parse_thresholds(texts):
    """Return the numbers of --thresholds."""
    try:
        numbers = sorted({float(text) for text in texts})
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number <= 1 for number in numbers):
        raise app.UsageError(
            f"--thresholds={','.join(texts)}: numbers above 0, up to 1, are such as 0.7,0.9"
        )
    return numbers


def parse_proposals(texts, miniature):
    """Return the numbers of --proposals."""
    if texts is None:
        return list(MOST[miniature])
    if not texts or not all(text.isdecimal() and int(text) for text in texts):
        raise app.UsageError(
            f"--proposals={','.join(texts)}: whole numbers, 1 or more, are such as 100,300"
        )
    return sorted({int(text) for text in texts})


def folder_of(threshold, most):
    """Return the name of a setting's folder."""
    return f"nms_{threshold:g}_kept_{most}"


def title_of(threshold, most):
    """Return what a setting is called."""
    return f"NMS {threshold:g}, at most {most}"


COLUMNS = (
    ("NMS", lambda row: f"{row['nms_threshold']:g}"),
    ("most kept", lambda row: f"{row['max_proposals']}"),
    ("proposals", lambda row: f"{row['proposals']:.1f}"),
    ("targets", lambda row: f"{row['targets']:.1f}"),
    ("ADVR", lambda row: findings.text(row["advr"])),
    ("ADVR uint8", lambda row: findings.text(row["advr_uint8"])),
    ("steps", lambda row: f"{row['steps_median']:g}"),
    ("s an image", lambda row: "-" if row["seconds"] is None else f"{row['seconds']:.3g}"),
    ("p x1000", lambda row: f"{1000 * row['perceptibility']:.1f}"),
    ("largest", lambda row: f"{row['largest_change_median']:.1f}"),
    ("unfinished", lambda row: f"{row['unfinished']}"),
    ("no targets", lambda row: f"{row['no_targets']}"),
    ("images", lambda row: f"{row['images']}"),
)


def by_kept(rows):
    """Return [(the most kept, its rows)] of rows in the order of the most kept."""
    grouped = itertools.groupby(rows, lambda row: row["max_proposals"])
    return [(most, list(group)) for most, group in grouped]


def compare(workdir, rows) -> list[dict]:
    """Return what the paper's denser suppression changes, on the same images.

    Args:
      workdir: of the run.
      rows: of settings.

    Returns:
      For each number kept of which both are there: ADVR at 0.9 minus ADVR at 0.7, [value, low,
      high] in points.
    """
    found = []
    for most, group in by_kept(rows):
        if {PLAIN, evaluation.ATTACK_NMS} <= {row["nms_threshold"] for row in group}:
            dense, plain = (
                files.load(workdir / folder_of(threshold, most) / SETS)[1]["advr"]
                for threshold in (evaluation.ATTACK_NMS, PLAIN)
            )
            difference = metrics.interval(dense - plain, level=findings.LEVEL)
            found.append({"max_proposals": most, "difference": findings.as_list(difference)})
    return found


def report(rows, differences, about) -> str:
    """Return proposals.md.

    Args:
      rows: of settings.
      differences: from `compare`.
      about: the run's manifest, with "orig".
    """
    title = evaluation.TITLES[about["network"]]
    size = "miniature" if about["settings"]["miniature"] else "full size"
    of = "rendered scenes" if about["settings"]["dataset"] == "scenes" else about["splits"]
    most = rows[0]["evaluation_proposals"]
    notes = [
        f"{title} ({size}) on {of}, margin {about['margin']:g}, M_0 {about['max_steps']}. "
        f"ORIG: mAP {about['orig']:.2f}. Its evaluation keeps {most} proposals at 0.7 in every "
        "row.",
        "NMS, most kept: of the proposals attacked. proposals, targets: means over the images, "
        "counted on the clean image; a target is a proposal that finds an object.",
        "ADVR: 11-point VOC mAP (%) of the whole detector run again, with "
        f"[{findings.LEVEL:.0%} interval] by the bootstrap over images. uint8: on the saved PNG. "
        "steps, largest (grey levels): medians; p: mean perceptibility; these are over images with "
        "targets.",
        "s an image: wall-clock seconds of targets, attack and writing it down, without compiling; "
        f"{about['device']}, {about['cores']} cores.",
    ]
    shown = [
        f"At most {one['max_proposals']} kept, ADVR at {evaluation.ATTACK_NMS} is below ADVR at "
        f"{PLAIN}: {findings.below(one['difference'], rows[0]['images'])}, the difference is "
        f"{findings.text(one['difference'])}."
        for one in differences
    ]
    text = "\n".join(f"{note}  " for note in notes)
    table = tables.markdown(rows, COLUMNS)
    parts = [f"# Density of proposals ({title}, {size})", text, table, *shown]
    return "\n\n".join(parts) + "\n"


def draw(rows, about, path):
    """Draw what the rows say against the threshold, a line for each number kept."""
    title = (
        f"{evaluation.TITLES[about['network']]} attacked on the proposals of a sparser or denser "
        f"suppression (margin {about['margin']:g}, {rows[0]['images']} images; its evaluation "
        "stays as it is)"
    )
    names = [
        ("proposals", "proposals of an image (mean)"),
        ("targets", "targets of an image (mean)"),
        ("advr", "mAP after the attack, %"),
        ("steps_median", "steps of an image (median)"),
        ("seconds", "seconds an image"),
    ]
    if any(row["unfinished"] for row in rows):
        names.append(("unfinished", "images with targets left"))
    else:
        title += "\nNo image has targets left at the end"
    figure, panels = lineplot.panels(len(names), title, columns=3, inches=(3.7, 3.0))
    for axes, (entry, label) in zip(panels, names, strict=True):
        some = [row for row in rows if row[entry] is not None]
        lines = []
        for most, group in by_kept(some):
            y = [row[entry][0] if entry == "advr" else row[entry] for row in group]
            lines.append((f"at most {most} kept", [row["nms_threshold"] for row in group], y))
        xlabel = "NMS threshold of the attack (IoU)"
        options_of_plot = {"xlabel": xlabel, "ylabel": label, "doubling": False, "log": False}
        if lines:
            lineplot.lines(axes, lines, **options_of_plot)
            axes.get_legend().remove()  # one for all panels, where it covers nothing
        if entry == "unfinished":
            axes.set_ylim(0, max(1, axes.get_ylim()[1]))
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes = panels[2]
    for number, (_, group) in enumerate(by_kept(rows)):
        ends = [(row["nms_threshold"], *row["advr"][1:]) for row in group]
        axes.fill_between(*zip(*ends, strict=True), color=f"C{number}", alpha=0.15, lw=0)
    text = f"ORIG {about['orig']:.1f}, the mAP before the attack"
    axes.axhline(about["orig"], color="0.35", lw=1, ls="--", label=text)
    axes.set_title(f"bands: {findings.LEVEL:.0%} intervals", fontsize=9)
    handles, _ = axes.get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    largest = max(about["orig"], *(row["advr"][2] for row in rows))
    axes.set_ylim(0, lineplot.HEADROOM * largest or 1)
    lineplot.save(figure, path)


def measure(network, examples, results, *, threshold, most, margin, max_steps, mesh):
    """Attack what a setting's folder lacks of the images, score them, return the row."""
    label = title_of(threshold, most)
    setting = {"nms_threshold": threshold, "max_proposals": most}
    seconds = timed.attack_all(
        network,
        examples,
        results,
        seed=FLAGS.seed,
        label=label,
        targets_of=functools.partial(attacks.paper_targets, **setting),
        slots=options.slots(),
        mesh=mesh,
        rounded=FLAGS.rounded,
        max_steps=max_steps,
        step_size=FLAGS.step_size,
        margin=margin,
    )
    run = rundir.read(results.folder)
    scores.keep(
        network,
        examples,
        results,
        seed=FLAGS.seed,
        rounded=FLAGS.rounded,
        all_of_them=False,
        mesh=mesh,
    )
    scores.keep_column(
        network,
        examples,
        results,
        "advr_uint8",
        lambda example: run.image(example["image_id"]),
        mesh=mesh,
    )
    counts = attacks.count_proposals(network, examples, label=f"{label}: proposals", **setting)
    proposals, targets = counts.mean(axis=0)
    images = metrics.draw_images(FLAGS.seed, len(examples))
    sets = {
        column: evaluation.score_sets(examples, scores.join(examples, results, column), images)
        for column in ("advr", "advr_uint8")
    }
    files.write(results.folder / SETS, files.pack(sets, {}))
    return {
        **setting,
        "proposals": float(proposals),
        "targets": float(targets),
        **{column: findings.as_list(findings.in_percent(one)) for column, one in sets.items()},
        "seconds": seconds,
        "evaluation_proposals": network.module.post_nms,
        **scores.summary_of(results.finalise()),
    }


def audit_of(workdir, rows, network, examples, mesh):
    """Return what `audit.of_table` finds of the settings, of the detector once."""
    audited = {}
    for row in rows:
        setting = {name: row[name] for name in ("nms_threshold", "max_proposals")}
        audited[folder_of(*setting.values())] = audit.Row(
            title_of(*setting.values()),
            network,
            examples,
            audit.checks_but(audit_checks.permuted, *(audit_checks.model,) * (row is not rows[0])),
            targets_of=functools.partial(attacks.paper_targets, **setting),
        )
    return audit.of_table(workdir, audited, mesh=mesh, slots=options.slots())


def write_table(workdir, rows, about, found):
    """Write the table and what its audit found; return the text."""
    differences = compare(workdir, rows)
    settings = [(row["nms_threshold"], row["max_proposals"]) for row in rows]
    titles = {folder_of(*one): title_of(*one) for one in settings}
    content = {**about, "rows": rows, "differences": differences}
    shown = report(rows, differences, about)
    return audit.write(workdir, "proposals", shown, content, titles=titles, found=found)


def main(argv):
    """Attack by each setting, print the table, draw the plot."""
    console.start(argv)
    mesh = console.open_mesh()

    # 1. Everything that can be wrong is read before anything is written.
    thresholds = parse_thresholds(FLAGS.thresholds)
    kept = parse_proposals(FLAGS.proposals, FLAGS.miniature)
    margin = evaluation.MARGINS[True] if FLAGS.margin is None else FLAGS.margin
    max_steps = FLAGS.max_steps or evaluation.MAX_STEPS[True]
    network, weights = options.load_model(FLAGS.network)
    examples = options.load_examples(network)
    about = {
        "launch": "proposals",
        "network": network.name,
        "weights_sha256": weights,
        "margin": margin,
        "max_steps": max_steps,
        "splits": FLAGS.split or evaluation.TEST_SPLITS[True],
        "settings": options.settings(__name__, UNRECORDED),
        **provenance.environment(),
    }
    workdir = attacks.claim(FLAGS.workdir, about, examples)

    # 2. A setting at a time; images and settings that are finished are kept.
    keys = [example["image_id"] for example in examples]
    for threshold, most in itertools.product(thresholds, kept):
        folder = workdir / folder_of(threshold, most)
        if (folder / "row.json").exists():
            continue
        setting = {"nms_threshold": threshold, "max_proposals": most}
        results = rundir.Results(folder, about | setting, keys)
        row = measure(
            network,
            examples,
            results,
            threshold=threshold,
            most=most,
            margin=margin,
            max_steps=max_steps,
            mesh=mesh,
        )
        rundir.write(folder / "row.json", json.dumps(row, indent=2) + "\n")
    path = workdir / "orig.json"
    if not path.exists():
        label = f"{evaluation.TITLES[network.name]} orig"
        clean = evaluation.clean_images(examples)
        found = evaluation.predict(network, clean, label=label, mesh=mesh)
        rundir.write(path, json.dumps({"orig": evaluation.score(examples, found)}) + "\n")

    # 3. The table and the plot, of all settings that are there.
    about |= files.load_json(path) | {"cores": console.cores()}
    rows = [
        files.load_json(workdir / name / "row.json")
        for name in rundir.folders_in(workdir, "row.json")
    ]
    rows.sort(key=lambda row: (row["max_proposals"], row["nms_threshold"]))
    text = write_table(workdir, rows, about, {})  # an audit can be interrupted
    draw(rows, about, workdir / "proposals.png")
    if FLAGS.audit:
        found = audit_of(workdir, rows, network, examples, mesh)
        text = write_table(workdir, rows, about, found)
    print(text)
    print(f"results: {workdir}/")


if __name__ == "__main__":
    console.run(main)
