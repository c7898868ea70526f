"""A linear model and five images, which compile in no time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dag_jax
from dag_jax.datasets import ExampleSet
from dag_jax.runs.attacks import Plan
from dag_jax.runs.subject import subject_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linear:
    """A segmenter that sees each pixel's largest channel, weighed."""

    weights: jax.Array

    classes = ("red", "green", "blue")

    def scores(self, image):
        return image * self.weights[None, None]

    def predict(self, image):
        return jnp.argmax(self.scores(image), axis=-1).astype(jnp.int32)


@pytest.fixture(scope="session")
def plan():
    """Five images of 4 x 4 pixels, of which each takes more steps than the one before."""
    rng, examples = np.random.default_rng(0), []
    for index in range(5):
        image = rng.integers(90, 110, (4, 4, 3)).astype(np.uint8)
        image[..., 2] = 90 + index
        mask = np.full((4, 4), 2, np.uint8)
        examples.append({"image_id": str(index), "image": image, "mask": mask})
    model = Linear(jnp.float32([1, 2, 3]))
    subject = subject_of(model, ExampleSet(examples, Linear.classes))
    return Plan(subject, dag_jax.Method(max_steps=60))


@pytest.fixture
def mesh():
    return jax.make_mesh((2,), ("images",), devices=jax.devices()[:2])
