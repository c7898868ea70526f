import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax import detection, networks
from dag_jax.networks import backbones, grids, layers
from dag_jax.networks.faster_rcnn import FasterRCNN


class Trunk(nn.Module):
    """Two convolutions, stride 4: a backbone that compiles in no time."""

    @nn.compact
    def __call__(self, x, train, grid):
        for width in (6, 8):
            grid = grid.convolved(3, 2, 1)
            x = grid.cut(layers.Conv(width, stride=2, padding=1)(x, train))
        return {"stage5": grids.Map(x, grid)}


class Nothing(nn.Module):
    """A backbone that shows what the network's own preprocessing makes of an image."""

    @nn.compact
    def __call__(self, x, train, grid):
        return {"stage5": grids.Map(x, grid)}


SMALL = FasterRCNN(
    Trunk(),
    num_classes=5,
    stride=4,
    anchor_sizes=(12, 20),
    rpn_width=8,
    pool_size=3,
    fc_width=16,
    min_size=4,
    pre_nms=120,
    post_nms=30,
    resize=None,
)
DOUBLED = SMALL.clone(resize=(64, 96))  # a 32 x 40 image comes to a canvas of 64 x 80


def call(module, method, **options):
    """Return the compiled method; its arguments are variables and then the method's own."""
    return jax.jit(functools.partial(module.apply, method=method, **options))


@pytest.fixture(scope="module")
def variables():
    tree = jax.jit(SMALL.init)(jax.random.key(0), jnp.zeros((32, 40, 3)))
    # Scores and offsets that differ among boxes without saturating.
    gains = {"rpn_cls_score": 0.3, "rpn_bbox_pred": 0.1, "cls_score": 0.06, "bbox_pred": 0.2}
    params = dict(tree["params"])
    for name, gain in gains.items():
        params[name] = {"kernel": gain * params[name]["kernel"], "bias": params[name]["bias"]}
    return {"params": params}


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).uniform(0, 255, (32, 40, 3)).astype(np.float32)


BOXES = np.float32([[0, 0, 39, 31], [5, 6, 20, 25], [10, 2, 12, 30], [30, 20, 39, 31]])


def greedy(boxes, scores, threshold):
    keep, order = [], list(np.argsort(-scores, kind="stable"))
    overlaps = np.asarray(detection.iou(boxes, boxes))
    while order:
        keep.append(order[0])
        order = [j for j in order[1:] if overlaps[order[0], j] <= threshold]
    return keep


@pytest.mark.parametrize(
    ("shape", "canvas", "factor"),
    [
        ((375, 500), (600, 800), 1.6),
        ((500, 333), (901, 600), 600 / 333),
        ((300, 1000), (300, 1000), 1.0),
        ((1200, 1200), (600, 600), 0.5),
        ((100, 500), (200, 1000), 2.0),
    ],
)
def test_canvas_is_py_faster_rcnns(shape, canvas, factor):
    assert FasterRCNN(Nothing()).canvas((*shape, 3)) == (canvas, factor)


@pytest.mark.parametrize("shape", [(30, 41), (133, 80)])
def test_preprocessing_equals_opencvs(rng, shape):
    cv2 = pytest.importorskip("cv2")
    image = rng.uniform(0, 255, (*shape, 3)).astype(np.float32)
    module = FasterRCNN(Nothing(), resize=(60, 100))
    bgr = image[..., ::-1] - np.float32([102.9801, 115.9465, 122.7717])
    factor = module.canvas(image.shape)[1]
    expected = cv2.resize(bgr, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    seen = call(module, "features")({}, image)
    assert seen.shape == expected.shape
    np.testing.assert_allclose(seen, expected, atol=2e-2)


def test_parameters_at_full_size_are_the_published_models():
    image = jax.ShapeDtypeStruct((375, 500, 3), jnp.float32)
    module = FasterRCNN(backbones.Vgg16(pooled=(1, 2, 3, 4)))
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    # VGG16_faster_rcnn_final.caffemodel: 548 MB of float32.
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 137_078_239
    assert shapes["fc6"]["kernel"].shape == (7, 7, 512, 4096)
    module = FasterRCNN(backbones.Zf(), rpn_width=256, pool_size=6, fc_multiplier=0.5)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    assert shapes["fc6"]["kernel"].shape == (6, 6, 256, 4096)
    assert shapes["rpn_bbox_pred"]["kernel"].shape == (1, 1, 256, 36)


@pytest.mark.slow
def test_rpn_reads_channels_as_caffe_orders_them(variables):
    params = jax.tree.map(jnp.zeros_like, variables["params"])
    params["rpn_cls_score"]["bias"] = jnp.arange(12.0)
    params["rpn_bbox_pred"]["bias"] = jnp.arange(24.0)
    scores, deltas = call(SMALL, "rpn")({"params": params}, jnp.zeros((2, 3, 8)))
    cell = np.stack([np.arange(6), np.arange(6, 12)], 1)  # background first, then objects
    np.testing.assert_array_equal(scores, np.tile(cell, (6, 1)))
    np.testing.assert_array_equal(deltas, np.tile(np.arange(24).reshape(6, 4), (6, 1)))


@pytest.mark.slow
def test_rpn_runs_over_cells_row_by_row(variables, rng):
    features = rng.normal(size=(4, 5, 8)).astype(np.float32)
    rpn = call(SMALL, "rpn")
    before = np.asarray(rpn(variables, features)[0]).reshape(4, 5, 6, 2)
    features[0, 4] += 10
    after = np.asarray(rpn(variables, features)[0]).reshape(4, 5, 6, 2)
    changed = (before != after).any((2, 3))
    np.testing.assert_array_equal(np.argwhere(changed), [[0, 3], [0, 4], [1, 3], [1, 4]])


@pytest.mark.parametrize(
    ("module", "factor"), [(SMALL, 1), pytest.param(DOUBLED, 2, marks=pytest.mark.slow)]
)
def test_propose_equals_a_loop(variables, image, module, factor):
    features = call(module, "features")(variables, image)
    scores, deltas = call(module, "rpn")(variables, features)
    boxes = np.asarray(detection.decode_boxes(module.anchors(features.shape[:2]), deltas))
    boxes = np.asarray(detection.clip_boxes(boxes, (32 * factor, 40 * factor)))
    margin = np.asarray(scores[:, 1] - scores[:, 0])
    large = (boxes[:, 2:] - boxes[:, :2] + 1 >= 4 * factor).all(1)
    assert 120 < large.sum() < len(boxes)
    boxes, margin = boxes[large], margin[large]
    best = np.argsort(-margin, kind="stable")[:120]
    boxes, margin = boxes[best], margin[best]
    keep = greedy(boxes, margin, 0.7)[:50]
    propose = call(module, "propose", nms_threshold=0.7, max_proposals=50)
    proposals, scores, valid = map(np.asarray, propose(variables, image))
    assert proposals.shape == (50, 4) and valid.sum() == len(keep) > 10
    np.testing.assert_allclose(proposals[valid], boxes[keep] / factor, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(scores[valid], 1 / (1 + np.exp(-margin[keep])), rtol=1e-4)


@pytest.mark.slow
def test_a_higher_threshold_and_more_candidates_give_more_proposals(variables, image):
    def count(**options):
        proposals = call(SMALL, "propose", max_proposals=300, **options)(variables, image)
        return int(proposals[2].sum())

    counts = [count(nms_threshold=0.5), count(nms_threshold=0.9)]
    counts.append(count(nms_threshold=0.9, pre_nms=250))
    assert counts == sorted(set(counts))


@pytest.mark.parametrize(("module", "factor"), [(SMALL, 1), (DOUBLED, 2)])
@pytest.mark.slow
def test_score_equals_the_heads_step_by_step(variables, image, module, factor):
    halved = module.clone(fc_multiplier=0.5)
    features = call(halved, "features")(variables, image)
    pooled = detection.roi_max_pool(features, jnp.asarray(BOXES * factor), size=3, scale=1 / 4)
    x, params = np.asarray(pooled).reshape(4, -1), variables["params"]
    for name in ("fc6", "fc7"):
        kernel = np.asarray(params[name]["kernel"]).reshape(x.shape[1], -1)
        x = 0.5 * np.maximum(x @ kernel + params[name]["bias"][None], 0)
    expected = x @ params["cls_score"]["kernel"] + params["cls_score"]["bias"][None]
    np.testing.assert_allclose(
        call(halved, "score")(variables, image, BOXES), expected, rtol=1e-4, atol=1e-4
    )


def test_score_knows_neither_the_other_boxes_nor_their_order(variables, image):
    score = call(SMALL, "score")
    together = score(variables, image, BOXES)
    np.testing.assert_allclose(score(variables, image, BOXES[::-1]), together[::-1], rtol=1e-5)
    np.testing.assert_allclose(score(variables, image, BOXES[:1]), together[:1], rtol=1e-4)


@pytest.mark.slow
def test_heads_by_chunks_equal_heads_at_once(variables, image, rng):
    features = call(SMALL, "features")(variables, image)
    corners = np.sort(rng.uniform(0, 31, (23, 2, 2)), axis=1)
    boxes = corners.reshape(-1, 4).astype(np.float32)
    weights = rng.normal(size=(23, 5)).astype(np.float32)
    weights[rng.permutation(23)[:15]] = 0  # regions that have lost already

    @functools.partial(jax.jit, static_argnums=0)
    def run(module, variables, features):
        def loss(variables, features):
            scores, deltas = module.apply(variables, features, boxes, method="heads")
            return (weights * (scores + deltas.sum(axis=2))).sum(), (scores, deltas)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables, features)

    expected = run(SMALL.clone(head_chunk=64), variables, features)
    for chunk in (8, 22):
        outputs = run(SMALL.clone(head_chunk=chunk), variables, features)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), outputs, expected
        )
    assert np.abs(expected[0][1]).max() > 1e-3


@pytest.mark.slow
def test_memory_of_three_thousand_regions_is_bounded():
    # What the compiler sets aside for VGG-16's heads on the map of a 600 x 1,000 canvas, forward
    # and backward: a chunk of regions, the windows and their gradient. The weights are 0.45 GiB.
    module = networks.build("fr_vgg_07")
    image = jax.ShapeDtypeStruct((64, 64, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)

    def gradient(variables, features, boxes, weights):
        def loss(features):
            return (weights * module.apply(variables, features, boxes, method="heads")[0]).sum()

        return jax.value_and_grad(loss)(features)

    def temporaries(count):
        shapes = (38, 63, 512), (count, 4), (count, 21)
        arguments = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
        compiled = jax.jit(gradient).lower(variables, *arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 2**30

    few, many = temporaries(300), temporaries(3000)
    assert many < 0.5
    assert many < few + 0.01  # GiB; it does not grow with the regions


@pytest.mark.slow
@pytest.mark.parametrize("module", [SMALL, DOUBLED])
def test_gradient_of_a_score_is_with_respect_to_the_users_pixel(variables, image, module):
    def total(image):
        scores = module.apply(variables, image, BOXES, method="score")
        return jnp.sum(scores * jnp.arange(20.0).reshape(4, 5))

    total_and_gradient = jax.jit(jax.value_and_grad(total))
    _, gradient = total_and_gradient(image)
    assert gradient.shape == image.shape
    # A small step along the gradient: the network is piecewise linear.
    step = 1e-3 * gradient / jnp.linalg.norm(gradient)
    higher, lower = (total_and_gradient(image + sign * step)[0] for sign in (1, -1))
    slope = (higher - lower) / 2e-3
    np.testing.assert_allclose(slope, jnp.linalg.norm(gradient), rtol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("max_detections", [20, 100])
def test_detect_equals_loops(variables, image, max_detections):
    module = DOUBLED.clone(delta_means=(0.01, 0.0, 0.0, 0.02))
    features = call(module, "features")(variables, image)
    propose = call(module, "propose", nms_threshold=0.7, max_proposals=30)
    regions, _, valid = propose(variables, image)
    scores, deltas = call(module, "heads")(variables, features, 2 * regions)
    scores = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    deltas = np.asarray(deltas) * np.float32([0.1, 0.1, 0.2, 0.2])
    deltas += np.float32([0.01, 0, 0, 0.02])
    expected = []
    for c in range(1, 5):
        boxes = detection.clip_boxes(detection.decode_boxes(regions, deltas[:, c]), (32, 40))
        (rows,) = np.nonzero(np.asarray(valid) & (scores[:, c] > 0.1))
        boxes, kept_scores = np.asarray(boxes)[rows], scores[rows, c]
        expected += [(kept_scores[i], c, *boxes[i]) for i in greedy(boxes, kept_scores, 0.3)]
    expected = np.array(sorted(expected, reverse=True)[:max_detections])
    detect = call(module, "detect", score_threshold=0.1, max_detections=max_detections)
    boxes, classes, scores, valid = map(np.asarray, detect(variables, image))
    assert valid.shape == (max_detections,) and valid.sum() == len(expected) >= 20
    assert len(set(classes[valid])) > 1 and classes.dtype == np.int32
    detections = np.concatenate([scores[:, None], classes[:, None], boxes], 1)[valid]
    np.testing.assert_allclose(detections, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_vmap_equals_one_image_at_a_time(variables, rng):
    images = rng.uniform(0, 255, (3, 32, 40, 3)).astype(np.float32)
    for method, options in [("detect", {}), ("score", {"boxes": BOXES})]:
        alone = functools.partial(SMALL.apply, variables, method=method, **options)
        together = jax.jit(jax.vmap(alone))(images)
        single = jax.jit(alone)
        for i in range(3):
            jax.tree.map(
                lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-3),
                together,
                single(images[i]),
            )


def test_wrong_images_are_named():
    with pytest.raises(ValueError, match=r"\(8, 8\)"):
        SMALL.apply({}, np.zeros((8, 8), np.float32), method="features")
