"""The scores of a table: evidence of each column of each image, and their row.

A column is one way to change the images: not at all, by the attack, by its permutation. Each
process writes the evidence of its images beside the attack (`rundir.Results.put`), and one process
joins the evidence of all.

Shapes: `H W` pixels.
"""

import io

import jax
import numpy as np

from dag_jax import files, metrics
from dag_jax.engine.algorithm import Status, perturb
from dag_jax.engine.targets import image_key
from dag_jax.errors import optional_import
from dag_jax.runs import buckets, evaluation, findings, rundir
from dag_jax.runs.attacks import Plan

PERMUTATIONS = 3  # shuffles whose mean is PERM
SHUFFLED = tuple(f"perm_{shuffle}" for shuffle in range(PERMUTATIONS))
ADVR = "advr"
# Of all that a row can have; the attacked image comes last: where it is there, all are.
COLUMNS = ("orig", "advr_uint8", *SHUFFLED, ADVR)
LABELS = "labels_png"  # beside the evidence: what a segmenter said of each pixel
_LABELLED = ("orig", ADVR, "advr_uint8")  # the columns that have it
NOTICEABLE = 10  # grey levels: the paper's figures stay below


def adversarial(runs, example, rounded, *, seed=0, shuffle=None):
    """Return an image with the sum of its perturbations.

    Args:
      runs: `rundir.Run`s whose perturbations of this image are added; none: the clean image.
      example: the example of the image.
      rounded: whether it was attacked in whole grey levels.
      seed: of the permutations.
      shuffle: number of the permutation of the sum's rows and columns; None does not permute.

    Returns:
      f32[H, W, 3], RGB grey levels.
    """
    image = example["image"].astype(np.float32)
    if not runs:
        return image
    key = example["image_id"]
    change = sum(run.perturbation(key) for run in runs)
    if shuffle is not None:
        draw = jax.random.fold_in(image_key(seed, key), 1 + shuffle)
        change = np.asarray(metrics.permute(draw, change))
    return np.asarray(perturb(image, change, rounded=rounded))


def image_of(column, run, plan: Plan):
    """Return the function that makes a column's image of an example.

    The images of the column advr_uint8 are read from the folder's PNGs.
    """
    rounded, seed = plan.method.rounded, plan.seed
    if column == "orig":
        return lambda example: example["image"]
    if column == "advr_uint8":
        return lambda example: run.image(example["image_id"])
    shuffle = SHUFFLED.index(column) if column in SHUFFLED else None
    return lambda example: adversarial([run], example, rounded, seed=seed, shuffle=shuffle)


def keep(plan: Plan, results: rundir.Results, *, columns=COLUMNS, mesh=None, progress=True):
    """Run the model on this process's images, and write the evidence for their scores.

    Args:
      plan: the attack.
      results: all images of this process are attacked.
      columns: which of `COLUMNS`.
      mesh: devices.
      progress: show bars on stderr.
    """
    run = rundir.read(results.folder)
    for column in columns:
        change = image_of(column, run, plan)
        keep_column(plan.subject, results, column, change, mesh=mesh, progress=progress)


def keep_column(
    subject, results, column, image_function, *, examples=None, mesh=None, progress=True
):
    """Do as `keep` for one column.

    Args:
      subject: the model and its examples.
      results: `rundir.Results`.
      column: the column's name, of letters, digits and '_'.
      image_function: function of an example that returns the image [H, W, 3] to score.
      examples: the ground truth to score against; None is the subject's.
      mesh: devices.
      progress: show a bar on stderr.
    """
    examples = subject.examples if examples is None else examples
    rows = [row for row in results.process_rows() if not results.has(column, row)]
    if not rows:
        return
    predictions = evaluation.predict_each(
        subject.model,
        buckets.Computed(image_function, [examples[row] for row in rows]),
        shapes=[examples[row]["image"].shape for row in rows],
        label=f"{subject.about.title} {column}" if progress else None,
        mesh=mesh,
    )
    for place, prediction in predictions:
        row = rows[place]
        arrays = evaluation.evidence(subject, examples[row], prediction)
        if column in _LABELLED and not subject.about.detects:
            arrays = {**arrays, LABELS: pack_labels(prediction)}
        results.put(column, row, arrays)


def pack_labels(labels) -> np.ndarray:
    """Return labels i32[H, W] of 0 to 65535 as a PNG, u8[n]; it has 1 to 3% of their size."""
    labels = np.asarray(labels)
    small = labels.astype(np.uint8 if labels.max() < 256 else np.uint16)
    return np.frombuffer(files.pack_image(small), np.uint8)


def unpack_labels(png) -> np.ndarray:
    """Return the labels i32[H, W] that `pack_labels` packed."""
    with optional_import("data"):
        from PIL import Image

    with Image.open(io.BytesIO(png.tobytes())) as image:
        return np.asarray(image).astype(np.int32)


def join(results, column) -> list[dict]:
    """Return a column's evidence of each example, from all processes."""
    return [results.get(column, row) for row in range(len(results.keys))]


def mean_interval(values, *, within=(0, 100), seed=0) -> list[float]:
    """Return [mean, low, high] of one number for each image, rounded to hundredths.

    Args:
      values: float [M], in percent.
      within: the least and the largest possible mean.
      seed: of the sets of images that the interval is over.
    """
    images = metrics.draw_images(seed, len(values))
    means = images @ np.asarray(values, np.float64) / len(values)
    return findings.as_list(metrics.interval(means, level=findings.LEVEL, within=within))


def summary_of(records) -> dict:
    """Return the steps and sizes of attacks for a table.

    Args:
      records: from `rundir.Results.records`.

    Returns:
      A dict of medians, means and counts. Steps, sizes and `fooled` are over the images that had
      targets. `fooled` is the share of saved PNGs that fool; `fooled_float`, the paper's, is the
      share of attacked images before rounding.
    """
    with_targets = np.array([record["status"] != Status.NO_TARGETS.name for record in records])

    def over(name, function):
        values = np.array([record[name] for record in records])[with_targets]
        return float(function(values)) if len(values) else 0.0

    finished = np.array([record["fooled"] for record in records])
    return {
        "steps_median": over("num_steps", np.median),
        "perceptibility": over("perceptibility", np.mean),
        "largest_change_median": over("largest_change", np.median),
        "noticeable": over("largest_change", lambda v: np.mean(v >= NOTICEABLE)),
        "fooled": over("fooled_png", np.mean),
        "fooled_float": over("fooled", np.mean),
        "unfinished": int((with_targets & ~finished).sum()),
        "no_targets": int((~with_targets).sum()),
        "images": len(records),
    }


def seconds_of(results: rundir.Results) -> float | None:
    """Return the mean seconds from one finished image to the next; None where no timing is left.

    They are wall-clock seconds, so they depend on the machine's other work. The first image of each
    launch, which includes compilation, is left out.
    """
    timings = [results.timing(row) for row in range(len(results.keys))]
    since = [timing["since"] for timing in timings if "since" in timing]
    return float(np.mean(since)) if since else None


def row_of(plan: Plan, results: rundir.Results, *, columns=COLUMNS, subsets=None) -> dict:
    """Return the row of a plan whose images are all done.

    Args:
      plan: the attack.
      results: complete, with their columns.
      columns: which of `COLUMNS`. The columns of the permutations become one, "perm".
      subsets: {ending: names of classes}, for further scores over these of the shared classes.

    Returns:
      A dict of JSON values: scores in percent, their intervals, steps and sizes.
    """
    subject, examples = plan.subject, plan.subject.examples
    images = metrics.draw_images(plan.seed, len(examples))
    column_evidence = {column: join(results, column) for column in columns}
    names = subject.about.classes
    scores: dict = {}
    intervals: dict = {}
    class_scores = {
        column: evaluation.class_scores(subject, examples, column_evidence[column])
        for column in ("orig", ADVR)
        if column in column_evidence
    }
    for ending, wanted in {"": None, **(subsets or {})}.items():
        classes = None if wanted is None else [i for i, name in enumerate(names) if name in wanted]
        sets = {
            column: evaluation.score_sets(subject, examples, evidence, images, classes)
            for column, evidence in column_evidence.items()
        }
        shuffled = [sets.pop(column) for column in SHUFFLED if column in sets]
        if shuffled:
            sets["perm"] = np.mean(shuffled, axis=0)
        scores |= {column + ending: float(values[0]) for column, values in sets.items()}
        if not ending:
            intervals = findings.intervals_of(sets)
    return {
        **subject.facts(),
        **{name: round(value, 2) for name, value in scores.items()},
        "intervals": intervals,
        "class_scores": class_scores,
        "method": plan.method.describe(),
        "margin": plan.method.describe()["margin"],
        "max_steps": plan.method.max_steps,
        **summary_of(results.records()),
    }
