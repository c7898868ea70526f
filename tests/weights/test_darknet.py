"""Darknet's files: what is read is what was written, and what does not fit is said at once."""

import struct
import time
import tracemalloc

import numpy as np
import pytest

from dag_jax import networks
from dag_jax.errors import MissingError, UserError
from dag_jax.weights import caffe, darknet, darknet_cfg

PUBLISHED = {
    "yolov3_nano_voc": "MobileNetV2-YOLOv3-Nano-voc",
    "yolo_fastest_voc": "MobileNetV2-YOLO-Fastest-voc",
    "yolov3_nano_coco": "MobileNetV2-YOLOv3-Nano-coco",
}
TEXT = """
# a comment
[net]
width = 32
height=16
[convolutional]
filters=8
size=3
pad=1
stride=2
batch_normalize=1
activation=leaky
[convolutional]
filters=16
size=3
pad=1
groups=4
activation=linear
[convolutional]
filters=14
size=1
activation=linear
[yolo]
anchors=4,6, 8,10, 20,12
num=3
mask=0,2
classes=2
"""


def write(path, arrays, header=(0, 2, 5)):
    """Write `darknet.read`'s arrays in the order of the file."""
    wide = header[1] >= 2
    contents = struct.pack("<3iq" if wide else "<3ii", *header, 1234)
    for parts in arrays.values():
        order = [name for name in ("bias", "scale", "mean", "variance") if name in parts]
        contents += b"".join(parts[name].astype("<f4").tobytes() for name in order)
        contents += parts["kernel"].transpose(3, 2, 0, 1).astype("<f4").tobytes()
    path.write_bytes(contents)
    return path


def draw(cfg, rng):
    """Random arrays as `darknet.read` returns them."""
    arrays = {}
    for name, layer in cfg.convolutions.items():
        shape = layer.size, layer.size, layer.channels // layer.groups, layer.filters
        scale = np.sqrt(2 / np.prod(shape[:3]))
        arrays[name] = {"bias": rng.normal(0, 0.1, layer.filters)}
        if layer.batch_norm:
            arrays[name]["scale"] = rng.uniform(0.5, 1.5, layer.filters)
            arrays[name]["mean"] = rng.normal(0, 0.1, layer.filters)
            arrays[name]["variance"] = rng.uniform(0.5, 1.5, layer.filters)
        arrays[name]["kernel"] = rng.normal(0, scale, shape)
        arrays[name] = {part: array.astype(np.float32) for part, array in arrays[name].items()}
    return arrays


def test_a_cfg_is_layers_that_know_their_channels():
    cfg = darknet_cfg.parse(TEXT)
    first, second, last = cfg.convolutions.values()
    assert list(cfg.convolutions) == ["conv0", "conv1", "conv2"]
    assert first == darknet_cfg.Convolution(3, 8, 3, 2, 1, 1, 1, True, "leaky")
    assert (second.channels, second.groups, second.batch_norm) == (8, 4, False)
    assert (last.channels, last.padding) == (16, 0)
    (head,) = cfg.heads
    anchors = ((4 / 32, 6 / 16), (20 / 32, 12 / 16))
    assert head == darknet_cfg.Head((8, 16), anchors, 2, 1.0, False)


@pytest.mark.parametrize("header", [(0, 1, 0), (0, 2, 0), (0, 2, 5), (1, 0, 0)])
def test_arrays_come_back_from_each_version_of_the_header(tmp_path, rng, header):
    cfg = darknet_cfg.parse(TEXT)
    arrays = draw(cfg, rng)
    path = tmp_path / "net.weights"
    # Version 1.0 counts images in 64 bits, too.
    write(path, arrays, header)
    if header[0]:
        contents = path.read_bytes()
        path.write_bytes(contents[:12] + b"\0" * 4 + contents[12:])
    read_arrays = darknet.read(path, cfg)
    assert read_arrays.keys() == arrays.keys()
    for name, parts in arrays.items():
        assert read_arrays[name].keys() == parts.keys()
        for part, array in parts.items():
            np.testing.assert_array_equal(read_arrays[name][part], array)


def test_reading_takes_twice_the_file(tmp_path, rng):
    cfg = darknet_cfg.parse(TEXT.replace("filters=16", "filters=16000"))
    path = write(tmp_path / "net.weights", draw(cfg, rng))
    tracemalloc.start()
    darknet.read(path, cfg)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.2 * path.stat().st_size + (1 << 18)


def test_folded_batch_norm_is_batch_norm(rng):
    arrays = draw(darknet_cfg.parse(TEXT), rng)
    folded = darknet.fold(arrays)
    x = rng.normal(size=(3, 3, 3))
    first, plain = arrays["conv0"], folded["conv0"]
    y = np.einsum("hwi,hwio->o", x, first["kernel"])
    y = first["scale"] * (y - first["mean"]) / np.sqrt(first["variance"] + 1e-6) + first["bias"]
    again = np.einsum("hwi,hwio->o", x, plain["kernel"]) + plain["bias"]
    np.testing.assert_allclose(again, y, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(folded["conv2"]["kernel"], arrays["conv2"]["kernel"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda contents: contents[:-4], "truncated"),
        (lambda contents: contents + b"\0" * 4, "too long"),
        (lambda contents: contents[:7], "truncated"),
        (
            lambda contents: contents[:20] + struct.pack("<f", np.nan) + contents[24:],
            "bias of conv0",
        ),
        (lambda contents: contents[:116] + struct.pack("<f", -1) + contents[120:], "variance"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, rng, spoil, message):
    cfg = darknet_cfg.parse(TEXT)
    path = write(tmp_path / "net.weights", draw(cfg, rng))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        darknet.read(path, cfg)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[yolo]", "[lstm]", r"line 23: \[lstm\] is not known; known are \[convolutional\]"),
        ("activation=leaky", "activation=elu", "line 12: activation 'elu' is not known"),
        ("filters=8", "filters=x", "line 7: filters is 'x', not a whole number"),
        ("filters=8", "", r"line 6: \[convolutional\] has no filters"),
        ("groups=4", "groups=3", "line 17: 8 channels to 16 are no 3 groups"),
        ("filters=14", "filters=15", "need 14 channels, the layer before has 15"),
        ("mask=0,2", "mask=0,3", "mask names anchors"),
        ("num=3", "num=4", "no 4 pairs"),
        ("[net]", "[net]\nletter_box=1", "letter_box=1 is not supported"),
        ("stride=2", "stride=2\nstride_x=1", "stride_x differs"),
        ("[yolo]", "[route]\nlayers=-9\n[yolo]", "layers is '-9'"),
        ("[yolo]", "[shortcut]\nfrom=0\n[yolo]", "have no sum"),
        ("[yolo]", "[route]\nlayers=-1\ngroups=2\ngroup_id=2\n[yolo]", "group_id 2"),
        ("width = 32", "width 32", "line 4: 'width32' is no option=value"),
        ("[net]", "[yolo]", "begin with the section"),
    ],
)
def test_a_cfg_that_is_not_understood_is_refused_with_its_line(old, new, message):
    with pytest.raises(UserError, match=message):
        darknet_cfg.parse(TEXT.replace(old, new, 1))


HUGE = "9" * 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT.replace("filters=8", f"filters={HUGE}"), "not a whole number of at most 2147483647"),
        (TEXT.replace("filters=8", f"filters={HUGE * 20}"), "not a whole number of at most"),
        (TEXT.replace("anchors=4", f"anchors={HUGE}"), "not a number of at most"),
        (TEXT.replace("anchors=4", "anchors=nan"), "not a number of at most"),
        (TEXT + "[upsample]\nstride=99999999\n" * 2, "no cell, or too many"),
        (TEXT + "[dropout]\n" * 90_000, "more than 2000 layers"),
        (TEXT + "[route]\nlayers=" + "0," * 200_000, "layers names 200000 layers"),
    ],
)
def test_numbers_and_networks_without_end_are_refused(text, message):
    start = time.process_time()
    with pytest.raises(UserError, match=message) as error:
        darknet_cfg.parse(text)
    assert time.process_time() - start < 4 and len(str(error.value)) < 300


def test_a_cfg_without_a_head_is_no_detector():
    with pytest.raises(UserError, match=r"neither a \[yolo\] nor a \[region\]"):
        darknet_cfg.parse(TEXT[: TEXT.index("[yolo]")])


def test_files_that_are_not_there_or_no_text_are_refused(tmp_path):
    with pytest.raises(MissingError, match=r"no such \.cfg file"):
        darknet_cfg.read_cfg(tmp_path / "none.cfg")
    with pytest.raises(MissingError, match=r"no such \.weights file"):
        darknet.read(tmp_path / "none.weights", darknet_cfg.parse(TEXT))
    (tmp_path / "net.cfg").write_bytes(b"\0\1")
    with pytest.raises(UserError, match=r"is no \.cfg file"):
        darknet_cfg.read_cfg(tmp_path / "net.cfg")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_zoos_layers_are_those_of_the_published_cfg(shared, name):
    path = shared / "weights" / f"{PUBLISHED[name]}.cfg"
    assert networks.build(name).cfg == darknet_cfg.parse(darknet_cfg.read_cfg(path))


def test_the_published_caffemodel_holds_the_same_numbers(shared):
    path = shared / "weights" / PUBLISHED["yolov3_nano_voc"]
    arrays = darknet.read(path.with_suffix(".weights"), networks.build("yolov3_nano_voc").cfg)
    blobs = [layer for layer in caffe.layers(path.with_suffix(".caffemodel")) if layer.blobs]
    expected: list[dict] = []
    for layer in blobs:
        if layer.type == "Convolution":
            kernel, *bias = layer.blobs
            expected.append({"kernel": kernel.transpose(2, 3, 1, 0)})
            expected[-1] |= {"bias": bias[0]} if bias else {}
        elif layer.type == "BatchNorm":
            mean, variance, factor = layer.blobs
            expected[-1] |= {"mean": mean / factor, "variance": variance / factor}
        else:
            expected[-1] |= dict(zip(("scale", "bias"), layer.blobs, strict=True))
    assert len(expected) == len(arrays) == 59
    for parts, wanted in zip(arrays.values(), expected, strict=True):
        assert parts.keys() == wanted.keys()
        for part, array in wanted.items():
            np.testing.assert_array_equal(parts[part], array)
