"""Rendered scenes as a TFDS dataset: the default, which needs no download.

Its splits stand for the lists of the paper, and no two lists share a scene, but for the two FCN
training lists: as in VOC, the longer holds the shorter.
"""

import dataclasses

import numpy as np

from dag_jax.datasets import examples, rendering
from dag_jax.datasets.rendering import SPLITS
from dag_jax.errors import UserError, optional_import

with optional_import("data"):
    import tensorflow_datasets as tfds


@dataclasses.dataclass(eq=False)
class ScenesConfig(tfds.core.BuilderConfig):
    """Which split a `Scenes` renders; made by `scenes_config`."""

    split: str = ""


def scenes_config(split: str) -> ScenesConfig:
    """Return the configuration of a split.

    Raises:
      ValueError: for an unknown split.
    """
    if split not in SPLITS:
        raise UserError(f"scenes have no split {split!r}; they have {', '.join(SPLITS)}")
    return ScenesConfig(name=split, version=Scenes.VERSION, split=split)


class Scenes(examples.ExampleBuilder):
    """Rendered scenes with VOC's classes: masks with a void outline, boxes with `difficult`."""

    VERSION = tfds.core.Version("1.0.0")

    def _split_generators(self, dl_manager):
        split = self.builder_config.split
        return {split: self._generate_examples(*SPLITS[split])}

    def _generate_examples(self, first, count):
        for number in range(count):
            scene = rendering.render(np.random.default_rng([first, number]))
            yield number, examples.encode(f"scene_{first:02d}_{number:06d}", *scene)
