"""A segmentation driven to a drawing: a circle, a square, a strip, any word, or a mask of yours.

    python -m experiments.shapes
    python -m experiments.shapes --shape=word --word=JAX --class_name=cat --limit=3
    python -m experiments.shapes --mask=drawing.png

The paper's rule makes a pixel wrong and then leaves it alone, whatever it became. Here every pixel
is driven until its prediction is the drawing's class: --class_name inside, background outside. That
is how the authors' release draws (`dag_jax.variants.release`), but for the pixels that have their
class from the start: here they are targets too, so that they keep it. The attack stops once no more
than --stop_fraction of the pixels has another class.

A mask is a grey image of class indices, or one in the colours of VOC; it is scaled to each image,
and void in it (255) is left alone.

The attack scores the image in whole grey levels, so all that is said is of the saved PNG, predicted
again. Results go to --workdir: shapes.md, shapes.json, shapes.png with each shape on the first
image, and for each shape a folder of what was attacked and its row. An image is kept as soon as it
is finished: whatever kills a launch, the same command goes on with the next. Other shapes and words
add rows; a folder of another class, network, other settings or versions is refused.
"""

import functools
import json
import pathlib
import urllib.parse
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from absl import app, flags
from PIL import Image

import dag_jax
from dag_jax import datasets, files, metrics, networks
from dag_jax.datasets import drawings, photographs
from dag_jax.errors import UserError
from dag_jax.metrics.segmentation import VOID
from dag_jax.report import figures, tables
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

SEGMENTERS = [name for name in networks.NAMES if name.startswith("fcn_")]
DRAWN = {"circle": drawings.circle, "square": drawings.square, "strip": drawings.strip}
KINDS = (*DRAWN, "word", "file")
# Flags that change no row; a row says itself what its word or mask is.
UNRECORDED = ("shape", "word", "mask", *options.UNRECORDED)

FLAGS = flags.FLAGS
flags.DEFINE_enum("network", "fcn_vgg", SEGMENTERS, "The network to fool.")
flags.DEFINE_list(
    "shape",
    None,
    f"What to draw, some of {', '.join(KINDS)}. Default: the first four, and file where there is a "
    "--mask.",
)
flags.DEFINE_string("word", "DAG", "The word of --shape=word.")
flags.DEFINE_string("mask", None, "PNG of --shape=file: class indices, or in the colours of VOC.")
flags.DEFINE_enum("class_name", "person", datasets.CLASS_NAMES[1:], "The class inside the shape.")
flags.DEFINE_float(
    "stop_fraction",
    0.01,
    "Share of the pixels that may have another class than drawn.",
    lower_bound=0,
    upper_bound=1,
)
options.check(options.not_negative, "stop_fraction")
options.check(options.not_empty, "shape", "word", "mask")
options.define(
    __name__,
    *("dataset", "split", "data_dir", "cache_dir", "canvas", "checkpoints", "miniature"),
    *("image_ids", "limit", "max_steps", "step_size", "precision", "slots", "audit", "workdir"),
    tasks=("segmentation",),
    limit=10,
    workdir="runs/shapes",
)


class Drawing(NamedTuple):
    """What a segmentation is driven to."""

    kind: str  # of KINDS
    name: str  # of its folder
    title: str
    of: Callable  # (H, W) -> u8[H, W], the class of each pixel
    said: dict  # what it is of, for the manifest

    def on(self, examples):
        """Return the examples with the drawing for their masks."""
        return [
            {**example, "mask": self.of(example["image"].shape[:2])[:, :, None]}
            for example in examples
        ]


def foreground(mask_of, index):
    """Return the function of (H, W) that gives u8[H, W]: a class inside a shape, 0 outside."""
    return lambda shape: np.where(mask_of(shape), index, 0).astype(np.uint8)


def read_mask(path):
    """Return (function of (H, W) that gives the mask u8[H, W], SHA-256 of the file).

    Raises:
      ValueError: as `photographs.read_class_map` says, and for a mask of background and void alone.
    """
    classes, sha256 = photographs.read_class_map(path)
    if np.isin(classes, (0, VOID)).all():
        raise UserError(f"{path} has no pixel of a class, only background (0) or void ({VOID})")
    drawing = Image.fromarray(classes)

    def scaled(shape):
        return np.array(drawing.resize(shape[::-1], Image.Resampling.NEAREST))

    return scaled, sha256


def drawings_of(kinds):
    """Return the `Drawing`s of --shape, --word and --mask."""
    index = datasets.CLASS_NAMES.index(FLAGS.class_name)
    found = []
    for kind in kinds:
        name, title, said = kind, f"{kind} ({FLAGS.class_name})", {"shape": kind}
        if kind == "word":
            of = foreground(functools.partial(drawings.word, text=FLAGS.word), index)
            name = f"word_{urllib.parse.quote(FLAGS.word, safe='')}"
            title, said = f"“{FLAGS.word}” ({FLAGS.class_name})", said | {"word": FLAGS.word}
        elif kind == "file":
            of, sha256 = read_mask(FLAGS.mask)
            name, said = f"file_{sha256[:12]}", said | {"mask_sha256": sha256}
            title = pathlib.Path(FLAGS.mask).name
        else:
            of = foreground(DRAWN[kind], index)
        found.append(Drawing(kind, name, title, of, said))
    return found


def agreement(drawn, results, column):
    """Return how far a column's predictions are the drawing, in percent of each image.

    Args:
      drawn: examples whose masks are the drawing.
      results: `rundir.Results`.
      column: of `scores.keep_column`.

    Returns:
      f64[2, M], the share of pixels as drawn, and the mean IoU of the drawn classes but background.
    """
    shares, overlaps = [], []
    for one in scores.join(drawn, results, column):
        confusion = one["confusion"]
        there = np.flatnonzero(confusion.sum(axis=1)[1:]) + 1
        shares.append(100 * np.trace(confusion) / confusion.sum())
        overlaps.append(100 * metrics.class_iou(confusion)[there].mean())
    return np.array([shares, overlaps])


def attack_options():
    """Return how a shape is attacked, less what the manifest says."""
    release = dag_jax.variants.release()
    return release | {"rounded": True, "stop_fraction": FLAGS.stop_fraction}


def measure(network, drawn, results, drawing, *, max_steps, mesh):
    """Attack what a shape's folder lacks of the images, score the PNGs, return the row."""
    attacks.attack_all(
        network,
        drawn,
        results,
        seed=0,
        slots=options.slots(),
        mesh=mesh,
        label=drawing.title,
        targets_of=attacks.drawn_targets,
        max_steps=max_steps,
        step_size=FLAGS.step_size,
        **attack_options(),
    )
    run = rundir.read(results.folder)
    for column, image_of in (
        ("orig", lambda example: example["image"]),
        ("advr_uint8", lambda example: run.image(example["image_id"])),
    ):
        scores.keep_column(network, drawn, results, column, image_of, mesh=mesh)
    before, after = (agreement(drawn, results, column) for column in ("orig", "advr_uint8"))
    records = results.finalise()
    statuses = [record["status"] for record in records]
    return {
        **drawing.said,
        "title": drawing.title,
        "class_name": None if drawing.kind == "file" else FLAGS.class_name,
        "as_drawn_before": scores.mean_interval(before[0]),
        "as_drawn_after": scores.mean_interval(after[0]),
        "as_drawn_lost": scores.mean_interval(before[0] - after[0], within=(-100, 100)),
        "iou_before": scores.mean_interval(before[1]),
        "iou_after": scores.mean_interval(after[1]),
        **scores.summary_of(records),
        "statuses": {name: statuses.count(name) for name in sorted(set(statuses))},
    }


COLUMNS = (
    ("shape", lambda row: row["title"]),
    ("as drawn before", lambda row: f"{row['as_drawn_before'][0]:.1f}"),
    ("as drawn after", lambda row: findings.text(row["as_drawn_after"])),
    ("IoU before", lambda row: f"{row['iou_before'][0]:.1f}"),
    ("IoU after", lambda row: findings.text(row["iou_after"])),
    ("steps", lambda row: f"{row['steps_median']:g}"),
    ("p x1000", lambda row: f"{1000 * row['perceptibility']:.1f}"),
    ("largest", lambda row: f"{row['largest_change_median']:.0f}"),
    ("status", lambda row: ", ".join(f"{n} {name}" for name, n in row["statuses"].items())),
    ("images", lambda row: f"{row['images']}"),
)


CLAIMS = (
    ("shape", lambda row: row["title"]),
    (
        "the saved PNG is more as drawn than the clean image",
        lambda row: scores.verdict(row["as_drawn_lost"], row["images"]),
    ),
)


def report(rows, about) -> str:
    """Return shapes.md."""
    title = evaluation.TITLES[about["network"]]
    settings = about["settings"]
    size = "miniature" if settings["miniature"] else "full size"
    of = "rendered scenes" if settings["dataset"] == "scenes" else about["splits"]
    notes = [
        f"{title} ({size}) on {of}. M_0 {about['max_steps']}, step size "
        f"{settings['step_size']:g} grey levels; FOOLED: at most "
        f"{100 * settings['stop_fraction']:g}% of the pixels have another class than drawn.",
        "as drawn: percent of the pixels that the network gives the drawing's class, on the clean "
        "image and on the saved PNG; IoU: of the class inside the shape, percent. Both are means "
        f"over the images, with [{findings.LEVEL:.0%} interval] by the bootstrap over these.",
        "steps, largest (grey levels): medians; p: mean perceptibility; of the PNG.",
    ]
    text = "\n".join(f"{note}  " for note in notes)
    table, claims = tables.markdown(rows, COLUMNS), tables.markdown(rows, CLAIMS)
    shown = (
        "Behind each verdict the pixels as drawn on the clean image minus those on the PNG, in "
        "points, with its interval over the same images: the claim holds where all of it is below "
        "0, and does not where all is above."
    )
    parts = [f"# Shapes ({title}, {size})", text, table, "## What holds", shown, claims]
    return "\n\n".join(parts) + "\n"


def picture(network, example, run, row):
    """Return the `AttackRow` of a shape on an image."""
    key = example["image_id"]
    clean, saved = example["image"], run.image(key)
    record = run.records[run.keys.index(key)]
    before, after = evaluation.predict(network, [clean, saved])
    left, pixels = record["active_counts"][-1], clean.shape[0] * clean.shape[1]
    title = (
        f"{row['title']} on {key}: {record['status']} after {record['num_steps']} steps, "
        f"{left} of {pixels} pixels are not as drawn"
    )
    change = saved.astype(np.float32) - clean
    return figures.AttackRow(title, clean, saved, change, before, after)


def audit_of(workdir, names, wanted, network, examples, mesh):
    """Return what `audit.of_table` finds of this launch's shapes, and found of others before."""
    audited = {
        drawing.name: audit.Row(
            drawing.title,
            network,
            drawing.on(examples),
            audit.checks_but(
                audit_checks.permuted, *(audit_checks.model,) * (drawing is not wanted[0])
            ),
            targets_of=attacks.drawn_targets,
            options=attack_options(),
        )
        for drawing in wanted
    }
    found = audit.of_table(workdir, audited, mesh=mesh, slots=options.slots())
    found |= audit.kept(workdir, set(names) - set(audited))
    return {name: found[name] for name in names if name in found}


def write_table(workdir, rows, about, found):
    """Write the table and what its audit found; return the text."""
    titles = {name: row["title"] for name, row in rows.items()}
    content = {**about, "rows": list(rows.values())}
    shown = report(content["rows"], about)
    remedy = "the command that has these shapes, with --audit,"
    return audit.write(workdir, "shapes", shown, content, titles=titles, found=found, remedy=remedy)


def main(argv):
    """Attack for each shape, print the table, draw the pictures."""
    console.start(argv)
    mesh = console.open_mesh()

    # 1. Everything that can be wrong is read before anything is written.
    kinds = FLAGS.shape
    if kinds is None:
        kinds = [kind for kind in KINDS if kind != "file" or FLAGS.mask]
    console.check_names("shape", kinds, KINDS)
    if ("file" in kinds) != (FLAGS.mask is not None):
        raise app.UsageError("--shape=file and --mask go together")
    max_steps = FLAGS.max_steps or evaluation.MAX_STEPS[False]
    wanted = drawings_of(kinds)
    network, weights = options.load_model(FLAGS.network)
    examples = options.load_examples(network)
    for shape in {example["image"].shape[:2] for example in examples}:
        for drawing in wanted:
            if np.isin(drawing.of(shape), (0, VOID)).all():
                raise UserError(f"nothing of {drawing.title} is left in {shape[1]} x {shape[0]}")
    about = {
        "launch": "shapes",
        "network": network.name,
        "weights_sha256": weights,
        "max_steps": max_steps,
        "splits": FLAGS.split or evaluation.TEST_SPLITS[False],
        "settings": options.settings(__name__, UNRECORDED),
        **provenance.environment(),
    }
    workdir = attacks.claim(FLAGS.workdir, about, examples)

    # 2. A shape at a time; images and shapes that are finished are kept.
    keys = [example["image_id"] for example in examples]
    for drawing in wanted:
        folder = workdir / drawing.name
        if (folder / "row.json").exists():
            continue
        drawn = drawing.on(examples)
        results = rundir.Results(folder, about | drawing.said, keys)
        row = measure(network, drawn, results, drawing, max_steps=max_steps, mesh=mesh)
        rundir.write(folder / "row.json", json.dumps(row, indent=2) + "\n")

    # 3. The table and the picture, of all shapes that are there.
    rows = {
        name: files.load_json(workdir / name / "row.json")
        for name in sorted(rundir.folders_in(workdir, "row.json"))
    }
    rows = dict(sorted(rows.items(), key=lambda pair: KINDS.index(pair[1]["shape"])))
    text = write_table(workdir, rows, about, {})  # an audit can be interrupted
    pictures = [
        picture(network, examples[0], rundir.read(workdir / name), row)
        for name, row in rows.items()
    ]
    figures.attack_figure(pictures, workdir / "shapes.png")
    if FLAGS.audit:
        found = audit_of(workdir, rows, wanted, network, examples, mesh)
        text = write_table(workdir, rows, about, found)
    print(text)
    print(f"results: {workdir}/")


if __name__ == "__main__":
    console.run(main)
