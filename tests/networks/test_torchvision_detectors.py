"""torchvision's detectors against what torchvision itself computed, and their interface.

torchvision_detectors.npz is of torchvision 0.27.1 and PyTorch 2.12.1 in float64: for the arrays of
`random_checkpoint(name)`, in a network of one block a stage and a quarter of the channels whose
normalisation is frozen and has no epsilon, as that of the published ones, and whose canvas is
`RESIZE`, on `look(*SIZE)`. It holds the scores of `BOXES`, or of each `EVERY`th anchor, every 4th
row and column of the gradient of their sum, weighted as in `compiled`, the first 200 proposals, and
the detections; boxes are edges.
"""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax import models, networks
from dag_jax.datasets.classes import COCO_NAMES
from dag_jax.errors import UserError
from dag_jax.networks import pyramid
from dag_jax.weights import convert
from tests.networks import torchvision_files
from tests.networks.torchvision_files import look

FASTER, RETINA = NAMES = ("fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn")
SIZE, RESIZE, EVERY = (48, 110), (232, 400), 1000
RECORDED = pathlib.Path(__file__).parent / "torchvision_detectors.npz"
SMALL = {"blocks": (1, 1, 1, 1), "stem": 16, "width": 24, "fc_width": 40}
# Of three levels of the pyramid, over the border, of one pixel.
BOXES = np.float32(
    [
        *([0, 0, 109, 47], [3, 5, 60, 40], [20, 30, 45, 40], [80, 1, 109, 30], [7, 7, 7, 7]),
        *([50, 10, 58, 45], [-9, -9, 30, 30], [60, 20, 130, 60], [1.5, 2.5, 99.3, 31.2]),
    ]
)
# Of torchvision's COCO_V1.meta["categories"], those that are "N/A".
UNNAMED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)


def random_checkpoint(name):
    """The small network's state_dict, drawn anew from one seed."""
    arrays = torchvision_files.drawn(name, torchvision_files.detector(name, **SMALL))
    # No training ever showed a network what has no name, nor this one what background is.
    silent = [0, *UNNAMED] if name == RETINA else [*UNNAMED]
    layer = {FASTER: "roi_heads.box_predictor.cls_score"}.get(
        name, "head.classification_head.cls_logits"
    )
    arrays[f"{layer}.bias"].reshape(-1, 91)[:, silent] = -30
    return arrays


def small(name, chunk=128, **options):
    module = networks.build(name)
    sizes = {"fc_width": SMALL["fc_width"], "head_chunk": chunk} if name == FASTER else {}
    trunk = {"widths": (16, 64, 128, 256, 512), "blocks": SMALL["blocks"]}
    return module.clone(
        backbone=module.backbone.clone(**trunk, **options),
        pyramid=module.pyramid.clone(features=SMALL["width"]),
        resize=RESIZE,
        **sizes,
    )


@functools.cache
def converted(name):
    return convert.convert(small(name), [torchvision_files.old_names(random_checkpoint(name))])


@functools.cache
def network_of(name):
    kind = networks.ENTRIES[name].kind
    parameters = jax.tree.map(jnp.asarray, converted(name).parameters)
    return kind(name, small(name), parameters, False, networks.facts(name))


def handle_of(name):
    return BOXES if name == FASTER else np.arange(0, 15003, EVERY, dtype=np.int32)


@functools.cache
def recorded(name):
    with np.load(RECORDED) as arrays:
        first = f"{name}_"
        return {key.removeprefix(first): arrays[key] for key in arrays if key.startswith(first)}


def off(ours, theirs):
    """The largest difference, of the range."""
    assert np.shape(ours) == theirs.shape
    return np.abs(np.asarray(ours) - theirs).max() / np.ptp(theirs)


def edges(boxes):
    return np.asarray(boxes) + np.float32([0, 0, 1, 1])


@functools.cache
def compiled(module, name):
    """A function of parameters and an image: its scores, and the gradient of a sum of them."""

    def total(image, parameters):
        scores = module.apply({"params": parameters}, image, handle_of(name), method="score")
        weights = np.sin(np.linspace(-1, 1, scores.size)).reshape(scores.shape)
        return jnp.sum(scores * weights.astype(scores.dtype)), scores

    return jax.jit(jax.value_and_grad(total, has_aux=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_scores_and_gradients_in_float64_are_torchvisions(name):
    module = small(name, chunk=4, dtype="float64")  # three chunks, the last one of padding, too
    # Its constants are float32's, which float64 may join.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        image, parameters = jax.tree.map(np.float64, (look(*SIZE), converted(name).parameters))
        (_, scores), gradient = compiled(module, name)(image, parameters)
        assert gradient.dtype == jnp.float64
    assert off(scores, recorded(name)["scores"]) <= 1e-6
    assert off(gradient[::4, ::4], recorded(name)["gradient"]) <= 1e-4


@functools.cache
def seen(name):
    """(candidates, scores, detections) of a network."""

    @jax.jit
    def see(network, image):
        options = {"nms_threshold": 0.7, "max_proposals": 1000} if name == FASTER else {}
        candidates = network.propose(image, **options)
        return candidates, network.scores(image, handle_of(name)), network.detect(image)

    return jax.device_get(see(network_of(name), look(*SIZE)))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_detections_are_torchvisions(name):
    _, scores, detections = seen(name)
    theirs, ours = recorded(name), detections.without_padding()
    assert off(scores if name == FASTER else scores[..., 0], theirs["scores"]) <= 1e-4
    # Those of equal scores, but for rounding, change places.
    outputs = np.asarray(small(name).columns)[ours.classes]
    assert len(ours.scores) == len(theirs["detected"]) == (100 if name == FASTER else 300)
    np.testing.assert_allclose(ours.scores, theirs["detected"], atol=1e-4)
    np.testing.assert_array_equal(outputs, theirs["classes"])
    np.testing.assert_allclose(edges(ours.boxes), theirs["boxes"], atol=1e-4 * SIZE[1])


@pytest.mark.slow
def test_proposals_are_torchvisions():
    candidates, _, _ = seen(FASTER)
    assert candidates.valid.all() and len(candidates.boxes) == 1000
    theirs = recorded(FASTER)["proposals"]
    np.testing.assert_allclose(edges(candidates.boxes[:200]), theirs, atol=1e-4 * SIZE[1])


@pytest.mark.slow
def test_every_detection_of_retinanet_is_at_a_candidate():
    candidates, _, detections = seen(RETINA)
    # Of the levels of 24 x 52, 12 x 26, 6 x 13, 3 x 7 and 2 x 4 cells, 9 anchors each.
    assert len(candidates.handle) == 1000 + 1000 + 702 + 189 + 72
    assert len(set(candidates.handle.tolist())) == len(candidates.handle)
    candidate_edges = edges(candidates.boxes)[:, None]
    away = np.abs(candidate_edges - edges(detections.boxes)[None]).max(axis=-1)
    assert away.min(axis=0).max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    network, image = network_of(name), look(*SIZE)
    bucketed, shape = network.bucket(SIZE)
    assert shape == (500, 500) and bucketed.module.canvas_shape == (320, 480)
    padded = np.pad(image, [(0, 500 - side) for side in SIZE] + [(0, 0)], constant_values=9)
    extent = np.int32(SIZE)

    @jax.jit
    def see(network, image, extent):
        scores = network.scores(image, handle_of(name), extent)
        return network.propose(image, extent), scores, network.detect(image, extent)

    candidates, scores, detections = see(bucketed, padded, extent)
    plain = seen(name)
    assert off(scores, plain[1]) <= 1e-5
    np.testing.assert_array_equal(detections.classes, plain[2].classes)
    np.testing.assert_allclose(detections.boxes, plain[2].boxes, atol=1e-2)
    if name == RETINA:  # its coarsest levels then have padding
        candidates = jax.tree.map(lambda leaf: leaf[np.asarray(candidates.valid)], candidates)
        # The best come first, and last bits decide between neighbours.
        order, plain_order = np.argsort(candidates.handle), np.argsort(plain[0].handle)
        np.testing.assert_array_equal(candidates.handle[order], plain[0].handle[plain_order])
        boxes = candidates.boxes[order], plain[0].boxes[plain_order]
        np.testing.assert_allclose(*boxes, atol=1e-2)


def parameters_of(name):
    image = jax.ShapeDtypeStruct((128, 128, 3), jnp.float32)
    return jax.eval_shape(networks.build(name).init, jax.random.key(0), image)["params"]


# In torchvision's own tables of weights, where frozen normalisations do not count.
@pytest.mark.parametrize(("name", "count"), [(FASTER, 41_755_286), (RETINA, 34_014_999)])
def test_each_has_the_published_number_of_weights(name, count):
    shapes = dict(torchvision_files.detector(name))
    norms = {key: math.prod(shape) for key, shape in shapes.items() if "body" in key}
    norms = {key: size for key, size in norms.items() if len(shapes[key]) == 1}
    assert sum(map(math.prod, shapes.values())) - sum(norms.values()) == count
    # Folded, a normalisation leaves one number of a channel.
    leaves = jax.tree.leaves(parameters_of(name))
    assert sum(leaf.size for leaf in leaves) == count + sum(norms.values()) // 4


@pytest.mark.parametrize("name", NAMES)
def test_older_and_newer_names_are_the_same(name):
    weights = converted(name)
    assert weights.layout == f"torchvision_{name.partition('_')[0]}"
    assert not weights.partial and not weights.left_out
    newer = convert.convert(small(name), [random_checkpoint(name)])
    jax.tree.map(np.testing.assert_array_equal, newer.parameters, weights.parameters)


def test_a_frozen_normalisation_has_no_epsilon():
    arrays = random_checkpoint(FASTER)
    arrays["backbone.body.bn1.running_var"][0] = 4e-12
    kernel = convert.convert(small(FASTER), [arrays]).parameters["backbone"]["conv1"]["kernel"]
    gain = arrays["backbone.body.bn1.weight"][0] / 2e-6
    expected = arrays["backbone.body.conv1.weight"][0].transpose(1, 2, 0) * gain
    np.testing.assert_allclose(kernel[..., 0], expected, rtol=1e-4)


def scaled(height, width, short, long):
    """torchvision's size of an image after scaling."""
    scale = min(short / min(height, width), long / max(height, width))
    return tuple(math.floor(float(side) * scale) for side in (height, width))


def test_the_canvas_is_torchvisions_to_the_pixel(rng):
    module = networks.build(RETINA)
    shape = 800, 1100, 3
    sizes = np.concatenate(
        [
            [[375, 500], [500, 333], [305, 400], [300, 1000], [49, 49], [1, 1], [1, 700], [799, 1]],
            np.stack([np.arange(1, 801)] * 2, axis=1),  # 799 of 800, where a quotient rounds down
            np.stack([np.full(1100, 66), np.arange(1, 1101)], axis=1),
            rng.integers(1, 800, (2000, 2)),
        ]
    )
    expected = [scaled(*size, 800, 1333) for size in sizes.tolist()]
    assert (np.min(expected, axis=1) == 799).sum() > 50
    for size, sides in zip(sizes.tolist()[::40], expected[::40], strict=True):
        assert module.canvas((*size, 3))[0] == sides
    traced = jax.jit(jax.vmap(lambda extent: module.canvas(shape, extent)))
    canvases, ratios = traced(sizes.astype(np.int32))
    np.testing.assert_array_equal(np.stack(canvases, axis=1), expected)
    np.testing.assert_allclose(np.stack(ratios, axis=1), expected / sizes, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_of_each_and_what_cannot_be_had(name):
    network = jax.eval_shape(lambda: networks.load(name, random=True))
    assert isinstance(network, models.Detector)
    about = models.about(network)
    assert [about.classes[index] for index in about.objects] == list(COCO_NAMES)
    assert about.background == (0 if name == FASTER else None)
    bucketed, shape = network.bucket((375, 500, 3))
    assert bucketed.module.canvas_shape == (800, 1120) and shape == (500, 500)
    image = jax.ShapeDtypeStruct((*shape, 3), jnp.float32)
    extent = jax.ShapeDtypeStruct((2,), jnp.int32)
    see = functools.partial(jax.eval_shape, type(network).propose)
    # Of 200,000 anchors, those of an attack are bounded; of the coarsest level there are no more.
    candidates = see(bucketed, image, extent)
    assert len(candidates.boxes) == (3000 if name == FASTER else 4000 + 9 * 7 * 9)
    scores = jax.eval_shape(type(network).scores, bucketed, image, candidates.handle, extent)
    assert scores.shape == (len(candidates.boxes), *((81,) if name == FASTER else (80, 2)))
    with pytest.raises(UserError, match="an extent needs a network with a canvas_shape"):
        see(network, image, extent)
    with pytest.raises(UserError, match="has no miniature"):
        networks.load(name, miniature=True)


def test_the_columns_are_those_with_a_name():
    assert pyramid.COCO_COLUMNS == tuple(set(range(1, 91)) - set(UNNAMED))
    assert len(pyramid.COCO_COLUMNS) == len(COCO_NAMES) == 80
