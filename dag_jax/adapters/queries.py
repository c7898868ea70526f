"""Detectors like DETR: each of N queries says where an object is and what, or that there is none.

A softmax head says so by its last class, no object. A sigmoid head, as of Deformable DETR or YOLO,
says of each class by itself whether it is there.

Shapes: `H W` pixels of the user's image, `N` queries, `C` classes, `K` detections.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int32

from dag_jax import detection, models
from dag_jax.adapters.functions import class_names
from dag_jax.arrays import Array
from dag_jax.engine.scoring import as_callable_pytree
from dag_jax.errors import UserError
from dag_jax.metrics import Detections
from dag_jax.models import Candidates

NO_OBJECT = "background"
_ENTER = 300  # queries of a class that enter suppression, the best ones


class _Queries:
    """Candidates that are queries; a candidate's handle is its index."""

    function: Callable
    classes: tuple[str, ...]
    title: str
    _columns: Any

    def propose(self, image: Float[Array, "H W 3"]) -> Candidates:
        """Return all queries as `Candidates`, with the boxes that they have on this image."""
        boxes, logits = self._look(image)
        count = len(logits)
        return Candidates(boxes, jnp.arange(count, dtype=jnp.int32), jnp.ones(count, bool))

    def _look(self, image):
        pair = self.function(image)
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise UserError(
                f"{self.title} returns a {type(pair).__name__}; it must return a pair of arrays, "
                "(boxes, logits)"
            )
        boxes, logits = pair
        count = len(self.classes)
        if boxes.ndim != 2 or boxes.shape[1] != 4 or logits.shape != (len(boxes), count):
            raise UserError(
                f"{self.title} returns boxes {list(boxes.shape)} and logits {list(logits.shape)}; "
                f"of {self._columns} they must be [N, 4] and [N, {count}]"
            )
        return boxes, logits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QueryDetector(_Queries):
    """A `models.Detector` of queries whose last class is no object."""

    function: Callable
    classes: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    title: str = dataclasses.field(metadata={"static": True})
    min_score: float = dataclasses.field(metadata={"static": True})

    @property
    def background(self) -> int:
        """The index of no object, whatever the others are called."""
        return len(self.classes) - 1

    def scores(
        self, image: Float[Array, "H W 3"], handle: Int32[Array, " M"]
    ) -> Float[Array, "M C"]:
        """Return pre-softmax scores f32[M, C] of the queries of those indices."""
        return self._look(image)[1][handle]

    def detect(self, image: Float[Array, "H W 3"]) -> Detections:
        """Return `Detections`, each query's best class that is an object; nothing is suppressed."""
        boxes, logits = self._look(image)
        objects = jax.nn.softmax(logits)[:, :-1]
        scores = objects.max(axis=1)
        classes = jnp.argmax(objects, axis=1).astype(jnp.int32)
        return Detections(boxes, classes, scores, scores > self.min_score)

    @property
    def _columns(self):
        return f"{self.background} classes and no object"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SigmoidQueryDetector(_Queries):
    """A `models.Detector` of queries that say of each class by itself whether it is there."""

    function: Callable
    classes: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    title: str = dataclasses.field(metadata={"static": True})
    threshold: float = dataclasses.field(metadata={"static": True})
    nms_threshold: float = dataclasses.field(metadata={"static": True})

    background = -1  # whatever classes are called
    margin = 0.0  # what is below the threshold of detections is no detection

    def scores(
        self, image: Float[Array, "H W 3"], handle: Int32[Array, " M"]
    ) -> Float[Array, "M C 2"]:
        """Return f32[M, C, 2] of the queries of those indices: logits, and the threshold's."""
        logits = self._look(image)[1][handle]
        return jnp.stack([logits, jnp.full_like(logits, self._least)], axis=-1)

    def detect(self, image: Float[Array, "H W 3"]) -> Detections:
        """Return `Detections`, the best of those above the threshold, after suppression."""
        boxes, logits = self._look(image)
        logits, best = jax.lax.top_k(logits.T, min(_ENTER, len(logits)))
        boxes, classes, scores, valid = detection.nms_per_class(
            boxes[best],
            logits,
            threshold=self.nms_threshold,
            max_outputs=_ENTER,
            valid=logits > self._least,
        )
        return Detections(boxes, classes, jax.nn.sigmoid(scores), valid)

    @property
    def _least(self):
        return math.log(self.threshold / (1 - self.threshold))

    @property
    def _columns(self):
        return f"{len(self.classes)} classes"


def from_queries(
    function: Callable,
    *,
    classes: Sequence[str],
    title: str = "Queries",
    min_score: float = 0.05,
) -> QueryDetector:
    """Return the detector of a function that gives each query's box and logits.

    Boxes of other conventions: `detection.scale_boxes` (normalised), then `boxes_from_centres`
    (centre and size) or `boxes_from_edges` (exclusive corners).

    Args:
      function: image f32[H, W, 3], RGB grey levels 0-255 -> (boxes f32[N, 4], logits f32[N, C]);
        boxes are [x0, y0, x1, y1] in pixels, corners inclusive, logits those before softmax, no
        object in the last column. As in `from_function`.
      classes: names of the C - 1 classes of objects by index; those without one need different
        names, too.
      title: what tables call it.
      min_score: softmax probability that a detection must be above.

    Raises:
      ValueError: for classes that are no names, repeat, or name "background".
    """
    names = class_names(classes)
    if NO_OBJECT in names:
        raise UserError(f"classes name {NO_OBJECT!r}; they are those of objects alone")
    model = QueryDetector(as_callable_pytree(function), (*names, NO_OBJECT), title, min_score)
    models.about(model)
    return model


def from_sigmoid_queries(
    function: Callable,
    *,
    classes: Sequence[str],
    title: str = "Queries",
    threshold: float = 0.05,
    nms_threshold: float = 1.0,
) -> SigmoidQueryDetector:
    """Return the detector of a function that gives each query's box, and a logit of each class.

    The attack is on each query's logit of each class that the image has: it is to fall below the
    logit of the threshold, the second of the pair in scores [N, C, 2]. Give the lowest threshold at
    which a detection counts.

    Args:
      function: image f32[H, W, 3], RGB grey levels 0-255 -> (boxes f32[N, 4], logits f32[N, C]);
        boxes as of `from_queries`, logits those before sigmoid, no column for no object.
      classes: names of the C classes by index; those without one need different names, too.
      title: what tables call it.
      threshold: probability that a detection must be above.
      nms_threshold: largest IoU of two detections of one class; 1 suppresses none.

    Raises:
      ValueError: for classes that are no names or repeat; for thresholds that are none.
    """
    if not 0 < threshold < 1:
        raise UserError(f"threshold is {threshold}; a probability, it must be between 0 and 1")
    if not 0 <= nms_threshold <= 1:
        raise UserError(f"nms_threshold is {nms_threshold}; an IoU, it must be in 0..1")
    model = SigmoidQueryDetector(
        as_callable_pytree(function), class_names(classes), title, threshold, nms_threshold
    )
    models.about(model)
    return model
