"""Scenes drawn from a seed: an image, its mask and its boxes, in NumPy.

A class is a *material*: a hue and a texture, both faint. Everything else about a region is strong
and says nothing of its class: its grey level, its shading, the light over the scene, its outline.
The background is made of the same hues and textures in the pairs that no class has, so each of its
regions is one step away from several classes. A network must therefore weigh faint evidence over
many pixels, as a network of photographs does, and is as fragile.

Reference: VOC's terms (20 classes, masks with a void outline, boxes with `difficult`).
"""

import numpy as np

from dag_jax.datasets.classes import CLASS_NAMES, VOID

# split: (first number of its seeds, number of scenes)
SPLITS = {
    "voc07_trainval": (7, 2000),  # FR-*-07
    "voc12_trainval": (12, 2000),  # and the rest of FR-*-0712
    "voc07_test": (8, 200),  # detection's test images
    "fcn_train": (11, 2000),  # FCN-Alex, FCN-VGG: for VOC2011 train and SBD, 9,610 images
    "fcn_star_train": (11, 2200),  # FCN-Alex*, FCN-VGG*: the augmented list, 10,582 images
    "seg11valid": (13, 200),  # segmentation's test images
}

CANVAS = 128  # pixels of a side
HUES = 6
TEXTURES = 7
HUE_AMPLITUDE = 3.5  # grey levels, RMS over the three channels
TEXTURE_AMPLITUDE = 3.5  # grey levels, amplitude of the wave
GRAIN = 0.8  # grey levels, standard deviation of a pixel's noise
_MIN_VISIBLE = 150  # pixels; an object of which less can be seen is no object
_DIFFICULT_VISIBLE = 0.35  # share of an object below which it is difficult


def _materials():
    """Return (hue, texture) of the 20 classes, and those of the background."""
    pairs = [(hue, texture) for texture in range(TEXTURES) for hue in range(HUES)]
    classes = [pair for pair in pairs if pair[0] < 5 and pair[1] < 4]
    return np.array(classes), np.array([pair for pair in pairs if pair not in classes])


_CLASS_MATERIALS, _BACKGROUND_MATERIALS = _materials()
_ANGLES = 2 * np.pi * np.arange(HUES) / HUES
# Two directions of colour without grey, each of RMS 1 over the channels.
_CHROMA = np.array([[1, -1, 0], [1, 1, -2]]) * np.sqrt([[3 / 2], [1 / 2]])
_HUE_COLOURS = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1) @ _CHROMA
# Waves: (cycles per pixel, orientation in units of pi). The last texture is none at all.
_WAVES = np.array(
    [(1 / 4, 0.0), (1 / 4, 0.5), (1 / 5, 0.25), (1 / 5, 0.75), (1 / 8, 0.0), (1 / 8, 0.5), (0, 0)]
)


def _smooth_noise(rng, shape, cells):
    """Return smooth noise of standard deviation about 1: bilinear between random knots."""
    knots = rng.standard_normal((cells + 1, cells + 1))
    rows, columns = (np.linspace(0, cells, size, endpoint=False) for size in shape)
    top, left = rows.astype(int), columns.astype(int)
    down, right = (rows - top)[:, None], (columns - left)[None, :]
    upper = knots[np.ix_(top, left)] * (1 - right) + knots[np.ix_(top, left + 1)] * right
    lower = knots[np.ix_(top + 1, left)] * (1 - right) + knots[np.ix_(top + 1, left + 1)] * right
    return 1.5 * (upper * (1 - down) + lower * down)


def _background(rng, rows, columns):
    """Return i64[H, W], the region of each pixel: cells around random sites, borders warped."""
    size = rows.shape[0]
    sites = rng.uniform(0, size, (rng.integers(4, 9), 2))
    warp = 7 * np.stack([_smooth_noise(rng, rows.shape, 6) for _ in range(2)])
    distance = (rows + warp[0] - sites[:, 0, None, None]) ** 2
    distance += (columns + warp[1] - sites[:, 1, None, None]) ** 2
    return np.argmin(distance, axis=0)


def _outline(rng, rows, columns):
    """Return bool[H, W], the inside of a random blob anywhere on the canvas."""
    size = rows.shape[0]
    radius = size * np.exp(rng.uniform(np.log(0.12), np.log(0.36)))
    centre = rng.uniform(0.1 * size, 0.9 * size, 2)
    aspect = np.exp(rng.uniform(-0.4, 0.4))
    turn = rng.uniform(0, np.pi)
    down, right = rows - centre[0], columns - centre[1]
    along = (down * np.cos(turn) + right * np.sin(turn)) * aspect
    across = (right * np.cos(turn) - down * np.sin(turn)) / aspect
    angle = np.arctan2(along, across)
    edge = np.ones_like(rows)
    for wave in range(2, 6):
        edge += rng.uniform(0, 0.35 / wave) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    return along**2 + across**2 < (radius * edge) ** 2


def render(rng: np.random.Generator, *, size: int = CANVAS):
    """Draw one scene.

    Args:
      rng: source of everything that varies.
      size: pixels of the square canvas.

    Returns:
      (image uint8[H, W, 3]; mask uint8[H, W], 255 on outlines; objects, a dict of boxes f32[N, 4]
      (0-based inclusive pixels), label i32[N] and difficult bool[N]).
    """
    rows, columns = np.mgrid[:size, :size].astype(np.float64)
    region = _background(rng, rows, columns)
    first_object = int(region.max()) + 1
    materials = list(rng.choice(_BACKGROUND_MATERIALS, first_object))
    labels: list[int] = []
    areas: list[int] = []
    for _ in range(rng.integers(1, 5)):
        inside = _outline(rng, rows, columns)
        label = int(rng.integers(1, len(CLASS_NAMES)))
        region[inside] = first_object + len(labels)
        materials.append(_CLASS_MATERIALS[label - 1])
        labels.append(label)
        areas.append(int(inside.sum()))

    count = len(materials)
    hue, texture = np.array(materials).T
    grey = rng.normal(128, 32, count)
    slope = rng.normal(0, 0.45, (2, count))
    wave, orientation = _WAVES[texture].T
    orientation = np.pi * (orientation + rng.normal(0, 0.02, count))
    wave = 2 * np.pi * wave * np.exp(rng.normal(0, 0.04, count))
    phase = rng.uniform(0, 2 * np.pi, count)
    strength = TEXTURE_AMPLITUDE * (texture != TEXTURES - 1)
    colour = HUE_AMPLITUDE * _HUE_COLOURS[hue]

    centred = rows - size / 2, columns - size / 2
    light = grey[region] + slope[0][region] * centred[0] + slope[1][region] * centred[1]
    light += 18 * _smooth_noise(rng, rows.shape, 2) + 5 * _smooth_noise(rng, rows.shape, 12)
    across = (wave * np.cos(orientation))[region] * rows
    across += (wave * np.sin(orientation))[region] * columns
    light = np.clip(light, 20, 235)  # room for what tells the classes apart
    light += strength[region] * np.cos(across + phase[region])
    image = light[:, :, None] + colour[region]
    image += rng.normal(0, GRAIN, image.shape)
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)

    mask = np.zeros(region.shape, np.uint8)
    boxes, box_labels, difficult = [], [], []
    for index, (label, area) in enumerate(zip(labels, areas, strict=True)):
        visible = region == first_object + index
        seen = int(visible.sum())
        if seen < _MIN_VISIBLE:
            mask[visible] = VOID
            continue
        mask[visible] = label
        down, right = np.nonzero(visible)
        boxes.append((right.min(), down.min(), right.max(), down.max()))
        box_labels.append(label)
        difficult.append(seen < _DIFFICULT_VISIBLE * area)
    mask[_edges(np.maximum(region, first_object - 1))] = VOID
    objects = {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "label": np.array(box_labels, np.int32),
        "difficult": np.array(difficult, bool),
    }
    return image, mask, objects


def _edges(region):
    """Return bool[H, W], the pixels on either side of a border between two regions."""
    edge = np.zeros(region.shape, bool)
    for axis in (0, 1):
        change = np.diff(region, axis=axis) != 0
        before = [slice(None)] * 2
        after = [slice(None)] * 2
        before[axis], after[axis] = slice(0, -1), slice(1, None)
        edge[tuple(before)] |= change
        edge[tuple(after)] |= change
    return edge
