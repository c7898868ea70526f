"""Batches to train on: examples as arrays of one shape, and their augmentation.

Shapes: `B` images, `H W` pixels, `G` ground-truth boxes.
"""

import numpy as np

_OBJECTS = 8  # rows by which lists of boxes are padded


def draw_crops(rng, images, masks, boxes, valid):
    """Mirror and crop a batch at random; boxes that lose their centre are dropped.

    Args:
      rng: NumPy generator.
      images: u8[B, H, W, 3].
      masks: u8[B, H, W].
      boxes: f32[B, G, 4], inclusive pixels.
      valid: bool[B, G].

    Returns:
      The four, new. A crop has 60 to 100% of each side and is scaled back.
    """
    images, masks, boxes, valid = (np.array(array) for array in (images, masks, boxes, valid))
    size = images.shape[1:3]
    for i in range(len(images)):
        if rng.random() < 0.5:
            images[i], masks[i] = images[i][:, ::-1], masks[i][:, ::-1]
            boxes[i][:, [0, 2]] = size[1] - 1 - boxes[i][:, [2, 0]]
        span = (rng.uniform(0.6, 1.0, 2) * size).astype(int)
        top, left = (
            rng.integers(0, whole - part + 1) for whole, part in zip(size, span, strict=True)
        )
        rows = top + (np.arange(size[0]) + 0.5) * span[0] / size[0]
        columns = left + (np.arange(size[1]) + 0.5) * span[1] / size[1]
        pick = np.ix_(rows.astype(int), columns.astype(int))
        images[i], masks[i] = images[i][pick], masks[i][pick]
        shift = np.array([left, top, left, top])
        centre = (boxes[i][:, :2] + boxes[i][:, 2:]) / 2 - shift[:2]
        valid[i] &= ((centre >= 0) & (centre < span[::-1])).all(axis=1)
        factor = np.tile(np.array(size[::-1]) / span[::-1], 2)
        ends = np.array([0, 0, 1, 1])
        moved = (boxes[i] + ends - shift) * factor - ends
        boxes[i] = np.clip(moved, 0, np.tile(size[::-1], 2) - 1)
    return images, masks, boxes, valid


def stack(examples):
    """Return (images, masks, boxes, classes, valid) of all examples, boxes padded."""
    most = max(len(example["objects"]["label"]) for example in examples)
    rows = _OBJECTS * -(-max(most, 1) // _OBJECTS)
    boxes = np.zeros((len(examples), rows, 4), np.float32)
    classes = np.zeros((len(examples), rows), np.int32)
    valid = np.zeros((len(examples), rows), bool)
    for i, example in enumerate(examples):
        count = len(example["objects"]["label"])
        boxes[i, :count] = example["objects"]["boxes"]
        classes[i, :count] = example["objects"]["label"]
        valid[i, :count] = True
    images = np.stack([example["image"] for example in examples])
    masks = np.stack([example["mask"][:, :, 0] for example in examples])
    return images, masks, boxes, classes, valid
