"""Detectors whose candidates are queries or anchors: each of N says where an object is and what.

Of a softmax head (DETR) the classes exclude each other, and the last one is no object. Of a sigmoid
head (RetinaNet, YOLO, RT-DETR) each class is there or not: detected where its probability is above
`min_score`, which is what an attack has to undo.

Shapes: `H W` pixels of the user's image, `N` queries, `C` classes; of a softmax head the
last is no object.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int32

from dag_jax import detection, models
from dag_jax.adapters.functions import class_names
from dag_jax.arrays import Array
from dag_jax.engine.scoring import as_callable_pytree
from dag_jax.errors import UserError
from dag_jax.metrics import Detections
from dag_jax.models import Candidates

NO_OBJECT = "background"
HEADS = ("softmax", "sigmoid")
# Of a sigmoid head: queries of a class that enter suppression, the best ones, and detections.
_ENTER, _MOST = 300, 300


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QueryDetector:
    """A `models.Detector` whose candidates are queries; a candidate's handle is its index."""

    function: Callable
    classes: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    title: str = dataclasses.field(metadata={"static": True})
    min_score: float = dataclasses.field(metadata={"static": True})
    head: str = dataclasses.field(metadata={"static": True})
    nms_threshold: float | None = dataclasses.field(metadata={"static": True})

    @property
    def background(self) -> int:
        """The index of no object, whatever the others are called; -1 of a sigmoid head."""
        return len(self.classes) - 1 if self.head == "softmax" else -1

    def propose(self, image: Float[Array, "H W 3"]) -> Candidates:
        """Return all queries as `Candidates`, where they see something on this image."""
        boxes, logits = self._look(image)
        count = len(logits)
        return Candidates(boxes, jnp.arange(count, dtype=jnp.int32), jnp.ones(count, bool))

    def scores(
        self, image: Float[Array, "H W 3"], handle: Int32[Array, " M"]
    ) -> Float[Array, " M *C"]:
        """Return scores of the queries of those indices.

        Those before softmax, f32[M, C], or f32[M, C, 2] of a sigmoid head: the logit of each class
        and that of `min_score`.
        """
        logits = self._look(image)[1][handle]
        if self.head == "softmax":
            return logits
        return jnp.stack([logits, jnp.full_like(logits, self._least)], axis=-1)

    def detect(self, image: Float[Array, "H W 3"]) -> Detections:
        """Return `Detections` above `min_score`.

        Of a softmax head each query's best class that is an object, in the order of queries; of a
        sigmoid head the best of every class, less what `nms_threshold` drops, at most 300.
        """
        boxes, logits = self._look(image)
        if self.head == "sigmoid":
            best, rows = lax.top_k(logits.T, min(_ENTER, len(logits)))
            boxes, classes, scores, valid = detection.nms_per_class(
                boxes[rows],
                best,
                threshold=1.0 if self.nms_threshold is None else self.nms_threshold,
                max_outputs=min(_MOST, best.size),
                valid=best > self._least,
            )
            return Detections(boxes, classes, jax.nn.sigmoid(scores), valid)
        objects = jax.nn.softmax(logits)[:, :-1]
        scores = objects.max(axis=1)
        classes = jnp.argmax(objects, axis=1).astype(jnp.int32)
        return Detections(boxes, classes, scores, scores > self.min_score)

    @property
    def _least(self):
        """The logit of `min_score`."""
        return math.log(self.min_score / (1 - self.min_score))

    def _look(self, image):
        boxes, logits = self.function(image)
        count = len(self.classes)
        if boxes.ndim != 2 or boxes.shape[1] != 4 or logits.shape != (len(boxes), count):
            objects = f"{count} classes"
            if self.head == "softmax":
                objects = f"{count - 1} classes and no object"
            raise UserError(
                f"{self.title} returns boxes {list(boxes.shape)} and logits {list(logits.shape)}; "
                f"of {objects} they must be [N, 4] and [N, {count}]"
            )
        return boxes, logits


def from_queries(
    function: Callable,
    *,
    classes: Sequence[str],
    title: str = "Queries",
    min_score: float = 0.05,
    head: str = "softmax",
    nms_threshold: float | None = None,
) -> QueryDetector:
    """Return the detector of a function that gives the box and logits of each query, or anchor.

    Boxes of other conventions: `detection.scale_boxes` (normalised), then `boxes_from_centres`
    (centre and size) or `boxes_from_edges` (exclusive corners).

    Args:
      function: image f32[H, W, 3], RGB grey levels 0-255 -> (boxes f32[N, 4], logits f32[N, C]);
        boxes are [x0, y0, x1, y1] in pixels, corners inclusive, logits those before softmax, no
        object in the last column, or those before sigmoid. As in `from_function`.
      classes: names of the classes of objects by index, C - 1 of a softmax head and C of a sigmoid
        head; those without one need different names, too.
      title: what tables call it.
      min_score: probability that a detection must be above.
      head: "softmax" or "sigmoid".
      nms_threshold: IoU with a better detection of its class above which one of a sigmoid head is
        dropped; None, as of RT-DETR, drops none.

    Raises:
      ValueError: for classes that are no names, repeat, or name "background", and for a head,
        `min_score` or `nms_threshold` that is none.
    """
    names = class_names(classes)
    if NO_OBJECT in names:
        raise UserError(f"classes name {NO_OBJECT!r}; they are those of objects alone")
    if head not in HEADS:
        raise UserError(f"head is {head!r:.50}; it must be one of {', '.join(HEADS)}")
    if not 0 < min_score < 1:
        raise UserError(f"min_score is {min_score}; it must be a probability, between 0 and 1")
    if nms_threshold is not None and (head == "softmax" or not 0 <= nms_threshold <= 1):
        raise UserError(
            f"nms_threshold is {nms_threshold}; it must be an IoU, from 0 to 1, of a sigmoid head"
        )
    names = (*names, NO_OBJECT) if head == "softmax" else names
    function = as_callable_pytree(function)
    model = QueryDetector(function, names, title, min_score, head, nms_threshold)
    models.about(model)
    return model
