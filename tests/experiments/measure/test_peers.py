"""adversarial-library's attack takes the steps that ours takes."""

import warnings

import jax
import numpy as np
import pytest

import dag_jax
from dag_jax import networks
from dag_jax.datasets import ExampleSet

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it asks distutils for versions
    reason = "adversarial-library, the peer here, is not installed"
    pytest.importorskip("adv_lib.attacks.segmentation", reason=reason)
import torch  # noqa: E402  (adversarial-library brings it)

from experiments.measure import peers, torch_fcn  # noqa: E402

SIDE, STEPS = 48, 4


@pytest.fixture(scope="module")
def network():
    return networks.load("fcn_alex", miniature=True)


@pytest.fixture(scope="module")
def scenes(network):
    """Images far from 0 and 255, where theirs has no gradient; masks of what the network sees."""
    rng, examples = np.random.default_rng(0), []
    for index in range(3):
        image = rng.integers(80, 170, (SIDE, SIDE, 3)).astype(np.uint8)
        mask = np.asarray(jax.jit(network.predict)(image.astype(np.float32)), np.uint8)
        mask[:4] = 255
        examples.append({"image_id": str(index), "image": image, "mask": mask})
    return ExampleSet(examples, network.classes)


class Noted(torch_fcn.Fcn):
    """An FCN that keeps the first of the images that it is shown."""

    def scores(self, images):
        self.seen = [*getattr(self, "seen", []), images[0].detach().numpy()]
        return super().scores(images)


def in_torch(network, scenes, **options):
    """Return the network in PyTorch, and what adversarial-library makes of the scenes."""
    fcn = Noted(network.name, network.module, network.parameters)
    images = np.stack([scene["image"] for scene in scenes])
    masks = np.stack([scene["mask"][..., 0] for scene in scenes])
    labels, valid = np.int64(masks % 255), masks != 255
    arrays = np.float32(images), labels, labels, valid
    return fcn, *peers.attack(fcn, *map(torch.tensor, arrays), **options)


def ours(network, scene, **numbers):
    mask = scene["mask"][..., 0]
    targets = dag_jax.make_targets(mask, np.where(mask == 255, 255, (mask + 1) % 21))
    method = peers.METHODS["the paper's"].replace(**numbers)
    return dag_jax.attack(network.scores, np.float32(scene["image"]), targets, method)


def test_iterates_are_the_same(network, scenes):
    fcn, *_ = in_torch(network, scenes[:1], max_steps=STEPS)
    assert len(fcn.seen) == STEPS + 1
    for steps, seen in enumerate(fcn.seen[1:], start=1):
        attack = ours(network, scenes[0], max_steps=steps, stop_fraction=None)
        np.testing.assert_allclose(seen, attack.adversarial, atol=2e-3)
    assert np.abs(fcn.seen[-1] - fcn.seen[0]).max() > 1


def test_both_stop_where_99_percent_are_wrong(network, scenes):
    alone = [ours(network, scene, stop_fraction=peers.STOP) for scene in scenes]
    _, change, steps = in_torch(network, scenes)
    counts = sorted(int(attack.num_steps) for attack in alone)
    assert len(set(counts)) > 1  # their batch shrank
    np.testing.assert_allclose(steps, counts, atol=2)  # float32's rounding
    largest = [np.abs(attack.perturbation).max() for attack in alone]
    np.testing.assert_allclose(change.abs().amax((1, 2, 3)), largest, atol=1)  # two steps


def test_a_row_for_each_of_our_steps_compares_whole_runs(network, scenes, mesh):
    options = {"lanes": [1], "batch_sizes": [1, 2], "search_steps": 2, "seed": 0, "runs": 2}
    paper, clipped = peers.compare(
        network, scenes, max_steps=3, mesh=mesh, device=torch.device("cpu"), **options
    )
    assert (paper["method"], clipped["method"]) == tuple(peers.METHODS)
    assert paper["peer"] == clipped["peer"] and paper["batch"] in (1, 2) and paper["slots"] == 2
    for row in (paper, clipped):
        assert row["case"] == "FCN-Alex miniature, 3 images" and row["pairs"] == 2
        assert row["range"][0] <= row["ratio"] <= row["range"][1]
        assert row["steps"] == [3, 3] and row["finished"] == [0, 0]
