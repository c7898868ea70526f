"""Targets: what an attack must make a network get wrong, and the labels to get it wrong with.

Shapes: `*T` any target shape ([H, W] pixels or [N] proposals), `N` proposals, `G` ground-truth
boxes, `C` classes.

Boxes are f32 [x0, y0, x1, y1] in pixels of the user's image, 0-based, corners inclusive.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int32, Integer, PRNGKeyArray, PyTree

from dag_jax.arrays import Array, Number, Scalar
from dag_jax.detection import boxes as boxlib
from dag_jax.errors import UserError
from dag_jax.metrics.segmentation import VOID


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Targets:
    """What is attacked in one image."""

    labels: Integer[Array, "*T"]  # class that the network should lose
    adversarial: Integer[Array, "*T"]  # class that it should see instead
    valid: Bool[Array, "*T"]  # false for void and padding


def map_targets(function: Callable, targets: PyTree[Targets], *trees: PyTree) -> PyTree:
    """Map a function over the `Targets` of a pytree, each as a whole, and over pytrees like it."""
    is_targets = lambda node: isinstance(node, Targets)  # noqa: E731
    return jax.tree.map(function, targets, *trees, is_leaf=is_targets)


def _classes(name: str, values) -> jax.Array:
    """Return labels as i32. UserError for labels that are no integers: 7.6 is not class 7."""
    if not isinstance(values, jax.Array):
        values, limits = np.asarray(values), np.iinfo(np.int32)
        wide = values.dtype.kind in "iu" and values.size
        if wide and not limits.min <= values.min() <= values.max() <= limits.max:
            raise UserError(f"{name} run from {values.min()} to {values.max()}; classes are int32")
    if values.size and not jnp.issubdtype(values.dtype, jnp.integer):
        raise UserError(f"{name} are {values.dtype}; classes are integers")
    return jnp.asarray(values).astype(jnp.int32)


def make_targets(
    labels: Integer[Array, "*T"],
    adversarial: Integer[Array, "*T"] | Integer[Scalar, ""] | int,
    valid: Bool[Array, "*T"] | bool = True,
    *,
    void: int | None = VOID,
) -> Targets:
    """Build targets from labels, and drop those with nothing to do.

    A target map of any kind goes in as `adversarial`: where it agrees with the label, and where
    either is void, there is no target.

    Args:
      labels: i32[*T] classes; a mask, or a network's own prediction.
      adversarial: i32[*T], or one class for all, or a map to drive the prediction to.
      valid: bool[*T] or a bool, further targets to leave out.
      void: the label that is no class; VOC's 255, or None where there is none.

    Returns:
      Targets of shape *T; labels and adversarial are 0 where there is no target.

    Raises:
      ValueError: where the shapes differ, for labels that are no integers, a `valid` of floats,
        and where 255 is void and there are classes above it.
    """
    labels = _classes("labels", labels)
    replacements = _classes("adversarial", adversarial)
    for array in (labels, replacements):
        if void == VOID and not isinstance(array, jax.core.Tracer) and np.any(array > VOID):
            raise UserError(
                f"there is a class {array.max()}, so {VOID} is a class, too: give void=None, or "
                "the label that is no class"
            )
    if jnp.issubdtype(jnp.result_type(valid), jnp.inexact):
        raise UserError(f"valid is {jnp.result_type(valid)}, neither true nor false")
    valid = jnp.asarray(valid, bool)
    for name, array in (("adversarial", replacements), ("valid", valid)):
        if array.shape not in ((), labels.shape):
            raise UserError(f"{name} has shape {array.shape}, labels have {labels.shape}")
    replacements = jnp.broadcast_to(replacements, labels.shape)
    valid = valid & (labels != replacements)
    if void is not None:
        valid = valid & (labels != void) & (replacements != void)
    return Targets(jnp.where(valid, labels, 0), jnp.where(valid, replacements, 0), valid)


def label_proposals(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, "N C"],
    valid: Bool[Array, " N"],
    truth_boxes: Float[Array, "G 4"],
    truth_labels: Integer[Array, " G"],
    truth_valid: Bool[Array, " G"],
    *,
    iou: Number = 0.1,
    confidence: Number = 0.1,
) -> tuple[Int32[jax.Array, " N"], Bool[jax.Array, " N"]]:
    """Find which proposals are targets, and of which class.

    A proposal is a target when its IoU with a ground-truth box is above `iou` and its softmax
    confidence for that box's class is above `confidence`. Where several boxes qualify, the one
    with the largest IoU wins.

    Args:
      boxes: f32[N, 4] proposals.
      scores: f32[N, C] their pre-softmax scores.
      valid: bool[N] false for padding.
      truth_boxes: f32[G, 4].
      truth_labels: i32[G], classes of the scores' columns.
      truth_valid: bool[G] false for padding and for boxes not to be attacked.
      iou: least overlap, exclusive.
      confidence: least softmax probability, exclusive.

    Returns:
      (labels i32[N], valid bool[N]); labels are 0 where invalid.

    Raises:
      ValueError: where the numbers of rows disagree, and for a label that is no column of the
        scores; inside jit, where values are not known, such a box makes no target.

    Reference: the authors' release; Xie et al., ICCV 2017, section 3.3.
    """
    if not boxes.shape[0] == scores.shape[0] == valid.shape[0]:
        raise UserError(
            f"boxes have {boxes.shape[0]} rows, scores {scores.shape[0]}, valid {valid.shape[0]}"
        )
    truth_labels = _classes("truth_labels", truth_labels)
    if not truth_boxes.shape[0] == truth_labels.shape[0] == truth_valid.shape[0]:
        raise UserError(
            f"truth_boxes have {truth_boxes.shape[0]} rows, truth_labels {truth_labels.shape[0]}, "
            f"truth_valid {truth_valid.shape[0]}"
        )
    if not truth_labels.shape[0]:  # nothing to find
        return jnp.zeros(boxes.shape[0], jnp.int32), jnp.zeros(boxes.shape[0], bool)
    is_class = (truth_labels >= 0) & (truth_labels < scores.shape[1])
    strange = truth_valid & ~is_class
    if not isinstance(strange, jax.core.Tracer) and np.any(strange):
        raise UserError(
            f"truth_labels hold {truth_labels[np.argmax(strange)]}, and the scores have the "
            f"classes 0 to {scores.shape[1] - 1}: labels are their columns, not ids of a dataset"
        )
    truth_valid = truth_valid & is_class
    overlap = boxlib.iou(boxes, truth_boxes)
    probability = jax.nn.softmax(scores, axis=-1)[:, truth_labels]
    qualifies = (overlap > iou) & (probability > confidence) & truth_valid[None, :]
    best = jnp.argmax(jnp.where(qualifies, overlap, -1.0), axis=1)
    is_target = jnp.any(qualifies, axis=1) & valid
    return jnp.where(is_target, truth_labels[best], 0), is_target


def image_key(seed: int, image_id: object) -> PRNGKeyArray:
    """Return the random key of an image: the same whatever runs beside it.

    Args:
      seed: of the run.
      image_id: the image's name in its dataset, or its number there; 7 is as "7".

    Returns:
      A JAX key, fold_in(key(seed), crc32(image_id)).
    """
    name = str(image_id).encode(errors="surrogateescape")
    return jax.random.fold_in(jax.random.key(seed), np.uint32(zlib.crc32(name)))


@functools.partial(jax.jit, static_argnames="size")  # else each call compiles its loop anew
def derangement(key: PRNGKeyArray, size: int) -> Int32[jax.Array, " {size}"]:
    """Draw a permutation without a fixed point, all being equally likely.

    Args:
      key: JAX key.
      size: number of elements, at least 2.

    Returns:
      i32[size].

    Raises:
      ValueError: where `size` is below 2: there is none.
    """
    if size < 2:
        raise UserError(f"a permutation of {size} element(s) always has a fixed point")
    identity = jnp.arange(size, dtype=jnp.int32)

    def draw(state):
        key, _ = state
        key, use = jax.random.split(key)
        return key, jax.random.permutation(use, identity)

    has_fixed_point = lambda state: jnp.any(state[1] == identity)  # noqa: E731
    return lax.while_loop(has_fixed_point, draw, (key, identity))[1]


def _apply(table, labels, num_classes):
    """Look labels up in a table i32[C]; what is no class (void) stays as it is."""
    is_class = (labels >= 0) & (labels < num_classes)
    return jnp.where(is_class, table[jnp.where(is_class, labels, 0)], labels)


def permute_labels(
    key: PRNGKeyArray,
    labels: Integer[Array, "*T"],
    num_classes: int,
    *,
    background: int | None = None,
) -> Int32[jax.Array, "*T"]:
    """Give each class another one by a random permutation pi of the classes, pi(c) != c.

    Args:
      key: JAX key; `image_key` makes one per image.
      labels: i32[*T]; what is no class, such as void, stays as it is.
      num_classes: C, background included.
      background: a class that stays as it is and is given to no other, for a detector, whose
        boxes of background are no objects. None permutes all.

    Returns:
      i32[*T] adversarial labels.

    Reference: Xie et al., ICCV 2017, section 3.
    """
    labels = _classes("labels", labels)
    classes = jnp.arange(num_classes, dtype=jnp.int32)
    permuted = np.flatnonzero(np.arange(num_classes) != background)
    moved = classes[permuted][derangement(key, len(permuted))]
    return _apply(classes.at[permuted].set(moved), labels, num_classes)


def absent_labels(
    key: PRNGKeyArray,
    labels: Integer[Array, "*T"],
    num_classes: int,
    *,
    valid: Bool[Array, "*T"] | bool = True,
    background: int | None = None,
) -> Int32[jax.Array, "*T"]:
    """Give each class of the image an adversarial class that the image does not have.

    This is the rule of the authors' release. While enough classes are absent, two classes get two
    different ones. An image that has every class gets a permutation of them.

    Args:
      key: JAX key.
      labels: i32[*T]; what is no class, such as void, stays as it is.
      num_classes: C, background included.
      valid: bool[*T] or a bool; labels that count as present.
      background: as in `permute_labels`.

    Returns:
      i32[*T] adversarial labels.
    """
    labels = _classes("labels", labels)
    counted = jnp.where(jnp.asarray(valid, bool), labels, num_classes)
    classes = jnp.arange(num_classes, dtype=jnp.int32)
    present = jnp.any(counted.reshape(-1, 1) == classes[None, :], axis=0)
    # A random order of the classes with the absent ones first; the k-th present class takes the
    # k-th of them, round and round.
    order = jax.random.permutation(key, num_classes)
    moves = jnp.asarray(np.arange(num_classes) != background)
    candidate = ~present & moves
    order = order[jnp.argsort(~candidate[order], stable=True)].astype(jnp.int32)
    turn = jnp.cumsum(present & moves, dtype=jnp.int32) - 1
    absent = jnp.maximum(jnp.sum(candidate, dtype=jnp.int32), 1)
    table = jnp.where(moves, order[turn % absent], classes)
    fallback = permute_labels(key, classes, num_classes, background=background)
    return _apply(jnp.where(jnp.any(candidate), table, fallback), labels, num_classes)
