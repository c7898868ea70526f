"""Images of many sizes, grouped by the compiled shapes that they go through.

Shapes: `H W` pixels of an image, `H' W'` pixels of its group.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from dag_jax.engine.scoring import kind_of


class Group(NamedTuple):
    """Images that share a compiled program."""

    model: object  # the one to call for them
    shape: tuple[int, int]  # H' W', what each of them is padded to
    padded: bool  # whether it takes their extents
    rows: list[int]  # which images

    def pad(self, array, value=0):
        """Return [H, W, ...] as [H', W', ...]."""
        grow = [(0, after - now) for after, now in zip(self.shape, array.shape[:2], strict=True)]
        return np.pad(array, grow + [(0, 0)] * (array.ndim - 2), constant_values=value)

    def extent(self, shape) -> tuple:
        """Return the model's further arguments for an image [H, W, ...]: (i32[2],) or ()."""
        return (np.int32(shape[:2]),) if self.padded else ()


def group_of(model, shape) -> Group:
    """Return the group, without rows, of one image [H, W, ...] among images of many sizes.

    Raises:
      ValueError: where the image is smaller than the model can see.
    """
    if not hasattr(model, "bucket"):
        return Group(model, tuple(shape[:2]), False, [])
    model, padded = model.bucket(shape)
    return Group(model, padded, True, [])


def group(model, shapes) -> list[Group]:
    """Group images: one group if all have one shape, else by the model's `bucket`.

    Args:
      model: a model; without a `bucket` each shape is a group.
      shapes: [H, W, ...] of each image.

    Returns:
      List of Group, whose `rows` are indices into `shapes`; each index is in one group.
    """
    shapes = [tuple(shape[:2]) for shape in shapes]
    if len(set(shapes)) == 1:
        return [Group(model, shapes[0], False, list(range(len(shapes))))]
    groups: dict = {}
    for row, shape in enumerate(shapes):
        alike = group_of(model, shape)
        # Structures tell models apart; the parameters are the same for all.
        key = kind_of(alike.model), alike.shape
        groups.setdefault(key, alike).rows.append(row)
    return list(groups.values())


class Computed(Sequence):
    """A sequence whose items are computed when they are read, so that images need no memory."""

    def __init__(self, function: Callable, *columns: Sequence):
        """Define item i as function(*(column[i] for column in columns))."""
        self._function, self._columns = function, columns

    def __len__(self):
        return len(self._columns[0])

    def __getitem__(self, index):
        return self._function(*(column[index] for column in self._columns))


def crop(tree, shape, padded_shape):
    """Return a tree with each array of H' W' cut to H W; other arrays stay as they are."""
    height, width = shape[:2]

    def cut(leaf):
        # A copy: a view would keep the padding in memory.
        return leaf[:height, :width].copy() if leaf.shape[:2] == padded_shape else leaf

    return jax.tree.map(cut, tree)
