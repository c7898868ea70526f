"""Published architectures through both ways of `from_torch`, against PyTorch in float64.

Random weights. A package that is not installed skips its networks. All by hand, in an environment
with torch 2.12.1, torchvision 0.27.1, torchax 0.0.13, transformers 5.24 and
segmentation_models_pytorch 0.6:

    python -m pytest tests/adapters/test_foreign.py -n 0

Largest distance of the gradient from float64's, of the largest, by callback and by torchax, at 96 x
96 pixels: lraspp 6e-7, 5e-7; deeplabv3_mobilenet 6e-7, 8e-7; U-Net 5.8e-3, 5.8e-3 (ties of ReLUs
and pools); DETR 5e-7, 5e-7; at 192 pixels SegFormer 6e-7, 6e-7. That was with batch normalisations
as PyTorch makes them, of mean 0 and variance 1.
"""

import copy
import importlib.util

import jax
import numpy as np
import pytest

import dag_jax
from dag_jax import adapters, detection, models
from dag_jax.metrics import Truths
from experiments.measure import foreign
from experiments.measure.foreign import ARCHITECTURES, CLASSES, IMAGENET

torch = pytest.importorskip("torch", reason="PyTorch, of the torch extra, is not installed")
pytestmark = pytest.mark.slow

IMAGE = np.random.default_rng(0).uniform(0, 255, (64, 96, 3)).astype(np.float32)


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def built(request):
    if package := foreign.lacking(request.param):
        pytest.skip(f"{package} is not installed")
    return foreign.build(request.param, small=True)


def in_double(module, options, weights):
    """Return (outputs, gradient of their sum with weights) of PyTorch, in the module's dtype."""
    called = adapters.from_torch(module, **IMAGENET, **options)
    outputs = called.scores(IMAGE) if "classes" in options else called(IMAGE)
    function = called.function if "classes" in options else called
    return jax.tree.leaves(outputs), function.pull(IMAGE, weights)


def distance(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("via", ["callback", "torchax"])
def test_scores_gradients_and_an_attack_are_pytorch_s(built, via):
    if via == "torchax" and not importlib.util.find_spec("torchax"):
        pytest.skip("torchax is not installed")
    module, options = built
    model = adapters.from_torch(module, **IMAGENET, **options, via=via)
    segments = "classes" in options
    function = model.scores if segments else model

    @jax.jit
    def both(image):
        outputs, pull = jax.vjp(function, image)
        outputs, structure = jax.tree.flatten(outputs)
        rng = np.random.default_rng(1)
        weights = [rng.normal(size=each.shape).astype(np.float32) for each in outputs]
        return outputs, pull(jax.tree.unflatten(structure, weights))[0], weights

    outputs, gradient, weights = both(IMAGE)
    single = in_double(module, options, weights)
    double = in_double(copy.deepcopy(module).double(), options, weights)
    for each, rounded, exact in zip(outputs, single[0], double[0], strict=True):
        assert distance(each, exact) < 5 * distance(rounded, exact) + 1e-5
    assert distance(gradient, double[1]) < 5 * distance(single[1], double[1]) + 1e-5

    score_fn = models.score_fn(model) if segments else jax.tree_util.Partial(logits_of, model)
    scores = np.asarray(score_fn(IMAGE))
    order = scores.argsort(axis=-1)
    targets = dag_jax.make_targets(order[..., -1], order[..., -2])
    result = dag_jax.attack(score_fn, IMAGE, targets, dag_jax.Method(max_steps=20))
    # Random weights may not see the image well enough for any label to change in 20 steps.
    assert ahead(np.asarray(score_fn(result.adversarial)), targets) < ahead(scores, targets)


def ahead(scores, targets):
    """Return by how much labels lead their adversarial labels, over all targets."""
    picked = (
        np.take_along_axis(scores, np.asarray(each)[..., None], axis=-1)
        for each in (targets.labels, targets.adversarial)
    )
    return np.subtract(*picked).sum()


def logits_of(function, image):
    return function(image)[1]


@pytest.mark.parametrize("via", ["callback", "torchax"])
def test_a_retinanet_is_a_detector_of_a_sigmoid_head(via):
    pytest.importorskip("torchax" if via == "torchax" else "torchvision")
    module, options = foreign.build("retinanet")
    with torch.no_grad():  # so that some of 7000 anchors see something
        module.network.head.classification_head.cls_logits.bias.fill_(-3)
        module.network.head.classification_head.cls_logits.weight.mul_(20)
    function = adapters.from_torch(module, **IMAGENET, **options, via=via)
    edges = jax.tree_util.Partial(from_edges, function)
    model = adapters.from_sigmoid_queries(edges, classes=CLASSES, nms_threshold=0.5)
    detections = jax.jit(lambda image: model.detect(image))(IMAGE)
    real = np.asarray(detections.valid)
    assert real.any()
    truths = Truths(
        np.asarray(detections.boxes)[real],
        np.asarray(detections.classes)[real],
        np.zeros(real.sum(), bool),
    )
    targets, score_fn = dag_jax.detector_targets(model, IMAGE, truths, key=jax.random.key(0))
    result = dag_jax.attack(score_fn, IMAGE, targets, dag_jax.Method(max_steps=20))
    counts = np.asarray(result.active_counts)
    assert counts[0] >= real.sum() and counts[counts >= 0][-1] < counts[0]


def from_edges(function, image):
    boxes, logits = function(image)
    return detection.boxes_from_edges(boxes), logits
