"""Detectors like DETR: each of N queries says where an object is and what, or that there is none.

Shapes: `H W` pixels of the user's image, `N` queries, `C` classes, no object being the last.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int32

from dag_jax import models
from dag_jax.adapters.functions import class_names
from dag_jax.arrays import Array
from dag_jax.engine.scoring import as_callable_pytree
from dag_jax.errors import UserError
from dag_jax.metrics import Detections
from dag_jax.models import Candidates

NO_OBJECT = "background"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QueryDetector:
    """A `models.Detector` whose candidates are queries; a candidate's handle is its index."""

    function: Callable
    classes: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    title: str = dataclasses.field(metadata={"static": True})
    min_score: float = dataclasses.field(metadata={"static": True})

    @property
    def background(self) -> int:
        """The index of no object, whatever the others are called."""
        return len(self.classes) - 1

    def propose(self, image: Float[Array, "H W 3"]) -> Candidates:
        """Return all queries as `Candidates`, where they see something on this image."""
        boxes, logits = self._look(image)
        count = len(logits)
        return Candidates(boxes, jnp.arange(count, dtype=jnp.int32), jnp.ones(count, bool))

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

    def _look(self, image):
        boxes, logits = self.function(image)
        count = len(self.classes)
        if boxes.ndim != 2 or boxes.shape[1] != 4 or logits.shape != (len(boxes), count):
            raise UserError(
                f"{self.title} returns boxes {list(boxes.shape)} and logits {list(logits.shape)}; "
                f"of {count - 1} classes and no object they must be [N, 4] and [N, {count}]"
            )
        return boxes, logits


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
