"""What the tests of runs are of: a few rendered scenes, and the models of `tests.toy_models`."""

import functools

import jax
import numpy as np
import pytest

from dag_jax.datasets import CLASS_NAMES, ExampleSet, rendering
from tests import toy_models

TOYS = ("segmenter", "two_stage", "sigmoid")
SCENES = (13, 2, 5, 8)  # of which each of them sees something


@functools.cache
def _scene(number):
    image, mask, objects = rendering.render(np.random.default_rng([8, number]))
    return {"image_id": f"scene_{number}", "image": image, "mask": mask, "objects": objects}


@pytest.fixture(scope="session")
def scenes():
    """Return so many scenes of detection's test split, without a dataset on disk."""

    @functools.cache
    def first(count):
        return ExampleSet([_scene(number) for number in SCENES[:count]], CLASS_NAMES)

    return first


@pytest.fixture(scope="session")
def mesh():
    """One device: as many lanes as a test needs."""
    return jax.make_mesh((1,), ("images",), devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def toys():
    """The three models, by name."""
    return {name: getattr(toy_models, name)() for name in TOYS}
