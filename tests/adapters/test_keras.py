"""Keras models as ours, on its JAX backend, against Keras's own prediction."""

import math
import os

import jax
import numpy as np
import pytest

import dag_jax
from dag_jax import adapters, models
from dag_jax.runs.subject import weights_digest
from tests.adapters import everywhere

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras", reason="Keras, of the keras extra, is not installed")
if keras.backend.backend() != "jax":
    pytest.skip("KERAS_BACKEND is not jax", allow_module_level=True)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = ("background", "cat", "dog")
IMAGE = np.random.default_rng(0).uniform(0, 255, (24, 32, 3)).astype(np.float32)


def network(shape=(None, None, 3), head=None):
    """Return a model with dropout and batch normalisation, which differ in training."""
    keras.utils.set_random_seed(0)
    pixels = keras.Input(shape)
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same")(pixels)
    x = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(x))
    x = keras.layers.Conv2D(3, 3, padding="same")(keras.layers.Activation("gelu")(x))
    return keras.Model(pixels, x if head is None else head(x), name="small")


def adapted(model, **changes):
    return adapters.from_keras(model, **{"mean": MEAN, "std": STD, "classes": CLASSES} | changes)


@pytest.fixture(scope="module")
def network_and_model():
    module = network()
    return module, adapted(module)


def test_scores_are_keras_s_own(network_and_model):
    module, model = network_and_model
    inputs = (IMAGE / 255 - np.float32(MEAN)) / np.float32(STD)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = np.asarray(module(inputs[None], training=False))[0]
    np.testing.assert_allclose(model.scores(IMAGE), expected, atol=1e-5)
    assert models.about(model).title == "small" and models.about(model).classes == CLASSES


def test_gradients_are_the_slopes_of_float64(network_and_model):
    _, model = network_and_model
    weights = np.random.default_rng(1).normal(size=(12, 16, 3)).astype(np.float32)
    slope = jax.grad(lambda image: (model.scores(image) * weights).sum())(IMAGE)
    direction = np.random.default_rng(2).normal(size=IMAGE.shape)
    arrays = [np.float64(leaf) for leaf in jax.tree.leaves(model)]
    kernel, bias, gamma, beta, kernel2, bias2, mean, variance = arrays[:8]

    def forward(image):  # written anew in NumPy
        x = (image / 255 - np.array(MEAN)) / np.array(STD)
        x = correlate(np.pad(x, ((0, 1), (0, 1), (0, 0))), kernel, 2) + bias
        x = (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta
        x = x * 0.5 * (1 + erf(x / np.sqrt(2)))
        return correlate(np.pad(x, ((1, 1), (1, 1), (0, 0))), kernel2, 1) + bias2

    image = IMAGE.astype(np.float64)
    np.testing.assert_allclose(model.scores(IMAGE), forward(image), atol=1e-5)
    high, low = (forward(image + side * direction) for side in (1e-3, -1e-3))
    measured = ((high - low) * weights).sum() / 2e-3
    np.testing.assert_allclose((slope * direction).sum(), measured, rtol=1e-4)


def correlate(x, kernel, stride):
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(0, 1))
    return np.einsum("hwcij,ijcd->hwd", windows[::stride, ::stride], kernel)


def erf(x):
    return np.vectorize(math.erf)(x)


def test_variables_are_the_leaves(network_and_model):
    module, model = network_and_model
    leaves = jax.tree.leaves(model)
    assert len(leaves) >= 8
    doubled = jax.tree.map(lambda leaf: leaf * 2, model)
    assert weights_digest(doubled) != weights_digest(model) == weights_digest(adapted(module))
    assert not np.allclose(doubled.scores(IMAGE), model.scores(IMAGE))


def test_twenty_steps_of_an_attack_and_every_other_way(network_and_model):
    _, model = network_and_model
    labels = np.asarray(model.predict(IMAGE))
    targets = dag_jax.make_targets(labels, (labels + 1) % 3)
    function = models.score_fn(model)
    result = dag_jax.attack(function, IMAGE, targets, dag_jax.Method(max_steps=20))
    counts = np.asarray(result.active_counts)
    assert counts[counts >= 0][-1] < counts[0]
    everywhere.check(function, IMAGE, targets)


def test_a_model_of_one_size_gets_its_size():
    model = adapted(network((16, 16, 3)))
    assert model.scores(IMAGE).shape == (8, 8, 3) and model.predict(IMAGE).shape == (24, 32)


def test_outputs_are_found_by_name():
    module = network(head=lambda x: {"out": x, "mean": keras.layers.GlobalAveragePooling2D()(x)})
    model = adapted(module, output="out")
    assert model.scores(IMAGE).shape == (12, 16, 3)
    every = adapted(module, classes=None)(IMAGE)
    assert every["mean"].shape == (3,)
    np.testing.assert_array_equal(every["out"], model.scores(IMAGE))
    mean, out = adapted(module, classes=None, output=("mean", "out"))(IMAGE)
    np.testing.assert_array_equal(out, every["out"])
    np.testing.assert_array_equal(mean, every["mean"])


@pytest.mark.parametrize(
    ("head", "changes", "message"),
    [
        ("softmax", {}, "small gives probabilities: .* a pixel sum to 1"),
        ("sigmoid", {}, "small gives probabilities: .* none is outside"),
        (None, {"classes": ("a", "b")}, "scores of 3 classes, and classes= names 2"),
        (None, {"output": "out"}, "returns one array: output='out' names nothing"),
        (None, {"mean": (104, 117, 123)}, "it is of images in 0..1"),
        (None, {"layout": "hwc"}, "layout is 'hwc'"),
    ],
)
def test_what_cannot_be_attacked_is_told_why(head, changes, message):
    module = network(head=head and keras.layers.Activation(head))
    with pytest.raises(dag_jax.UserError, match=message):
        adapted(module, **changes)


def test_a_gradient_that_is_stopped_inside_is_told():
    module = network(head=stopped)
    with pytest.raises(dag_jax.UserError, match="small has a gradient of zero at the image"):
        adapted(module)


def test_a_gradient_that_is_stopped_in_part_is_said():
    halved = lambda x: keras.layers.Multiply()([x, stopped(x)])  # noqa: E731
    with pytest.warns(UserWarning, match="small has a .* off by 50% .* 2 times .* stop_gradient"):
        adapted(network(head=halved))


def stopped(x):
    return keras.layers.Lambda(keras.ops.stop_gradient)(x)


def several(x):
    return {"a": x, "b": stopped(x), "c": x + np.inf, "n": keras.ops.argmax(x, axis=-1)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "output 'b' of small has a gradient of zero"),
        ({"output": "b"}, "small has a gradient of zero"),
        ({"output": ("a", "b")}, "output 'b' of small has a gradient of zero"),
        ({"output": ("a", "n")}, "output 'n' of small has a gradient of zero"),
        ({"output": "c"}, "small has scores not finite"),
        ({"output": "logits"}, r"a dict of 'a' .*; none of them is output='logits'"),
        ({"output": ("a", "b"), "classes": CLASSES}, "of a segmenter it names one"),
    ],
)
def test_what_is_no_segmenter_is_tried_too(changes, message):
    with pytest.raises(dag_jax.UserError, match=message):
        adapted(network(head=several), **{"classes": None} | changes)


def test_what_is_no_model_or_not_built_is_refused():
    with pytest.raises(dag_jax.UserError, match="model is a int; it must be a keras.Model"):
        adapted(3)
    with pytest.raises(dag_jax.UserError, match="is not built: call it on an image"):
        adapted(keras.Sequential([keras.layers.Conv2D(3, 3)]))


class Plain(keras.Model):
    """Whose `call` knows no training mode, and whose layers do."""

    def __init__(self):
        super().__init__()
        self.layer, self.dropout = keras.layers.Conv2D(3, 3), keras.layers.Dropout(0.5)

    def call(self, pixels):
        return self.dropout(self.layer(pixels))


def test_a_model_whose_call_has_no_training_runs_as_for_inference():
    module = Plain()
    expected = np.asarray(module(IMAGE[None] / 255))[0]
    model = adapted(module, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    np.testing.assert_allclose(model.scores(IMAGE), expected, atol=1e-5)
