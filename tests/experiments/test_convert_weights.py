"""Conversion and listing by their launch, and by their functions."""

import hashlib
import json
import re
import shutil
import struct
import time

import jax
import numpy as np
import pytest
import safetensors.numpy

from dag_jax import files, networks
from dag_jax.errors import UserError
from dag_jax.networks import conversion, zoo
from dag_jax.weights import store


@pytest.fixture(scope="session")
def alex(tmp_path_factory, write_caffemodel, caffe_blobs):
    """The shipped miniature of FCN-Alex as a caffemodel."""
    parameters = networks.load("fcn_alex", miniature=True).parameters
    line = 1 - np.abs(np.arange(31) - 15) / 16
    kernel = np.outer(line, line)[None, None] * np.eye(21)[:, :, None, None]
    blobs = caffe_blobs(parameters) | {"upscore": [np.float32(kernel)]}
    return write_caffemodel(tmp_path_factory.mktemp("caffe") / "alex.caffemodel", blobs)


def assert_same(parameters, expected):
    store.check(parameters, expected)
    jax.tree.map(np.testing.assert_array_equal, parameters, expected)


@pytest.mark.slow  # a process of its own
def test_launch_writes_a_checkpoint_that_loads(launch, alex, tmp_path):
    output = tmp_path / "new" / "alex.safetensors"
    options = ["--miniature", "--network=fcn_alex", f"--source={alex}", f"--output={output}"]
    process = launch("convert_weights", *options)
    assert process.stdout == f"{output}: fcn_alex, read as caffe_fcn\n"
    parameters = networks.load("fcn_alex", miniature=True, checkpoint=output).parameters
    assert_same(parameters, networks.load("fcn_alex", miniature=True).parameters)
    record = store.load(output)[1]
    assert record["sources"] == [
        {"name": alex.name, "bytes": alex.stat().st_size, "sha256": files.sha256_of(alex)}
    ]
    assert (record["network"], record["layout"], record["dense"]) == ("fcn_alex", "caffe_fcn", [])

    process = launch("convert_weights", "--list", f"--source={alex},{output}")
    assert process.stdout == conversion.list_files([alex, output]) + "\n"

    before = output.read_bytes()
    process = launch("convert_weights", *options, fails=True)
    assert "exists already; name another --output, or remove it\n" in process.stderr
    assert output.read_bytes() == before


def test_the_launch_refuses_in_one_line(refuse, alex, tmp_path):
    output = tmp_path / "out.safetensors"
    (tmp_path / "page.caffemodel").write_text("<html>gone</html>")
    (tmp_path / "net.pth").write_bytes(b"PK\x03\x04 and no more")
    shipped = zoo.CHECKPOINTS / "fcn_alex.safetensors"
    for source, message in {
        tmp_path / "none.caffemodel": "none.caffemodel: no such checkpoint file",
        tmp_path / "page.caffemodel": "not a readable caffemodel",
        tmp_path / "net.pth": "not a readable PyTorch checkpoint",
        shipped: "reads safetensors of ours as they are",
    }.items():
        text = refuse(
            "convert_weights", "--network=fcn_vgg", f"--source={source}", f"--output={output}"
        )
        assert re.search(message, text) and "\n" not in text
    flags = ["--network=fr_zf_07", "--miniature", f"--source={alex}", f"--output={output}"]
    text = refuse("convert_weights", *flags, lines=20)
    assert re.search("(?s)alex.caffemodel as fr_zf_07: .*left over: score_fr", text)
    assert not output.exists()


def test_darknet_s_files_have_no_layout(refuse, shared, tmp_path):
    source = shared / "weights" / "MobileNetV2-YOLO-Fastest-voc.weights"
    flags = ["--network=yolo_fastest_voc", f"--source={source}", f"--output={tmp_path / 'a'}"]
    text = refuse("convert_weights", *flags, "--layout=caffe_fcn")
    assert text == "yolo_fastest_voc is read from darknet's files, which have no layout"
    record = zoo.convert("yolo_fastest_voc", [source], tmp_path / "a")
    assert record["layout"] == "darknet"


def test_the_launch_says_what_it_needs(refuse):
    assert refuse("convert_weights", "--network=fcn_vgg") == "--network and --source are needed"
    assert refuse("convert_weights", "--list") == "--list needs --source"


# Parameters of a file of any kind.


@pytest.mark.parametrize("name", ["weights.bin", "weights.pth", "weights.safetensors"])
def test_a_file_is_what_its_content_says(alex, tmp_path, name):
    module = networks.build("fcn_alex", miniature=True)
    shipped = zoo.CHECKPOINTS / "fcn_alex.safetensors"
    expected, expected_record = store.load(shipped)
    shutil.copy(shipped, tmp_path / name)
    parameters, record = conversion.parameters_of("fcn_alex", module, tmp_path / name)
    assert_same(parameters, expected)
    assert record == expected_record
    shutil.copy(alex, tmp_path / name)
    parameters, record = conversion.parameters_of("fcn_alex", module, [str(tmp_path / name)])
    assert_same(parameters, expected)
    assert (record["network"], record["partial"], record["dense"]) == ("fcn_alex", False, [])
    assert record["sources"][0]["name"] == name


def test_a_file_of_torch_is_told_too(shared):
    module = networks.build("fcn_vgg", miniature=True)
    path = shared / "weights" / "espnetv2_s_0.5_pascal_384x384.pth"
    if not path.is_file():
        pytest.skip(f"no weights/{path.name} in the folder named shared")
    with pytest.raises(
        UserError, match="do not fit the network:\n  left over: base_net.level1.conv"
    ):
        conversion.parameters_of("fcn_vgg", module, path)


def test_a_checkpoint_comes_alone(alex):
    module = networks.build("fcn_alex", miniature=True)
    sources = [alex, zoo.CHECKPOINTS / "fcn_alex.safetensors"]
    with pytest.raises(UserError, match="a checkpoint of ours comes alone"):
        conversion.parameters_of("fcn_alex", module, sources)


# Listing. What real files hold is known from elsewhere: numbers and checksums of values from OpenCV
# (getParam of the caffemodel) and PyTorch (torch.load of the .pth), those of files from sha256sum.
REAL = {
    "MobileNetV2-YOLOv3-Nano-voc.caffemodel": (
        "346 tensors, 769807 weights",
        "3102331 bytes, SHA-256 6e86e5997dc7eba602db4253f3652ecdf2b135d6563ac896b2e44e260bfa0ae6",
        {
            0: "layer1-conv (Convolution) blob 0|[16, 3, 3, 3]|float32|"
            "d2c5c2eced7d749c4bf29164421748b783bb386749c22ff0311245d33f83f917",
            3: "layer1-bn (BatchNorm) blob 2|[1]|float32|"
            "e00e5eb9444182f352323374ef4e08ebcb784725fdd4fd612d7730540b3e0c8c",
            345: "layer79-conv (Convolution) blob 1|[75]|float32|"
            "c27fdb82d541a73472c94a68b525f713c0ae0f0ea259722bcce03345c22c9147",
        },
    ),
    "espnetv2_s_0.5_pascal_384x384.pth": (
        "526 tensors, 87742 weights",
        "469363 bytes, SHA-256 3352b32b209e1e6492d1481734f5333876b28d8866f5c1702d01ec70255eb20c",
        {
            0: "base_net.level1.conv.weight|[16, 3, 3, 3]|float32|"
            "c8544940ff6785f378b0667662f3c787b00e492345096fc672b4d9f72a4eb6aa",
            5: "base_net.level1.bn.num_batches_tracked|[]|int64|"
            "bc2b2e9eccd1c9e1505c12e0e7bbacd4bb2b0c18f572ebc776d80c427bbe6d5a",
            525: "bu_br_l4.1.weight|[32]|float32|"
            "23a58a4eeb4e4acfe6131da8879d97d0762cb91b39c8efcff1193f34f8e56779",
        },
    ),
}


@pytest.fixture(params=REAL)
def real(shared, request):
    path = shared / "weights" / request.param
    if not path.is_file():
        pytest.skip(f"no weights/{request.param} in the folder named shared")
    return path


def listed(path):
    """Return the rows of a listing, cells joined by |, and its last two lines."""
    head, *rows, count, file = conversion.list_files([path]).split("\n")
    assert head.split() == ["name", "shape", "dtype", "SHA-256"]
    return ["|".join(filter(None, map(str.strip, row.split("  ")))) for row in rows], count, file


def row(name, array):
    """What the row of an array must be."""
    digest = hashlib.sha256(array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()
    return f"{name}|{list(array.shape)}|{array.dtype}|{digest}"


def test_real_files_are_listed(real):
    expected_count, expected_file, expected_rows = REAL[real.name]
    rows, count, file = listed(real)
    assert (count, file) == (expected_count, f"{real}: {expected_file}")
    assert len(rows) == int(count.split()[0])
    assert {number: rows[number] for number in expected_rows} == expected_rows


def test_a_caffemodel_is_listed(tmp_path, write_caffemodel, rng):
    kernel, bias = rng.normal(size=(4, 3, 2, 2)).astype(np.float32), np.float32([1, 2, 3, 4])
    path = write_caffemodel(tmp_path / "a.caffemodel", {"conv": [kernel, bias], "fc": [bias[:1]]})
    rows, count, _ = listed(path)
    assert rows == [
        row("conv (Convolution) blob 0", kernel),
        row("conv (Convolution) blob 1", bias),
        row("fc (Convolution) blob 0", bias[:1]),
    ]
    assert count == "3 tensors, 53 weights"


@pytest.mark.parametrize("zipped", [True, False])
def test_what_pytorch_saves_is_listed(tmp_path, zipped):
    torch = pytest.importorskip("torch", reason="PyTorch, which writes the file, is not installed")
    weight = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    state = {"w": weight, "turned": weight.T, "half": weight.half(), "steps": torch.tensor(7)}
    torch.save(
        {"state": state | {"none": weight[:0]}},
        tmp_path / "a.pth",
        _use_new_zipfile_serialization=zipped,
    )
    rows, count, _ = listed(tmp_path / "a.pth")
    array = weight.numpy()
    assert (
        rows
        == [
            row("state.w", array),
            row("state.turned", array.T),
            row("state.half", array),  # as conversion gets it
            row("state.steps", np.array(7)),
            row("state.none", array[:0]),
        ]
    )
    assert count == "5 tensors, 19 weights"


def test_safetensors_are_listed_as_stored(tmp_path, rng):
    arrays = {
        "kernel": rng.normal(size=(3, 2)).astype(np.float16),
        "steps": np.full((), 7, np.int64),
        "\x1b[31mred": np.zeros((0, 2), np.float32),
    }
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(arrays, path, {"by": "test"})
    rows, count, _ = listed(path)
    arrays["'\\x1b[31mred'"] = arrays.pop("\x1b[31mred")
    assert sorted(rows) == sorted(row(name, array) for name, array in arrays.items())
    assert count == "3 tensors, 7 weights"

    # Types that NumPy lacks, and a header of 384 bytes, with which a file begins like a pickle.
    contents = rng.bytes(8)
    header = {
        "scaled": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [4, 8]},
        "brain": {"dtype": "BF16", "shape": [1, 2], "data_offsets": [0, 4]},
    }
    path.write_bytes(struct.pack("<Q", 384) + json.dumps(header).encode().ljust(384) + contents)
    assert path.read_bytes()[:1] == b"\x80"
    digests = [hashlib.sha256(part).hexdigest() for part in (contents[:4], contents[4:])]
    assert listed(path)[0] == [
        f"brain|[1, 2]|bfloat16|{digests[0]}",
        f"scaled|[4]|F8_E4M3|{digests[1]}",
    ]


def refuses_quickly(path, contents):
    """Whether a listing of these contents is refused in one line that names the file."""
    path.write_bytes(contents)
    start, refused = time.process_time(), False
    try:
        listed(path)
    except ValueError as error:
        refused = True
        assert str(path) in str(error) and "is not a readable" in str(error)
        assert "\n" not in str(error)
    assert time.process_time() - start < 1
    return refused


# What these files have, and what a damaged or a hostile one has instead.
LIES = {
    ".caffemodel": {
        b"\xa2\x06\x8c\x0e\x0a\x0blayer1-conv": b"\xa2\x06\xff\xff\xff\xff\x07\x0a\x0blayer1-conv",
        b"\x3a\xcb\x0d\x2a\xc0\x0d": b"\x3a\xcb\x0d\x2a\xff\x7f",
        b"\x12\x0bConvolution": b"\x12\xff\x7fConvolution",
    },
    ".pth": {
        b"X\x1b\0\0\0base_net": b"X\xff\xff\xff\xffbase_net",
        b"(K\x10K\x03K\x03K\x03tq": b"(K\xffK\x03K\x03K\x03tq",
        b"ccollections\nOrderedDict\n": b"cposix\nsystem\n",
    },
}


@pytest.mark.slow
def test_damaged_copies_of_real_files_are_refused(real, tmp_path, rng):
    whole, path = real.read_bytes(), tmp_path / real.name
    for share in (0, 1e-5, 0.01, 0.3, 0.77, 0.9999):
        assert refuses_quickly(path, whole[: int(share * len(whole))]), share
    for true, lie in LIES[real.suffix].items():
        assert true in whole
        assert refuses_quickly(path, whole.replace(true, lie, 1)), lie
    # Not every flipped bit can be noticed: one of a name, say.
    refused = 0
    for at, bit in zip(rng.integers(0, 200, 30), rng.integers(0, 8, 30), strict=True):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << bit
        refused += refuses_quickly(path, damaged)
    assert refused


def test_damaged_safetensors_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    whole = safetensors.numpy.save({"w": np.ones((2, 3), np.float32)})
    start = whole.index(b"{")
    for contents in (
        *(whole[:length] for length in (start + 2, 40, len(whole) - 1)),
        whole + b"a",
        struct.pack("<Q", 1 << 60) + whole[start:],
        whole.replace(b"[2,3]", b"[2,9]"),
        whole.replace(b"F32", b"F99"),
    ):
        assert refuses_quickly(path, contents)
    path.write_bytes(struct.pack("<Q", 19) + b'{"__metadata__":{}}')
    with pytest.raises(ValueError, match="without a tensor"):
        listed(path)


def test_the_launch_lists_all_or_nothing(refuse, alex, tmp_path, capsys):
    page = tmp_path / "page.pth"
    page.write_text("<html>gone</html>")
    for source, message in [
        (page, "is not a readable"),
        (tmp_path / "none", "no such checkpoint file"),
    ]:
        text = refuse("convert_weights", "--list", f"--source={alex},{source}")
        assert str(source) in text and message in text and "\n" not in text
    assert capsys.readouterr().out == "" and [*tmp_path.iterdir()] == [page]
