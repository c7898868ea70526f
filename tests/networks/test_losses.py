import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax import detection
from dag_jax.networks import grids, layers, losses, operations
from dag_jax.networks.faster_rcnn import FasterRCNN


def log_softmax(scores):
    scores = scores - scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def test_segmentation_loss_of_two_pixels_by_hand():
    scores = jnp.log(jnp.float32([[[1, 1, 2], [3, 1, 4]]]))
    labels = jnp.int32([[2, 0]])
    expected = -(np.log(2 / 4) + np.log(3 / 8)) / 2
    np.testing.assert_allclose(losses.segmentation_loss(scores, labels), expected, rtol=1e-6)
    weighted = losses.segmentation_loss(scores, labels, class_weights=jnp.float32([0.25, 1, 1]))
    expected = -(np.log(2 / 4) + 0.25 * np.log(3 / 8)) / 1.25
    np.testing.assert_allclose(weighted, expected, rtol=1e-6)


def test_segmentation_loss_equals_a_loop(rng):
    scores = rng.normal(size=(2, 5, 6, 21)).astype(np.float32)
    labels = rng.integers(0, 21, (2, 5, 6)).astype(np.int32)
    labels[0, :2] = 255
    weights = rng.uniform(0.1, 2, 21).astype(np.float32)
    total = weight = 0.0
    for index in np.ndindex(labels.shape):
        if labels[index] != 255:
            total -= weights[labels[index]] * log_softmax(scores[index])[labels[index]]
            weight += weights[labels[index]]
    loss = jax.jit(losses.segmentation_loss)(scores, labels, class_weights=weights)
    np.testing.assert_allclose(loss, total / weight, rtol=1e-5)


def test_void_pixels_have_neither_loss_nor_gradient(rng):
    scores = rng.normal(size=(4, 4, 3)).astype(np.float32)
    labels = np.full((4, 4), 255, np.int32)
    loss, gradient = jax.value_and_grad(losses.segmentation_loss)(scores, labels)
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)
    labels[1, 2] = 1
    gradient = jax.grad(losses.segmentation_loss)(scores, labels)
    np.testing.assert_array_equal(np.argwhere(np.asarray(gradient).any(-1)), [[1, 2]])


def test_smooth_l1_by_hand():
    x = jnp.float32([-2, -0.5, 0, 1, 3])
    np.testing.assert_allclose(losses.smooth_l1(x), [1.5, 0.125, 0, 0.5, 2.5])
    # Sigma 3: quadratic up to 1/9.
    np.testing.assert_allclose(
        losses.smooth_l1(jnp.float32([0.1, -1]), sigma=3.0), [0.045, 1 - 1 / 18], rtol=1e-6
    )


ANCHORS = detection.tile_anchors(detection.generate_anchors((12, 20), base=4), (8, 10), stride=4)
TRUTHS = np.float32([[3, 4, 17, 18], [20, 10, 36, 28], [0, 0, 0, 0]])
CLASSES = np.int32([2, 4, 1])
VALID = np.array([True, True, False])


@pytest.mark.slow
def test_rpn_loss_equals_a_loop(rng):
    scores = rng.normal(size=(len(ANCHORS), 2)).astype(np.float32)
    deltas = rng.normal(size=(len(ANCHORS), 4)).astype(np.float32)
    key = jax.random.key(5)
    targets = detection.anchor_targets(key, ANCHORS, TRUTHS, VALID, num_samples=40)
    classes = boxes = 0.0
    (rows,) = np.nonzero(np.asarray(targets.sampled))
    for i in rows:
        positive = bool(targets.positive[i])
        classes -= log_softmax(scores[i])[int(positive)] / 40
        for d in np.asarray(deltas[i] - targets.deltas[i]) * positive:
            boxes += (0.5 * (3 * d) ** 2 if abs(d) < 1 / 9 else abs(d) - 0.5 / 9) / 40
    loss = jax.jit(losses.rpn_loss, static_argnames="num_samples")(
        key, scores, deltas, ANCHORS, TRUTHS, VALID, num_samples=40
    )
    np.testing.assert_allclose(loss, [classes, boxes], rtol=1e-4)
    assert boxes > 0


def test_head_loss_equals_a_loop(rng):
    labels = np.int32([3, 0, 1, 0, 2])
    valid = np.array([True, True, True, True, False])
    offsets = rng.normal(size=(5, 4)).astype(np.float32) * (labels > 0)[:, None]
    targets = detection.RegionTargets(jnp.zeros((5, 4)), labels * valid, offsets, valid)
    scores = rng.normal(size=(5, 4)).astype(np.float32)
    deltas = rng.normal(size=(5, 4, 4)).astype(np.float32)
    means, stds = (0.1, 0.0, 0.0, 0.2), (0.1, 0.1, 0.2, 0.2)
    classes = boxes = 0.0
    for i in range(4):
        classes -= log_softmax(scores[i])[labels[i]] / 4
        if labels[i]:
            for d in deltas[i, labels[i]] - (offsets[i] - means) / stds:
                boxes += (0.5 * d**2 if abs(d) < 1 else abs(d) - 0.5) / 4
    loss = losses.head_loss(scores, deltas, targets, means=means, stds=stds)
    np.testing.assert_allclose(loss, [classes, boxes], rtol=1e-5)


class Trunk(nn.Module):
    """Two convolutions with batch normalisation, stride 4."""

    @nn.compact
    def __call__(self, x, train, grid):
        x = layers.Conv(6, stride=2, padding=1, batch_norm=True, name="a")(x, train)
        x = layers.Conv(8, stride=2, padding=1, batch_norm=True, name="b")(x, train)
        return {"stage5": grids.Map(x, grid)}


MODULE = FasterRCNN(
    Trunk(),
    num_classes=5,
    stride=4,
    anchor_sizes=(12, 20),
    rpn_width=8,
    pool_size=3,
    fc_width=16,
    min_size=4,
    pre_nms=100,
    resize=None,
)


@jax.jit
def evaluate(variables, key, images, truths, classes, valid):
    def loss(params):
        total, terms, statistics = losses.detection_loss(
            MODULE,
            {**variables, "params": params},
            key,
            images,
            truths,
            classes,
            valid,
            num_anchors=32,
            num_regions=16,
            num_proposals=20,
        )
        return total, (terms, statistics)

    return jax.value_and_grad(loss, has_aux=True)(variables["params"])


@pytest.fixture(scope="module")
def variables():
    return jax.jit(MODULE.init)(jax.random.key(0), jnp.zeros((32, 40, 3)))


@pytest.fixture
def batch(rng):
    images = rng.uniform(0, 60, (4, 32, 40, 3)).astype(np.float32)
    for x0, y0, x1, y1 in TRUTHS[:2].astype(int):
        images[:, y0 : y1 + 1, x0 : x1 + 1] += 150
    rows = (np.stack([x] * 4) for x in (TRUTHS, CLASSES, VALID))
    return images, *rows


@pytest.mark.slow
def test_detection_loss_is_the_sum_of_its_terms_and_moves_every_weight(variables, batch):
    (loss, (terms, _)), gradient = evaluate(variables, jax.random.key(1), *batch)
    np.testing.assert_allclose(loss, sum(terms), rtol=1e-6)
    assert all(term > 0 for term in terms)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), name
        # A bias before batch normalisation has no effect while training.
        if not ("backbone" in name and name.endswith("['bias']") and "bn" not in name):
            assert np.abs(leaf).max() > 0, name


@pytest.mark.slow
def test_descending_the_gradient_lowers_the_loss(variables, batch):
    params, first = variables["params"], None
    for _ in range(15):
        (loss, _), gradient = evaluate({**variables, "params": params}, jax.random.key(1), *batch)
        first = loss if first is None else first
        params = jax.tree.map(lambda p, g: p - 0.02 * g, params, gradient)
    assert loss < 0.7 * first


@pytest.mark.slow
def test_batch_normalisation_sees_the_whole_batch(variables, batch):
    images = batch[0] * np.float32([1, 2, 3, 4]).reshape(4, 1, 1, 1)
    (_, (_, statistics)), _ = evaluate(variables, jax.random.key(1), images, *batch[1:])
    params = variables["params"]["backbone"]["a"]
    pixels = operations.subtract_mean(images, MODULE.mean_rgb)
    x = operations.convolve(pixels, params["kernel"], stride=2, padding=1)
    x = x + params["bias"].reshape(1, 1, 1, -1)
    running = statistics["backbone"]["a"]["bn"]
    np.testing.assert_allclose(running["mean"], 0.05 * x.mean((0, 1, 2)), rtol=1e-3, atol=1e-3)
    expected = 0.95 + 0.05 * x.var((0, 1, 2))
    np.testing.assert_allclose(running["var"], expected, rtol=1e-3)


@pytest.mark.slow
def test_padding_of_truths_changes_nothing(variables, batch):
    images, truths, classes, valid = batch
    loss = evaluate(variables, jax.random.key(1), images, truths, classes, valid)[0][0]
    truths, classes = truths.copy(), classes.copy()
    truths[:, 2], classes[:, 2] = [0, 0, 39, 31], 3
    again = evaluate(variables, jax.random.key(1), images, truths, classes, valid)[0][0]
    assert loss == again


@pytest.mark.slow
def test_images_without_objects_have_no_box_loss(variables, batch):
    images, truths, classes, valid = batch
    nothing = np.zeros_like(valid)
    (_, (terms, _)), gradient = evaluate(
        variables, jax.random.key(1), images, truths, classes, nothing
    )
    assert terms.rpn_box == 0 and terms.head_box == 0
    assert terms.rpn_class > 0 and terms.head_class > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_wrong_shapes_are_named(variables, batch):
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        losses.segmentation_loss(jnp.zeros((2, 2, 4)), jnp.zeros((2, 3), jnp.int32))
    with pytest.raises(ValueError, match="4 classes"):
        losses.segmentation_loss(
            jnp.zeros((2, 2, 4)), jnp.zeros((2, 2), jnp.int32), class_weights=jnp.ones(3)
        )
    with pytest.raises(ValueError, match=r"\[4, 4, 4, 3\]"):
        losses.detection_loss(MODULE, variables, jax.random.key(0), *batch[:3], batch[3][:3])
