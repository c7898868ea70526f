"""The attack of many images: their targets, the stream, and what is kept of each.

Shapes: `H W` pixels, `N` targets, `G` ground-truth boxes, `C` classes.
"""

import contextlib
import dataclasses
import functools
import operator
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import dag_jax
from dag_jax import files, metrics, networks
from dag_jax.errors import UserError
from dag_jax.metrics.segmentation import VOID
from dag_jax.progress import progress
from dag_jax.runs import buckets, evaluation, rundir

_FEWEST_BOXES = 8  # rows that lists of ground-truth boxes have, doubled as often as needed
_FEWEST_TARGETS = 128  # rows that lists of targets have, four times as many as often as needed


def _length(count, fewest, factor):
    """Return the least of fewest, fewest * factor, ... that is no less than count.

    A list's length depends on nothing but the image, and each length is a compilation.
    """
    while fewest < count:
        fewest *= factor
    return fewest


@functools.partial(jax.jit, static_argnames="max_proposals")
def _find_targets(
    network,
    key,
    image,
    truth_boxes,
    truth_labels,
    truth_valid,
    *extent,
    nms_threshold,
    max_proposals,
):
    boxes, _, proposed = networks.propose(
        network, image, *extent, nms_threshold=nms_threshold, max_proposals=max_proposals
    )
    scores = networks.score_fn(network, boxes)(image, *extent)
    labels, valid = dag_jax.label_proposals(
        boxes, scores, proposed, truth_boxes, truth_labels, truth_valid
    )
    adversarial = dag_jax.permute_labels(key, labels, evaluation.NUM_CLASSES, first_class=1)
    targets = dag_jax.make_targets(labels, adversarial, valid)
    first = jnp.argsort(~targets.valid, stable=True)  # targets to the front
    targets, boxes = jax.tree.map(lambda leaf: leaf[first], (targets, boxes))
    return targets, boxes, proposed.sum()


@functools.partial(jax.jit, static_argnums=2)
def _pixel_targets(key, mask, num_classes):
    return dag_jax.make_targets(mask, dag_jax.permute_labels(key, mask, num_classes))


def _proposal_targets(group, example, seed, nms_threshold, max_proposals):
    """Return (targets, boxes, number of proposals) of a detector's example, on the host."""
    objects = example["objects"]
    count = len(objects["label"])
    rows = _length(count, _FEWEST_BOXES, 2)
    boxes, labels = np.zeros((rows, 4), np.float32), np.zeros(rows, np.int32)
    boxes[:count], labels[:count] = objects["boxes"], objects["label"]
    found = _find_targets(
        group.network,
        dag_jax.image_key(seed, example["image_id"]),
        group.pad(example["image"].astype(np.float32)),
        *(boxes, labels, np.arange(rows) < count),
        *group.extent(example["image"].shape),
        nms_threshold=np.float32(nms_threshold),
        max_proposals=max_proposals or evaluation.ATTACK_PROPOSALS[group.network.miniature],
    )
    return jax.device_get(found)


def paper_targets(group, example, seed, *, nms_threshold=evaluation.ATTACK_NMS, max_proposals=None):
    """Find what the paper attacks in an example, and the adversarial labels.

    The targets of an FCN are all pixels that are not void; a detector's are its own proposals on
    the clean image that find an object.

    Args:
      group: a `buckets.Group`, with the network.
      example: from `evaluation.load_examples`.
      seed: of the permutation of the classes.
      nms_threshold: IoU that two proposals of a detector may have. Its evaluation has its own.
      max_proposals: the most proposals kept; None is `evaluation.ATTACK_PROPOSALS`.

    Returns:
      (targets, inputs): what `attack_stream` takes beside the image, arrays being NumPy's.
    """
    if group.network.detects:
        targets, boxes, _ = _proposal_targets(group, example, seed, nms_threshold, max_proposals)
        keep = slice(_length(targets.valid.sum(), _FEWEST_TARGETS, 4))
        return jax.tree.map(operator.itemgetter(keep), (targets, (boxes,)))
    key = dag_jax.image_key(seed, example["image_id"])
    mask = group.pad(example["mask"][:, :, 0].astype(np.int32), VOID)
    targets = jax.device_get(_pixel_targets(key, mask, evaluation.NUM_CLASSES))
    return buckets.crop(targets, example["image"].shape, group.shape), ()


def absent_targets(group, example, seed):
    """Find what `paper_targets` does, driven to classes that no target of the image has."""
    targets, inputs = paper_targets(group, example, seed)
    adversarial = dag_jax.absent_labels(
        dag_jax.image_key(seed, example["image_id"]),
        targets.labels,
        evaluation.NUM_CLASSES,
        valid=targets.valid,
        first_class=int(group.network.detects),
    )
    targets = dag_jax.make_targets(targets.labels, adversarial, targets.valid)
    return jax.device_get(targets), inputs


@jax.jit
def _drawn_targets(network, image, drawn, *extent):
    _, best = jax.lax.top_k(networks.score_fn(network)(image, *extent), 2)
    # A pixel that is as drawn has the next best class for its label: it is a target, at rest.
    labels = jnp.where(best[..., 0] == drawn, best[..., 1], best[..., 0])
    return dag_jax.make_targets(labels, drawn)


def drawn_targets(group, example, seed):
    """Find what drives a segmentation to the example's mask, as a `targets_of` for `attack_all`.

    Every pixel that is not void is a target: adversarial is the mask, the label what the network
    says of the clean image. Where that is as drawn already, the label is the next best class, so
    that an attack which asks for the adversarial label keeps the pixel.

    Args:
      group: a `buckets.Group` with an FCN.
      example: its mask is the drawing.
      seed: not used.

    Returns:
      (targets, ()), arrays being NumPy's.
    """
    del seed
    shape = example["image"].shape
    image = group.pad(example["image"].astype(np.float32))
    drawn = group.pad(example["mask"][:, :, 0].astype(np.int32), VOID)
    targets = jax.device_get(_drawn_targets(group.network, image, drawn, *group.extent(shape)))
    return buckets.crop(targets, shape, group.shape), ()


def _groups(network, examples, rows):
    """Yield (row, the `buckets.Group` that the image goes through, or a `dag_jax.Failure`)."""
    shapes = {example["image"].shape for example in examples}
    (one_size,) = buckets.group(network, list(shapes)) if len(shapes) == 1 else (None,)
    for row in range(len(examples)) if rows is None else rows:
        try:
            yield row, one_size or buckets.of(network, examples[row]["image"].shape)
        except ValueError as error:
            yield row, dag_jax.Failure(row, error)


def attack_inputs(network, examples, seed: int, rows=None, *, targets_of=paper_targets):
    """Find what `attack_stream` takes of each example.

    Args:
      network: a `Network`.
      examples: from `evaluation.load_examples`.
      seed: of the adversarial labels.
      rows: which examples; None for all.
      targets_of: function of a `buckets.Group`, an example and the seed that returns (targets,
        inputs), as `paper_targets` does.

    Yields:
      (row, image u8[H, W, 3], targets, inputs), arrays being NumPy's; a `dag_jax.Failure` for an
      image that is smaller than the network can see.
    """
    for row, group in _groups(network, examples, rows):
        if isinstance(group, dag_jax.Failure):
            yield group
        else:
            yield row, examples[row]["image"], *targets_of(group, examples[row], seed)


def count_proposals(network, examples, *, nms_threshold, max_proposals, label):
    """Count a detector's proposals and the targets among them, as `paper_targets` finds them.

    Args:
      network: a detector.
      examples: from `evaluation.load_examples`, none smaller than the network can see.
      nms_threshold: as in `paper_targets`.
      max_proposals: as in `paper_targets`.
      label: what the progress bar is called.

    Returns:
      i64[M, 2], proposals and targets of each example.
    """
    counts = []
    groups = _groups(network, examples, None)
    for row, group in progress(groups, total=len(examples), desc=label, unit="image"):
        found = _proposal_targets(group, examples[row], 0, nms_threshold, max_proposals)
        counts.append((found[2], found[0].valid.sum()))
    return np.array(counts, np.int64)


def bucket_for(examples):
    """Return what `attack_stream` takes as `bucket`: None for images that are all of one size."""
    one_size = len({example["image"].shape for example in examples}) == 1
    return None if one_size else networks.bucket_score_fn


def perturbed(attack, *, rounded: bool = False) -> np.ndarray:
    """Return the adversarial image f32[H, W, 3], rounded to whole grey levels where asked."""
    image = np.asarray(attack.image, np.float32)
    return np.asarray(dag_jax.perturb(image, attack.perturbation, rounded=rounded))


def change(attack, *, rounded: bool = False) -> np.ndarray:
    """Return f32[H, W, 3], what an attack changes in the image, which ends at 0 and 255."""
    return perturbed(attack, rounded=rounded) - np.asarray(attack.image, np.float32)


def record_of(attack, *, rounded: bool) -> dict:
    """Return what is kept of an attack beside its perturbation."""
    steps, moved = int(attack.num_steps), change(attack, rounded=rounded)
    return {
        "status": dag_jax.Status(int(attack.status)).name,
        "num_steps": steps,
        "active_counts": attack.active_counts[: steps + 1].tolist(),
        "perceptibility": float(metrics.perceptibility(moved)),
        "largest_change": float(np.abs(moved).max()),
        "image_sha256": files.sha256(np.asarray(attack.image)),
    }


def open_stream(
    network, examples, results, inputs, *, slots, mesh, rounded, on_failure=None, **options
):
    """Return the `dag_jax.attack_stream` by which examples of a folder of results are attacked.

    Args:
      network: a `Network`.
      examples: one for each of the results' keys.
      results: `rundir.Results`.
      inputs: of those to attack, from `attack_inputs`.
      slots: images under way at a time on each device.
      mesh: from `console.open_mesh`.
      rounded: as in `dag_jax.attack`.
      on_failure: as in `dag_jax.attack_stream`.
      **options: of `dag_jax.attack_stream`.
    """
    # As many lanes whatever is left: other numbers are other kernels on some devices.
    own = sum(len(results.indices(shard)) for shard in results.shards())
    return dag_jax.attack_stream(
        networks.score_fn(network),
        inputs,
        slots=mesh.size * min(slots, -(-own // mesh.size)),
        mesh=mesh,
        rounded=rounded,
        bucket=bucket_for(examples),
        on_failure=on_failure,
        **options,
    )


def _check_images(folder, records, examples):
    now = {example["image_id"]: example["image"] for example in examples}
    for record in records:
        key = record["key"]
        if key not in now or record["image_sha256"] != files.sha256(now[key]):
            raise UserError(
                f"{folder} was made of another image of the name {key!r} than --dataset and "
                "--data_dir have now; give another --workdir"
            )


def claim(workdir, about, examples):
    """Claim the folder of a launch; what was attacked there has to be of these images.

    Rows that are finished stay in the table without being made again, so they are looked at too.

    Args:
      workdir: as in `rundir.claim`.
      about: what the run is of.
      examples: from `evaluation.load_examples`.

    Returns:
      The folder.

    Raises:
      ValueError: as `rundir.claim` does, and for results of other images.
      OSError: where it cannot be written.
    """
    workdir = rundir.claim(workdir, about | {"units": rundir.UNITS})
    for name in sorted(rundir.folders_in(workdir, rundir.MANIFEST)):
        run = rundir.read(workdir / name)
        if run.manifest["keys"] != [example["image_id"] for example in examples]:
            raise UserError(
                f"{run.folder} was made of other images than --dataset and --data_dir have now; "
                "give another --workdir"
            )
        _check_images(run.folder, run.records, examples)
    return workdir


def attack_all(
    network,
    examples,
    results,
    *,
    seed,
    slots,
    mesh,
    label,
    rounded,
    targets_of=paper_targets,
    **options,
):
    """Attack the examples that a folder of results lacks; each is kept as it finishes.

    Args:
      network: a `Network`.
      examples: from `evaluation.load_examples`, one for each of the results' keys.
      results: `rundir.Results`.
      seed: of the adversarial labels.
      slots: images under way at a time on each device.
      mesh: from `console.open_mesh`.
      label: what the progress bar is called.
      rounded: as in `dag_jax.attack`.
      targets_of: as in `attack_inputs`.
      **options: of `dag_jax.attack_stream`.

    Raises:
      ValueError: at once, where what is there was made of other images; after all others, for
        examples that cannot be attacked.
      OSError: where results cannot be written.
    """
    _check_images(results.folder, results.done().values(), examples)
    todo, started, failed = results.todo(), time.perf_counter(), []
    if not todo:
        return

    def on_failure(row, error):
        failed.append(f"{examples[row]['image_id']}: {error}")
        bar.write(failed[-1], file=sys.stderr)

    def keep(row, attack):
        # The image as it was given, in whole grey levels.
        attack = dataclasses.replace(attack, image=examples[row]["image"])
        finished = {"finished": round(time.perf_counter() - started, 3)}
        results.add(row, attack, record_of(attack, rounded=rounded), finished)

    stream = open_stream(
        network,
        examples,
        results,
        attack_inputs(network, examples, seed, todo, targets_of=targets_of),
        slots=slots,
        mesh=mesh,
        rounded=rounded,
        on_failure=on_failure,
        **options,
    )
    with progress(total=len(todo), desc=label, unit="image") as bar:
        latest = None
        try:
            for latest in stream:
                keep(*latest)
                bar.update()
        except KeyboardInterrupt as interruption:
            if latest is not None:
                keep(*latest)  # once more, as it may have been cut short
            for latest in _rest(stream, interruption):
                keep(*latest)
            raise
    if failed:
        raise UserError(
            f"{len(failed)} of {len(todo)} images could not be attacked; the others are finished "
            f"and kept in {results.folder}. --image_ids can leave these out: {'; '.join(failed)}"
        )


def _rest(stream, interruption):
    """Yield what a stream has finished when its consumer is interrupted."""
    with contextlib.suppress(KeyboardInterrupt):
        yield stream.throw(interruption)
        yield from stream
