"""Padding an image changes nothing: scores, gradients, proposals, detections."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax import models, networks
from dag_jax.networks import operations
from dag_jax.networks.grids import Grid, pixels
from dag_jax.runs import evaluation


def test_grids_by_hand():
    image = Grid(1, 0, 20, 30)
    assert pixels((2, 20, 30, 3)) == image
    assert image.convolved(3, 1, 1) == image
    assert image.convolved(2, 2) == (2, 0.5, 10, 15)
    assert image.convolved(2, 2).upsampled(4, 2) == (1, -1, 22, 32)
    # VGG-16's pools round up; ZF's drop a window that starts in the padding.
    assert Grid(1, 0, 75, 38).pooled(2, 2) == (2, 0.5, 38, 19)
    assert Grid(1, 0, 5, 6).pooled(3, 3, 1) == (3, 0, 2, 3)
    # The score map of FCN-8s's stride 16 inside pool4's: Caffe's crop of 5 cells.
    pool4, score = Grid(16, 7.5 - 99, 44, 36), Grid(16, 7.5 - 19, 34, 50)
    assert pool4.offset(score) == 5
    assert pool4.cropped(5, score) == (16, score.origin, 34, 31)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["convolved", "pooled"])
@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 2, 0), (5, 3, 2)]
)
def test_extents_are_the_layers_own(kind, size, stride, padding):
    # Ints and traced numbers agree with each other and with what the layer gives.
    traced = jax.jit(lambda n: getattr(Grid(1, 0, n, n), kind)(size, stride, padding).rows)
    for extent in range(size + 1, size + 5):
        x = jnp.zeros((extent, size, 1))
        if kind == "convolved":
            kernel = jnp.zeros((size, size, 1, 1))
            y = operations.convolve(x, kernel, stride=stride, padding=padding)
        else:
            y = operations.max_pool(x, size=size, stride=stride, padding=padding)
        known = getattr(Grid(1, 0, extent, size), kind)(size, stride, padding)
        assert (known.rows, known.columns) == y.shape[:2]
        assert traced(extent) == known.rows


def test_cut_zeroes_the_padding_alone(rng):
    x = jnp.asarray(rng.uniform(1, 2, (2, 4, 5, 3)), jnp.float32)
    grid = pixels(x.shape, np.int32([3, 2]))
    cut = np.asarray(grid.cut(x))
    np.testing.assert_array_equal(cut[:, :3, :2], x[:, :3, :2])
    assert not cut[:, 3:].any() and not cut[:, :, 2:].any()
    assert pixels(x.shape).cut(x) is x


NARROW = {"rpn_width": 16, "fc_width": 32, "anchor_sizes": (16, 32, 64), "pre_nms": 400}


def narrow(name):
    """Return a full-size network with few channels; a detector's canvas is small, too."""
    module = networks.build(name)
    widths = tuple(max(8, width // 16) for width in module.backbone.widths)
    trunk = module.backbone.clone(widths=widths)
    if name in networks.BLACK_BOX:
        trunk = trunk.clone(blocks=(1, 2, 1, 2))
    if name.startswith("fr"):
        module = module.clone(backbone=trunk, resize=(90, 150), min_size=4, **NARROW)
    else:
        module = module.clone(backbone=trunk, fc_width=32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((64, 64, 3)))["params"]
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        # Biases are zero at first, and would not show where padding has been forgotten.
        scale = 0.3 if leaf.ndim == 1 else (2 / math.prod(leaf.shape[:-1])) ** 0.5
        # Large offsets would take every box out of the image; residuals add up to large features.
        offset_scale = 0.001 if name in networks.BLACK_BOX else 0.01
        scale *= offset_scale if "bbox_pred" in jax.tree_util.keystr(path) else 1
        return rng.normal(0, scale, leaf.shape).astype(np.float32)

    parameters = jax.tree_util.tree_map_with_path(fill, shapes)
    kind = networks.DetectionNetwork if name.startswith("fr") else networks.SegmentationNetwork
    return kind(name, module, parameters, False, networks.facts(name))


def load(name):
    """Return a network by its name, of which "mini " asks for the shipped one."""
    if name.startswith("mini "):
        return networks.load(name[5:], miniature=True)
    return narrow(name)


def padded(image, shape, rng):
    """Return an image in a larger array, the rest of which is noise."""
    noise = rng.uniform(0, 255, (*shape, 3)).astype(np.float32)
    noise[: image.shape[0], : image.shape[1]] = image
    return noise


@pytest.fixture
def assert_equal():
    """Assert that arrays are equal to 1e-4 of their range."""

    def check(actual, expected):
        actual, expected = np.asarray(actual), np.asarray(expected)
        assert np.ptp(expected) > 0
        np.testing.assert_allclose(actual, expected, atol=1e-4 * np.ptp(expected), rtol=0)

    return check


@jax.jit
def scores_and_gradient(score_fn, image, weights, *inputs):
    def loss(image):
        scores = score_fn(image, *inputs)
        height, width = weights.shape[:2]
        scores = scores[:height, :width] if scores.ndim == 3 else scores
        return (weights * scores).sum(), scores

    gradient, scores = jax.grad(loss, has_aux=True)(image)
    return scores, gradient


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn_vgg", "mini fcn_resnet"])
def test_padding_changes_no_segmentation(name, rng, assert_equal):
    network = load(name)
    model, shape = network.bucket((64, 120))
    assert shape == (125, 125)
    for size in [(110, 67)]:
        image = rng.uniform(0, 255, (*size, 3)).astype(np.float32)
        weights = rng.normal(size=(*size, 21)).astype(np.float32)
        expected = scores_and_gradient(models.score_fn(network), image, weights)
        larger, extent = padded(image, shape, rng), np.int32(size)
        actual = scores_and_gradient(models.score_fn(model), larger, weights, extent)
        assert_equal(actual[0], expected[0])
        assert_equal(actual[1][: size[0], : size[1]], expected[1])
        assert not actual[1][size[0] :].any() and not actual[1][:, size[1] :].any()


@functools.partial(jax.jit, static_argnames="shape")
def detect_all(network, image, weights, *extent, shape):
    """Return what a detector says of an image, and the gradient of its scores."""
    options = {"nms_threshold": 0.9, "max_proposals": len(weights)}
    proposals = network.propose(image, *extent, **options)
    inputs = proposals.boxes, *extent
    scored = scores_and_gradient(models.score_fn(network), image, weights, *inputs)
    gradient = scored[1][: shape[0], : shape[1]], scored[1]
    return proposals, scored[0], gradient, network.detect(image, *extent)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fr_zf_07"])
def test_padding_changes_no_detection(name, rng, assert_equal):
    network, size = load(name), (110, 66)
    model, shape = network.bucket(size)
    if model.module.canvas_shape:  # of which the canvas of 150 x 90 pixels fills all
        model = dataclasses.replace(model, module=model.module.clone(canvas_shape=(180, 120)))
    image = rng.uniform(0, 255, (*size, 3)).astype(np.float32)
    weights = rng.normal(size=(200, 21)).astype(np.float32)
    expected = detect_all(network, image, weights, shape=size)
    extent = np.int32(size)
    actual = detect_all(model, padded(image, shape, rng), weights, extent, shape=size)
    boxes, valid = expected[0].boxes, expected[0].valid
    assert np.asarray(valid).sum() > 20
    np.testing.assert_array_equal(actual[0].valid, valid)
    assert_equal(actual[0].boxes[valid], boxes[valid])
    assert_equal(actual[1][valid], expected[1][valid])
    assert_equal(actual[2][0], expected[2][0])
    assert not actual[2][1][size[0] :].any() and not actual[2][1][:, size[1] :].any()
    detections, valid = expected[3], expected[3].valid
    np.testing.assert_array_equal(actual[3].valid, valid)
    np.testing.assert_array_equal(actual[3].classes[valid], detections.classes[valid])
    np.testing.assert_allclose(actual[3].scores[valid], detections.scores[valid], atol=1e-4)
    np.testing.assert_allclose(actual[3].boxes[valid], detections.boxes[valid], atol=1e-2)


def test_images_of_a_bucket_share_a_compilation():
    network = networks.load("fr_zf_07", miniature=True)
    full = networks.DetectionNetwork(
        "fr_zf_07", networks.build("fr_zf_07"), {}, False, networks.facts("fr_zf_07")
    )
    assert network.bucket((90, 126, 3)) == (network, (125, 250))
    for size, canvas in [
        ((375, 500), (600, 800)),
        ((333, 500), (600, 1000)),
        ((500, 333), (1000, 600)),
        ((200, 500), (400, 1000)),
    ]:
        model, shape = full.bucket(size)
        assert shape == (500, 500)
        assert model.module.canvas_shape == canvas
    assert len({jax.tree.structure(full.bucket(size)[0]) for size in ((375, 500), (360, 480))}) == 1


@pytest.mark.parametrize("resize", [(600, 1000), (90, 150)])
def test_a_traced_canvas_is_the_known_one(resize):
    module = networks.build("fr_vgg_07").clone(resize=resize)
    traced = jax.jit(lambda extent: module.canvas((500, 500, 3), extent))
    for size in [(375, 500), (403, 400), (401, 400), (500, 71), (1, 500), (333, 500), (47, 47)]:
        (height, width), factor = module.canvas((*size, 3))
        canvas, found_factor = traced(np.int32(size))
        assert (int(canvas[0]), int(canvas[1])) == (height, width)
        np.testing.assert_allclose(found_factor, factor, rtol=1e-6)


@pytest.mark.slow
def test_an_extent_needs_somewhere_to_lie():
    network = narrow("fr_zf_07")
    with pytest.raises(ValueError, match="canvas_shape"):
        network.detect(np.zeros((90, 90, 3), np.float32), np.int32([50, 50]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extent", "message"),
    [
        (np.int32([60, 131]), r"extent \(60, 131\) does not lie in an array of 125 x 125 pixels"),
        (np.int32([0, 60]), r"extent \(0, 60\)"),
        (np.float32([60, 60]), r"extent is float32\[2\]; it must be i32\[2\]"),
        (np.int32([[60, 60]]), r"extent is int32\[1, 2\]"),
    ],
)
@pytest.mark.parametrize("name", ["fcn_vgg", "fr_vgg_07"])
def test_a_wrong_extent_is_named(name, extent, message):
    network = networks.load(name, miniature=True)
    with pytest.raises(ValueError, match=message):
        evaluation.look(network, np.zeros((125, 125, 3), np.float32), extent)


def test_an_extent_may_have_the_dtype_of_a_shape():
    assert pixels((9, 8, 3), np.array([7, 6])) == pixels((9, 8, 3), np.int32([7, 6]))


def test_an_image_that_is_too_small_is_named():
    network = networks.load("fcn_vgg", miniature=True)
    with pytest.raises(ValueError, match="the image is too small"):
        network.bucket((40, 120))
    assert network.bucket((48, 120))[1] == (125, 125)


@pytest.mark.slow
def test_what_lies_in_another_bucket_gives_nan():
    # 90 x 150 pixels of canvas do not fit into 120 x 120, which only the traced numbers say.
    network = narrow("fr_zf_07")
    module = network.module.clone(canvas_shape=(120, 120))
    model = dataclasses.replace(network, module=module)
    score = jax.jit(models.score_fn(model, np.float32([[0, 0, 50, 50]])))
    image = np.zeros((125, 125, 3), np.float32)
    assert np.isfinite(score(image, np.int32([90, 100]))).all()
    assert np.isnan(score(image, np.int32([66, 110]))).all()
    assert np.isnan(score(image, np.int32([126, 120]))).all()


def test_no_boxes_have_no_scores():
    network = networks.load("fr_vgg_07", miniature=True)
    score_fn = models.score_fn(network, np.zeros((0, 4), np.float32))
    assert jax.eval_shape(score_fn, jnp.zeros((64, 64, 3))).shape == (0, 21)
