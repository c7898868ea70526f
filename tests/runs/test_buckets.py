"""Images of many sizes in one run give what each gives alone."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import dag_jax
from dag_jax import networks
from dag_jax.datasets import ExampleSet
from dag_jax.runs import attacks, buckets, evaluation
from dag_jax.runs.attacks import Plan
from dag_jax.runs.subject import subject_of

SIZES = ((100, 128), (120, 128))  # they share a bucket
METHOD = dag_jax.Method(max_steps=6, margin=3.0)


def crop(example, size):
    """Return an example's upper left part, with the objects that end in it."""
    height, width = size
    objects = example["objects"]
    inside = (objects["boxes"][:, 2] < width) & (objects["boxes"][:, 3] < height)
    return {
        **example,
        "image": example["image"][:height, :width],
        "mask": example["mask"][:height, :width],
        "objects": {name: values[inside] for name, values in objects.items()},
    }


def test_groups_hold_every_image_once():
    network = networks.load("fcn_vgg", miniature=True)
    (group,) = buckets.group(network, [(40, 50, 3)] * 4)
    assert (group.shape, group.padded, group.rows) == ((40, 50), False, [0, 1, 2, 3])
    assert group.extent((40, 50, 3)) == ()
    groups = buckets.group(network, [(128, 128), (100, 128), (60, 50), (128, 90), (126, 200)])
    assert [(group.shape, group.rows) for group in groups] == [
        ((250, 250), [0, 4]),
        ((125, 250), [1]),
        ((125, 125), [2]),
        ((250, 125), [3]),
    ]
    assert all(group.padded for group in groups)
    image = np.ones((100, 128, 3), np.uint8)
    padded = groups[1].pad(image, 7)
    assert padded.shape == (125, 250, 3) and padded.dtype == np.uint8
    assert (padded[:100, :128] == 1).all() and (padded[100:] == 7).all()
    np.testing.assert_array_equal(groups[1].extent(image.shape)[0], [100, 128])
    cut = buckets.crop({"a": padded, "b": np.arange(3)}, image.shape, (125, 250))
    np.testing.assert_array_equal(cut["a"], image)
    assert len(cut["b"]) == 3


def test_a_model_without_a_bucket_has_a_group_of_each_shape(toys):
    groups = buckets.group(toys["segmenter"], [(8, 8, 3), (8, 4), (8, 8)])
    assert [(group.shape, group.padded, group.rows) for group in groups] == [
        ((8, 8), False, [0, 2]),
        ((8, 4), False, [1]),
    ]
    assert buckets.group_of(toys["segmenter"], (8, 4, 3)).extent((8, 4, 3)) == ()


@functools.partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["wide"])
@dataclasses.dataclass(frozen=True)
class Halved:
    """A model that has another one for wide images."""

    wide: bool

    def bucket(self, shape):
        return Halved(shape[1] > 8), (8, 16)


def test_images_of_one_shape_and_another_model_are_no_group():
    groups = buckets.group(Halved(False), [(4, 4), (4, 12), (8, 8)])
    assert [(group.model.wide, group.rows) for group in groups] == [(False, [0, 2]), (True, [1])]


def test_what_is_computed_is_made_when_it_is_asked_for():
    made = []
    both = buckets.Computed(lambda a, b: made.append(a) or a + b, [1, 2, 3], [10, 20, 30])
    assert len(both) == 3 and made == []
    assert both[1] == 22 and made == [2]
    assert list(both) == [11, 22, 33] and both[-1] == 33
    with pytest.raises(IndexError):
        both[3]


@pytest.mark.slow
def test_a_run_of_many_sizes_equals_runs_of_one(scenes, mesh):  # FCNs: tests/engine/test_stream.py
    network = networks.load("fr_zf_07", miniature=True)
    whole = scenes(2)
    examples = [crop(example, size) for example, size in zip(whole, SIZES, strict=True)]

    def run(examples):
        plan = Plan(subject_of(network, ExampleSet(examples, whole.classes)), METHOD)
        inputs = attacks.attack_inputs(plan)
        stream = attacks.open_stream(plan, inputs, count=2, slots=2, mesh=mesh)
        attacks_in_order = [attack for _, attack in sorted(stream, key=lambda pair: pair[0])]
        images = [attack.adversarial for attack in attacks_in_order]
        clean = evaluation.clean_images(plan.subject.examples)
        return attacks_in_order, [evaluation.predict(network, column) for column in (clean, images)]

    together, predictions = run(examples)
    for row, example in enumerate(examples[:1]):
        ((alone,), predicted) = run([example])
        shared = together[row]
        assert shared.status == alone.status != dag_jax.Status.NO_TARGETS
        assert shared.num_steps == alone.num_steps > 3
        np.testing.assert_array_equal(shared.active_counts, alone.active_counts)
        assert shared.perturbation.shape == shared.adversarial.shape == example["image"].shape
        reach = np.abs(alone.perturbation).max()
        np.testing.assert_allclose(shared.perturbation, alone.perturbation, atol=1e-4 * reach)
        for column, (expected,) in zip(predictions, predicted, strict=True):
            np.testing.assert_array_equal(column[row].classes, expected.classes)
            np.testing.assert_allclose(column[row].boxes, expected.boxes, atol=1e-2)
        assert shared.active.size >= alone.active.size
