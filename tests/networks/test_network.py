"""A network of the zoo as a model: what `dag_jax.models` asks of it, and how it is compiled."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax import models, networks
from dag_jax.metrics import Detections

IMAGE = jax.ShapeDtypeStruct((128, 96, 3), jnp.float32)
BOXES = np.float32([[4, 6, 40, 50], [10, 12, 70, 90], [0, 0, 95, 127]])
DETECTORS = [
    name
    for name, task in networks.TASKS.items()
    if task == models.DETECTION and name in networks.MINIATURES
]
LOOK = np.random.default_rng(0).uniform(0, 255, IMAGE.shape).astype(np.float32)


@functools.cache
def random_miniature(name):
    """A miniature with random weights: the tests of its interface need no training."""
    rng = np.random.default_rng(0)
    module, facts = networks.build(name, miniature=True), networks.facts(name, miniature=True)
    shapes = jax.eval_shape(module.init, jax.random.key(0), IMAGE)["params"]

    def draw(leaf):
        scale = np.sqrt(2 / math.prod(leaf.shape[:-1]))
        return rng.normal(0, scale, leaf.shape).astype(np.float32)

    kind = networks.DetectionNetwork if name in DETECTORS else networks.SegmentationNetwork
    return kind(name, module, jax.tree.map(draw, shapes), True, facts)


@jax.jit
def everything(network, image, boxes=None):
    """What each method of a network says of an image."""
    if boxes is None:
        return network.scores(image), network.predict(image)
    proposals = network.propose(image, max_proposals=70)
    return network.scores(image, boxes), network.detect(image), proposals


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.MINIATURES)
def test_every_network_implements_its_protocol(name):
    network = random_miniature(name)
    detects = name in DETECTORS
    assert isinstance(network, models.Detector) == detects
    assert isinstance(network, models.Segmenter) != detects
    assert models.about(network).title == network.title == networks.facts(name).title


@pytest.mark.slow
def test_a_network_is_a_pytree_of_its_parameters():
    network = random_miniature("fcn_alex")
    assert len(jax.tree.leaves(network)) == len(jax.tree.leaves(network.parameters))
    halved = jax.tree.map(lambda leaf: 0.5 * leaf, network)
    assert (halved.name, halved.module, halved.miniature) == ("fcn_alex", network.module, True)
    before = everything._cache_size()
    scores, labels = everything(network, LOOK)
    halved_scores, _ = everything(halved, LOOK)
    np.testing.assert_array_equal(everything(network, LOOK)[0], scores)
    assert everything._cache_size() == before + 1  # parameters are traced, not baked in
    assert np.abs(scores - halved_scores).max() > 0
    assert labels.shape == (128, 96) and labels.dtype == jnp.int32
    np.testing.assert_array_equal(labels, scores.argmax(-1))


@pytest.mark.slow
def test_a_detector_scores_detects_and_proposes():
    scores, padded, proposals = everything(random_miniature("fr_zf_07"), LOOK, BOXES)
    assert scores.shape == (3, 21)
    assert isinstance(padded, Detections) and padded.boxes.shape == (100, 4)
    assert padded.classes.shape == padded.scores.shape == padded.valid.shape == (100,)
    detections = jax.tree.map(np.asarray, padded).without_padding()
    assert set(detections.classes) <= set(range(1, 21)) and len(detections.classes)
    assert detections.boxes.min() >= 0
    assert detections.boxes[:, [0, 2]].max() <= 95 and detections.boxes[:, [1, 3]].max() <= 127
    assert proposals.handle is proposals.boxes or (proposals.handle == proposals.boxes).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_proposals_have_as_many_rows_as_asked(name):
    network = random_miniature(name)
    for most, rows in ((70, 70), (None, 300)):
        proposals = jax.eval_shape(functools.partial(network.propose, max_proposals=most), IMAGE)
        assert isinstance(proposals, models.Candidates)
        assert proposals.boxes.shape == proposals.handle.shape == (rows, 4)
        assert proposals.valid.shape == (rows,)


def test_what_are_no_boxes_is_refused():
    detector = random_miniature("fr_vgg_07")
    with pytest.raises(ValueError, match=r"boxes have shape \(3, 3\); they must be \[N, 4\]"):
        models.score_fn(detector, BOXES[:, :3])(LOOK)
    with pytest.raises(ValueError, match=r"boxes have shape \(4,\)"):
        models.score_fn(detector, BOXES[0])(LOOK)


@pytest.mark.parametrize("pair", [("fcn_vgg", "fcn_vgg_star"), ("fr_zf_07", "fr_zf_0712")])
def test_networks_of_one_architecture_share_what_is_compiled(pair):
    first, second = map(random_miniature, pair)
    assert (first.name, second.name) == pair and first.title != second.title
    for form in (lambda network: network, models.score_fn):
        assert jax.tree.structure(form(first)) == jax.tree.structure(form(second))
        assert hash(jax.tree.structure(form(first))) == hash(jax.tree.structure(form(second)))
    alex, full = (jax.tree.structure(random_miniature("fcn_alex")), jax.tree.structure(first))
    assert alex != full


def test_networks_trained_at_another_resolution_are_of_one_architecture():
    alex, vgg, other = map(random_miniature, ("fcn_alex", "fcn_vgg", "fcn_vgg_star"))
    assert vgg.architecture == other.architecture != alex.architecture
    wide, small, narrow = (
        dataclasses.replace(vgg, module=networks.build(name)).architecture
        for name in ("espnetv2_20_384", "espnetv2_20_256", "espnetv2_10_384")
    )
    assert wide == small != narrow


def test_a_copy_keeps_what_is_said_of_a_network():
    network = random_miniature("fr_zf_0712")
    copy = jax.tree.unflatten(jax.tree.structure(network), jax.tree.leaves(network))
    assert models.about(copy) == models.about(network)
    assert (copy.name, copy.split, copy.miniature) == ("fr_zf_0712", network.split, True)
