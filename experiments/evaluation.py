"""What launches share: examples, the targets of an attack, predictions and scores.

Shapes: `M` examples, `H W` pixels, `N` targets, `G` ground-truth boxes, `C` classes.
"""

import dataclasses
import functools
import itertools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import dag_jax
from dag_jax import datasets, metrics, networks
from dag_jax.metrics.segmentation import VOID
from experiments import buckets, console

NUM_CLASSES = len(datasets.CLASS_NAMES)
# The classes that the small VOC folder is made of; scores on it are given for these beside all.
FREQUENT = tuple(
    datasets.CLASS_NAMES.index(name)
    for name in ("background", "cat", "cow", "dog", "horse", "person", "sheep")
)
TITLES = {
    "fcn_alex": "FCN-Alex",
    "fcn_alex_star": "FCN-Alex*",
    "fcn_vgg": "FCN-VGG",
    "fcn_vgg_star": "FCN-VGG*",
    "fr_zf_07": "FR-ZF-07",
    "fr_zf_0712": "FR-ZF-0712",
    "fr_vgg_07": "FR-VGG-07",
    "fr_vgg_0712": "FR-VGG-0712",
}
NOTICEABLE = 10  # grey levels: the paper's figures stay below
# By kind of network (detects or not). A detector run again finds what the attack left at a
# near-tie, so a detector's targets stay active until their label has lost by 3 logits. An FCN is
# scored on the attacked pixels themselves: the paper's rule is enough.
MARGINS = {False: 0.0, True: 3.0}
MAX_STEPS = {False: 200, True: 150}  # the paper's M_0, for segmentation and detection
# Proposals of an attack: the paper keeps 3,000 at 0.9 from an RPN that sees 600 x 1,000 pixels.
ATTACK_NMS = 0.9
ATTACK_PROPOSALS = {True: 300, False: 3000}  # miniature or not
MIN_CANVAS = 48  # pixels: the FCN-VGG miniature sees no less
_BATCH = 20  # images predicted at a time, if they are small
_BATCH_PIXELS = 2**20  # pixels predicted at a time, if they are large
_TARGETS = 32  # rows by which the longest list of targets is padded
_LENGTHS = 512  # rows by which those are padded that are much shorter


def resize(example: dict, canvas: int) -> dict:
    """Scale an example to canvas x canvas pixels; its aspect ratio gives way.

    Args:
      example: as `datasets.Examples` gives it.
      canvas: pixels of a side.

    Returns:
      The example with its image (area filter), mask (nearest) and boxes scaled.
    """
    height, width = example["image"].shape[:2]
    size = (canvas, canvas)
    image = Image.fromarray(example["image"]).resize(size, Image.Resampling.BOX)
    mask = Image.fromarray(example["mask"][:, :, 0]).resize(size, Image.Resampling.NEAREST)
    factor = np.array([canvas / width, canvas / height] * 2, np.float32)
    # Corners are inclusive: a box spans x0 to x1 + 1.
    ends = np.array([0, 0, 1, 1], np.float32)
    boxes = (example["objects"]["boxes"] + ends) * factor - ends
    return {
        **example,
        "image": np.array(image),
        "mask": np.array(mask)[:, :, None],
        "objects": {**example["objects"], "boxes": boxes.astype(np.float32)},
    }


def load_examples(
    dataset: str,
    splits,
    *,
    data_dir=None,
    cache_dir=None,
    limit=None,
    canvas=None,
    network=None,
    image_ids=None,
    one_size=True,
) -> list[dict]:
    """Read examples, with what the network is scored on.

    Args:
      dataset: 'scenes' or 'voc'.
      splits: names of splits, read one after the other.
      data_dir: folder of VOC.
      cache_dir: where prepared datasets lie.
      limit: the most examples to read; None for all.
      canvas: pixels of the square to scale to; None leaves images as they are.
      image_ids: names of the images to use; None for all.
      network: a `Network`; if it segments, examples without a mask are left out.
      one_size: whether images must be of one size.

    Returns:
      List of example dicts.

    Raises:
      ValueError: for what `datasets.open_dataset` names, for an image that no split has, where
        images differ in shape but must not, and where nothing is left.
    """
    examples, seen = [], set()
    for split in splits:
        source = datasets.open_dataset(
            dataset, split, data_dir=data_dir, cache_dir=cache_dir, progress=True
        )
        for example in source:
            if limit is not None and len(examples) >= limit:
                break
            if image_ids is not None and example["image_id"] not in image_ids:
                continue
            seen.add(example["image_id"])
            if network is not None and not network.detects and not example["has_mask"]:
                continue
            examples.append(resize(example, canvas) if canvas else example)
    missing = sorted(set(image_ids or ()) - seen)
    if missing and (limit is None or len(examples) < limit):
        raise ValueError(f"{dataset} {','.join(splits)} has no image {', '.join(missing)}")
    if not examples:
        raise ValueError(f"{dataset} {','.join(splits)} has no example to use")
    shapes = {example["image"].shape for example in examples}
    if one_size and len(shapes) > 1:
        raise ValueError(
            f"the images of {dataset} have {len(shapes)} different sizes; --canvas scales them to "
            "one"
        )
    return examples


def clean_images(examples) -> buckets.Computed:
    """Return the images u8[H, W, 3] of examples."""
    return buckets.Computed(lambda example: example["image"], examples)


@jax.jit
def _predict_batch(network, images, *extents):
    axes = (None, 0) + (0,) * len(extents)
    return jax.vmap(networks.predict, axes)(network, images, *extents)


def predict(network, images, *, label=None) -> list:
    """Run a whole network over images.

    Args:
      network: a `Network`.
      images: sequence of M images [H, W, 3], grey levels; of one size or of many.
      label: name of a progress bar; None for no bar.

    Returns:
      List of M predictions: labels i32[H, W], or `metrics.Detections`.
    """
    predictions: list = [None] * len(images)
    shapes = [np.shape(image) for image in images]
    with console.progress(
        total=len(images), desc=label, unit="image", disable=label is None
    ) as bar:
        for group in buckets.group(network, shapes):
            batch = min(len(group.rows), max(1, _BATCH_PIXELS // math.prod(group.shape)), _BATCH)
            for start in range(0, len(group.rows), batch):
                rows = group.rows[start : start + batch]
                some = rows + rows[-1:] * (batch - len(rows))  # the last batch is as long as all
                padded = np.stack([group.pad(np.float32(images[row])) for row in some])
                extents = (np.int32([shapes[row][:2] for row in some]),) if group.padded else ()
                result = jax.device_get(_predict_batch(group.network, padded, *extents))
                for place, row in enumerate(rows):
                    one = jax.tree.map(operator.itemgetter(place), result)
                    predictions[row] = _prediction(network, one, shapes[row])
                bar.update(len(rows))
    return predictions


def _prediction(network, result, shape):
    """Return the prediction for an image of a shape from what `networks.predict` returned."""
    if not network.detects:
        return result[: shape[0], : shape[1]]
    boxes, classes, scores, valid = result
    return metrics.Detections(boxes[valid], classes[valid], scores[valid])


def score(examples, predictions, classes=None) -> float:
    """Score predictions as the paper's table does, in percent.

    Args:
      examples: what was predicted, as many as predictions.
      predictions: from `predict`.
      classes: classes to average over; None for all.

    Returns:
      mIoU of the whole set for labels, 11-point VOC mAP for detections.
    """
    if isinstance(predictions[0], metrics.Detections):
        detections, truths = {}, {}
        for example, prediction in zip(examples, predictions, strict=True):
            objects = example["objects"]
            detections[example["image_id"]] = prediction
            truths[example["image_id"]] = metrics.Truths(
                objects["boxes"], objects["label"], objects["difficult"]
            )
        values = metrics.voc_ap(detections, truths).per_class
    else:
        confusion = sum(
            metrics.confusion_matrix(example["mask"][:, :, 0], labels, NUM_CLASSES)
            for example, labels in zip(examples, predictions, strict=True)
        )
        values = metrics.class_iou(confusion)
    if classes is not None:
        values = values[list(classes)]
    return float(100 * np.nanmean(values)) if not np.isnan(values).all() else float("nan")


@jax.jit
def _find_targets(network, key, image, truth_boxes, truth_labels, truth_valid, *extent):
    boxes, _, valid = networks.propose(
        network,
        image,
        *extent,
        nms_threshold=ATTACK_NMS,
        max_proposals=ATTACK_PROPOSALS[network.miniature],
    )
    scores = networks.score_fn(network, boxes)(image, *extent)
    labels, valid = dag_jax.label_proposals(
        boxes, scores, valid, truth_boxes, truth_labels, truth_valid
    )
    adversarial = dag_jax.permute_labels(key, labels, NUM_CLASSES, first_class=1)
    targets = dag_jax.make_targets(labels, adversarial, valid)
    first = jnp.argsort(~targets.valid, stable=True)  # targets to the front
    return jax.tree.map(lambda leaf: leaf[first], (targets, boxes))


@functools.partial(jax.jit, static_argnums=2)
def _pixel_targets(key, mask, num_classes):
    return dag_jax.make_targets(mask, dag_jax.permute_labels(key, mask, num_classes))


def attack_inputs(network, examples, seed: int) -> list:
    """Return what `attack_stream` takes: (index, image, targets, inputs) of each example.

    The targets of an FCN are all pixels that are not void; a detector's are its own proposals on
    the clean image that find an object. Labels and adversarial labels are the paper's.

    Args:
      network: a `Network`.
      examples: from `load_examples`.
      seed: of the permutations.

    Returns:
      List of M tuples, arrays being NumPy's.
    """
    groups = buckets.group(network, [example["image"].shape for example in examples])
    if not network.detects:
        inputs: list = [None] * len(examples)
        for group in groups:
            for index in group.rows:
                example = examples[index]
                key = dag_jax.image_key(seed, example["image_id"])
                mask = group.pad(example["mask"][:, :, 0].astype(np.int32), VOID)
                targets = jax.device_get(_pixel_targets(key, mask, NUM_CLASSES))
                targets = buckets.crop(targets, example["image"].shape, group.shape)
                inputs[index] = index, example["image"], targets, ()
        return inputs
    rows = 8 * -(-max(len(example["objects"]["label"]) for example in examples) // 8) or 8
    found: list = [None] * len(examples)
    for group in groups:
        for index in group.rows:
            example = examples[index]
            key = dag_jax.image_key(seed, example["image_id"])
            objects, shape = example["objects"], example["image"].shape
            count = len(objects["label"])
            boxes, labels = np.zeros((rows, 4), np.float32), np.zeros(rows, np.int32)
            boxes[:count], labels[:count] = objects["boxes"], objects["label"]
            truth = boxes, labels, np.arange(rows) < count
            image = group.pad(example["image"].astype(np.float32))
            targets = _find_targets(group.network, key, image, *truth, *group.extent(shape))
            found[index] = jax.device_get(targets)
        # Padding costs work and changes nothing: a list is as long as the longest, or as its own
        # steps allow, as each length is a compilation.
        counts = {index: max(int(found[index][0].valid.sum()), 1) for index in group.rows}
        longest = _TARGETS * -(-max(counts.values()) // _TARGETS)
        for index, count in counts.items():
            keep = slice(min(_LENGTHS * -(-count // _LENGTHS), longest))
            found[index] = jax.tree.map(operator.itemgetter(keep), found[index])
    return [
        (index, example["image"], targets, (boxes,))
        for index, (example, (targets, boxes)) in enumerate(zip(examples, found, strict=True))
    ]


def attack_examples(network, inputs, *, slots, label, mesh, **options) -> list:
    """Attack examples with a progress bar.

    Args:
      network: a `Network`.
      inputs: from `attack_inputs`.
      slots: images under way at a time on each device.
      label: what the bar is called.
      mesh: from `console.open_mesh`.
      **options: of `dag_jax.attack_stream`.

    Returns:
      List of `Attack`, in the order of `inputs`.
    """
    results: list = [None] * len(inputs)
    groups = buckets.group(network, [image.shape for _, image, *_ in inputs])

    def by_length(group):
        """Part a group by the number of targets."""
        parts = {}
        for row in group.rows:
            length = inputs[row][2].valid.shape[0] if network.detects else None
            parts.setdefault(length, []).append(row)
        return [group._replace(rows=rows) for rows in parts.values()]

    def padded(group):
        for row in group.rows:
            index, image, targets, extra = inputs[row]
            if not network.detects:
                targets = jax.tree.map(group.pad, targets)  # False where there is no image
            yield index, group.pad(image), targets, (*extra, *group.extent(image.shape))

    with console.progress(total=len(inputs), desc=label, unit="image") as bar:
        for group in itertools.chain.from_iterable(map(by_length, groups)):
            score_fn = networks.score_fn(group.network)
            shared = mesh.size * min(slots, -(-len(group.rows) // mesh.size))
            stream = dag_jax.attack_stream(
                score_fn, padded(group), slots=shared, mesh=mesh, **options
            )
            for index, result in stream:
                image = inputs[index][1]
                # The image as it was given, in whole grey levels: a quarter of the memory.
                result = buckets.crop(result, image.shape, group.shape)
                results[index] = dataclasses.replace(result, image=image)
                bar.update()
    return results


def perturbed(attack, *, rounded: bool = False) -> np.ndarray:
    """Return the adversarial image f32[H, W, 3], rounded to whole grey levels where asked."""
    image = np.asarray(attack.image, np.float32)
    return np.asarray(dag_jax.perturb(image, attack.perturbation, rounded=rounded))


def change(attack, *, rounded: bool = False) -> np.ndarray:
    """Return f32[H, W, 3], what an attack changes in the image, which ends at 0 and 255."""
    return perturbed(attack, rounded=rounded) - np.asarray(attack.image, np.float32)


def perturbed_images(attacks, *, rounded: bool = False) -> buckets.Computed:
    """Return the adversarial images f32[H, W, 3] of attacks."""
    return buckets.Computed(lambda attack: perturbed(attack, rounded=rounded), attacks)
