"""The four architectures against OpenCV running Caffe's deploy files with the same weights.

The files that the networks' authors publish are restated below, one line for a layer; the test
writes a prototxt of them, by default narrower, and a caffemodel of random weights. OpenCV reads
both, our network is what `weights.convert` makes of the caffemodel. OpenCV knows no layer in
Python, so regions enter by a blob, and proposals are compared with py-faster-rcnn's layer in NumPy.

The restatement was compared with the published files by a parser of prototxt, layer by layer and
parameter by parameter, defaults filled in: fcn.berkeleyvision.org at 1305c73, py-faster-rcnn at
781a917, DAG at 55505e2. FCN-AlexNet and FCN-8s: no difference in either source, but for the layers
that give the data and the loss. The detectors: none in what both have, but for the name of the RoI
pooling (roi_pool_conv5, roi_pool5; here pool5) and ZF's LRN engine (CAFFE, which changes nothing).
What py-faster-rcnn has beyond is softmax, reshape and the Python proposal layer; DAG's files have
neither RPN nor box head, and VGG-16's dropout, which does nothing in a test.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax import networks
from dag_jax.networks.faster_rcnn import FasterRCNN
from dag_jax.weights import caffe, convert

cv2 = pytest.importorskip("cv2")

_VGG_TRUNK = """
conv1_1 Convolution+ReLU data num_output=64 kernel_size=3 pad={pad}
conv1_2 Convolution+ReLU conv1_1 num_output=64 kernel_size=3 pad=1
pool1 Pooling conv1_2 kernel_size=2 stride=2
conv2_1 Convolution+ReLU pool1 num_output=128 kernel_size=3 pad=1
conv2_2 Convolution+ReLU conv2_1 num_output=128 kernel_size=3 pad=1
pool2 Pooling conv2_2 kernel_size=2 stride=2
conv3_1 Convolution+ReLU pool2 num_output=256 kernel_size=3 pad=1
conv3_2 Convolution+ReLU conv3_1 num_output=256 kernel_size=3 pad=1
conv3_3 Convolution+ReLU conv3_2 num_output=256 kernel_size=3 pad=1
pool3 Pooling conv3_3 kernel_size=2 stride=2
conv4_1 Convolution+ReLU pool3 num_output=512 kernel_size=3 pad=1
conv4_2 Convolution+ReLU conv4_1 num_output=512 kernel_size=3 pad=1
conv4_3 Convolution+ReLU conv4_2 num_output=512 kernel_size=3 pad=1
pool4 Pooling conv4_3 kernel_size=2 stride=2
conv5_1 Convolution+ReLU pool4 num_output=512 kernel_size=3 pad=1
conv5_2 Convolution+ReLU conv5_1 num_output=512 kernel_size=3 pad=1
conv5_3 Convolution+ReLU conv5_2 num_output=512 kernel_size=3 pad=1
"""

# Name, type, inputs (the tops' names are the layers'), and the settings that are not Caffe's
# defaults. Dropout does nothing in a test, but with scale_train=false it halves.
PUBLISHED = {
    # shelhamer/fcn.berkeleyvision.org: voc-fcn-alexnet/val.prototxt
    # cihangxie/DAG: prototxt/fcn_alexnet_deploy.prototxt
    "fcn_alex": """
conv1 Convolution+ReLU data num_output=96 kernel_size=11 stride=4 pad=100
pool1 Pooling conv1 kernel_size=3 stride=2
norm1 LRN pool1 local_size=5 alpha=0.0001 beta=0.75
conv2 Convolution+ReLU norm1 num_output=256 kernel_size=5 pad=2 group=2
pool2 Pooling conv2 kernel_size=3 stride=2
norm2 LRN pool2 local_size=5 alpha=0.0001 beta=0.75
conv3 Convolution+ReLU norm2 num_output=384 kernel_size=3 pad=1
conv4 Convolution+ReLU conv3 num_output=384 kernel_size=3 pad=1 group=2
conv5 Convolution+ReLU conv4 num_output=256 kernel_size=3 pad=1 group=2
pool5 Pooling conv5 kernel_size=3 stride=2
fc6 Convolution+ReLU pool5 num_output=4096 kernel_size=6
drop6 Dropout fc6 dropout_ratio=0.5
fc7 Convolution+ReLU drop6 num_output=4096 kernel_size=1
drop7 Dropout fc7 dropout_ratio=0.5
score_fr Convolution drop7 num_output=21 kernel_size=1
upscore Deconvolution score_fr num_output=21 kernel_size=63 stride=32 bias_term=false
score Crop upscore,data axis=2 offset=18
""",
    # shelhamer/fcn.berkeleyvision.org: voc-fcn8s/deploy.prototxt
    # cihangxie/DAG: prototxt/fcn_8s_deploy.prototxt
    "fcn_vgg": _VGG_TRUNK.format(pad=100)
    + """
pool5 Pooling conv5_3 kernel_size=2 stride=2
fc6 Convolution+ReLU pool5 num_output=4096 kernel_size=7
fc7 Convolution+ReLU fc6 num_output=4096 kernel_size=1
score_fr Convolution fc7 num_output=21 kernel_size=1
upscore2 Deconvolution score_fr num_output=21 kernel_size=4 stride=2 bias_term=false
score_pool4 Convolution pool4 num_output=21 kernel_size=1
score_pool4c Crop score_pool4,upscore2 axis=2 offset=5
fuse_pool4 Eltwise upscore2,score_pool4c
upscore_pool4 Deconvolution fuse_pool4 num_output=21 kernel_size=4 stride=2 bias_term=false
score_pool3 Convolution pool3 num_output=21 kernel_size=1
score_pool3c Crop score_pool3,upscore_pool4 axis=2 offset=9
fuse_pool3 Eltwise upscore_pool4,score_pool3c
upscore8 Deconvolution fuse_pool3 num_output=21 kernel_size=16 stride=8 bias_term=false
score Crop upscore8,data axis=2 offset=31
""",
    # rbgirshick/py-faster-rcnn: models/pascal_voc/ZF/faster_rcnn_alt_opt/faster_rcnn_test.pt
    # cihangxie/DAG: prototxt/faster_detection_ZF.prototxt
    "fr_zf_07": """
conv1 Convolution+ReLU data num_output=96 kernel_size=7 stride=2 pad=3
norm1 LRN conv1 local_size=3 alpha=0.00005 beta=0.75 norm_region=WITHIN_CHANNEL
pool1 Pooling norm1 kernel_size=3 stride=2 pad=1
conv2 Convolution+ReLU pool1 num_output=256 kernel_size=5 stride=2 pad=2
norm2 LRN conv2 local_size=3 alpha=0.00005 beta=0.75 norm_region=WITHIN_CHANNEL
pool2 Pooling norm2 kernel_size=3 stride=2 pad=1
conv3 Convolution+ReLU pool2 num_output=384 kernel_size=3 pad=1
conv4 Convolution+ReLU conv3 num_output=384 kernel_size=3 pad=1
conv5 Convolution+ReLU conv4 num_output=256 kernel_size=3 pad=1
rpn_conv1 Convolution+ReLU conv5 num_output=256 kernel_size=3 pad=1
rpn_cls_score Convolution rpn_conv1 num_output=18 kernel_size=1
rpn_bbox_pred Convolution rpn_conv1 num_output=36 kernel_size=1
pool5 ROIPooling conv5,rois pooled_w=6 pooled_h=6 spatial_scale=0.0625
fc6 InnerProduct+ReLU pool5 num_output=4096
drop6 Dropout fc6 dropout_ratio=0.5 scale_train=false
fc7 InnerProduct+ReLU drop6 num_output=4096
drop7 Dropout fc7 dropout_ratio=0.5 scale_train=false
cls_score InnerProduct drop7 num_output=21
bbox_pred InnerProduct drop7 num_output=84
""",
    # rbgirshick/py-faster-rcnn: models/pascal_voc/VGG16/faster_rcnn_alt_opt/faster_rcnn_test.pt
    # cihangxie/DAG: prototxt/faster_detection_VGG.prototxt
    "fr_vgg_07": _VGG_TRUNK.format(pad=1)
    + """
rpn_conv/3x3 Convolution+ReLU conv5_3 num_output=512 kernel_size=3 pad=1
rpn_cls_score Convolution rpn_conv/3x3 num_output=18 kernel_size=1
rpn_bbox_pred Convolution rpn_conv/3x3 num_output=36 kernel_size=1
pool5 ROIPooling conv5_3,rois pooled_w=7 pooled_h=7 spatial_scale=0.0625
fc6 InnerProduct+ReLU pool5 num_output=4096
fc7 InnerProduct+ReLU fc6 num_output=4096
cls_score InnerProduct fc7 num_output=21
bbox_pred InnerProduct fc7 num_output=84
""",
}
_SETTINGS = {
    **{"Convolution": "convolution", "Deconvolution": "convolution", "Pooling": "pooling"},
    **{"InnerProduct": "inner_product", "ROIPooling": "roi_pooling", "LRN": "lrn"},
    **{"Crop": "crop", "Dropout": "dropout", "Eltwise": "eltwise"},
}


def narrowed(width):
    """What is left of a published number of channels in the quick tests."""
    return width if width < 60 or width == 84 else width // (128 if width == 4096 else 16)


def read_layers(name, width=narrowed):
    """Yield (name, type, inputs, settings) of a published file, with other widths."""
    for line in PUBLISHED[name].split("\n"):
        if line:
            layer, kind, inputs, *settings = line.split()
            settings = dict(setting.split("=") for setting in settings)
            if "num_output" in settings:
                settings["num_output"] = str(width(int(settings["num_output"])))
            yield layer, kind, inputs.split(","), settings


def deploy_file(layers, inputs):
    """Return a prototxt."""
    text = ""
    for name, shape in inputs.items():
        dims = " ".join(f"dim: {extent}" for extent in shape)
        text += f'input: "{name}"\ninput_shape {{ {dims} }}\n'
    for name, kind, bottoms, settings in layers:
        kind, _, relu = kind.partition("+")
        text += f'layer {{ name: "{name}" type: "{kind}" top: "{name}"'
        text += "".join(f' bottom: "{bottom}"' for bottom in bottoms)
        fields = " ".join(f"{key}: {value}" for key, value in settings.items())
        text += f" {_SETTINGS[kind]}_param {{ {fields} }} }}\n"
        if relu:
            text += f'layer {{ name: "{name}_relu" type: "ReLU" bottom: "{name}" top: "{name}" }}\n'
    return text


def bilinear(size):
    """surgery.py's filter of shelhamer/fcn.berkeleyvision.org."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 == 1 else factor - 0.5
    rows, columns = np.ogrid[:size, :size]
    return (1 - abs(rows - centre) / factor) * (1 - abs(columns - centre) / factor)


# Activations stay near an image's grey levels. A detector's outputs have to be smaller: offsets
# enter an exponential, and probabilities of 1 would tie.
_GAINS = {"rpn_cls_score": 0.02, "rpn_bbox_pred": 0.003, "cls_score": 0.03, "bbox_pred": 0.003}


def random_blobs(layers, rng, learned_upsampling=False):
    """Return {layer: [weights, bias]} in Caffe's shapes; a deconvolution is bilinear."""
    channels, blobs = {"data": 3}, {}
    for name, kind, bottoms, settings in layers:
        kind = kind.partition("+")[0]
        count = channels[bottoms[0]]
        outputs = int(settings.get("num_output", count))
        if kind == "ROIPooling":
            outputs = count * int(settings["pooled_w"]) ** 2
        channels[name] = outputs
        size = int(settings.get("kernel_size", 1))
        if kind == "Deconvolution":
            blobs[name] = [np.zeros((count, outputs, size, size), np.float32)]
            blobs[name][0][range(count), range(count)] = bilinear(size)
            if learned_upsampling:
                noise = rng.normal(0, 0.1, blobs[name][0].shape)
                blobs[name][0] += noise.astype(np.float32)
            continue
        if "num_output" not in settings:
            continue
        shape = (outputs, count)
        if kind == "Convolution":
            shape = (outputs, count // int(settings.get("group", 1)), size, size)
        gain = _GAINS.get(name, 1.0)
        std = gain * np.sqrt(2 / np.prod(shape[1:]))
        blobs[name] = [draw(rng, std, shape), draw(rng, gain, (outputs,))]
    return blobs


_PERIOD = 1_000_003  # a prime: no two rows or columns of a repeated draw are alike


def draw(rng, std, shape):
    """Return f32 normal numbers; a hundred million of them would take seconds."""
    if rng is None:  # shapes are what is wanted
        return np.broadcast_to(np.float32(0), shape)
    size = min(int(np.prod(shape)), _PERIOD)
    return np.resize(rng.normal(0, std, size).astype(np.float32), shape)


class Pair:
    """One network twice: OpenCV's of a deploy file, and ours of the converted weights."""

    def __init__(self, name, path, write, rng, width=narrowed, learned_upsampling=False, **options):
        self.layers = list(read_layers(name, width))
        self.blobs = random_blobs(self.layers, rng, learned_upsampling)
        self.path = write(path, self.blobs)
        self.width = width
        self.module = self.build(name).clone(**options)
        self.converted = convert.convert(self.module, [caffe.read(self.path)])
        if self.converted.dense:
            self.module = self.module.clone(dense=self.converted.dense)
        self.params = jax.tree.map(jnp.asarray, self.converted.parameters)

    def build(self, name):
        module = networks.build(name)
        if self.width is not narrowed:
            return module
        trunk = module.backbone.clone(widths=tuple(map(narrowed, module.backbone.widths)))
        module = module.clone(backbone=trunk, fc_width=narrowed(module.fc_width))
        if isinstance(module, FasterRCNN):
            return module.clone(rpn_width=narrowed(module.rpn_width))
        return module

    def run_caffe(self, data, outputs, boxes=None):
        """Return OpenCV's blobs `outputs` for a mean-subtracted BGR image [H, W, 3]."""
        blobs = {"data": np.ascontiguousarray(data.transpose(2, 0, 1)[None])}
        if boxes is not None:
            blobs["rois"] = np.pad(boxes, ((0, 0), (1, 0)))  # the image's number comes first
        text = deploy_file(self.layers, {key: blob.shape for key, blob in blobs.items()})
        model = np.frombuffer(self.path.read_bytes(), np.uint8)
        net = cv2.dnn.readNetFromCaffe(np.frombuffer(text.encode(), np.uint8), model)
        for key, blob in blobs.items():
            net.setInput(blob, key)
        return net.forward(outputs)

    def apply(self, *arguments, method=None, **options):
        def call(params, *arguments):
            return self.module.apply({"params": params}, *arguments, method=method, **options)

        return jax.jit(call)(self.params, *arguments)


def mean_subtracted(image, mean_rgb):
    return np.ascontiguousarray((image - np.float32(mean_rgb))[..., ::-1])


def assert_close(ours, theirs, tolerance=1e-4):
    assert ours.shape == theirs.shape
    spread = float(np.max(theirs) - np.min(theirs))
    assert spread > 0
    deviation = float(np.abs(ours - theirs).max()) / spread
    assert deviation < tolerance, f"{deviation:.1e} of the range {spread:.3g}"
    return deviation


SIZES = [(33, 64), (101, 78)]


@pytest.mark.parametrize("learned_upsampling", [False, True])
@pytest.mark.parametrize("name", ["fcn_alex", "fcn_vgg"])
@pytest.mark.slow
def test_fcn_scores_equal_caffes(tmp_path, write_caffemodel, rng, name, learned_upsampling):
    pair = Pair(
        name,
        tmp_path / "net.caffemodel",
        write_caffemodel,
        rng,
        learned_upsampling=learned_upsampling,
    )
    assert pair.converted.layout == "caffe_fcn" and not pair.converted.partial
    assert pair.converted.dense == (pair.module.upsamplings() if learned_upsampling else ())
    for size in SIZES[: 1 if learned_upsampling else 2]:
        check_fcn(pair, rng.uniform(0, 255, (*size, 3)).astype(np.float32))


def check_fcn(pair, image):
    (theirs,) = pair.run_caffe(mean_subtracted(image, pair.module.mean_rgb), ["score"])
    return assert_close(pair.apply(image), theirs[0].transpose(1, 2, 0))


# py-faster-rcnn's layers in NumPy, for one image.


def decode(boxes, deltas):
    """bbox_transform_inv: boxes [N, 4] moved by deltas [N, 4 K]."""
    width, height = boxes[:, 2] - boxes[:, 0] + 1, boxes[:, 3] - boxes[:, 1] + 1
    x, y = boxes[:, 0] + 0.5 * width, boxes[:, 1] + 0.5 * height
    moved = []
    for dx, dy, dw, dh in deltas.reshape(len(boxes), -1, 4).transpose(1, 2, 0):
        cx, cy, w, h = x + dx * width, y + dy * height, np.exp(dw) * width, np.exp(dh) * height
        moved.append(np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=1))
    return np.concatenate(moved, axis=1)


def clip(boxes, shape):
    limits = np.tile([shape[1] - 1, shape[0] - 1], boxes.shape[1] // 2)
    return np.clip(boxes, 0, limits)


def suppress(boxes, scores, threshold):
    """Greedy suppression; indices by descending score."""
    order, keep = np.argsort(-scores, kind="stable"), []
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    while order.size:
        first, lower = order[0], order[1:]
        keep.append(first)
        low = np.maximum(boxes[first, :2], boxes[lower, :2])
        high = np.minimum(boxes[first, 2:], boxes[lower, 2:])
        shared = np.prod(np.maximum(high - low + 1, 0), axis=1)
        order = lower[shared / (areas[first] + areas[lower] - shared) <= threshold]
    return keep


# What py-faster-rcnn's generate_anchors.py returns; the MATLAB release has the same, plus 1.
ANCHORS = np.float32(
    [
        *([-84, -40, 99, 55], [-176, -88, 191, 103], [-360, -184, 375, 199]),
        *([-56, -56, 71, 71], [-120, -120, 135, 135], [-248, -248, 263, 263]),
        *([-36, -80, 51, 95], [-80, -168, 95, 183], [-168, -344, 183, 359]),
    ]
)


def proposal_layer(scores, deltas, shape, *, scale, pre_nms, post_nms, threshold):
    """ProposalLayer: boxes of rpn_cls_score [18, h, w] and rpn_bbox_pred [36, h, w]."""
    rows, columns = scores.shape[1:]
    shifts = [[16 * x, 16 * y, 16 * x, 16 * y] for y in range(rows) for x in range(columns)]
    anchors = (np.float32(shifts)[:, None] + ANCHORS[None]).reshape(-1, 4)
    background, objects = scores.reshape(2, 9, rows, columns)
    probability = 1 / (1 + np.exp(np.float64(background) - objects))
    probability = probability.transpose(1, 2, 0).reshape(-1)
    boxes = clip(decode(anchors, deltas.transpose(1, 2, 0).reshape(-1, 4)), shape)
    large = np.all(boxes[:, 2:] - boxes[:, :2] + 1 >= 16 * scale, axis=1)
    boxes, probability = boxes[large], probability[large]
    best = np.argsort(-probability, kind="stable")[:pre_nms]
    boxes, probability = boxes[best], probability[best]
    keep = suppress(boxes, probability, threshold)[:post_nms]
    return boxes[keep], probability[keep]


def test_anchors_are_the_published_ones():
    np.testing.assert_array_equal(networks.build("fr_vgg_07").anchors((1, 1)), ANCHORS)


@pytest.mark.slow
def test_zf_detector_equals_caffes(tmp_path, write_caffemodel, rng):
    # An image is its own canvas.
    pair = Pair("fr_zf_07", tmp_path / "net.caffemodel", write_caffemodel, rng, resize=None)
    assert pair.converted.layout == "py_faster_rcnn" and not pair.converted.partial
    for size in [(120, 163), (200, 96)]:
        check_detector(pair, rng.uniform(0, 255, (*size, 3)).astype(np.float32))


@pytest.mark.slow
def test_without_scale_train_dropout_halves(tmp_path, write_caffemodel, rng):
    """Caffe's ZF differs from one whose dropout scales while training, and so does ours."""
    pair = Pair("fr_zf_07", tmp_path / "net.caffemodel", write_caffemodel, rng, resize=None)
    image = rng.uniform(0, 255, (100, 100, 3)).astype(np.float32)
    boxes = np.float32([[0, 0, 60, 70], [20, 10, 99, 90]])
    canvas = mean_subtracted(image, pair.module.mean_rgb)
    assert pair.module.fc_multiplier == 0.5
    for multiplier in (0.5, 1.0):
        pair.module = pair.module.clone(fc_multiplier=multiplier)
        if multiplier == 1:
            for *_, settings in pair.layers:
                settings.pop("scale_train", None)
        (scores,) = pair.run_caffe(canvas, ["cls_score"], boxes)
        assert_close(pair.apply(image, boxes, method="score"), scores)


@pytest.mark.slow
def test_vgg_detector_equals_caffes_on_resized_images(tmp_path, write_caffemodel, rng):
    pair = Pair("fr_vgg_07", tmp_path / "net.caffemodel", write_caffemodel, rng, resize=(120, 200))
    for size, scale in [((60, 75), 2.0), ((240, 150), 0.8)]:
        check_detector(pair, rng.uniform(0, 255, (*size, 3)).astype(np.float32), scale)


def everything(module, image, boxes):
    """Return what each stage of a detector gives, `boxes` in canvas pixels."""
    features = module.features(image)
    rpn = module.rpn(features)
    proposals = [
        module.select_proposals(
            rpn,
            features.shape[:2],
            module.canvas(image.shape),
            nms_threshold=threshold,
            max_proposals=count,
        )
        for threshold, count in PROPOSALS
    ]
    scores, deltas = module.heads(features, boxes)
    return {
        "features": features,
        "rpn_cls_score": rpn[0],
        "rpn_bbox_pred": rpn[1],
        "proposals": proposals,
        "pool5": module.pool(features, boxes),
        "cls_score": scores,
        "bbox_pred": deltas,
        "score": module.score(image, boxes / module.canvas(image.shape)[1]),
        "detect": module.detect(image),
    }


PROPOSALS = [(0.7, 300), (0.9, 3000)]  # NMS threshold and count: the detector's, the attack's


def check_detector(pair, image, scale=1.0):
    """Compare every stage; return the largest deviations as shares of the range."""
    module = pair.module
    canvas = mean_subtracted(image, module.mean_rgb)
    if scale != 1:
        canvas = cv2.resize(canvas, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    top = next(bottoms[0] for name, _, bottoms, _ in pair.layers if name == "pool5")
    whole = np.float32([[0, 0, canvas.shape[1] - 1, canvas.shape[0] - 1]])
    outputs = [f"{top}_relu", "rpn_cls_score", "rpn_bbox_pred"]
    features, scores, deltas = (blob[0] for blob in pair.run_caffe(canvas, outputs, whole))
    proposals = [
        proposal_layer(
            *(scores, deltas, canvas.shape),
            scale=scale,
            pre_nms=module.pre_nms,
            post_nms=count,
            threshold=threshold,
        )
        for threshold, count in PROPOSALS
    ]
    regions = np.float32(proposals[0][0])
    ours = jax.device_get(pair.apply(image, regions, method=everything))

    deviations = {"features": assert_close(ours["features"], features.transpose(1, 2, 0))}
    expected = scores.reshape(2, 9, *scores.shape[1:]).transpose(2, 3, 1, 0).reshape(-1, 2)
    deviations["rpn_cls_score"] = assert_close(ours["rpn_cls_score"], expected)
    expected = deltas.transpose(1, 2, 0).reshape(-1, 4)
    deviations["rpn_bbox_pred"] = assert_close(ours["rpn_bbox_pred"], expected)
    for (boxes, probability), (own_boxes, own_probability, valid) in zip(
        proposals, ours["proposals"], strict=True
    ):
        assert len(boxes) == valid.sum() > 5
        np.testing.assert_allclose(own_probability[valid], probability, atol=1e-4)
        np.testing.assert_allclose(own_boxes[valid], boxes, atol=0.05)

    pooled, scores, deltas = pair.run_caffe(canvas, ["pool5", "cls_score", "bbox_pred"], regions)
    deviations["pool5"] = assert_close(ours["pool5"], pooled.transpose(0, 2, 3, 1))
    deviations["cls_score"] = assert_close(ours["cls_score"], scores)
    deviations["score"] = assert_close(ours["score"], scores)
    own_deltas = ours["bbox_pred"] * np.float32(module.delta_stds)
    deviations["bbox_pred"] = assert_close(own_deltas.reshape(len(regions), -1), deltas)

    # The whole detector: py-faster-rcnn's im_detect and test_net, from OpenCV's blobs.
    probability = np.exp(scores - scores.max(axis=1, keepdims=True))
    probability /= probability.sum(axis=1, keepdims=True)
    moved = clip(decode(regions / scale, deltas), image.shape)
    expected = []
    for number in range(1, 21):
        rows = np.flatnonzero(probability[:, number] > 0.05)
        boxes = moved[rows, 4 * number : 4 * number + 4]
        for row in suppress(boxes, probability[rows, number], 0.3):
            expected.append([probability[rows[row], number], number, *boxes[row]])
    expected = np.array(sorted(expected, reverse=True)[:100])
    boxes, classes, confidences, valid = ours["detect"]
    detected = np.column_stack([confidences, classes, boxes])[valid]
    assert len(detected) == len(expected) > 5
    np.testing.assert_allclose(detected[:, :2], expected[:, :2], atol=1e-4)
    np.testing.assert_allclose(detected[:, 2:], expected[:, 2:], atol=0.05)
    return deviations


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fr_zf_07"])  # VGG-16 as wide takes a minute
def test_full_size_equals_caffe(tmp_path, write_caffemodel, rng, name):
    options = {"resize": None} if name.startswith("fr") else {}
    path = tmp_path / "net.caffemodel"
    pair = Pair(name, path, write_caffemodel, rng, width=lambda width: width, **options)
    image = rng.uniform(0, 255, (112, 80, 3)).astype(np.float32)
    (check_detector if options else check_fcn)(pair, image)
    path.unlink()  # half a gigabyte


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_layers_have_the_shapes_of_ours(name):
    layers = list(read_layers(name, lambda width: width))
    # What a file of those layers holds, without the memory.
    blobs = random_blobs(layers, None)
    shapes = {
        layer: [blob.shape for blob in layer_blobs]
        for layer, layer_blobs in blobs.items()
        if "up" not in layer
    }
    module = networks.build(name)
    tree = jax.eval_shape(
        module.init, jax.random.key(0), jax.ShapeDtypeStruct((128, 128, 3), jnp.float32)
    )["params"]
    tree = tree.pop("backbone") | tree
    renamed = {"rpn_conv1": "rpn_conv", "rpn_conv/3x3": "rpn_conv"}
    renamed |= {"score_pool4": "score_stage4", "score_pool3": "score_stage3"}
    assert {renamed.get(layer, layer) for layer in shapes} == set(tree)
    for layer, (weights, bias) in shapes.items():
        ours = tree[renamed.get(layer, layer)]
        assert ours["bias"].shape == bias
        kernel = ours["kernel"].shape
        if len(weights) == 4:
            assert kernel == tuple(weights[i] for i in (2, 3, 1, 0))
        else:  # an inner product, over a region's bins or over nothing
            assert kernel[-1] == weights[0] and np.prod(kernel) == np.prod(weights)
