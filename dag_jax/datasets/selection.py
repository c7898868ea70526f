"""The examples of a run, with the names of their classes.

Shapes: `H W` pixels, `G` objects.
"""

import collections
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Integer
from PIL import Image

from dag_jax.arrays import Array
from dag_jax.errors import UserError


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

    Raises:
      ValueError: for ids that repeat, and arrays of other shapes, named by the example.
    """

    def __init__(self, examples: Iterable[dict], classes: Iterable[str], *, void: int | None = 255):
        self.classes, self.void = tuple(classes), void
        self._examples = [_complete(example, void) for example in examples]
        counts = collections.Counter(self.ids)
        if repeated := [name for name, count in counts.items() if count > 1]:
            raise UserError(f"several examples have the image_id {repeated[0]!r}")

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
        return ExampleSet([self._examples[i] for i in indices], self.classes, void=self.void)

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
        void = 255 if len(classes) <= 255 else -1
        same = np.array_equal(table, np.arange(len(table))) and self.void == void
        if same and tuple(classes) == self.classes:
            return self
        changed = [self._relabel(example, table, void) for example in self._examples]
        return ExampleSet(changed, classes, void=void)

    def _relabel(self, example, table, void):
        mask, objects = example["mask"].astype(np.int64), example["objects"]
        known = (mask >= 0) & (mask < len(table))
        if self.void is not None:
            known &= mask != self.void
        labels = table[np.where(known, mask, 0)]
        labels = np.where(known & (labels >= 0), labels, void)
        keep = table[objects["label"]] >= 0
        kept = {name: values[keep] for name, values in objects.items()}
        return {
            **example,
            "mask": labels.astype(np.uint8 if void == 255 else np.int32),
            "objects": kept | {"label": table[kept["label"]]},
        }


def _complete(example, void):
    """Return an example with all of its entries, or raise what is wrong with it."""
    name = example.get("image_id")
    image = np.asarray(example["image"])
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
        raise UserError(
            f"example {name!r}: its image is {image.dtype}{list(image.shape)}; it must be u8[H, W, "
            "3], RGB grey levels"
        )
    mask, has_mask = example.get("mask"), example.get("has_mask", "mask" in example)
    mask = np.full(image.shape[:2], 255 if void is None else void) if mask is None else mask
    mask = np.asarray(mask)
    mask = mask[..., None] if mask.ndim == 2 else mask
    if mask.shape != (*image.shape[:2], 1) or mask.dtype.kind not in "iu":
        raise UserError(
            f"example {name!r}: its mask is {mask.dtype}{list(mask.shape)}; it must be integers "
            f"{[*image.shape[:2], 1]}"
        )
    objects = example.get("objects") or {"boxes": np.zeros((0, 4)), "label": np.zeros(0)}
    labels = np.asarray(objects["label"]).astype(np.int32)
    difficult = objects.get("difficult", np.zeros(len(labels), bool))
    boxes = np.asarray(objects["boxes"], np.float32).reshape(-1, 4)
    if not len(boxes) == len(labels) == len(difficult):
        raise UserError(
            f"example {name!r}: {len(boxes)} boxes, {len(labels)} labels, {len(difficult)} "
            "difficult flags"
        )
    objects = {"boxes": boxes, "label": labels, "difficult": np.asarray(difficult, bool)}
    whole = {"image": image, "mask": mask, "has_mask": bool(has_mask), "objects": objects}
    return {**example, **whole}


def resize(example: dict, canvas: int) -> dict:
    """Scale an example to canvas x canvas pixels; its aspect ratio gives way.

    Args:
      example: as an `ExampleSet` has it.
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
