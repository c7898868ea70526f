"""A segmentation driven to a drawing: a circle, a square, a strip, any word, or a mask of yours.

    python -m experiments.shapes
    python -m experiments.shapes --shape=word --word=JAX --class_name=cat --limit=3
    python -m experiments.shapes --mask=drawing.png
    python -m experiments.shapes --models=fcn_alex,my_package.my_module:load

The paper's rule makes a pixel wrong and then leaves it alone. Here every pixel is driven until its
prediction is the drawing's class: --class_name inside, background outside. The authors' release
draws in the same way (`dag_jax.methods.release`), except for pixels that have their class from the
start: here they are targets too, so that they keep it. The attack stops once at most
--stop_fraction of the pixels have another class.

A mask is a grey image of the model's class indices, or one in the colours of VOC; it is scaled to
each image, and void in it (255) is left alone.

The attack scores the image in whole grey levels, so all that is said is of the saved PNG, predicted
again. Results go to --workdir: shapes.md, shapes.json, shapes.png with each shape on the first
image, and for each model and shape a folder of what was attacked and its row. An image is kept as
soon as it is finished: whatever kills a launch, the same command goes on with the next. Other
shapes, words and models add rows; a folder of another class, other settings or versions is refused.
"""

import contextlib
import dataclasses
import functools
import pathlib
import urllib.parse
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from absl import app, flags
from PIL import Image

from dag_jax import methods, metrics, models
from dag_jax.datasets import ExampleSet, drawings, photographs
from dag_jax.errors import UserError
from dag_jax.models import SEGMENTATION
from dag_jax.report import figures, findings, pictures, tables
from dag_jax.runs import audit, audit_checks, audit_scores, evaluation, scores
from dag_jax.runs.attacks import Plan
from dag_jax.runs.targets import drawn_targets
from experiments.common import console, inputs, options
from experiments.common.table import Entry, Table, rows_in, starting

DRAWN = {"circle": drawings.circle, "square": drawings.square, "strip": drawings.strip}
KINDS = (*DRAWN, "word", "file")
COLUMNS_SCORED = ("orig", "advr_uint8")
# Flags that change no row; a row says itself what its word or mask is.
UNRECORDED = ("models", "shape", "word", "mask", *options.UNRECORDED)

FLAGS = flags.FLAGS
options.strings(
    "shape",
    None,
    f"What to draw, some of {', '.join(KINDS)}. Default: the first four, and file where there is a "
    "--mask.",
)
options.string("word", "DAG", "The word of --shape=word.")
options.string("mask", None, "PNG of --shape=file: class indices, or in the colours of VOC.")
options.string("class_name", "person", "The class inside the shape, one of the model's.")
options.number(
    "stop_fraction",
    0.01,
    "Share of the pixels that may have another class than drawn.",
    options.share,
)
options.define(
    __name__,
    *("models", "dataset", "split", "data_dir", "cache_dir", "canvas", "weights_dir", "miniature"),
    *("image_ids", "skip_bad", "limit", "max_steps", "step_size", "precision", "slots", "audit"),
    *("accept_version", "workdir"),
    tasks=(SEGMENTATION,),
    models=["fcn_vgg"],
    limit=10,
    workdir="runs/shapes",
)


class Drawing(NamedTuple):
    """A drawing that a segmentation is driven to."""

    name: str  # of its folder
    title: str
    mask_of: Callable  # (H, W) -> i32[H, W], the class of each pixel
    facts: dict  # what it is of, for the manifest and the row

    def on(self, subject):
        """Return the subject with the drawing for the masks of its examples.

        Raises:
          UserError: where nothing of it is left in an image's size.
        """
        about, void = subject.about, subject.examples.void
        masks = {}
        for example in subject.examples:
            shape = example["image"].shape[:2]
            if shape not in masks:
                masks[shape] = self.mask_of(shape)
                if np.isin(masks[shape], (about.background, void)).all():
                    size = f"{shape[1]} x {shape[0]}"
                    raise UserError(f"nothing of {self.title} is left in {size}")
        drawn = [
            {**example, "mask": masks[example["image"].shape[:2]][:, :, None]}
            for example in subject.examples
        ]
        skipped = subject.examples.skipped
        examples = ExampleSet(drawn, about.classes, void=void, skipped=skipped)
        return dataclasses.replace(subject, examples=examples)


def foreground(shape_of, inside, outside):
    """Return the function of (H, W) that gives i32[H, W]: a class inside a shape, one outside."""
    return lambda shape: np.where(shape_of(shape), inside, outside).astype(np.int32)


def read_mask(path, about, void):
    """Return (function of (H, W) that gives the mask i32[H, W], SHA-256 of the file).

    Raises:
      UserError: as `photographs.read_class_map` says, and for a mask of background and void alone.
    """
    classes, sha256 = photographs.read_class_map(path, classes=about.classes, void=void)
    if np.isin(classes, (about.background, void)).all():
        raise UserError(f"{path} has no pixel of a class, only background or void")
    drawing = Image.fromarray(classes.astype(np.int32), "I")

    def scaled(shape):
        return np.array(drawing.resize(shape[::-1], Image.Resampling.NEAREST))

    return scaled, sha256


def class_inside(about) -> int:
    """Return the index of --class_name in a model's classes, called as by models and datasets.

    Raises:
      app.UsageError: where the model has no background to draw on, or no such class.
    """
    if about.background is None:
        raise app.UsageError(f"{about.title} has no background to draw on")
    with contextlib.suppress(UserError):  # there is no such class
        (index,) = models.share_classes(about, (FLAGS.class_name,)).of_model
        if index != about.background:
            return index
    known = [name for i, name in enumerate(about.classes) if i != about.background]
    raise app.UsageError(f"--class_name={FLAGS.class_name}: {about.title} has {', '.join(known)}")


def drawing_of(kind, word, subject) -> Drawing:
    """Return a drawing in a model's classes: of one of `KINDS`, with its word if it has one.

    Raises:
      app.UsageError: as `class_inside` says.
      UserError: for a mask that cannot be read, or is of nothing.
    """
    about = subject.about
    classes = class_inside(about), about.background
    facts = {"shape": kind, "class_name": FLAGS.class_name}
    if kind == "file":
        mask_of, sha256 = read_mask(FLAGS.mask, about, subject.examples.void)
        facts |= {"class_name": None, "mask_sha256": sha256}
        return Drawing(f"file_{sha256[:12]}", pathlib.Path(FLAGS.mask).name, mask_of, facts)
    name, title, shape_of = kind, kind, DRAWN.get(kind)
    if kind == "word":
        name, title = f"word_{urllib.parse.quote(word, safe='')}", f"“{word}”"
        shape_of, facts = functools.partial(drawings.word, text=word), facts | {"word": word}
    title = f"{title} ({FLAGS.class_name})"
    return Drawing(name, title, foreground(shape_of, *classes), facts)


def entry_of(drawing, subject, *, first) -> Entry:
    """Return the row of a drawing; only the first of a model's drawings is audited as a model."""
    method = methods.release().replace(
        rounded=True,
        stop_fraction=FLAGS.stop_fraction,
        step_size=FLAGS.step_size,
        max_steps=FLAGS.max_steps or subject.about.max_steps,
    )
    checks = audit.checks_but(audit_scores.permuted, *(audit_checks.model,) * (not first))
    return Entry(
        f"{subject.name} {drawing.name}",
        drawing.title,
        Plan(drawing.on(subject), method, drawn_targets),
        {"split": inputs.split_of(subject.model), **drawing.facts},
        columns=COLUMNS_SCORED,
        complete=_completed,
        checks=checks,
    )


def _completed(entry, results, row, beside):
    """Return a row with the agreement of predictions and drawing, and the attacks' statuses."""
    del beside
    background = entry.plan.subject.about.background
    before, after = (agreement(results, column, background) for column in COLUMNS_SCORED)
    statuses = [record["status"] for record in results.records()]
    facts = {name: value for name, value in entry.manifest.items() if name != "split"}
    return row | {
        **facts,
        "as_drawn_before": scores.mean_interval(before[0]),
        "as_drawn_after": scores.mean_interval(after[0]),
        "as_drawn_lost": scores.mean_interval(before[0] - after[0], within=(-100, 100)),
        "iou_before": scores.mean_interval(before[1]),
        "iou_after": scores.mean_interval(after[1]),
        "statuses": {name: statuses.count(name) for name in sorted(set(statuses))},
    }


def agreement(results, column, background) -> np.ndarray:
    """Return the agreement of a column's predictions with the drawing, in percent of each image.

    Args:
      results: `rundir.Results`.
      column: of `scores.COLUMNS`.
      background: the class outside.

    Returns:
      f64[2, M], the share of pixels as drawn, and the mean IoU of the drawn classes but background.
    """
    shares, overlaps = [], []
    for arrays in scores.join(results, column):
        confusion = arrays["confusion"]
        drawn = [i for i in np.flatnonzero(confusion.sum(axis=1)) if i != background]
        shares.append(100 * np.trace(confusion) / confusion.sum())
        overlaps.append(100 * metrics.class_iou(confusion)[drawn].mean())
    return np.array([shares, overlaps])


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
        lambda row: findings.verdict(row["as_drawn_lost"], row["images"]),
    ),
)


def line(entry, row) -> str:
    """Return the line that is printed for a finished row."""
    before, after = (row[f"as_drawn_{when}"][0] for when in ("before", "after"))
    return f"{row['model']}, {entry.title}: {before:.0f}% to {after:.0f}% as drawn"


def report(table):
    """Return shapes.md, a table for each model, and nothing more for shapes.json."""
    settings = table.settings
    kind = "rendered scenes" if settings["dataset"] == "scenes" else settings["dataset"]
    notes = [
        f"Images: {kind}. Step size {settings['step_size']:g} grey levels; FOOLED: at most "
        f"{100 * settings['stop_fraction']:g}% of the pixels have another class than drawn.",
        "as drawn: percent of the pixels that the model gives the drawing's class, on the clean "
        "image and on the saved PNG; IoU: of the class inside the shape, percent. Both are means "
        "over the images, with [95% interval] by the bootstrap over these.",
        "steps, largest (grey levels): medians; p: mean perceptibility; of the PNG.",
        *table.notes(),
    ]
    parts = ["# Shapes", "\n".join(f"{note}  " for note in notes)]
    shown = (
        "Behind each verdict the pixels as drawn on the clean image minus those on the PNG, in "
        "points, with its interval over the same images: the claim holds where all of it is below "
        "0, and does not where all is above."
    )
    for title, rows in table.models.items():
        cells, claims = tables.markdown(rows, COLUMNS), tables.markdown(rows, CLAIMS)
        parts += [f"## {title}", cells, f"### What holds of {title}", shown, claims]
    return "\n\n".join(parts) + "\n", {}


def picture(entry, run, row) -> figures.AttackRow:
    """Return the picture of a shape on the first image."""
    subject = entry.plan.subject
    example = subject.examples[0]
    key = str(example["image_id"])
    clean, saved, record = example["image"], run.image(key), run.record(key)
    before, after = evaluation.predict(subject.model, [clean, saved])
    wrong_pixels, pixels = record["active_counts"][-1], clean.shape[0] * clean.shape[1]
    title = (
        f"{row['title']} on {key}: {record['status']} after {record['num_steps']} steps, "
        f"{wrong_pixels} of {pixels} pixels are not as drawn"
    )
    return figures.AttackRow(title, clean, saved, before, after)


def draw(table) -> None:
    """Draw each shape on the first image, a picture for each model."""
    entries = {entry.name: entry for entry in table.entries}
    for number, rows in enumerate(table.models.values()):
        made = [(entries[row["row"]], row) for row in rows if row["row"] in table.made]
        if made:
            shown = [picture(entry, table.run(row), row) for entry, row in made]
            pictures.draw(shown, table.picture(number), made[0][0].plan.subject)


def main(argv):
    """Attack for each shape, print the table, draw the pictures."""
    share = console.start_shared(argv)
    mesh = console.open_mesh()

    # 1. Everything that can be wrong is read before anything is written.
    settings = options.settings(__name__, UNRECORDED)
    with starting("shapes", settings, share):
        kinds = FLAGS.shape
        if kinds is None:
            kinds = [kind for kind in KINDS if kind != "file" or FLAGS.mask]
        console.check_names("shape", kinds, KINDS)
        if ("file" in kinds) != (FLAGS.mask is not None):
            raise app.UsageError("--shape=file and --mask go together")
        finished = rows_in(FLAGS.workdir, "shapes")
        wanted_shapes = [(kind, FLAGS.word if kind == "word" else None) for kind in kinds]
        entries = []
        for name in dict.fromkeys([*(row["network"] for row in finished.values()), *FLAGS.models]):
            subject = inputs.subject(name)
            if subject.about.detects:
                raise app.UsageError(f"--models: {name} detects, and has no pixels to draw with")
            finished_shapes = [
                (row["shape"], row.get("word"))
                for row in finished.values()
                if row["network"] == name and row["shape"] != "file"
            ]
            wanted = dict.fromkeys(finished_shapes + wanted_shapes * (name in FLAGS.models))
            drawn = [drawing_of(*each, subject) for each in wanted]
            entries += [entry_of(each, subject, first=each is drawn[0]) for each in drawn]
    # The mask of a row of an earlier launch need not be there any more.
    made = {entry.name for entry in entries}
    earlier = [row for name, row in finished.items() if name not in made]
    table = Table("shapes", entries, settings=settings, share=share, earlier=earlier)

    # 2. A shape at a time; images and shapes that are finished are kept.
    table.make(mesh, line)

    # 3. The table, the pictures and the audit, of all shapes that are there.
    table.finish(mesh, report, draw)


if __name__ == "__main__":
    console.run(main)
