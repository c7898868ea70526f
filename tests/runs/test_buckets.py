"""Images of many sizes in one run give what each gives alone."""

import jax
import numpy as np
import pytest

from dag_jax import Status, metrics, networks
from dag_jax.datasets import ExampleSet, load_examples
from dag_jax.engine.method import Method
from dag_jax.runs import attacks, buckets, evaluation
from dag_jax.runs.attacks import Plan
from dag_jax.runs.subject import subject_of

SIZES = {1: (100, 128), 0: (120, 128)}  # of scenes; they share a bucket


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


@pytest.fixture(scope="module")
def examples(cache):
    scenes = load_examples("scenes", "voc07_test", cache_dir=cache, limit=2)
    cropped = [crop(scenes[index], size) for index, size in SIZES.items()]
    return ExampleSet(cropped, scenes.classes)


def test_groups_hold_every_image_once():
    network = networks.load("fcn_vgg", miniature=True)
    (alike,) = buckets.group(network, [(40, 50, 3)] * 4)
    assert (alike.shape, alike.padded, alike.rows) == ((40, 50), False, [0, 1, 2, 3])
    assert alike.extent((40, 50, 3)) == ()
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


def test_a_model_without_buckets_has_a_group_of_each_size():
    groups = buckets.group(object(), [(40, 50), (30, 20), (40, 50)])
    assert [(group.shape, group.padded, group.rows) for group in groups] == [
        ((40, 50), False, [0, 2]),
        ((30, 20), False, [1]),
    ]


@pytest.mark.slow
def test_a_run_of_many_sizes_equals_runs_of_one(examples):  # FCNs: tests/engine/test_stream.py
    network = networks.load("fr_vgg_07", miniature=True)
    mesh = jax.make_mesh((1,), ("images",), devices=jax.devices()[:1])

    def run(some):
        plan = Plan(subject_of(network, some), Method(max_steps=6, margin=3.0))
        inputs = attacks.attack_inputs(plan)
        stream = attacks.open_stream(plan, inputs, count=len(some), slots=2, mesh=mesh)
        attacked = [attack for _, attack in sorted(stream, key=lambda pair: pair[0])]
        columns = evaluation.clean_images(some), [attack.adversarial for attack in attacked]
        return attacked, [evaluation.predict(network, column) for column in columns]

    together, predictions = run(examples)
    ((alone,), predicted) = run(examples[:1])
    attack, example = together[0], examples[0]
    assert attack.status == alone.status != Status.NO_TARGETS
    assert attack.num_steps == alone.num_steps > 3
    np.testing.assert_array_equal(attack.active_counts, alone.active_counts)
    assert attack.perturbation.shape == attack.adversarial.shape == example["image"].shape
    reach = np.abs(alone.perturbation).max()
    np.testing.assert_allclose(attack.perturbation, alone.perturbation, atol=1e-4 * reach)
    for column, (expected,) in zip(predictions, predicted, strict=True):
        assert isinstance(expected, metrics.Detections)
        np.testing.assert_array_equal(column[0].classes, expected.classes)
        np.testing.assert_allclose(column[0].boxes, expected.boxes, atol=1e-2)
