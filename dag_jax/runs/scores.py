"""What the scores of a table are made of: each column of each image, by whichever process has it.

A column is one way to change the images: not at all, by the attack, by its permutation. What a
network says of an image is kept beside the attack (`rundir.Results.put`), and one process joins
what all have kept.

Shapes: `H W` pixels.
"""

import jax
import numpy as np

import dag_jax
from dag_jax import metrics
from dag_jax.runs import buckets, evaluation, findings, rundir

PERMUTATIONS = 3  # shuffles whose mean is PERM
_LAST = "advr"  # the column that is kept last: where it is, all are


def adversarial(runs, example, rounded, *, seed=0, shuffle=None):
    """Return an image with what attacks found for it.

    Args:
      runs: `rundir.Run`s whose perturbations of this image are added up; none: the clean image.
      example: the image's.
      rounded: whether it was attacked in whole grey levels.
      seed: of the permutations.
      shuffle: which permutation of the sum's rows and columns; None: as it is.

    Returns:
      f32[H, W, 3], RGB grey levels.
    """
    image = example["image"].astype(np.float32)
    if not runs:
        return image
    key = example["image_id"]
    change = sum(run.perturbation(key) for run in runs)
    if shuffle is not None:
        draw = jax.random.fold_in(dag_jax.image_key(seed, key), 1 + shuffle)
        change = np.asarray(metrics.permute(draw, change))
    return np.asarray(dag_jax.perturb(image, change, rounded=rounded))


def _columns(run, seed, rounded, *, all_of_them):
    """Return {column: function of an example that returns the image to score}.

    The images of the column uint8 are the PNGs of the folder, as they are read back.
    """
    columns = {}
    if all_of_them:
        columns["orig"] = lambda example: example["image"]
        columns["advr_uint8"] = lambda example: run.image(example["image_id"])
        for shuffle in range(PERMUTATIONS):
            columns[f"perm_{shuffle}"] = lambda example, shuffle=shuffle: adversarial(
                [run], example, rounded, seed=seed, shuffle=shuffle
            )
    return columns | {_LAST: lambda example: adversarial([run], example, rounded)}


def keep(network, examples, results, *, seed, rounded, all_of_them, mesh):
    """Run the network on this process's images, and keep what their scores are made of.

    Args:
      network: a `Network`.
      examples: all of them.
      results: `rundir.Results`, this process's images all attacked.
      seed: of the permutations.
      rounded: whether the image was attacked in whole grey levels.
      all_of_them: every column, or ADVR alone.
      mesh: from `console.open_mesh`.
    """
    run = rundir.read(results.folder)
    for column, image_of in _columns(run, seed, rounded, all_of_them=all_of_them).items():
        keep_column(network, examples, results, column, image_of, mesh=mesh)


def keep_column(network, examples, results, column, image_of, *, mesh):
    """Do what `keep` does, of one way to change the images.

    Args:
      network: a `Network`.
      examples: all of them; what they have for ground truth is what is scored against.
      results: `rundir.Results`.
      column: what the column is called, of letters, digits and '_'.
      image_of: function of an example that returns the image [H, W, 3] to score.
      mesh: from `console.open_mesh`.
    """
    shards = [shard for shard in results.shards() if not results.has(column, shard)]
    rows = [row for shard in shards for row in results.indices(shard)]
    if not rows:
        return
    images = buckets.Computed(image_of, [examples[row] for row in rows])
    found = {}
    for place, prediction in evaluation.predict_each(
        network,
        images,
        shapes=[examples[row]["image"].shape for row in rows],
        label=f"{evaluation.TITLES[network.name]} {column}",
        mesh=mesh,
    ):
        row = rows[place]
        for name, array in evaluation.evidence(examples[row], prediction).items():
            found[row, name] = array
    for shard in shards:
        own = results.indices(shard)
        results.put(
            column,
            shard,
            {f"{row} {name}": array for (row, name), array in found.items() if row in own},
        )


def are_there(results) -> bool:
    """Return whether every process has kept its scores, all columns of them."""
    return all(results.has(_LAST, shard) for shard in range(results.num_shards))


def missing(results, processes) -> dict[int, int]:
    """Return {process: images whose scores it has still to keep}."""
    counts = dict.fromkeys(range(processes), 0)
    for shard in range(results.num_shards):
        if not results.has(_LAST, shard):
            counts[shard % processes] += len(results.indices(shard))
    return counts


def join(examples, results, column) -> list[dict]:
    """Return the evidence of a column of each example, all processes'."""
    found: list = [{} for _ in examples]
    for shard in range(results.num_shards):
        for name, array in results.get(column, shard).items():
            row, kind = name.split(" ")
            found[int(row)][kind] = array
    return found


def mean_interval(values, *, within=(0, 100), seed=0) -> list[float]:
    """Return [value, low, high] of the mean of one number an image, rounded to hundredths.

    Args:
      values: float [M], in percent.
      within: the least and the largest number that the mean can be.
      seed: of the sets of images that the interval is over.
    """
    images = metrics.draw_images(seed, len(values))
    means = images @ np.asarray(values, np.float64) / len(values)
    return findings.as_list(metrics.interval(means, level=findings.LEVEL, within=within))


def verdict(difference, images) -> str:
    """Return whether images show that a difference is below 0, as a table says it.

    Args:
      difference: [value, low, high]; None where there is no image.
      images: their number.
    """
    if difference is None:
        return "-"
    said = findings.below(difference, images)
    return said if images < findings.FEWEST else f"{said}: {findings.text(difference)}"


def summary_of(records) -> dict:
    """Return the steps and sizes of attacks, as a table has them.

    Args:
      records: from `rundir.Results.finalise`.

    Returns:
      Medians, means and counts; those of steps and sizes are of the images that had targets.
    """
    status = np.array([record["status"] for record in records])
    with_targets = status != dag_jax.Status.NO_TARGETS.name

    def over(name, function):
        values = np.array([record[name] for record in records])[with_targets]
        return float(function(values)) if len(values) else 0.0

    return {
        "steps_median": over("num_steps", np.median),
        "perceptibility": over("perceptibility", np.mean),
        "largest_change_median": over("largest_change", np.median),
        "noticeable": over("largest_change", lambda v: np.mean(v >= evaluation.NOTICEABLE)),
        "unfinished": int((with_targets & (status != dag_jax.Status.FOOLED.name)).sum()),
        "no_targets": int((~with_targets).sum()),
        "images": len(records),
    }


def row_of(network, examples, own, *, margin, seed):
    """Return the row of a network once all its images are there.

    Args:
      network: a `Network`.
      examples: all of them.
      own: `rundir.Results` by margin; that of margin 0 is the paper's.
      margin: of the row.
      seed: of the sets of images that intervals are over.
    """
    results, by_paper = own[margin], own[0.0]
    images = metrics.draw_images(seed, len(examples))
    shuffles = [f"perm_{i}" for i in range(PERMUTATIONS)]
    found = {name: join(examples, results, name) for name in ("orig", "advr_uint8", *shuffles)}
    found |= {"advr": join(examples, results, "advr")}
    found |= {"advr_margin_0": join(examples, by_paper, "advr")}
    columns = {}
    for subset, classes in (("", None), ("_frequent", evaluation.FREQUENT)):
        sets = {
            name: evaluation.score_sets(examples, one, images, classes)
            for name, one in found.items()
        }
        sets["perm"] = np.mean([sets.pop(name) for name in shuffles], axis=0)
        columns |= {name + subset: float(scores[0]) for name, scores in sets.items()}
        if not subset:
            intervals = findings.intervals_of(sets)
    by_paper.finalise()
    return {
        "network": network.name,
        **{name: round(value, 2) for name, value in columns.items()},
        "intervals": intervals,
        "margin": margin,
        **summary_of(results.finalise()),
    }
