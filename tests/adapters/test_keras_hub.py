"""keras-hub's networks by `from_keras`, against Keras in float64. Random weights.

By hand, in an environment with Keras 3.15 and keras-hub 0.32 (`pip install --no-deps keras-hub`,
then regex, tokenizers, huggingface_hub and sentencepiece: TensorFlow is not needed).
"""

import contextlib
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dag_jax
from dag_jax import adapters, models
from experiments.measure import foreign_keras

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras", reason="Keras, of the keras extra, is not installed")
if keras.backend.backend() != "jax":
    pytest.skip("KERAS_BACKEND is not jax", allow_module_level=True)
keras_hub = pytest.importorskip("keras_hub", reason="keras-hub is not installed")
pytestmark = pytest.mark.slow

IMAGE = np.random.default_rng(0).uniform(0, 255, (64, 64, 3)).astype(np.float32)


@contextlib.contextmanager
def as_keras_wants():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def build(name):
    with as_keras_wants():
        return foreign_keras.build(name, size=len(IMAGE), small=True)


@pytest.fixture(scope="module", params=list(foreign_keras.ARCHITECTURES))
def networks(request):
    """Return a network, the same in float64, and arguments of `from_keras`."""
    module, options = build(request.param)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        with jax.enable_x64():
            double, _ = build(request.param)
            for ours, theirs in zip(double.weights, module.weights, strict=True):
                ours.assign(np.float64(theirs))
    finally:
        keras.config.set_dtype_policy(policy)
    return module, double, options


def in_double(module, weights):
    """Return (outputs, gradient of their sum with weights) of Keras alone, in float64."""
    variables = [
        [variable.value for variable in kind]
        for kind in (module.trainable_variables, module.non_trainable_variables)
    ]

    def forward(image):
        x = (image[None] / 255 - 0.5) / 0.5
        return module.stateless_call(*variables, x, training=False)[0]

    with as_keras_wants(), jax.enable_x64():
        outputs, pull = jax.vjp(forward, jnp.asarray(IMAGE, jnp.float64))
        assert {each.dtype for each in jax.tree.leaves(outputs)} == {jnp.dtype(jnp.float64)}
        cotangents = jax.tree.map(lambda each, w: jnp.float64(w)[None], outputs, weights)
        return jax.tree.leaves(outputs), pull(cotangents)[0]


def test_scores_gradients_and_an_attack_are_keras_s(networks):
    module, double, options = networks
    segments = "classes" in options
    model = adapters.from_keras(module, **{**options, "output": None})
    outputs, pull = jax.vjp(jax.jit(model.scores if segments else model), IMAGE)
    rng = np.random.default_rng(1)
    weights = jax.tree.map(lambda each: np.float32(rng.normal(size=each.shape)), outputs)
    exact, slope = in_double(double, weights)
    for ours, theirs in zip(jax.tree.leaves(outputs), exact, strict=True):
        np.testing.assert_allclose(ours, theirs[0], atol=1e-5 * np.abs(theirs).max(), rtol=0)
    (gradient,) = pull(weights)
    np.testing.assert_allclose(gradient, slope, atol=1e-4 * np.abs(slope).max(), rtol=0)

    score_fn = models.score_fn(model) if segments else jax.tree_util.Partial(logits_of, model)
    order = np.argsort(score_fn(IMAGE), axis=-1)
    targets = dag_jax.make_targets(order[..., -1], order[..., -2])
    result = dag_jax.attack(score_fn, IMAGE, targets, dag_jax.Method(max_steps=20))
    counts = np.asarray(result.active_counts)
    assert counts[counts >= 0][-1] < counts[0]


def logits_of(function, image):
    return function(image)["cls_logits"]
