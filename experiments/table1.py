"""Table 1: eight networks before the attack (ORIG), under it (ADVR), under its permutation (PERM).

    python -m experiments.table1                 40 images a network: what `make table1` runs
    python -m experiments.table1 --limit=100 --workdir=runs/table1_100     the table in the README
    python -m experiments.table1 --rounded       attack the image as the saved PNG will be
    python -m experiments.table1 --dataset=voc --data_dir=VOCdevkit --split=voc2012_seg_val \
        --canvas=128 --checkpoints=runs/photographs --networks=fcn_vgg,fr_vgg_07
    python -m experiments.table1 --nominiature --dataset=voc --data_dir=VOCdevkit --limit=0 \
        --checkpoints=runs/weights       the paper's own table: full-size networks, all of its lists

Photographs keep their sizes unless --canvas scales them: they go through a few compiled shapes, by
padding that changes no score. A thousand images take about 3 GB of memory beside the networks.

Results go to --workdir: table1.md, table1.json, figure1.png, and for each network a record per
image (records/), the perturbations by image id (perturbations/) and its row (rows/). The same
command goes on where a killed one stopped, and --networks adds rows to those that are there; a
folder with results of other settings is refused.
"""

import dataclasses
import hashlib
import json
import pathlib
import sys
import time

import jax
import numpy as np
from absl import app, flags

import dag_jax
from dag_jax import metrics, networks
from dag_jax.networks import zoo
from experiments import buckets, console, evaluation, figures, rundir

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
# The paper's test split of each kind of network (segments, detects); scenes have the same names.
TEST_SPLITS = {False: "seg11valid", True: "voc07_test"}
SLOTS = {"cpu": 2}  # a core gains nothing from more lanes, and the last images waste fewer
SHOWN_OF = 100  # images that the one in the picture is chosen from
PERMUTATIONS = 3  # shuffles whose mean is PERM
# Flags that change no row; whose weights a row is of, it says itself.
UNRECORDED = ("networks", "checkpoints", "cache_dir", "slots", "workdir")

FLAGS = flags.FLAGS
flags.DEFINE_list("networks", list(networks.NAMES), "Networks to attack.")
flags.DEFINE_enum("dataset", "scenes", ["scenes", "voc"], "What to attack them on.")
flags.DEFINE_string("split", None, "Split to attack. Default: each network's own.")
flags.DEFINE_string("data_dir", None, "Folder of VOC and SBD, extracted or not, for --dataset=voc.")
flags.DEFINE_string("cache_dir", None, "Where prepared datasets lie. Default: ~/.cache/dag_jax.")
flags.DEFINE_integer(
    "canvas", None, "Scale images to this square. Default: as they are.", evaluation.MIN_CANVAS
)
flags.DEFINE_string("checkpoints", None, "Folder of <network>.safetensors to use instead.")
flags.DEFINE_bool("miniature", True, "The small networks, or the full-size ones.")
flags.DEFINE_list("image_ids", None, "Names of the images to use. Default: all of the split.")
flags.DEFINE_integer("limit", 40, "Images a network, the first of the split; 0 is all.", 0)
flags.DEFINE_integer("max_steps", None, "M_0. Default: 200 for FCN, 150 for detectors.", 1)
flags.DEFINE_float("step_size", 0.5, "gamma, grey levels.")
flags.DEFINE_float("margin", None, "Logits a label must lose by. Default: 0 FCN, 3 detectors.")
flags.DEFINE_bool("rounded", False, "Attack the image as it will be saved, in whole grey levels.")
flags.DEFINE_integer("seed", 0, "Seed of adversarial labels and permutations.")
flags.DEFINE_integer(
    "slots", None, "Images at a time on each device. Default: 2 CPU, 16 others.", 1
)
flags.DEFINE_string("workdir", "runs/table1", "Where to write.")


def permuted_images(attacks, examples, seed, shuffle, rounded):
    """Return the images f32[H, W, 3] with each perturbation's rows and columns shuffled."""

    def permuted(attack, example):
        key = jax.random.fold_in(dag_jax.image_key(seed, example["image_id"]), 1 + shuffle)
        shuffled = metrics.permute(key, attack.perturbation)
        return evaluation.perturbed(
            dataclasses.replace(attack, perturbation=shuffled), rounded=rounded
        )

    return buckets.Computed(permuted, attacks, examples)


def measure(network, examples, *, margin, max_steps, step_size, rounded, seed, slots, mesh):
    """Attack the examples and score the network on what comes out.

    Returns:
      (row, attacks, advr at each margin): the row of the table as a dict, the `Attack` of each
      example.
    """
    title = evaluation.TITLES[network.name]

    def score(images, column):
        predictions = evaluation.predict(network, images, label=f"{title} {column}")
        return {
            subset: evaluation.score(examples, predictions, classes)
            for subset, classes in (("", None), ("_frequent", evaluation.FREQUENT))
        }

    def run(margin):
        return evaluation.attack_examples(
            network,
            inputs,
            slots=slots,
            mesh=mesh,
            label=f"{title} margin {margin:g}",
            max_steps=max_steps,
            step_size=step_size,
            rounded=rounded,
            margin=margin,
        )

    inputs = evaluation.attack_inputs(network, examples, seed)
    columns = {"orig": score(evaluation.clean_images(examples), "ORIG")}
    if margin:  # first, so that its perturbations are gone before the others come
        by_paper = evaluation.perturbed_images(run(0.0), rounded=rounded)
        columns["advr_margin_0"] = score(by_paper, "ADVR margin 0")
        del by_paper
    attacks = run(margin)
    columns["advr"] = score(evaluation.perturbed_images(attacks, rounded=rounded), "ADVR")
    columns.setdefault("advr_margin_0", columns["advr"])
    columns["advr_uint8"] = score(evaluation.perturbed_images(attacks, rounded=True), "uint8")
    shuffled = [
        score(permuted_images(attacks, examples, seed, shuffle, rounded), "PERM")
        for shuffle in range(PERMUTATIONS)
    ]
    columns["perm"] = {
        subset: float(np.mean([scores[subset] for scores in shuffled])) for subset in shuffled[0]
    }
    status = np.array([attack.status for attack in attacks])
    with_targets = status != dag_jax.Status.NO_TARGETS
    sizes = [
        (np.abs(change).max(), metrics.perceptibility(change))
        for change in (evaluation.change(attack, rounded=rounded) for attack in attacks)
    ]
    largest, perceptibility = np.array(sizes).T

    def over(values, function):
        return float(function(values[with_targets])) if with_targets.any() else 0.0

    row = {
        "network": network.name,
        **{
            f"{name}{subset}": round(value, 2)
            for name, values in columns.items()
            for subset, value in values.items()
        },
        "margin": margin,
        "steps_median": over(np.array([attack.num_steps for attack in attacks]), np.median),
        "perceptibility": over(perceptibility, np.mean),
        "largest_change_median": over(largest, np.median),
        "noticeable": over(largest >= evaluation.NOTICEABLE, np.mean),
        "unfinished": int((with_targets & (status != dag_jax.Status.FOOLED)).sum()),
        "no_targets": int((~with_targets).sum()),
        "images": len(examples),
    }
    return row, attacks


def records(examples, attacks, rounded):
    """Return one JSON line per image."""
    lines = []
    for example, attack in zip(examples, attacks, strict=True):
        steps = int(attack.num_steps)
        change = evaluation.change(attack, rounded=rounded)
        line = {
            "image_id": example["image_id"],
            "status": dag_jax.Status(int(attack.status)).name,
            "num_steps": steps,
            "active_counts": attack.active_counts[: steps + 1].tolist(),
            "perceptibility": float(metrics.perceptibility(change)),
            "largest_change": float(np.abs(change).max()),
        }
        lines.append(json.dumps(line) + "\n")
    return "".join(lines)


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
    splits = settings["split"] or ", ".join(TEST_SPLITS.values())
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
        "The columns 'paper' are the paper's own: full-size networks, PASCAL VOC (Xie et al., ICCV "
        "2017).",
    ]
    if not scenes:
        notes.append(f"The columns '7' average over {classes} alone.")
    text = "\n".join(f"{note}  " for note in notes)
    return f"# Table 1 ({size}, {kind})\n\n{text}\n\n{console.markdown(rows, columns)}\n"


def picture(network, examples, perturbations, rounded):
    """Return the `AttackRow` of the first image whose objects the network finds and loses.

    If no image is like that, it is the one that loses most.
    """
    examples = examples[:SHOWN_OF]
    clean = [example["image"].astype(np.float32) for example in examples]
    adversarial = [
        np.asarray(dag_jax.perturb(image, perturbations[example["image_id"]], rounded=rounded))
        for image, example in zip(clean, examples, strict=True)
    ]
    before, after = (evaluation.predict(network, images) for images in (clean, adversarial))
    scores = np.nan_to_num(
        [
            [evaluation.score([example], [one]) for one in pair]
            for example, *pair in zip(examples, before, after, strict=True)
        ]
    )
    several = np.array([len(example["objects"]["label"]) > 1 for example in examples])
    fit = several & (scores[:, 0] > 60) & (scores[:, 1] < 10)
    index = int(np.argmax(fit)) if fit.any() else int(np.argmax(scores[:, 0] - scores[:, 1]))
    example = examples[index]
    unit = "mAP" if network.detects else "mIoU"
    title = (
        f"{evaluation.TITLES[network.name]} on {example['image_id']}: "
        f"{unit} {scores[index, 0]:.0f} before, {scores[index, 1]:.0f} after"
    )
    images = clean[index], adversarial[index], perturbations[example["image_id"]]
    return figures.AttackRow(title, *images, before[index], after[index])


def main(argv):
    """Attack each network, print the table, write everything."""
    console.start(argv)
    mesh = console.open_mesh()
    started = time.monotonic()
    unknown = [name for name in FLAGS.networks if name not in networks.NAMES]
    if unknown or not FLAGS.networks:
        raise app.UsageError(
            f"--networks: unknown {', '.join(unknown) or 'nothing'}; known: "
            f"{', '.join(networks.NAMES)}"
        )
    if not (FLAGS.miniature or FLAGS.checkpoints):
        raise app.UsageError("--nominiature needs --checkpoints: no full-size weights are shipped")
    dag_jax.check_numbers(FLAGS.max_steps or 1, FLAGS.step_size, FLAGS.margin or 0)

    # 1. Everything that can be wrong is read before anything is written. Rows that the folder has
    # stay in the table.
    finished = {path.stem for path in pathlib.Path(FLAGS.workdir).glob("rows/*.json")}
    names = [name for name in networks.NAMES if name in finished | set(FLAGS.networks)]
    paths = {
        name: pathlib.Path(FLAGS.checkpoints or zoo.CHECKPOINTS) / f"{name}.safetensors"
        for name in names
    }
    loaded = {
        name: networks.load(name, miniature=FLAGS.miniature, checkpoint=path)
        for name, path in paths.items()
    }
    examples = {}
    for detects in sorted({network.detects for network in loaded.values()}):
        examples[detects] = evaluation.load_examples(
            FLAGS.dataset,
            [FLAGS.split or TEST_SPLITS[detects]],
            data_dir=FLAGS.data_dir,
            cache_dir=FLAGS.cache_dir,
            limit=FLAGS.limit or None,
            image_ids=FLAGS.image_ids,
            canvas=FLAGS.canvas,
            network=next(n for n in loaded.values() if n.detects == detects),
            one_size=False,
        )
    settings = rundir.settings_of(FLAGS, sys.argv[0], without=UNRECORDED)
    workdir = rundir.claim(FLAGS.workdir, settings)
    weights = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
    for name in (name for name in names if name in finished):
        path = workdir / "rows" / f"{name}.json"
        if json.loads(path.read_text())["weights_sha256"] != weights[name]:
            raise ValueError(
                f"{path} is the row of another checkpoint than {paths[name]}: give another "
                "--workdir, or remove the row"
            )
    for folder in ("rows", "records", "perturbations"):
        (workdir / folder).mkdir(exist_ok=True)

    # 2. A row at a time; a finished one is kept, if it is of the same weights.
    rows = []
    for name, network in loaded.items():
        path = workdir / "rows" / f"{name}.json"
        if not path.exists():
            chosen = examples[network.detects]
            row, attacks = measure(
                network,
                chosen,
                margin=evaluation.MARGINS[network.detects]
                if FLAGS.margin is None
                else FLAGS.margin,
                max_steps=FLAGS.max_steps or evaluation.MAX_STEPS[network.detects],
                step_size=FLAGS.step_size,
                rounded=FLAGS.rounded,
                seed=FLAGS.seed,
                slots=FLAGS.slots or SLOTS.get(jax.default_backend(), 16),
                mesh=mesh,
            )
            rundir.write(
                workdir / "records" / f"{name}.jsonl", records(chosen, attacks, FLAGS.rounded)
            )
            np.savez(
                workdir / "perturbations" / f"{name}.npz",
                **{e["image_id"]: a.perturbation for e, a in zip(chosen, attacks, strict=True)},
            )
            row["weights_sha256"] = weights[name]
            rundir.write(path, json.dumps(row, indent=2) + "\n")
        rows.append(json.loads(path.read_text()))
        done = f"{len(rows)} of {len(loaded)} networks, {time.monotonic() - started:.0f} s"
        print(
            f"{evaluation.TITLES[name]}: ORIG {rows[-1]['orig']:.2f} ADVR {rows[-1]['advr']:.2f} "
            f"PERM {rows[-1]['perm']:.2f}  ({done})",
            file=sys.stderr,
        )

    # 3. The table and the pictures.
    text = report(rows, settings)
    rundir.write(workdir / "table1.md", text)
    content = {"settings": settings, "rows": rows}
    rundir.write(workdir / "table1.json", json.dumps(content, indent=2) + "\n")
    shown = {name.rsplit("_", 1)[0] if "fr_" in name else name[:7]: name for name in loaded}
    pictures = []
    for name in shown.values():
        with np.load(workdir / "perturbations" / f"{name}.npz") as perturbations:
            network = loaded[name]
            pictures.append(
                picture(network, examples[network.detects], perturbations, FLAGS.rounded)
            )
    figures.attack_figure(pictures, workdir / "figure1.png")
    print(text)
    print(f"{time.monotonic() - started:.0f} s; results: {workdir}/")


if __name__ == "__main__":
    app.run(main)
