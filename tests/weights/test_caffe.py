import hashlib
import math
import os
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

from dag_jax.weights import caffe

REAL = "MobileNetV2-YOLOv3-Nano-voc"
FORMS = ("layer", "layers")
KERNEL = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2) / 7 - 1
BIAS = np.float32([0.1, -3e-39])  # the second is denormal


# A writer and a decoder of the wire format, independent of protobuf. Field numbers are those of
# BVLC's caffe.proto.


def varint(value):
    value %= 1 << 64
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes(encoded) + bytes([value])


def integer(number, value):
    return varint(number << 3) + varint(value)


def run(number, contents):
    contents = contents.encode() if isinstance(contents, str) else contents
    return varint(number << 3 | 2) + varint(len(contents)) + contents


def single(number, value):
    return varint(number << 3 | 5) + struct.pack("<f", value)


def values(array, double=False, packed=True):
    array = np.asarray(array, "<f8" if double else "<f4").reshape(-1)
    number, wire_type = (8, 1) if double else (5, 5)
    if packed:
        return run(number, array.tobytes())
    tag = varint(number << 3 | wire_type)
    return b"".join(tag + value.tobytes() for value in array)


def dims(shape, legacy=False, packed=True):
    if legacy:
        shape = (1,) * (4 - len(shape)) + tuple(shape)
        return b"".join(integer(number, dim) for number, dim in enumerate(shape, start=1))
    if packed:
        return run(7, run(1, b"".join(varint(dim) for dim in shape)))
    return run(7, b"".join(integer(1, dim) for dim in shape))


def blob(array, legacy=False, packed=True, double=False):
    """Its fields in the order of their numbers, as Caffe writes them."""
    shape = dims(np.shape(array), legacy, packed)
    numbers = values(array, double, packed)
    return shape + numbers if legacy or double else numbers + shape


def layer(form, name, kind, *blobs, bottom="data", settings=b""):
    if form == "layer":
        param = run(6, single(3, 1) + single(4, 0))
        fields = [run(1, name), run(2, kind), run(3, bottom), run(4, name), param * len(blobs)]
        fields += [run(7, blob) for blob in blobs]
        return run(100, b"".join(fields) + integer(10, 1) + settings)
    fields = [run(2, bottom), run(3, name), run(4, name), integer(5, kind)]
    fields += [run(6, blob) for blob in blobs] + [single(7, 1)] * len(blobs)
    return run(2, b"".join(fields) + settings)


def network(form, **blob_options):
    """A convolution, a ReLU and a fork's layer; the bytes of a caffemodel."""
    convolution, relu = ("Convolution", "ReLU") if form == "layer" else (4, 18)
    settings = run(106, integer(1, 2) + run(4, b"\2")) if form == "layer" else run(10, b"\x08\2")
    fork = run(8266711, integer(1, 7) + integer(2, 7) + single(3, 0.0625))
    return b"".join(
        [
            run(1, "Net"),
            layer(
                form,
                "conv1_2",
                convolution,
                blob(KERNEL, **blob_options),
                blob(BIAS, **blob_options),
                settings=settings,
            ),
            layer(form, "relu", relu, bottom="conv1_2"),
            layer(form, "pool", "ROIPooling" if form == "layer" else 41, settings=fork),
            layer(form, "fc", convolution, blob(KERNEL[:, 0, 0], **blob_options), bottom="pool"),
        ]
    )


def read_varint(contents, at):
    value = shift = 0
    while True:
        value |= (contents[at] & 127) << shift
        shift += 7
        at += 1
        if contents[at - 1] < 128:
            return value, at


def decode(contents):
    """Walk the wire format: list of (number, value) in order; a run's value is its bytes."""
    fields, at = [], 0
    while at < len(contents):
        tag, at = read_varint(contents, at)
        if tag & 7 == 0:
            value, at = read_varint(contents, at)
        else:
            length, at = read_varint(contents, at) if tag & 7 == 2 else ({1: 8, 5: 4}[tag & 7], at)
            value, at = contents[at : at + length], at + length
        fields.append((tag >> 3, value))
    return fields


def decode_blob(contents):
    """The (shape, SHA-256 of the values) of a blob with packed dims and packed floats."""
    fields = dict(decode(contents))
    ((number, packed),) = decode(fields[7])
    assert number == 1
    shape, at = [], 0
    while at < len(packed):
        dim, at = read_varint(packed, at)
        shape.append(dim)
    return tuple(shape), hashlib.sha256(fields[5]).hexdigest()


def shapes(weights):
    return [(name, [blob.shape for blob in blobs]) for name, blobs in weights.items()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "network.caffemodel"


@pytest.fixture
def read(path):
    def read(contents):
        path.write_bytes(contents)
        return caffe.read(path)

    return read


@pytest.fixture
def assert_refused(path, read):
    def assert_refused(contents, message):
        start = time.process_time()
        with pytest.raises(ValueError, match=message) as caught:
            read(contents)
        assert time.process_time() - start < 4
        assert str(path) in str(caught.value) and "A caffemodel is" in str(caught.value)

    return assert_refused


@pytest.fixture(scope="session")
def real(shared):
    path = shared / "weights" / f"{REAL}.caffemodel"
    if not path.is_file():
        pytest.skip(f"no weights/{path.name} in the folder named shared")
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("double", [False, True])
def test_every_form_gives_the_stored_blobs(read, form, legacy, packed, double):
    weights = read(network(form, legacy=legacy, packed=packed, double=double))
    assert list(weights) == ["conv1_2", "fc"]
    expected = [[KERNEL, BIAS], [KERNEL[:, 0, 0]]]
    for blobs, arrays in zip(weights.values(), expected, strict=True):
        for ours, array in zip(blobs, arrays, strict=True):
            assert ours.shape == ((1,) * (4 - array.ndim) if legacy else ()) + array.shape
            assert ours.dtype == np.float32 and ours.flags.c_contiguous and ours.flags.writeable
            np.testing.assert_array_equal(ours.reshape(array.shape), array)


@pytest.mark.parametrize("form", FORMS)
def test_layers_are_in_order_and_have_their_types_as_text(path, form):
    path.write_bytes(network(form))
    assert [(layer.name, layer.type, len(layer.blobs)) for layer in caffe.layers(path)] == [
        ("conv1_2", "Convolution", 2),
        ("relu", "ReLU", 0),
        ("pool", "ROIPooling" if form == "layer" else "41", 0),  # 41 is Shaoqing Ren's fork's
        ("fc", "Convolution", 1),
    ]


def test_numbers_of_the_v1_types(path):
    # V1LayerParameter.LayerType, with the names of UpgradeV1LayerType.
    names = {
        "AbsVal": 35, "Accuracy": 1, "ArgMax": 30, "BNLL": 2, "Concat": 3, "ContrastiveLoss": 37,
        "Convolution": 4, "Data": 5, "Deconvolution": 39, "Dropout": 6, "DummyData": 32,
        "EuclideanLoss": 7, "Eltwise": 25, "Exp": 38, "Flatten": 8, "HDF5Data": 9,
        "HDF5Output": 10, "HingeLoss": 28, "Im2col": 11, "ImageData": 12, "InfogainLoss": 13,
        "InnerProduct": 14, "LRN": 15, "MemoryData": 29, "MultinomialLogisticLoss": 16, "MVN": 34,
        "Pooling": 17, "Power": 26, "ReLU": 18, "Sigmoid": 19, "SigmoidCrossEntropyLoss": 27,
        "Silence": 36, "Softmax": 20, "SoftmaxWithLoss": 21, "Split": 22, "Slice": 33, "TanH": 23,
        "WindowData": 24, "Threshold": 31, "": 0, "40": 40, "-1": -1,
    }  # fmt: skip
    written = [layer("layers", f"a{name}", number) for name, number in names.items()]
    path.write_bytes(network("layers") + b"".join(written))
    types = {layer.name[1:]: layer.type for layer in caffe.layers(path)[4:]}
    assert types == {name: name for name in names}


def test_blobs_of_no_axes_of_several_runs_and_with_gradients(read):
    in_two_runs = values(BIAS[:1]) + values(BIAS[1:]) + dims(BIAS.shape)
    with_gradients = blob(KERNEL) + run(6, KERNEL.tobytes())
    contents = layer("layer", "a", "A", values([2.5]), in_two_runs, with_gradients)
    scalar, bias, kernel = read(contents)["a"]
    assert scalar.shape == () and scalar == 2.5
    np.testing.assert_array_equal(bias, BIAS)
    np.testing.assert_array_equal(kernel, KERNEL)


def test_doubles_are_rounded_and_never_overflow(read, assert_refused):
    array = np.array([math.pi, -1e-60, np.inf, np.nan])
    read_back = read(layer("layer", "a", "A", blob(array, double=True)))["a"][0]
    np.testing.assert_array_equal(read_back, array.astype(np.float32))
    contents = layer("layer", "a", "A", blob(np.array([1, -1e39]), double=True))
    assert_refused(contents, r"blob 0 of layer 0 \(a\) has a value of 1e\+39, float32 ends at")


def test_settings_of_forks_are_let_through(read):
    # NVIDIA's forward_type, Intel's engine, SSD's resize_param in transform_param.
    settings = integer(145, 1) + run(149, "MKL2017") + run(100, single(1, 1) + run(8, b"\x08\1"))
    contents = layer("layer", "a", "A", blob(BIAS), settings=settings)
    assert list(read(contents)) == ["a"]


BAD_BLOBS = {
    "dims of more": (
        dims((2, 13)) + values(np.zeros(24)),
        r"\(2, 13\), so 26 values, and holds 24",
    ),
    "dims and no data": (dims((2, 12)), r"\(2, 12\), so 24 values, and holds 0"),
    "data and no dims": (values(BIAS), r"\(\), so 1 values, and holds 2"),
    "nothing": (b"", r"\(\), so 1 values, and holds 0"),
    "a dim of 0": (dims((0, 2)), r"\(0, 2\); .* at least 1 element"),
    "negative dims": (dims((-2, -1)) + values(BIAS), r"\(-2, -1\); .* at least 1 element"),
    "absurd dims": (dims((1 << 62,) * 4) + values(BIAS), "so 452312848583266388373324160190187140"),
    "overflowing dims": (dims((1 << 32, 1 << 32)), "so 18446744073709551616 values"),
    "too many dims": (dims((1,) * 100_000) + values([1]), "at most 32 axes"),
    "a legacy dim missing": (integer(1, 1) + integer(4, 2) + values(BIAS), r"\(1, 0, 0, 2\)"),
    "half a number": (dims((2,)) + run(5, bytes(7)), "7 bytes of data, which holds 4"),
    "half a double": (dims((2,)) + run(8, bytes(12)), "12 bytes of double_data, which holds 8"),
    "half an unpacked": (dims((1,)) + single(5, 1) + run(6, bytes(7)), "is damaged"),
    "both precisions": (blob(BIAS) + values(BIAS, double=True), "both data and double_data"),
    "both packings": (blob(BIAS) + single(5, 1), "a field 'data' of another type"),
    "fewer gradients": (blob(BIAS) + run(6, bytes(4)), "2 values and 1 in diff"),
    "half precision": (dims((2,)) + run(12, bytes(4)), "a field 12, which caffe.proto does not"),
    "data as integer": (dims((2,)) + integer(5, 1), "a field 'data' of another type"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("contents", "message"), BAD_BLOBS.values(), ids=BAD_BLOBS)
def test_a_blob_that_contradicts_itself_is_named(assert_refused, form, contents, message):
    kind = "A" if form == "layer" else 4
    contents = network(form) + layer(form, "odd", kind, blob(BIAS), contents)
    assert_refused(contents, rf"blob 1 of layer 4 \(odd\) .*{message}")


BAD_NETWORKS = {
    "one name twice": (layer("layer", "fc", "A", blob(BIAS)), "two layers .* named 'fc'"),
    "both forms": (layer("layers", "a", 4, blob(BIAS)), "both 'layer' and 'layers'"),
    "no name twice": (run(100, run(2, "A") + run(7, blob(BIAS))) * 2, "with blobs are named ''"),
    "two names": (run(100, run(1, "a") + run(1, "b")), "layer 4 has 2 names"),
    "an unreadable name": (run(100, run(1, b"\xff")), "a name in layer 4 is not UTF-8"),
    "an unprintable name": (run(100, run(1, "a\x12")), r"unprintable characters: 'a\\x12'"),
    "an unlisted field": (run(7, b"\x0a"), "the network has a field 'debug_info' of another type"),
    "an unlisted number": (run(101, b""), "the network has a field 101"),
    "a trailing byte": (b"\0", "truncated, damaged or of another kind"),
    "a layer in a layer": (
        layer("layer", "a", "A", settings=layer("layer", "b", "A", blob(BIAS))),
        r"layer 4 \(a\) has a field 'scale' of another type",
    ),
}


@pytest.mark.parametrize(("contents", "message"), BAD_NETWORKS.values(), ids=BAD_NETWORKS)
def test_layers_that_no_caffe_wrote_are_refused(assert_refused, contents, message):
    assert_refused(network("layer") + contents, message)


def test_layers_without_blobs_may_share_a_name(read):
    twice = layer("layer", "relu", "ReLU") * 2
    assert list(read(network("layer") + twice)) == ["conv1_2", "fc"]


@pytest.mark.parametrize(("number", "blobs"), [(100, 7), (2, 6)])
def test_layers_need_no_name(read, number, blobs):
    """It is optional in caffe.proto; OpenCV reads such files."""
    nameless = run(number, run(blobs, blob(BIAS))) + run(number, b"") * 3
    weights = read(network("layer" if number == 100 else "layers") + nameless)
    assert list(weights) == ["conv1_2", "fc", ""]
    np.testing.assert_array_equal(weights[""][0], BIAS)


def tiny(inner, number=100):
    """Two million bytes of the same field, within one layer or beside each other."""
    count = 2_000_000 // len(inner)
    return inner * count if number == 0 else run(number, inner * count)


TINY = {
    "layers": tiny(run(100, b""), 0),
    "named layers": tiny(run(100, run(1, "a")), 0),
    "V1 layers": tiny(run(2, b""), 0),
    "blobs": tiny(run(7, b"")),
    "blobs of a V1 layer": tiny(run(6, b""), 2),
    "names": tiny(run(3, b"")),
    "learning rates": tiny(run(6, b"")),
    "settings": tiny(integer(101, 1)),
    "pieces of data": run(100, run(1, "a") + run(7, tiny(run(5, b""), 0))),
    "numbers among others": run(100, run(1, "a") + run(7, tiny(single(5, 1) + run(6, b""), 0))),
}


@pytest.mark.parametrize("contents", TINY.values(), ids=TINY)
def test_tiny_pieces_are_refused_before_they_become_huge(assert_refused, contents):
    assert_refused(contents, "has more than 100000 fields")


@pytest.mark.slow
def test_as_many_pieces_as_may_be_take_a_bounded_room(tmp_path):
    """The parser's own memory, too, so in a process of its own."""
    most = {
        "layers": b"".join(layer("layer", f"{i}", "A", blob([i])) for i in range(7_000)),
        "blobs": layer("layer", "a", "A", *[blob([1])] * 13_000),
        "numbers": layer("layer", "a", "A", blob(np.zeros(10**6), packed=False)),
    }
    program = """
import resource, sys
from dag_jax.weights import caffe
for path in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF)
    assert caffe.read(path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    print(after.ru_maxrss - before.ru_maxrss, after.ru_utime - before.ru_utime)
"""
    paths = [tmp_path / name for name in most]
    for path in paths:
        path.write_bytes(most[path.name])
    output = subprocess.check_output([sys.executable, "-c", program, *paths], text=True)
    for path, line in zip(paths, output.splitlines(), strict=True):
        kibibytes, seconds = map(float, line.split())
        assert kibibytes * 1024 < 3 * path.stat().st_size + 60e6, path.name
        assert seconds < 4, path.name


def test_networks_without_weights_are_refused(assert_refused):
    assert_refused(run(1, "Net"), "0 layers and no blobs")
    assert_refused(layer("layer", "a", "Convolution"), "1 layers and no blobs")
    assert_refused(run(2, run(1, run(1, "conv1"))), "layer 0 is of the V0 form")


def test_foreign_files_are_refused(path, assert_refused):
    for contents, kind in {
        b"": "it is empty",
        b'name: "VGG"\nlayer {\n  name: "conv1"\n}\n' * 1000: "looks like text, such as a prototxt",
        b'# VGG\n\nlayer { name: "conv1" }': "looks like text",
        b"version https://git-lfs.github.com/spec/v1\n": "Git LFS pointer",
        b"\n\nlayer { name: 'conv1' }": "truncated, damaged or of another kind",
        b"\x89HDF\r\n\x1a\n" + bytes(1000): "HDF5",
        struct.pack("<Q", 62) + b'{"w":{"dtype":"F32"}}' + bytes(1000): "safetensors",
        struct.pack("<Q", 10) + b'{"w":{"dtype":"F32"}}' + bytes(1000): "safetensors",
        b"PK\3\4" + bytes(100): "zip",
        b"\x80\2}q\0.": "of another kind",  # a pickle
        bytes(10_000): "of another kind",
        integer(1, 7) + run(2, "a") + run(3, blob(BIAS)): "of another kind",  # a solver's state
        blob(KERNEL, legacy=True): "of another kind",  # a mean image
    }.items():
        assert_refused(contents, kind)


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "none.caffemodel"):
        with pytest.raises(ValueError, match=f"{path}: no such caffemodel file"):
            caffe.read(path)


@pytest.mark.parametrize("first", [b"\x0a\3Net", b"\0"])
def test_a_file_larger_than_a_message_can_be_is_not_read(path, first):
    path.write_bytes(first)
    os.truncate(path, 1 << 40)  # a sparse file, which takes no room
    start = time.process_time()
    with pytest.raises(ValueError, match="1099511627776 bytes.*(end at 2147483647|another kind)"):
        caffe.read(path)
    assert time.process_time() - start < 4


@pytest.mark.parametrize("length", [1, 1000, 1 << 31, (1 << 32) + 8, 1 << 62, (1 << 64) - 1])
def test_lying_lengths_are_refused(assert_refused, length):
    numbers = KERNEL.tobytes()
    for prefix in (b"\xa2\6", b"\x12", b"\x0a", b"\x22"):  # a layer, a V1 layer, a name, dims
        assert_refused(prefix + varint(length) + numbers, "is not a readable caffemodel")
    for lying in (varint(5 << 3 | 2) + varint(length) + numbers, run(7, b"\x0a" + varint(length))):
        inside = run(100, run(1, "a") + run(7, dims((24,)) + lying))
        assert_refused(inside, "is not a readable caffemodel")


def test_deep_nesting_is_refused(assert_refused):
    for deep in (b"\x0b" * 100_000, b"\x0c", b"\x0b\x14"):  # groups, which Caffe never writes
        assert_refused(network("layer") + deep, "truncated, damaged|another kind")


@pytest.mark.parametrize("form", FORMS)
def test_a_truncated_file_is_refused_except_between_layers(read, form):
    contents = network(form)
    ends = {0}
    for number, value in decode(contents):
        ends.add(max(ends) + len(run(number, value)))
    whole = shapes(read(contents))
    for length in range(len(contents)):
        try:
            read_shapes = shapes(read(contents[:length]))
        except ValueError as error:
            assert "is not a readable caffemodel" in str(error)
        else:
            assert length in ends and read_shapes == whole[: len(read_shapes)]


@pytest.mark.parametrize(("form", "legacy"), [("layer", False), ("layers", True)])
def test_every_flipped_byte_is_refused_or_leaves_names_and_shapes(read, rng, form, legacy):
    contents = network(form, legacy=legacy)
    whole = shapes(read(contents))
    in_names = set()
    for name, _ in whole:
        start = contents.index(run(1 if form == "layer" else 4, name)) + 2
        in_names |= set(range(start - 2, start + len(name)))  # where it has none, it has no name
    for at, byte in enumerate(contents):
        damaged = bytearray(contents)
        damaged[at] = byte ^ 1 << int(rng.integers(8))
        try:
            read_shapes = shapes(read(damaged))
        except ValueError as error:
            assert "is not a readable caffemodel" in str(error)
        else:
            assert [shape for _, shape in read_shapes] == [shape for _, shape in whole]
            assert read_shapes == whole or at in in_names


def test_real_file_is_read_without_loss(real):
    expected = []
    for number, fields in decode(real.read_bytes()):
        if number == 100:
            fields = decode(fields)
            name, kind = dict(fields)[1].decode(), dict(fields)[2].decode()
            expected.append((name, kind, [decode_blob(v) for number, v in fields if number == 7]))
    layers = [
        (
            name,
            kind,
            [(b.shape, hashlib.sha256(b.astype("<f4").tobytes()).hexdigest()) for b in blobs],
        )
        for name, kind, blobs in caffe.layers(real)
    ]
    assert layers == expected
    assert sum(len(blobs) for *_, blobs in layers) == 346
    assert sum(blob.size for blobs in caffe.read(real).values() for blob in blobs) == 769_807


def test_opencv_reads_the_same_from_the_real_file(real):
    cv2 = pytest.importorskip("cv2")
    network = cv2.dnn.readNetFromCaffe(str(real.with_suffix(".prototxt")), str(real))
    compared = 0
    for name, blobs in caffe.read(real).items():
        for number, blob in enumerate(blobs):
            # OpenCV 4 makes a row of what has one axis.
            np.testing.assert_array_equal(
                network.getParam(name, number).reshape(blob.shape), blob, err_msg=name
            )
            compared += 1
    assert compared == 346


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("legacy", [False, True])
def test_opencv_reads_the_same_from_each_form(path, form, legacy):
    cv2 = pytest.importorskip("cv2")
    convolution = "Convolution" if form == "layer" else 4
    blobs = blob(KERNEL, legacy), blob(BIAS, legacy)
    path.write_bytes(run(1, "Net") + layer(form, "conv", convolution, *blobs))
    text = """
        input: "data" input_dim: 1 input_dim: 3 input_dim: 5 input_dim: 5
        layer {
          name: "conv" type: "Convolution" bottom: "data" top: "conv"
          convolution_param { num_output: 2 kernel_size: 2 }
        }
    """
    prototxt = path.with_suffix(".prototxt")
    prototxt.write_text(text)
    network = cv2.dnn.readNetFromCaffe(str(prototxt), str(path))
    for number, ours in enumerate(caffe.read(path)["conv"]):
        np.testing.assert_array_equal(
            ours.reshape(-1), network.getParam("conv", number).reshape(-1)
        )


@pytest.mark.parametrize("share", [0.001, 0.3, 0.77, 0.999])
def test_the_real_file_truncated_is_refused(real, assert_refused, share):
    contents = real.read_bytes()
    assert_refused(
        contents[: int(share * len(contents))], "it is truncated or damaged: field 100 at"
    )


@pytest.mark.slow
def test_flipped_bits_in_the_headers_of_the_real_file(real, read, rng):
    contents = real.read_bytes()
    whole = shapes(caffe.read(real))
    # All bytes before a layer's values, and the shapes after them.
    headers, names, at = [], set(), 0
    for number, value in decode(contents):
        end = at + len(run(number, value))
        start = end - len(value)
        headers += range(at, min(end, start + 60))
        if number == 100:
            headers += range(max(start, end - 40), end)
            name = dict(decode(value))[1]
            names |= set(range(start + 2, start + 2 + len(name)))
        at = end
    refused = 0
    for at, bit in zip(rng.choice(headers, 120), rng.integers(0, 8, 120), strict=True):
        damaged = bytearray(contents)
        damaged[at] ^= 1 << bit
        began = time.process_time()
        try:
            read_shapes = shapes(read(damaged))
        except ValueError as error:
            assert "is not a readable caffemodel" in str(error)
            refused += 1
        else:
            assert [shape for _, shape in read_shapes] == [shape for _, shape in whole]
            assert read_shapes == whole or at in names
        assert time.process_time() - began < 4
    assert refused > 30
