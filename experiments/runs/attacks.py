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
from dag_jax import metrics, networks
from dag_jax.metrics.segmentation import VOID
from experiments import buckets, console, evaluation
from experiments.runs import files

_FEWEST_BOXES = 8  # rows that lists of ground-truth boxes have, doubled as often as needed
_FEWEST_TARGETS = 128  # rows that lists of targets have, four times as many as often as needed


def _length(count, fewest, factor):
    """Return the least of fewest, fewest * factor, ... that is no less than count.

    A list's length depends on nothing but the image, and each length is a compilation.
    """
    while fewest < count:
        fewest *= factor
    return fewest


@jax.jit
def _find_targets(network, key, image, truth_boxes, truth_labels, truth_valid, *extent):
    boxes, _, valid = networks.propose(
        network,
        image,
        *extent,
        nms_threshold=evaluation.ATTACK_NMS,
        max_proposals=evaluation.ATTACK_PROPOSALS[network.miniature],
    )
    scores = networks.score_fn(network, boxes)(image, *extent)
    labels, valid = dag_jax.label_proposals(
        boxes, scores, valid, truth_boxes, truth_labels, truth_valid
    )
    adversarial = dag_jax.permute_labels(key, labels, evaluation.NUM_CLASSES, first_class=1)
    targets = dag_jax.make_targets(labels, adversarial, valid)
    first = jnp.argsort(~targets.valid, stable=True)  # targets to the front
    return jax.tree.map(lambda leaf: leaf[first], (targets, boxes))


@functools.partial(jax.jit, static_argnums=2)
def _pixel_targets(key, mask, num_classes):
    return dag_jax.make_targets(mask, dag_jax.permute_labels(key, mask, num_classes))


def _targets_of(group, example, seed):
    """Return (targets, boxes or nothing) of an example, arrays being NumPy's."""
    key = dag_jax.image_key(seed, example["image_id"])
    shape = example["image"].shape
    if not group.network.detects:
        mask = group.pad(example["mask"][:, :, 0].astype(np.int32), VOID)
        targets = jax.device_get(_pixel_targets(key, mask, evaluation.NUM_CLASSES))
        return buckets.crop(targets, shape, group.shape), ()
    objects = example["objects"]
    count = len(objects["label"])
    rows = _length(count, _FEWEST_BOXES, 2)
    boxes, labels = np.zeros((rows, 4), np.float32), np.zeros(rows, np.int32)
    boxes[:count], labels[:count] = objects["boxes"], objects["label"]
    truth = boxes, labels, np.arange(rows) < count
    image = group.pad(example["image"].astype(np.float32))
    found = _find_targets(group.network, key, image, *truth, *group.extent(shape))
    targets, boxes = jax.device_get(found)
    keep = slice(_length(targets.valid.sum(), _FEWEST_TARGETS, 4))
    return jax.tree.map(operator.itemgetter(keep), (targets, (boxes,)))


def attack_inputs(network, examples, seed: int, rows=None):
    """Find what `attack_stream` takes of each example.

    The targets of an FCN are all pixels that are not void; a detector's are its own proposals on
    the clean image that find an object. Labels and adversarial labels are the paper's.

    Args:
      network: a `Network`.
      examples: from `evaluation.load_examples`.
      seed: of the permutations.
      rows: which examples; None for all.

    Yields:
      (row, image u8[H, W, 3], targets, inputs), arrays being NumPy's; a `dag_jax.Failure` for an
      image that is smaller than the network can see.
    """
    shapes = {example["image"].shape for example in examples}
    (one_size,) = buckets.group(network, list(shapes)) if len(shapes) == 1 else (None,)
    for row in range(len(examples)) if rows is None else rows:
        image = examples[row]["image"]
        try:
            group = one_size or buckets.of(network, image.shape)
        except ValueError as error:
            yield dag_jax.Failure(row, error)
        else:
            yield row, image, *_targets_of(group, examples[row], seed)


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


def attack_all(network, examples, results, *, seed, slots, mesh, label, rounded, **options):
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
      **options: of `dag_jax.attack_stream`.

    Raises:
      ValueError: at once, where what is there was made of other images; after all others, for
        examples that cannot be attacked.
      OSError: where results cannot be written.
    """
    for row, record in results.done().items():
        if record["image_sha256"] != files.sha256(examples[row]["image"]):
            raise ValueError(
                f"{results.folder} was made of another image of the name "
                f"{examples[row]['image_id']!r} than --dataset has now; give another --workdir"
            )
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

    # As many lanes whatever is left: other numbers are other kernels on some devices.
    own = sum(len(results.indices(shard)) for shard in results.shards())
    stream = dag_jax.attack_stream(
        networks.score_fn(network),
        attack_inputs(network, examples, seed, todo),
        slots=mesh.size * min(slots, -(-own // mesh.size)),
        mesh=mesh,
        rounded=rounded,
        bucket=bucket_for(examples),
        on_failure=on_failure,
        **options,
    )
    with console.progress(total=len(todo), desc=label, unit="image") as bar:
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
        raise ValueError(
            f"{len(failed)} of {len(todo)} images could not be attacked; the others are finished "
            f"and kept in {results.folder}. --image_ids can leave these out: {'; '.join(failed)}"
        )


def _rest(stream, interruption):
    """Yield what a stream has finished when its consumer is interrupted."""
    with contextlib.suppress(KeyboardInterrupt):
        yield stream.throw(interruption)
        yield from stream
