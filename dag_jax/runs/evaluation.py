"""What launches share: examples, predictions and scores.

Shapes: `M` examples, `H W` pixels, `G` ground-truth boxes, `C` classes.
"""

import functools
import math
import operator

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from PIL import Image

from dag_jax import datasets, metrics, networks
from dag_jax.errors import UserError
from dag_jax.progress import progress
from dag_jax.runs import buckets

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
    "fcn_resnet": "FCN-ResNet",
    "fr_resnet": "FR-ResNet",
}
# The paper's test split of each kind of network (detects or not); scenes have the same names.
TEST_SPLITS = {False: "seg11valid", True: "voc07_test"}
NOTICEABLE = 10  # grey levels: the paper's figures stay below
# By kind of network. A detector run again finds what the attack left at a near-tie, so a detector's
# targets stay active until their label has lost by 3 logits. An FCN is scored on the attacked
# pixels themselves: the paper's rule is enough.
MARGINS = {False: 0.0, True: 3.0}
MAX_STEPS = {False: 200, True: 150}  # the paper's M_0, for segmentation and detection
# Proposals of an attack: the paper keeps 3,000 at 0.9 from an RPN that sees 600 x 1,000 pixels.
ATTACK_NMS = 0.9
ATTACK_PROPOSALS = {True: 300, False: 3000}  # miniature or not
MIN_CANVAS = 48  # pixels: the FCN-VGG miniature sees no less
_BATCH = 16  # images predicted at a time on a device, if they are small
_BATCH_PIXELS = 2**20  # pixels predicted at a time on a device, if they are large


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
        raise UserError(f"{dataset} {','.join(splits)} has no image {', '.join(missing)}")
    if not examples:
        raise UserError(f"{dataset} {','.join(splits)} has no example to use")
    shapes = {example["image"].shape for example in examples}
    if one_size and len(shapes) > 1:
        raise UserError(
            f"the images of {dataset} have {len(shapes)} different sizes; --canvas scales them to "
            "one"
        )
    return examples


def clean_images(examples) -> buckets.Computed:
    """Return the images u8[H, W, 3] of examples."""
    return buckets.Computed(lambda example: example["image"], examples)


@functools.partial(jax.jit, static_argnames="mesh")
def _predict_batch(network, images, *extents, mesh):
    def one_by_one(network, images, *extents):
        axes = (None, 0) + (0,) * len(extents)
        return jax.vmap(networks.predict, axes)(network, images, *extents)

    parts = P(mesh.axis_names)
    in_specs = (P(), parts) + (parts,) * len(extents)
    predict = jax.shard_map(
        one_by_one, mesh=mesh, in_specs=in_specs, out_specs=parts, check_vma=False
    )
    return predict(network, images, *extents)


def predict(network, images, *, label=None, mesh=None) -> list:
    """Run a whole network over images; see `predict_each`."""
    predictions: list = [None] * len(images)
    for row, prediction in predict_each(network, images, label=label, mesh=mesh):
        predictions[row] = prediction
    return predictions


def predict_each(network, images, *, shapes=None, label=None, mesh=None):
    """Run a whole network over images.

    Args:
      network: a `Network`.
      images: sequence of M images [H, W, 3], grey levels; of one size or of many.
      shapes: theirs, if an image costs something to make; None asks the images.
      label: name of a progress bar; None for no bar.
      mesh: devices to share the images out to; None is the first.

    Yields:
      (row of `images`, its prediction), those of one shape together: labels i32[H, W], or
      `metrics.Detections`.
    """
    shapes = shapes or [np.shape(image) for image in images]
    if mesh is None:
        mesh = Mesh(jax.local_devices()[:1], ("images",))
    with progress(total=len(images), desc=label, unit="image", disable=label is None) as bar:
        for group in buckets.group(network, shapes):
            most = min(max(1, _BATCH_PIXELS // math.prod(group.shape)), _BATCH)
            # One image alone goes through other kernels, and could differ in the last bits.
            batch = mesh.size * min(max(-(-len(group.rows) // mesh.size), 2), most)
            for start in range(0, len(group.rows), batch):
                rows = group.rows[start : start + batch]
                some = rows + rows[-1:] * (batch - len(rows))  # the last batch is as long as all
                padded = np.stack([group.pad(np.float32(images[row])) for row in some])
                extents = (np.int32([shapes[row][:2] for row in some]),) if group.padded else ()
                result = _predict_batch(group.network, padded, *extents, mesh=mesh)
                result = jax.device_get(result)
                for place, row in enumerate(rows):
                    one = jax.tree.map(operator.itemgetter(place), result)
                    yield row, _prediction(network, one, shapes[row])
                bar.update(len(rows))


def _prediction(network, result, shape):
    """Return the prediction for an image of a shape from what `networks.predict` returned."""
    if not network.detects:
        return result[: shape[0], : shape[1]]
    boxes, classes, scores, valid = result
    return metrics.Detections(boxes[valid], classes[valid], scores[valid])


def evidence(example, prediction) -> dict[str, np.ndarray]:
    """Return what a prediction adds to the score of its set.

    Args:
      example: what was predicted.
      prediction: from `predict`.

    Returns:
      {"confusion": i64[C, C]} of labels, {"boxes", "classes", "scores"} of detections.
    """
    if isinstance(prediction, metrics.Detections):
        return {
            "boxes": np.asarray(prediction.boxes),
            "classes": np.asarray(prediction.classes),
            "scores": np.asarray(prediction.scores),
        }
    mask = example["mask"][:, :, 0]
    return {"confusion": metrics.confusion_matrix(mask, prediction, NUM_CLASSES)}


def score(examples, predictions, classes=None) -> float:
    """Score predictions as the paper's table does, in percent; see `score_evidence`."""
    found = [evidence(*pair) for pair in zip(examples, predictions, strict=True)]
    return score_evidence(examples, found, classes)


def score_evidence(examples, found, classes=None) -> float:
    """Score a set as the paper's table does, in percent; see `score_sets`."""
    return float(score_sets(examples, found, np.ones((1, len(found)), np.int64), classes)[0])


def score_sets(examples, found, images, classes=None) -> np.ndarray:
    """Score sets of images as the paper's table does, in percent.

    Args:
      examples: what was predicted; M of them.
      found: `evidence` of each, in the same order.
      images: integer [B, M], how often each image is in each of B sets; `metrics.draw_images`.
      classes: classes to average over; None for all.

    Returns:
      float64 [B]: mIoU of each set for labels, 11-point VOC mAP for detections; nan for a set
      without anything to score.
    """
    if "confusion" in found[0]:
        confusions = np.stack([one["confusion"] for one in found])
        return 100 * metrics.mean_iou_of_sets(confusions, images, classes=classes)
    detections, truths = {}, {}
    for example, one in zip(examples, found, strict=True):
        objects = example["objects"]
        detections[example["image_id"]] = metrics.Detections(**one)
        truths[example["image_id"]] = metrics.Truths(
            objects["boxes"], objects["label"], objects["difficult"]
        )
    matches = metrics.match_detections(detections, truths)
    return 100 * metrics.mean_ap_of_sets(matches, images, classes=classes)
