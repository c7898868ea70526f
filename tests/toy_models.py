"""Models of nobody's framework, as users write them: launches load them by
`--models=tests.toy_models:segmenter,tests.toy_models:two_stage,tests.toy_models:sigmoid`.

They know what rendered scenes are made of (a hue and a wave for each class), so that they see
something and need no training. Parameters are the gains of hue and wave.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dag_jax import detection
from dag_jax.datasets import CLASS_NAMES, rendering
from dag_jax.metrics import Detections
from dag_jax.models import Candidates

STRIDE, WINDOW = 4, 16  # pixels
HUES = np.float32(rendering._HUE_COLOURS / 3)
PAIRS = rendering._CLASS_MATERIALS, rendering._BACKGROUND_MATERIALS


def windows(size, waves=0.0):
    """Return [T, h, size], windows around every fourth pixel of a side, with waves in them."""
    pixels = np.arange(size)
    offsets = pixels - (STRIDE * np.arange(-(-size // STRIDE))[:, None] + 1.5)
    window = np.cos(np.pi * offsets / WINDOW) ** 2 * (np.abs(offsets) < WINDOW / 2)
    window /= window.sum(axis=1, keepdims=True)
    return window * np.exp(2j * np.pi * np.atleast_1d(waves)[:, None] * pixels)[:, None]


def look(gains, image):
    """Return f32[h, w, 21], scores of VOC's classes at a stride of 4."""
    height, width = image.shape[:2]
    grey = image.mean(axis=-1)
    (down,), (right,) = np.float32(windows(height).real), np.float32(windows(width).real)
    hues = jnp.einsum("hp,pqc,wq,tc->hwt", down, image - grey[:, :, None], right, HUES)
    cycles, turns = rendering._WAVES[:-1].T
    down = np.complex64(windows(height, cycles * np.cos(np.pi * turns)))
    right = np.complex64(windows(width, cycles * np.sin(np.pi * turns)))
    waves = jnp.einsum("thp,pq,twq->hwt", down, grey.astype(jnp.complex64), right)
    texture = 2 * jnp.sqrt(waves.real**2 + waves.imag**2 + 0.02)
    texture = jnp.concatenate([texture, jnp.full_like(texture[..., :1], 1.7)], axis=-1)
    objects, non_objects = (
        gains[0] * hues[..., pairs[:, 0]] + gains[1] * texture[..., pairs[:, 1]] for pairs in PAIRS
    )
    return jnp.concatenate([non_objects.max(axis=-1, keepdims=True), objects], axis=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Streets:
    """A segmenter of seven classes, one of which VOC lacks."""

    gains: jax.Array

    classes = ("Person", "sky", "background", "motorcycle", "dog", "TV", "cat")
    _columns = np.array([15, 0, 0, 14, 12, 20, 8])

    def scores(self, image):
        """Return f32[h, w, 7]."""
        seen = look(self.gains, image)[..., self._columns]
        return seen.at[..., 1].add(-20.0)  # there is no sky in scenes

    def predict(self, image):
        """Return i32[H, W]."""
        scores = self.scores(image)
        shape = (*image.shape[:2], 7)
        return jnp.argmax(jax.image.resize(scores, shape, "bilinear"), -1).astype(jnp.int32)


def segmenter():
    """Return a segmenter."""
    return Streets(jnp.float32([2, 2]))


def anchors(shape):
    """Return f32[N, 4], squares of four sizes all over an image of shape [H, W, ...]."""
    rows, columns, side = np.meshgrid(*(range(0, n, 12) for n in shape[:2]), [28, 40, 56, 80])
    boxes = np.stack([columns - side / 2, rows - side / 2, columns + side / 2, rows + side / 2], -1)
    height, width = shape[:2]
    limits = np.float32([width - 1, height - 1] * 2)
    return np.float32(np.clip(boxes.reshape(-1, 4), 0, limits))


def in_boxes(gains, image, boxes):
    """Return f32[N, 21], how much of each class boxes hold, and hold alone."""
    sure = 2 * jax.nn.softmax(look(gains, image)) - 1
    rows, columns = (STRIDE * np.arange(n)[None] + np.float32(1.5) for n in sure.shape[:2])
    down = (rows >= boxes[:, 1:2]) & (rows <= boxes[:, 3:])
    right = (columns >= boxes[:, :1]) & (columns <= boxes[:, 2:3])
    inside = (down[:, :, None] & right[:, None, :]).astype(jnp.float32)
    size = jnp.maximum(inside.sum(axis=(1, 2)), 1)[:, None]
    return jnp.einsum("nhw,hwc->nc", inside, sure) / jnp.sqrt(size)


def keep(boxes, confidence, scores, valid):
    """Return `Detections` of the best of each class: confidence bool[N, C], scores f32[N, C]."""
    boxes = jnp.broadcast_to(boxes, (scores.shape[1], *boxes.shape))
    outputs = detection.nms_per_class(
        boxes, scores.T, threshold=0.3, max_outputs=20, valid=(confidence & valid[:, None]).T
    )
    return Detections(*outputs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TwoStage:
    """A detector with a softmax head, whose background is its eleventh class of 21."""

    gains: jax.Array

    _columns = np.array([*range(20, 10, -1), 0, *range(1, 11)])
    classes = tuple(CLASS_NAMES[column] for column in _columns)

    def propose(self, image):
        """Return the 64 anchors that hold most of a class."""
        boxes = jnp.asarray(anchors(image.shape))
        _, best = jax.lax.top_k(in_boxes(self.gains, image, boxes)[:, 1:].max(axis=1), 64)
        return Candidates(boxes[best], boxes[best], jnp.ones(64, bool))

    def scores(self, image, handle):
        """Return f32[N, 21]."""
        held = in_boxes(self.gains, image, handle)[:, self._columns]
        return held.at[:, 10].set(2.0)

    def detect(self, image):
        """Return `Detections`."""
        candidates = self.propose(image)
        scores = jax.nn.softmax(self.scores(image, candidates.handle))
        objects = (scores > 0.3) & (np.arange(21) != 10)[None]
        return keep(candidates.boxes, objects, scores, candidates.valid)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense(TwoStage):
    """A two-stage detector whose proposals can be chosen."""

    def propose(self, image, *, nms_threshold=0.7, max_proposals=64):
        """Return the anchors that hold most of a class, and do not overlap by more."""
        boxes = jnp.asarray(anchors(image.shape))
        held = in_boxes(self.gains, image, boxes)[:, 1:].max(axis=1)
        best, valid = detection.nms(boxes, held, threshold=nms_threshold, max_outputs=max_proposals)
        return Candidates(boxes[best], boxes[best], valid)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OneStage:
    """A detector with a sigmoid head: a class that VOC lacks, and two names of COCO's."""

    gains: jax.Array

    classes = ("traffic light", "tv", "couch", *CLASS_NAMES[1:18])
    title, margin, max_steps = "One-Stage", 1.0, 20
    _columns = np.array([0, 20, 18, *range(1, 18)])
    _threshold = 2.0

    def propose(self, image):
        """Return all anchors, by their indices."""
        boxes = jnp.asarray(anchors(image.shape))
        return Candidates(boxes, jnp.arange(len(boxes)), jnp.ones(len(boxes), bool))

    def scores(self, image, handle):
        """Return f32[N, 20, 2]."""
        boxes = jnp.asarray(anchors(image.shape))[handle]
        logits = in_boxes(self.gains, image, boxes)[:, self._columns]
        logits = logits.at[:, 0].set(-5.0)  # there are no traffic lights in scenes
        return jnp.stack([logits, jnp.full_like(logits, self._threshold)], axis=-1)

    def detect(self, image):
        """Return `Detections`."""
        candidates = self.propose(image)
        scores = self.scores(image, candidates.handle)[..., 0]
        _, best = jax.lax.top_k(scores.max(axis=1), 100)
        confidence = scores > self._threshold
        return keep(
            *(values[best] for values in (candidates.boxes, confidence, scores, candidates.valid))
        )


def two_stage():
    """Return a two-stage detector."""
    return TwoStage(jnp.float32([2, 2]))


def dense():
    """Return a two-stage detector whose proposals can be chosen."""
    return Dense(jnp.float32([2, 2]))


def sigmoid():
    """Return a one-stage detector."""
    return OneStage(jnp.float32([2, 2]))
