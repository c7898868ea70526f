"""Images of many sizes in one run give what each gives alone."""

import math

import jax
import numpy as np
import pytest

import dag_jax
from dag_jax import datasets, metrics, networks
from dag_jax.runs import buckets, evaluation
from experiments.runs import attacks

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
    source = datasets.open_dataset("scenes", "voc07_test", cache_dir=cache)
    return [crop(source[index], size) for index, size in SIZES.items()]


def test_groups_hold_every_image_once():
    network = networks.load("fcn_vgg", miniature=True)
    (one,) = buckets.group(network, [(40, 50, 3)] * 4)
    assert (one.shape, one.padded, one.rows) == ((40, 50), False, [0, 1, 2, 3])
    assert one.extent((40, 50, 3)) == ()
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fr_vgg_07"])  # FCNs: tests/test_stream.py
def test_a_run_of_many_sizes_equals_runs_of_one(examples, name):
    network = networks.load(name, miniature=True)
    mesh = jax.make_mesh((1,), ("images",), devices=jax.devices()[:1])
    options = {"slots": 2, "mesh": mesh, "max_steps": 6, "margin": 3.0}

    def run(some):
        stream = dag_jax.attack_stream(
            networks.score_fn(network),
            attacks.attack_inputs(network, some, seed=0),
            bucket=attacks.bucket_for(some),
            **options,
        )
        found = [attack for _, attack in sorted(stream, key=lambda pair: pair[0])]
        images = [attacks.perturbed(attack) for attack in found]
        return found, [
            evaluation.predict(network, column)
            for column in (evaluation.clean_images(some), images)
        ]

    together, predictions = run(examples)
    for row, example in enumerate(examples[:1]):
        ((alone,), predicted) = run([example])
        found = together[row]
        assert found.status == alone.status != dag_jax.Status.NO_TARGETS
        assert found.num_steps == alone.num_steps > 3
        np.testing.assert_array_equal(found.active_counts, alone.active_counts)
        assert found.perturbation.shape == example["image"].shape
        np.testing.assert_array_equal(found.image, example["image"])
        reach = np.abs(alone.perturbation).max()
        np.testing.assert_allclose(found.perturbation, alone.perturbation, atol=1e-4 * reach)
        for column, (expected,) in zip(predictions, predicted, strict=True):
            if isinstance(expected, metrics.Detections):
                np.testing.assert_array_equal(column[row].classes, expected.classes)
                np.testing.assert_allclose(column[row].boxes, expected.boxes, atol=1e-2)
            else:
                assert column[row].shape == example["image"].shape[:2]
                assert (column[row] == expected).mean() > 0.999
        count = alone.active.size if network.detects else math.prod(example["image"].shape[:2])
        assert found.active.size >= count
