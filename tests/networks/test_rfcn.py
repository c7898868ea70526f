"""R-FCN against OpenCV running Caffe's layers with the same weights, and what its regions see.

The layers are those of py-R-FCN's models/pascal_voc/ResNet-50/rfcn_end2end/test_agnostic.prototxt
at 290dba7, restated; regions enter by a blob, as OpenCV knows no layer in Python.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax import networks
from dag_jax.networks.resnet import ResNet
from dag_jax.networks.rfcn import RFCN
from dag_jax.weights import caffe, convert

PUBLISHED = (64, 256, 512, 1024, 2048), (3, 4, 6, 3)
NARROW = (8, 16, 24, 32, 48), (1, 1, 2, 2)
BOXES = np.float32([[0, 0, 158, 119], [16, 32, 79, 95], [3, 50, 150, 61], [40.4, 7.6, 41, 8]])


def convolution(name, bottom, outputs, size=1, stride=1, pad=0, dilation=1, bias=True):
    text = (
        f"convolution_param {{ num_output: {outputs} kernel_size: {size} stride: {stride} "
        f"pad: {pad} dilation: {dilation} bias_term: {str(bias).lower()} }}"
    )
    return name, "Convolution", [bottom], name, text


def normalised(name, norm, bottom, outputs, relu=True, **options):
    yield convolution(name, bottom, outputs, **options)
    yield f"bn{norm}", "BatchNorm", [name], name, "batch_norm_param { use_global_stats: true }"
    yield f"scale{norm}", "Scale", [name], name, "scale_param { bias_term: true }"
    if relu:
        yield f"{name}_relu", "ReLU", [name], name, ""


def rfcn_layers(widths, blocks, rpn_width, new_width):
    """Yield (name, type, inputs, top, settings) of every layer."""
    yield from normalised("conv1", "_conv1", "data", widths[0], size=7, stride=2, pad=3)
    yield "pool1", "Pooling", ["conv1"], "pool1", "pooling_param { kernel_size: 3 stride: 2 }"
    bottom = "pool1"
    for stage, (width, count) in enumerate(zip(widths[1:], blocks, strict=True), start=2):
        spread = 2 if stage == 5 else 1
        for letter in "abcdef"[:count]:
            block, shortcut = f"{stage}{letter}", bottom
            stride = 2 if letter == "a" and stage in (3, 4) else 1
            layer = functools.partial(normalised, bias=False)
            if letter == "a":
                shortcut = f"res{block}_branch1"
                yield from layer(
                    shortcut, f"{block}_branch1", bottom, width, relu=False, stride=stride
                )
            branches = [f"res{block}_branch2{part}" for part in "abc"]
            norms = [f"{block}_branch2{part}" for part in "abc"]
            yield from layer(branches[0], norms[0], bottom, width // 4, stride=stride)
            options = {"size": 3, "pad": spread, "dilation": spread}
            yield from layer(branches[1], norms[1], branches[0], width // 4, **options)
            yield from layer(branches[2], norms[2], branches[1], width, relu=False)
            bottom = f"res{block}"
            yield bottom, "Eltwise", [shortcut, branches[2]], bottom, ""
            yield f"{bottom}_relu", "ReLU", [bottom], bottom, ""
        if stage == 4:
            top = "rpn_conv/3x3"
            yield convolution(top, bottom, rpn_width, size=3, pad=1)
            yield "rpn_relu/3x3", "ReLU", [top], top, ""
            yield convolution("rpn_cls_score", top, 18)
            yield convolution("rpn_bbox_pred", top, 36)
    yield convolution("conv_new_1", bottom, new_width)
    yield "conv_new_1_relu", "ReLU", ["conv_new_1"], "conv_new_1", ""
    for name, outputs in [("cls", 21), ("bbox", 8)]:
        yield convolution(f"rfcn_{name}", "conv_new_1", outputs * 49)
        text = f"spatial_scale: 0.0625 output_dim: {outputs} group_size: 7"
        pooled = f"psroipooled_{name}_rois"
        inputs = [f"rfcn_{name}", "rois"]
        yield pooled, "PSROIPooling", inputs, pooled, f"psroi_pooling_param {{ {text} }}"
        text = "pooling_param { pool: AVE kernel_size: 7 stride: 7 }"
        yield f"ave_{name}", "Pooling", [pooled], f"ave_{name}", text


def random_blobs(layers, rng):
    """Return {layer: blobs} in Caffe's shapes; the normalisations' sums are of 3 batches."""
    channels, blobs = {"data": 3}, {}
    for name, kind, inputs, top, text in layers:
        count = channels[inputs[0]]
        channels[top] = count
        if kind == "Convolution":
            words = text.split()
            outputs, size = (
                int(words[words.index(key) + 1]) for key in ("num_output:", "kernel_size:")
            )
            channels[top] = outputs
            gain = {"rfcn_cls": 0.5, "rfcn_bbox": 0.05, "rpn_bbox_pred": 0.05}.get(name, 1)
            std = gain * np.sqrt(2 / (count * size * size))
            blobs[name] = [rng.normal(0, std, (outputs, count, size, size))]
            if "bias_term: true" in text:
                blobs[name].append(rng.normal(0, 0.1, outputs))
        elif kind == "BatchNorm":
            sums = rng.normal(0, 0.9, count), rng.uniform(1.5, 4.5, count)
            scale = 3e3 if name == "bn_conv1" else 1  # of grey levels
            blobs[name] = [sums[0] * np.sqrt(scale), sums[1] * scale, np.full(1, 3)]
        elif kind == "Scale":
            last = name.endswith("2c")
            blobs[name] = [rng.uniform(0.3, 0.6, count) * (0.5 if last else 2)]
            blobs[name].append(rng.normal(0, 0.2, count))
    return {name: [np.float32(blob) for blob in layer_blobs] for name, layer_blobs in blobs.items()}


def deploy_file(layers, shapes):
    text = ""
    for name, shape in shapes.items():
        dims = " ".join(f"dim: {extent}" for extent in shape)
        text += f'input: "{name}"\ninput_shape {{ {dims} }}\n'
    for name, kind, inputs, top, settings in layers:
        bottoms = " ".join(f'bottom: "{bottom}"' for bottom in inputs)
        text += f'layer {{ name: "{name}" type: "{kind}" {bottoms} top: "{top}" {settings} }}\n'
    return text


@pytest.fixture(scope="module")
def narrow(write_caffemodel, tmp_path_factory):
    """(a narrow module, its converted parameters, the layers, the caffemodel's path)."""
    layers = list(rfcn_layers(*NARROW, rpn_width=20, new_width=40))
    blobs = random_blobs(layers, np.random.default_rng(3))
    path = write_caffemodel(tmp_path_factory.mktemp("rfcn") / "net.caffemodel", blobs)
    backbone = ResNet(*NARROW, stride=16, caffe=True)
    module = RFCN(backbone, rpn_width=20, new_width=40, resize=None)
    converted = convert.convert(module, [caffe.read(path)])
    assert converted.layout == "py_rfcn" and not converted.partial
    return module, converted.parameters, layers, path


def everything(module, image, boxes):
    features = module.features(image)
    return features, *module.rpn(features), *module.heads(features, boxes)


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape and np.ptp(theirs) > 0
    assert np.abs(ours - theirs).max() < 1e-4 * np.ptp(theirs)


@pytest.mark.parametrize("size", [(120, 159), (97, 130)])
def test_equals_opencv(narrow, rng, size):
    cv2 = pytest.importorskip("cv2")
    module, parameters, layers, path = narrow
    image = rng.uniform(0, 255, (*size, 3)).astype(np.float32)
    limits = np.float32([size[1], size[0]] * 2) - 1
    boxes = np.minimum(BOXES, limits)
    run = jax.jit(functools.partial(module.apply, method=everything))
    _, scores, deltas, classes, offsets = run({"params": parameters}, image, boxes)

    data = (image - np.float32(module.mean_rgb))[..., ::-1].transpose(2, 0, 1)[None]
    blobs = {"data": np.ascontiguousarray(data), "rois": np.pad(boxes, ((0, 0), (1, 0)))}
    text = deploy_file(layers, {name: blob.shape for name, blob in blobs.items()})
    net = cv2.dnn.readNetFromCaffe(
        np.frombuffer(text.encode(), np.uint8), np.frombuffer(path.read_bytes(), np.uint8)
    )
    for name, blob in blobs.items():
        net.setInput(blob, name)
    theirs = net.forward(["rpn_cls_score", "rpn_bbox_pred", "ave_cls", "ave_bbox"])
    rpn_scores, rpn_deltas, cls_score, bbox_pred = theirs
    anchors = rpn_scores[0].reshape(2, 9, *rpn_scores.shape[2:]).transpose(2, 3, 1, 0)
    assert_close(scores, anchors.reshape(-1, 2))
    assert_close(deltas, rpn_deltas[0].transpose(1, 2, 0).reshape(-1, 4))
    assert_close(classes, cls_score[:, :, 0, 0])
    assert_close(offsets[:, 5], bbox_pred[:, 4:, 0, 0])  # every class has the foreground's
    np.testing.assert_array_equal(offsets[:, 0], offsets[:, 20])


def test_the_published_layers_have_the_shapes_of_ours():
    layers = rfcn_layers(*PUBLISHED, rpn_width=512, new_width=1024)
    names = {name: text for name, kind, *_, text in layers if kind == "Convolution"}
    module = networks.build("rfcn_resnet50")
    image = jax.ShapeDtypeStruct((128, 128, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    trunk = shapes.pop("backbone")
    outputs = {
        layer: leaves["bias"].shape[0]
        for group in (shapes, {"conv1": trunk.pop("conv1")}, *trunk.values())
        for layer, leaves in group.items()
    }
    assert len(names) == len(shapes) + 1 + sum(map(len, trunk.values()))
    for layer in ("rpn_cls_score", "rpn_bbox_pred", "rfcn_cls", "rfcn_bbox"):
        assert f"num_output: {outputs[layer]} " in names[layer]


@pytest.mark.slow
def test_padding_below_and_right_changes_nothing(narrow, rng):
    module, parameters, *_ = narrow
    image = rng.uniform(0, 255, (97, 83, 3)).astype(np.float32)  # its last box ends in no cell
    boxes = np.float32([[0, 0, 82, 96], [10, 60, 80, 96]])
    padded = np.pad(image, ((0, 31), (0, 45), (0, 0)), constant_values=90)
    score = jax.jit(functools.partial(module.apply, method="score"))
    alone = score({"params": parameters}, image, boxes)
    extent = np.array(image.shape[:2], np.int32)
    together = score({"params": parameters}, padded, boxes, extent)
    np.testing.assert_allclose(together, alone, atol=1e-4 * np.ptp(alone))


@pytest.mark.slow
def test_the_whole_detector_runs(narrow, rng):
    module, parameters, *_ = narrow
    image = rng.uniform(0, 255, (96, 128, 3)).astype(np.float32)
    detect = jax.jit(functools.partial(module.apply, method="detect"))
    boxes, classes, scores, valid = detect({"params": parameters}, image)
    assert valid.any() and np.isfinite(boxes[valid]).all()
    assert set(np.asarray(classes[valid])) <= set(range(1, 21)) and (scores[valid] > 0.05).all()
