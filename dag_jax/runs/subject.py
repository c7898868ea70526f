"""A model and the examples that it is tested on, in the model's own classes."""

import dataclasses
import functools
import hashlib
from typing import Any

import jax
import numpy as np

from dag_jax import models
from dag_jax.datasets.selection import ExampleSet
from dag_jax.errors import UserError
from dag_jax.models import About, SharedClasses

_SKIPPED_NAMED = 20  # files that could not be read which a row names


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """The model and the examples of a row of a table.

    Attributes:
      name: of its folder and its row.
      model: a `models.Segmenter` or `models.Detector`.
      examples: labelled by the model's classes; for a segmenter only those with a mask.
      about: the facts about the model.
      shared: the classes that the model and the dataset have in common; scores are over these.
      weights_sha256: SHA-256 of the model's parameters.
    """

    name: str
    model: Any
    examples: ExampleSet
    about: About
    shared: SharedClasses
    weights_sha256: str

    @functools.cached_property
    def ids(self) -> list:
        """The image_ids of the examples, in order."""
        return self.examples.ids

    def facts(self) -> dict:
        """Return the entries of its row besides the scores."""
        names = self.about.classes
        return {
            "network": self.name,
            "title": self.about.title,
            "task": self.about.task,
            "classes": [names[index] for index in self.shared.of_model],
            "classes_of_model_alone": list(self.shared.only_model),
            "classes_of_dataset_alone": list(self.shared.only_dataset),
            "skipped": len(self.examples.skipped),
            "skipped_files": list(self.examples.skipped[:_SKIPPED_NAMED]),
        }


def subject_of(model, examples: ExampleSet, *, name=None, weights_sha256=None) -> Subject:
    """Bring a model and examples together, by the names of their classes.

    Args:
      model: a `models.Segmenter` or `models.Detector`.
      examples: of any dataset.
      name: of its folder and its row; None is the model's `name` or title.
      weights_sha256: of the file that its parameters come from; None computes one from them.

    Raises:
      ValueError: where `model` is no model, shares no class with the examples, or is a segmenter
        and no example has a mask.
    """
    about = models.about(model)
    shared = models.share_classes(about, examples.classes)
    if not about.detects:
        examples = examples.with_masks()
    if not len(examples):
        raise UserError(f"{about.title} segments, and no example has a mask to score it by")
    return Subject(
        name or getattr(model, "name", about.title),
        model,
        examples.relabelled(about.classes, shared.to_model),
        about,
        shared,
        weights_sha256 or weights_digest(model),
    )


def weights_digest(model) -> str:
    """Return the SHA-256 of a model's parameters and of their paths in it.

    The `weights_sha256` of a part stands for its parameters that are no arrays of JAX.

    Raises:
      ValueError: as `models.parameters_of` says.
    """
    models.parameters_of(model)
    digest = hashlib.sha256()
    speaks = lambda part: hasattr(part, "weights_sha256")  # noqa: E731
    for keys, part in jax.tree_util.tree_leaves_with_path(model, is_leaf=speaks):
        path = jax.tree_util.keystr(keys)
        if speaks(part):
            digest.update(f"{path} {part.weights_sha256}\n".encode())
            continue
        array = np.asarray(part)
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
