"""Darknet's networks and YOLO's detections, against OpenCV's reader of the same files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax import models, networks
from dag_jax.datasets import CLASS_NAMES
from dag_jax.errors import UserError
from dag_jax.networks import darknet as darknet_networks
from dag_jax.networks import yolo
from dag_jax.weights import darknet, darknet_cfg
from tests.weights.test_darknet import PUBLISHED, draw, write

cv2 = pytest.importorskip("cv2")


def convolution(filters, size=1, activation="leaky", norm=1, **options):
    options = {"filters": filters, "size": size, "pad": 1, "activation": activation} | options
    return ("convolutional", options | {"batch_normalize": norm})


def head(kind="yolo", anchors="4,6, 9,7, 20,12", **options):
    return (kind, {"anchors": anchors, "classes": 3, "num": 3, "thresh": 0.01} | options)


LAST = functools.partial(convolution, activation="linear", norm=0)
TINY = (  # the parts of yolov3-tiny, whose second pool has a stride of 1
    convolution(8, 3),
    ("maxpool", {"size": 2, "stride": 2}),
    convolution(12, 3),
    ("maxpool", {"size": 2, "stride": 1}),
    convolution(16, 3, "mish"),
    ("dropout", {"probability": 0.5}),
    convolution(8, stride=2),
    LAST(16),
    head(mask="1,2"),
    ("route", {"layers": -3}),
    ("upsample", {"stride": 2}),
    ("route", {"layers": "-1,4"}),
    LAST(24),
    head(mask="0,1,2", scale_x_y=1.2),
)
CROSS_STAGE = (  # of yolov4-tiny and yolov3
    convolution(16, 3, stride=2),
    ("route", {"layers": -1, "groups": 2, "group_id": 1}),
    convolution(8, 3, "swish"),
    ("route", {"layers": "-1,-2"}),
    ("shortcut", {"from": -4, "activation": "leaky"}),
    ("maxpool", {"size": 2, "stride": 2}),
    LAST(24),
    head(scale_x_y=1.05, mask="0,1,2"),
)
MOBILE = (  # of the MobileNetV2-YOLOs: channels and groups alone, pools of several sizes
    convolution(8, 3, "relu", stride=2),
    convolution(8, 3, "relu", groups=8, stride=2),
    convolution(8, 3, "logistic", groups=2),
    ("maxpool", {"size": 3, "stride": 1}),
    ("route", {"layers": -2}),
    ("maxpool", {"size": 5, "stride": 1}),
    ("route", {"layers": "-1,-3,-2"}),
    LAST(24),
    head(mask="0,1,2"),
)
REGION = (
    convolution(8, 3, stride=4),
    LAST(24),
    head("region", "0.5,1, 2,1.5, 3,2", softmax=1),
)
NETWORKS = {"tiny": TINY, "cross_stage": CROSS_STAGE, "mobile": MOBILE, "region": REGION}
SHAPE = 32, 48  # pixels that they see


def text_of(layers):
    lines = ["[net]", f"height={SHAPE[0]}", f"width={SHAPE[1]}", "channels=3"]
    for kind, options in layers:
        lines += [f"[{kind}]", *(f"{name}={value}" for name, value in options.items())]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (6, 8, 3)).astype(np.float32)
    return cv2.resize(coarse, SHAPE[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 255)


@pytest.fixture(scope="module", params=NETWORKS)
def both(request, tmp_path_factory, image):
    """One network of random weights: ours, and OpenCV's from the same files."""
    folder, rng = tmp_path_factory.mktemp("darknet"), np.random.default_rng(3)
    path = folder / f"{request.param}.cfg"
    path.write_text(text_of(NETWORKS[request.param]))
    cfg = darknet_cfg.parse(darknet_cfg.read_cfg(path))
    arrays = draw(cfg, rng)
    weights = write(path.with_suffix(".weights"), arrays)
    load = functools.partial(networks.load_darknet, path, weights, ("cat", "dog", "cow"))
    # A few of the anchors are to hold something.
    rows, ends = say(load(), image)[0], np.cumsum([yolo._rows_of(head) for head in cfg.heads])
    for place, seen in zip(places_of(cfg), np.split(rows[:, 4], ends[:-1]), strict=True):
        gain = 12 / seen.std()
        last = arrays[f"conv{place - 1}"]
        last["kernel"][..., 4::8] *= gain
        last["bias"][4::8] = gain * (last["bias"][4::8] - np.quantile(seen, 0.995))
    write(weights, arrays)
    return load(), cv2.dnn.readNetFromDarknet(str(path), str(weights))


@jax.jit
def say(network, image):
    """Return all that a network says, inside and out."""
    rows = network._see(image, None)
    candidates = network.propose(image)
    scores = network.scores(image, candidates.handle)
    return rows, network._boxes(rows, (1, 1)), candidates, scores, network.detect(image)


def places_of(cfg):
    """Return which layers are heads."""
    layers = enumerate(cfg.layers)
    return [place for place, layer in layers if isinstance(layer, darknet_cfg.Head)]


def raw_of(network, net, image):
    """Return what OpenCV says: f32[N, 5 + C] before the heads, and of each head."""
    net.setInput(np.ascontiguousarray((image / 255).transpose(2, 0, 1)[None]))
    places = places_of(network.module.cfg)
    maps = net.forward([f"conv_{place - 1}" for place in places])
    width = 5 + len(network.classes)
    raw = np.concatenate([each[0].transpose(1, 2, 0).reshape(-1, width) for each in maps])
    heads = net.forward(net.getUnconnectedOutLayersNames())
    return raw, np.concatenate([each.reshape(-1, width) for each in heads])


def probabilities(network, raw):
    """Return p of f64[N, 5 + C], by its definition."""
    raw = raw.astype(np.float64)
    objects, classes = 1 / (1 + np.exp(-raw[:, 4:5])), 1 / (1 + np.exp(-raw[:, 5:]))
    if network.module.cfg.heads[0].softmax:
        powers = np.exp(raw[:, 5:])
        classes = powers / powers.sum(axis=1, keepdims=True)
    return objects * classes


def test_heads_are_opencvs(both, image):
    network, net = both
    raw, _ = raw_of(network, net, image)
    off = np.abs(say(network, image)[0] - raw).max()
    assert off <= 1e-4 * np.ptp(raw)


def test_boxes_and_probabilities_are_opencvs(both, image):
    network, net = both
    _, heads = raw_of(network, net, image)
    _, boxes, _, scores, _ = jax.device_get(say(network, image))
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    np.testing.assert_allclose(np.hstack([centres, sides]), heads[:, :4], rtol=1e-4, atol=1e-5)
    probabilities, expected = 1 / (1 + np.exp(-scores[..., 0])), heads[:, 5:]
    is_given = expected > 0  # those that OpenCV thinks too small it gives as 0
    assert is_given.any() and not is_given.all()
    np.testing.assert_allclose(probabilities[is_given], expected[is_given], atol=1e-5)


def test_a_class_is_detected_where_its_logit_is_above_the_thresholds(both, image):
    network, net = both
    raw, _ = raw_of(network, net, image)
    _, _, candidates, scores, _ = say(network, image)
    assert models.is_sigmoid(scores) and scores.shape == (len(raw), 3, 2)
    assert np.array_equal(candidates.handle, np.arange(len(raw))) and candidates.valid.all()
    p = probabilities(network, raw)
    np.testing.assert_allclose(scores[..., 0], np.log(p / (1 - p)), atol=2e-3)
    np.testing.assert_allclose(jax.nn.sigmoid(scores[..., 1]), yolo.THRESHOLD, rtol=1e-5)


def test_detections_are_those_of_opencvs_suppression(both, image):
    network, net = both
    raw, heads = raw_of(network, net, image)
    detections = say(network, image)[-1].without_padding()
    centres, sides = heads[:, :2] * SHAPE[::-1], heads[:, 2:4] * SHAPE[::-1]
    rects = np.hstack([centres - sides / 2, sides]).astype(np.float64)
    limits = np.array([SHAPE[1] - 1, SHAPE[0] - 1] * 2)
    for index, p in enumerate(probabilities(network, raw).T):
        chosen = cv2.dnn.NMSBoxes(rects.tolist(), p.tolist(), yolo.THRESHOLD, yolo.NMS_THRESHOLD)
        chosen = np.asarray(chosen, int).reshape(-1)
        mine = detections.classes == index
        assert mine.sum() == len(chosen) > 0
        np.testing.assert_allclose(detections.scores[mine], p[chosen], rtol=1e-3)
        edges = np.hstack([rects[chosen, :2], rects[chosen, :2] + rects[chosen, 2:]])
        np.testing.assert_allclose(detections.boxes[mine], edges.clip(0, limits), atol=1e-2)


@pytest.fixture(scope="module")
def smooth(tmp_path_factory):
    """A network without corners."""
    layers = [
        (kind, options | ({"activation": "mish"} if options.get("batch_normalize") else {}))
        for kind, options in CROSS_STAGE
        if kind not in ("maxpool", "shortcut")
    ]
    layers[-2] = LAST(24, stride=2)
    cfg = darknet_cfg.parse(text_of(layers))
    folder = tmp_path_factory.mktemp("smooth")
    (folder / "net.cfg").write_text(text_of(layers))
    weights = write(folder / "net.weights", draw(cfg, np.random.default_rng(1)))
    return networks.load_darknet(folder / "net.cfg", weights, ("cat", "dog", "cow"))


def test_the_gradient_is_the_slope_of_the_scores(smooth, image, rng):
    network = smooth
    handle = np.arange(0, 288, 7)
    weights = rng.normal(size=(len(handle), 3)).astype(np.float32)

    @jax.jit
    def loss(seen):
        return (network.scores(seen, handle)[..., 0] * weights).sum()

    large = cv2.resize(image, (60, 44))  # scaled inside
    gradient = jax.jit(jax.grad(loss))(large)
    for _ in range(3):
        direction = rng.normal(size=large.shape).astype(np.float32)
        slope = (loss(large + direction) - loss(large - direction)) / 2
        assert float(slope) == pytest.approx(float((gradient * direction).sum()), rel=0.02)


@pytest.mark.slow
def test_an_image_is_scaled_as_opencv_scales_it(smooth, image, rng):
    large = rng.uniform(0, 255, (75, 61, 3)).astype(np.float32)
    scaled = cv2.resize(large, SHAPE[::-1], interpolation=cv2.INTER_LINEAR)
    rows, expected = (smooth._see(seen, None) for seen in (large, scaled))
    np.testing.assert_allclose(rows, expected, atol=1e-3)


def test_padding_with_an_extent_changes_nothing(smooth, rng):
    handle = np.int32([3, 100, 7])

    @jax.jit
    def look(image, *extent):
        candidates, detections = smooth.propose(image, *extent), smooth.detect(image, *extent)
        return candidates, smooth.scores(image, handle, *extent), detections

    image = rng.uniform(0, 255, (50, 41, 3)).astype(np.float32)
    model, padded = smooth.bucket(image.shape)
    assert padded == (500, 500) and model is smooth
    extended = np.pad(image, ((0, 500 - 50), (0, 500 - 41), (0, 0)), constant_values=99)
    for actual, wanted in zip(
        jax.tree.leaves(look(image)),
        jax.tree.leaves(look(extended, np.int32([50, 41]))),
        strict=True,
    ):
        np.testing.assert_allclose(actual, wanted, atol=1e-3)


def test_activations_are_their_definitions():
    x = np.linspace(-8, 8, 33, dtype=np.float32)
    sigmoid = 1 / (1 + np.exp(-x))
    expected = {
        "linear": x,
        "relu": np.maximum(x, 0),
        "relu6": np.clip(x, 0, 6),
        "leaky": np.where(x > 0, x, 0.1 * x),
        "logistic": sigmoid,
        "mish": x * np.tanh(np.log1p(np.exp(x))),
        "swish": x * sigmoid,
    }
    assert expected.keys() == darknet_networks._ACTIVATIONS.keys() == set(darknet_cfg.ACTIVATIONS)
    for name, values in expected.items():
        np.testing.assert_allclose(darknet_networks._ACTIVATIONS[name](x), values, atol=1e-5)


@pytest.mark.parametrize("extreme", [-80.0, 0.0, 80.0])
def test_logits_are_finite_with_slopes_far_out(smooth, extreme):
    rows = jnp.full((288, 8), extreme)
    logits, pull = jax.vjp(smooth._logits, rows)
    (slopes,) = pull(jnp.ones_like(logits))
    assert np.isfinite(logits).all() and np.isfinite(slopes).all()
    assert slopes[:, 4].min() > 0.3
    np.testing.assert_allclose(logits[0], np.log(1 / 3) if not extreme else logits[0], rtol=1e-5)


def test_another_number_of_names_is_refused(tmp_path):
    (tmp_path / "net.cfg").write_text(text_of(REGION))
    with pytest.raises(UserError, match=r"net\.cfg has 3 classes, and 2 names are given"):
        networks.load_darknet(tmp_path / "net.cfg", tmp_path / "net.weights", ("cat", "dog"))


@pytest.fixture(scope="module")
def fastest(tmp_path_factory):
    cfg = networks.build("yolo_fastest_voc").cfg
    path = tmp_path_factory.mktemp("fastest") / "net.weights"
    arrays = draw(cfg, np.random.default_rng(0))
    return write(path, arrays), darknet.fold(arrays)


@pytest.mark.slow
def test_a_network_loads_by_its_name_from_its_weights_and_from_our_conversion(fastest, tmp_path):
    path, arrays = fastest
    network = networks.load("yolo_fastest_voc", checkpoint=path)
    assert isinstance(network, models.Detector)
    assert network.parameters.keys() == arrays.keys()
    about = models.about(network)
    assert (about.background, about.margin, len(about.classes)) == (None, yolo.MARGIN, 20)
    record = networks.zoo.convert("yolo_fastest_voc", [path], tmp_path / "ours.safetensors")
    assert record["layout"] == "darknet" and record["sources"][0]["name"] == "net.weights"
    again = networks.load("yolo_fastest_voc", checkpoint=tmp_path / "ours.safetensors")
    for name, parts in arrays.items():
        for part, array in parts.items():
            np.testing.assert_array_equal(network.parameters[name][part], array)
            np.testing.assert_array_equal(again.parameters[name][part], array)


def test_files_of_another_network_are_refused(fastest, tmp_path):
    (tmp_path / "net.cfg").write_text(text_of(TINY))
    with pytest.raises(UserError, match=r"net\.cfg describes another network than yolo_fastest"):
        networks.load("yolo_fastest_voc", checkpoint=[tmp_path / "net.cfg", fastest[0]])
    with pytest.raises(UserError, match="is truncated, no .weights file of darknet, or of"):
        networks.load("yolov3_nano_voc", checkpoint=fastest[0])
    with pytest.raises(UserError, match="a network of darknet's is a .weights file"):
        networks.load("yolov3_nano_voc", checkpoint=[fastest[0], fastest[0]])


def test_cocos_names_are_vocs_too():
    name = "yolov3_nano_coco"
    network = networks.YoloNetwork(name, networks.build(name), {}, False, networks.facts(name))
    shared = models.share_classes(models.about(network), CLASS_NAMES)
    assert len(network.classes) == 80 and len(shared.of_model) == 20 and not shared.only_dataset


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov3_nano_voc", "yolov3_nano_coco"])
def test_published_heads_are_opencvs(shared, name):
    path = shared / "weights" / f"{PUBLISHED[name]}.weights"
    network = networks.load(name, checkpoint=path)
    net = cv2.dnn.readNetFromDarknet(str(path.with_suffix(".cfg")), str(path))
    photograph = cv2.imread(str(shared / "dag-demo" / "data" / "2007_000925.jpg"))[:, :, ::-1]
    image = cv2.resize(photograph, (320, 320)).astype(np.float32)
    raw, _ = raw_of(network, net, image)
    assert np.abs(say(network, image)[0] - raw).max() <= 1e-4 * np.ptp(raw)
