r"""Table 1: eight networks before the attack (ORIG), under it (ADVR), under its permutation (PERM).

    python -m experiments.table1                 40 images a network: what `make table1` runs
    python -m experiments.table1 --limit=100 --workdir=runs/table1_100     the table in the README
    python -m experiments.table1 --noaudit       without the checks under the table
    python -m experiments.table1 --rounded       attack the image as the saved PNG will be
    python -m experiments.table1 --dataset=voc --data_dir=VOCdevkit --split=voc2012_seg_val \
        --canvas=128 --checkpoints=runs/photographs --networks=fcn_vgg,fr_vgg_07
    python -m experiments.table1 --nominiature --dataset=voc --data_dir=VOCdevkit --limit=0 \
        --checkpoints=runs/weights       the paper's own table: full-size networks, all of its lists

    python -m experiments.table1 --distributed ...      one of many processes: see BUILD.md

Photographs keep their sizes unless --canvas scales them: they go through a few compiled shapes, by
padding that changes no score.

Results go to --workdir: table1.md, table1.json, examples.png, and for each network a folder of what
was attacked (for detectors a second one, with margin 0): its manifest, a record for each image, the
perturbations, the adversarial images as PNG, its row and its audit, which is printed under the
table: whether it measures the attack at all. `experiments.runs.rundir.read` reads a folder.
An image is kept as soon as it is finished: whatever kills a launch, the same command goes on with
the next image, and ends with the same files. --networks adds rows to those that are there; one with
results of other settings, weights, versions or devices is refused.
"""

import json
import sys
import time

import numpy as np
from absl import flags

from dag_jax import networks
from dag_jax.errors import UserError
from dag_jax.report import figures, tables
from dag_jax.runs import attacks, audit, buckets, evaluation, findings, provenance, rundir, scores
from dag_jax.runs.failures import (
    failures,
    forget,
    noted,
    others_go_on,
    wait_until,
)
from experiments.common import console, options

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
SHOWN_OF = 100  # images that the one in the picture is chosen from
# Flags that change no row.
UNRECORDED = ("networks", *options.UNRECORDED)

FLAGS = flags.FLAGS
flags.DEFINE_list("networks", list(networks.NAMES), "Networks to attack.")
options.define(
    __name__,
    *("dataset", "split", "data_dir", "cache_dir", "canvas", "checkpoints", "miniature"),
    *("image_ids", "limit", "max_steps", "step_size", "margin", "rounded", "precision", "seed"),
    *("slots", "audit", "workdir"),
    workdir="runs/table1",
)


def manifest_of(name, margin, weights, settings):
    """Return what a folder of perturbations is of: one network, attacked with one margin."""
    detects = name.startswith("fr_")
    return {
        "launch": "table1",
        "network": name,
        "weights_sha256": weights,
        "margin": margin,
        "max_steps": settings["max_steps"] or evaluation.MAX_STEPS[detects],
        "splits": settings["split"] or evaluation.TEST_SPLITS[detects],
        "settings": settings,
        **provenance.environment(),
    }


COLUMNS = (
    ("network", lambda row: evaluation.TITLES[row["network"]]),
    ("ORIG", lambda row: f"{row['orig']:.2f}"),
    ("ADVR", lambda row: f"{row['advr']:.2f}"),
    ("PERM", lambda row: f"{row['perm']:.2f}"),
    ("margin", lambda row: f"{row['margin']:g}"),
    ("ADVR margin 0", lambda row: f"{row['advr_margin_0']:.2f}"),
    ("ADVR uint8", lambda row: f"{row['advr_uint8']:.2f}"),
    ("steps", lambda row: f"{row['steps_median']:g}"),
    ("p x1000", lambda row: f"{1000 * row['perceptibility']:.1f}"),
    ("largest", lambda row: f"{row['largest_change_median']:.1f}"),
    (f">={evaluation.NOTICEABLE}", lambda row: f"{100 * row['noticeable']:.0f}%"),
    ("unfinished", lambda row: f"{row['unfinished']}"),
    ("no targets", lambda row: f"{row['no_targets']}"),
    ("images", lambda row: f"{row['images']}"),
)
FREQUENT_COLUMNS = tuple(
    (f"{name} 7", lambda row, key=key: f"{row[key + '_frequent']:.2f}")
    for name, key in (("ORIG", "orig"), ("ADVR", "advr"), ("PERM", "perm"))
)
PAPER_COLUMNS = tuple(
    (f"paper {name}", lambda row, i=i: f"{PAPER[row['network']][i]:.2f}")
    for i, name in enumerate(("ORIG", "ADVR", "PERM"))
)


def report(rows, settings):
    """Return table1.md."""
    scenes = settings["dataset"] == "scenes"
    small = settings["miniature"]
    size = "miniatures" if small else "full-size networks"
    splits = settings["split"] or ", ".join(evaluation.TEST_SPLITS.values())
    kind = "rendered scenes" if scenes else f"{settings['dataset']} {splits}"
    columns = COLUMNS + (() if scenes else FREQUENT_COLUMNS) + PAPER_COLUMNS
    classes = ", ".join(evaluation.datasets.CLASS_NAMES[i] for i in evaluation.FREQUENT)
    notes = [
        f"These are {size} on {kind}"
        + (": compare rows with each other, not with published figures." if small else "."),
        "mIoU (FCN) and 11-point VOC mAP (FR) in percent. ADVR at the row's margin; margin 0 is "
        "the paper's rule. PERM: mean over 3 shuffles of the rows and columns of the perturbation.",
        "uint8: the same images rounded to whole grey levels. steps, largest (grey levels): "
        "medians; p: mean perceptibility; "
        f">={evaluation.NOTICEABLE}: share of images with a change of that many grey levels. All "
        "three are of the image that was attacked, so within 0 to 255.",
        "The audit below is of ADVR at the row's margin, not of margin 0.",
        "The columns 'paper' are the paper's own: full-size networks, PASCAL VOC (Xie et al., ICCV "
        "2017).",
    ]
    if not scenes:
        notes.append(f"The columns '7' average over {classes} alone.")
    text = "\n".join(f"{note}  " for note in notes)
    table, shown = tables.markdown(rows, columns), findings.table1(rows, evaluation.TITLES)
    return f"# Table 1 ({size}, {kind})\n\n{text}\n\n{table}\n\n## What holds\n\n{shown}"


def picture(network, examples, run, rounded):
    """Return the `AttackRow` of the first image whose objects the network finds and loses.

    If no image is like that, it is the one that loses most.
    """
    examples = examples[:SHOWN_OF]
    attacked = buckets.Computed(lambda one: scores.adversarial([run], one, rounded), examples)
    clean = evaluation.clean_images(examples)
    before, after = (evaluation.predict(network, images) for images in (clean, attacked))
    found = np.nan_to_num(
        [
            [evaluation.score([example], [one]) for one in pair]
            for example, *pair in zip(examples, before, after, strict=True)
        ]
    )
    several = np.array([len(example["objects"]["label"]) > 1 for example in examples])
    fit = several & (found[:, 0] > 60) & (found[:, 1] < 10)
    index = int(np.argmax(fit)) if fit.any() else int(np.argmax(found[:, 0] - found[:, 1]))
    example = examples[index]
    unit = "mAP" if network.detects else "mIoU"
    title = (
        f"{evaluation.TITLES[network.name]} on {example['image_id']}: "
        f"{unit} {found[index, 0]:.0f} before, {found[index, 1]:.0f} after"
    )
    clean = example["image"].astype(np.float32)
    images = clean, attacked[index], run.perturbation(example["image_id"])
    return figures.AttackRow(title, *images, before[index], after[index])


def attack(network, examples, own, mesh):
    """Attack what this process lacks of a network's images, and score them.

    Args:
      network: a `Network`.
      examples: its examples, all processes'.
      own: `rundir.Results` by margin.
      mesh: from `console.open_mesh`.

    Returns:
      Whether there was anything to attack.
    """
    new = any(results.todo() for results in own.values())
    for margin, results in sorted(own.items()):
        attacks.attack_all(
            network,
            examples,
            results,
            seed=FLAGS.seed,
            slots=options.slots(),
            mesh=mesh,
            label=f"{evaluation.TITLES[network.name]} margin {margin:g}",
            rounded=FLAGS.rounded,
            max_steps=FLAGS.max_steps or evaluation.MAX_STEPS[network.detects],
            step_size=FLAGS.step_size,
            margin=margin,
        )
        scores.keep(
            network,
            examples,
            results,
            seed=FLAGS.seed,
            rounded=FLAGS.rounded,
            all_of_them=margin == max(own),
            mesh=mesh,
        )
    return new


def join(folder, network, examples, own, new):
    """Return a network's row, made once every process has kept its images.

    Args:
      folder: of the network.
      network: a `Network`.
      examples: its examples, all processes'.
      own: `rundir.Results` by margin.
      new: whether this process has attacked any, so that the row has to be made anew.
    """
    path = folder / "row.json"
    if new or not path.exists():
        title = evaluation.TITLES[network.name]
        wait_until(
            lambda: all(map(scores.are_there, own.values())),
            lambda: f"the other processes' images of {title}",
            lambda: failures(folder / "failed"),
        )
        row = scores.row_of(network, examples, own, margin=max(own), seed=FLAGS.seed)
        rundir.write(path, json.dumps(row, indent=2) + "\n")
    return json.loads(path.read_text())


def summary(row):
    """Return a row in a line."""
    title = evaluation.TITLES[row["network"]]
    return f"{title}: ORIG {row['orig']:.2f} ADVR {row['advr']:.2f} PERM {row['perm']:.2f}"


def own_of(results, name):
    """Return {margin: `rundir.Results`} of a network."""
    return {margin: found for (of, margin), found in results.items() if of == name}


def audit_of(workdir, rows, loaded, examples, mesh):
    """Return what `audit.of_table` finds of the rows, each beside the others of its kind."""
    names = [row["network"] for row in rows]
    audited = {}
    for name in names:
        network = loaded[name]
        same = (other for other in names if loaded[other].detects == network.detects)
        rivals = tuple(other for other in same if other != name)
        known = examples[network.detects]
        audited[name] = audit.Row(evaluation.TITLES[name], network, known, rivals=rivals)
    return audit.of_table(workdir, audited, mesh=mesh, slots=options.slots())


def write_table(workdir, rows, settings, found):
    """Write the table and what its audit found; return the text."""
    titles = {row["network"]: evaluation.TITLES[row["network"]] for row in rows}
    content = {"settings": settings, "rows": rows}
    shown = report(rows, settings)
    return audit.write(workdir, "table1", shown, content, titles=titles, found=found)


def draw(workdir, rows, loaded, examples):
    """Draw examples.png, a picture of each kind of network."""
    shown = {
        name.rsplit("_", 1)[0] if "fr_" in name else name[:7]: name
        for name in (row["network"] for row in rows)
    }
    pictures = []
    for name in shown.values():
        run, network = rundir.read(workdir / name), loaded[name]
        pictures.append(picture(network, examples[network.detects], run, FLAGS.rounded))
    figures.attack_figure(pictures, workdir / "examples.png")


def main(argv):
    """Attack each network, print the table, write everything."""
    process, processes = console.start(argv)
    mesh = console.open_mesh()
    started = time.monotonic()
    console.check_names("networks", FLAGS.networks, networks.NAMES)

    # 1. Everything that can be wrong is read before anything is written. Rows that the folder has
    # stay in the table.
    finished = rundir.folders_in(FLAGS.workdir, "row.json")
    names = [name for name in networks.NAMES if name in finished | set(FLAGS.networks)]
    both = {name: options.load_model(name) for name in names}
    loaded = {name: network for name, (network, _) in both.items()}
    examples = {}
    for network in loaded.values():
        if network.detects not in examples:
            examples[network.detects] = options.load_examples(network)
    settings = options.settings(__name__, UNRECORDED)
    manifest = {"settings": settings, "units": rundir.UNITS, **provenance.environment()}
    workdir = rundir.claim(FLAGS.workdir, manifest)
    results = {}
    for name in sorted(names, key=lambda name: name not in finished):  # rows that are there first
        margin = (
            evaluation.MARGINS[name.startswith("fr_")] if FLAGS.margin is None else FLAGS.margin
        )
        keys = [example["image_id"] for example in examples[loaded[name].detects]]
        for folder, logits in ((name, margin), (f"{name}_margin_0", 0.0)):
            if folder == name or margin:
                results[name, logits] = rundir.Results(
                    workdir / folder,
                    manifest_of(name, logits, both[name][1], settings),
                    keys,
                    process=process,
                    processes=processes,
                )

    # 2. A network at a time. Each process keeps its own images and waits for no other; process 0
    # joins what all have kept as soon as it is there.
    notes = {name: workdir / name / "failed" for name in loaded}
    forget(notes.values(), process, processes)
    rows, errors, attacked = {}, [], {}
    with noted(notes.values(), process):
        for name, network in loaded.items():
            with others_go_on(notes[name], evaluation.TITLES[name], process, errors):
                own = own_of(results, name)
                attacked[name] = attack(network, examples[network.detects], own, mesh)
            last = name == list(loaded)[-1]
            for other, new in [] if process else list(attacked.items()):
                own = own_of(results, other)
                if not (last or all(map(scores.are_there, own.values()))):
                    continue
                del attacked[other]
                with others_go_on(notes[other], evaluation.TITLES[other], process, errors):
                    known = examples[loaded[other].detects]
                    rows[other] = join(workdir / other, loaded[other], known, own, new)
                    seconds = time.monotonic() - started
                    done = f"{len(rows)} of {len(loaded)} networks, {seconds:.0f} s"
                    print(f"{summary(rows[other])}  ({done})", file=sys.stderr)
    rows = [rows[name] for name in loaded if name in rows]
    if process:
        print(f"process {process} is done; process 0 writes the table: {workdir}/")
    elif rows:
        text = write_table(workdir, rows, settings, {})  # an audit can be interrupted
        draw(workdir, rows, loaded, examples)
        if FLAGS.audit:
            found = audit_of(workdir, rows, loaded, examples, mesh)
            text = write_table(workdir, rows, settings, found)
        print(text)
        print(f"{time.monotonic() - started:.0f} s; results: {workdir}/")
    if errors:
        raise UserError("no row of " + "; no row of ".join(errors))


if __name__ == "__main__":
    console.run(main)
