"""The examples of a run, with the names of their classes.

Shapes: `H W` pixels, `G` objects.
"""

import collections
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Integer

from dag_jax.arrays import Array
from dag_jax.datasets.classes import VOID
from dag_jax.errors import UserError, optional_import


class ExampleSet(Sequence):
    """Examples and what their labels mean: what a model is attacked on, of whatever dataset.

        examples = ExampleSet(
            [{"image_id": "a", "image": pixels, "mask": mask}, ...], classes=("sky", "road")
        )

    Each example is a dict of
      image_id: text, its own.
      image: u8[H, W, 3], RGB.
      mask: integer [H, W, 1] or [H, W], class of each pixel or `void`; where there is none, the
        image can be given to a detector alone.
      objects: dict of boxes f32[G, 4] ([x0, y0, x1, y1] in pixels, 0-based, inclusive corners),
        label integer [G] and difficult bool [G] (may be left out), objects that an evaluation
        leaves out; where there is none, there are no objects.

    Attributes:
      classes: names of the classes by index.
      void: the label of pixels that are of no class; None where all have one.
      skipped: for each example that was left out, what was wrong with it.

    Raises:
      ValueError: for a void that is a class; for ids that repeat, arrays of other shapes and labels
        that are no class, named by the example.
    """

    def __init__(
        self,
        examples: Iterable[dict],
        classes: Iterable[str],
        *,
        void: int | None = VOID,
        skipped: Iterable[str] = (),
    ):
        self.classes, self.void, self.skipped = tuple(classes), void, tuple(skipped)
        if void is not None and 0 <= void < len(self.classes):
            raise UserError(
                f"void is {void}, which is the class {self.classes[void]!r}: give the label that "
                "is no class (such as -1), or void=None where every pixel has one"
            )
        self._examples = [_complete(example, len(self.classes), void) for example in examples]
        counts = collections.Counter(map(str, self.ids))  # 7 and "7" are one name of a file
        if repeated := [name for name, count in counts.items() if count > 1]:
            raise UserError(f"several examples have the image_id {repeated[0]!r}")

    def _with(self, examples, classes, void) -> "ExampleSet":
        """Return a set of examples that are known to be complete."""
        made = ExampleSet((), classes, void=void, skipped=self.skipped)
        made._examples = examples
        return made

    def __len__(self):
        return len(self._examples)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.pick(range(len(self))[index])
        return self._examples[index]

    @property
    def ids(self) -> list:
        """Their image_ids, in order."""
        return [example["image_id"] for example in self._examples]

    def pick(self, indices: Iterable[int]) -> "ExampleSet":
        """Return some of the examples, by index."""
        return self._with([self._examples[i] for i in indices], self.classes, self.void)

    def with_masks(self) -> "ExampleSet":
        """Return the examples that somebody segmented."""
        return self.pick([i for i, example in enumerate(self._examples) if example["has_mask"]])

    def relabelled(
        self, classes: Sequence[str], table: Sequence[int] | Integer[Array, " C"]
    ) -> "ExampleSet":
        """Return the examples with labels of other classes.

        Args:
          classes: names of the new classes by index.
          table: for each class of now the new index, or -1 where there is none: such pixels become
            void, such objects are left out.

        Returns:
          `ExampleSet`, itself where nothing changes. Its `void` is 255, or -1 where 255 is a class.
        """
        table = np.asarray(table, np.int32)
        void = VOID if len(classes) <= VOID else -1
        same_labels = np.array_equal(table, np.arange(len(table))) and self.void == void
        if same_labels and tuple(classes) == self.classes:
            return self
        changed = [self._relabel(example, table, void) for example in self._examples]
        return self._with(changed, classes, void)

    def _relabel(self, example, table, void):
        mask, objects = example["mask"].astype(np.int64), example["objects"]
        is_class = (mask >= 0) & (mask < len(table)) & (mask != self.void)
        labels = table[np.where(is_class, mask, 0)]
        labels = np.where(is_class & (labels >= 0), labels, void)
        keep = table[objects["label"]] >= 0
        selected = {name: values[keep] for name, values in objects.items()}
        return {
            **example,
            "mask": labels.astype(np.uint8 if void == VOID else np.int32),
            "objects": selected | {"label": table[selected["label"]]},
        }


def _complete(example, num_classes, void):
    """Return an example with all of its entries, or raise what is wrong with it."""
    if example.get("image_id") is None or "image" not in example:
        raise UserError(f"an example has {', '.join(example)}: it needs an image_id and an image")
    image = np.asarray(example["image"])
    try:
        if image.shape[2:] != (3,) or image.dtype != np.uint8 or not image.size:
            raise UserError(f"its image is {_kind(image)}; it must be u8[H, W, 3], RGB grey levels")
        objects = _complete_objects(example.get("objects"), num_classes, image.shape)
        mask = example.get("mask")
        has_mask = mask is not None and bool(example.get("has_mask", True))
        if mask is None:
            fill = VOID if void is None else void
            mask = np.full(image.shape[:2], fill, np.uint8 if 0 <= fill <= 255 else np.int32)
        mask = _complete_mask(mask, image.shape[:2], has_mask, num_classes, void)
    except UserError as error:
        raise UserError(f"example {example['image_id']!r}: {error}") from error
    return {**example, "image": image, "mask": mask, "has_mask": has_mask, "objects": objects}


def _complete_mask(mask, shape, has_mask, num_classes, void):
    mask = np.asarray(mask)
    mask = mask[..., None] if mask.ndim == 2 else mask
    if mask.shape != (*shape, 1) or mask.dtype.kind not in "iu":
        raise UserError(f"its mask is {_kind(mask)}; it must be integers {[*shape, 1]}")
    strange = ((mask < 0) | (mask >= num_classes)) & (mask != void) if has_mask else False
    if np.any(strange):
        raise UserError(
            f"its mask has the label {mask[strange][0]}, which is none of {num_classes} classes "
            f"and not void ({void})"
        )
    return mask


def _complete_objects(objects, num_classes, shape):
    if objects is None:
        objects = {"boxes": np.zeros((0, 4)), "label": np.zeros(0, int)}
    if missing := {"boxes", "label"} - set(objects):
        raise UserError(f"its objects have no {', '.join(sorted(missing))}")
    boxes, labels = np.asarray(objects["boxes"], np.float32), np.asarray(objects["label"])
    difficult = np.asarray(objects.get("difficult", np.zeros(len(labels), bool)))
    if not np.isin(difficult, (0, 1)).all():
        raise UserError(f"its difficult is {difficult.tolist()}, which must be true or false")
    boxes = boxes.reshape(0, 4) if not boxes.size else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise UserError(f"its boxes are {_kind(boxes)}; they must be finite numbers [G, 4]")
    for box in boxes:
        if (box[2:] - box[:2] + 1 <= 0).any() or is_outside(box, shape):
            raise UserError(
                f"its box {box.tolist()} has no pixel of {shape[1]} x {shape[0]}; boxes are "
                "[x0, y0, x1, y1]"
            )
    if not len(boxes) == len(labels) == len(difficult):
        raise UserError(
            f"{len(boxes)} boxes, {len(labels)} labels, {len(difficult)} difficult flags"
        )
    if labels.size and labels.dtype.kind not in "iu":
        raise UserError(f"its labels are {_kind(labels)}; they must be integers")
    strange = labels[(labels < 0) | (labels >= num_classes)]
    if strange.size:
        raise UserError(
            f"an object's label is {strange[0]}, which is none of {num_classes} classes"
        )
    return {"boxes": boxes, "label": labels.astype(np.int32), "difficult": difficult.astype(bool)}


def _kind(array):
    return f"{array.dtype}{list(array.shape)}"


def is_outside(box, shape) -> bool:
    """Return whether a box, 0-based inclusive, has no pixel of an image of this (H, W)."""
    x0, y0, x1, y1 = map(float, box)
    return x0 >= shape[1] or y0 >= shape[0] or x1 <= -1 or y1 <= -1


def resize(example: dict, canvas: int) -> dict:
    """Scale an example to canvas x canvas pixels; its aspect ratio gives way.

    Args:
      example: as an `ExampleSet` has it.
      canvas: pixels of a side.

    Returns:
      The example with its image (area filter), mask (nearest) and boxes scaled.
    """
    with optional_import("data"):
        from PIL import Image

    height, width = example["image"].shape[:2]
    size = (canvas, canvas)
    image = Image.fromarray(example["image"]).resize(size, Image.Resampling.BOX)
    mask = example["mask"][:, :, 0].astype(np.int32)  # whatever it is, Pillow has this kind
    mask = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
    factor = np.array([canvas / width, canvas / height] * 2, np.float32)
    # Corners are inclusive: a box spans x0 to x1 + 1.
    ends = np.array([0, 0, 1, 1], np.float32)
    boxes = (example["objects"]["boxes"] + ends) * factor - ends
    return {
        **example,
        "image": np.array(image),
        "mask": np.array(mask, example["mask"].dtype)[:, :, None],
        "objects": {**example["objects"], "boxes": boxes.astype(np.float32)},
    }
