"""Which image of a row is shown, on a model that sees the colours of blocks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dag_jax import Method
from dag_jax.datasets import ExampleSet
from dag_jax.report import pictures
from dag_jax.runs import rundir
from dag_jax.runs.attacks import Plan
from dag_jax.runs.subject import subject_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Colours:
    """A segmenter that calls a pixel by its largest channel."""

    gain: jax.Array
    classes = ("red", "green", "blue")

    def scores(self, image):
        return self.gain * image

    def predict(self, image):
        return jnp.argmax(self.scores(image), axis=-1).astype(jnp.int32)


def example(name, channel):
    image = np.full((48, 48, 3), 60, np.uint8)
    image[..., channel] = 100
    boxes = {"boxes": np.float32([[0, 0, 9, 9]] * 2), "label": np.int32([0, 1])}
    return {
        "image_id": name,
        "image": image,
        "mask": np.full((48, 48), channel),
        "objects": boxes,
    }


@pytest.fixture
def plan_and_run(tmp_path):
    examples = ExampleSet([example("kept", 0), example("lost", 1)], Colours.classes)
    plan = Plan(subject_of(Colours(jnp.float32(1)), examples), Method())
    results = rundir.Results(tmp_path / "run", {"a": 1}, ["kept", "lost"])
    for row, change in enumerate(([0, 0, 0], [99, 0, 0])):
        change = np.zeros((48, 48, 3), np.float32) + np.float32(change)
        results.add(row, examples[row]["image"], change, {}, 0.0)
    return plan, rundir.read(tmp_path / "run")


def test_the_image_shown_is_one_that_the_attack_took(plan_and_run):
    (shown,) = pictures.attack_rows([plan_and_run])
    assert shown.title == "Colours on lost: mIoU 100 before, 0 after"
    assert (shown.before == 1).all() and (shown.after == 0).all()
    assert shown.adversarial[0, 0].tolist() == [159, 100, 60]


def test_no_image_is_shown_twice_while_there_are_others(plan_and_run):
    titles = [row.title for row in pictures.attack_rows([plan_and_run] * 3)]
    assert [title.split()[2] for title in titles] == ["lost:", "kept:", "lost:"]


def test_it_is_drawn_in_the_colours_of_the_models_classes(plan_and_run, tmp_path):
    plan, run = plan_and_run
    pictures.draw(pictures.attack_rows([(plan, run)]), tmp_path / "a.png", plan.subject)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size[0] > image.size[1]


def test_models_of_one_structure_share_a_picture():
    examples = ExampleSet([example("a", 0)], Colours.classes)
    first, second = (subject_of(Colours(jnp.float32(gain)), examples) for gain in (1, 2))
    assert pictures.kind_of(first) == pictures.kind_of(second)
