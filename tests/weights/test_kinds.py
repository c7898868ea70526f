"""Files that are whole, of a kind that is not read: each is named, with what to do."""

import pickle
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from dag_jax.errors import UserError
from dag_jax.networks import conversion
from dag_jax.weights import store


def archive(names):
    def write(path):
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                file.writestr(name, b"\x80\x02N.")

    return write


def folder(*names):
    def write(path):
        path.mkdir()
        for name in names:
            (path / name).write_text("{}")

    return write


def contents(data):
    return lambda path: path.write_bytes(data)


# An ONNX file as exporters begin it: version 8, by pytorch 2.1; or without a writer's name.
ONNX = b"\x08\x08\x12\x07pytorch\x1a\x032.1:\x04\x0a\x02ab"
KINDS = {
    "onnx": (contents(ONNX), "an ONNX model.*torch.save"),
    "bare onnx": (contents(b"\x08\x07:\x04\x0a\x02ab"), "an ONNX model"),
    "torchscript": (
        archive(["net/data.pkl", "net/code/__torch__.py", "net/constants.pkl"]),
        r"a TorchScript archive.*torch.jit.load it, and torch.save\(model.state_dict",
    ),
    "hugging face": (
        folder("config.json", "model.safetensors"),
        r"a Hugging Face folder.*torch.save\(model.state_dict\(\), path\)",
    ),
    "saved model": (folder("saved_model.pb", "variables"), "a SavedModel of TensorFlow"),
    "folder": (folder("net.pth"), "is a folder; name the file in it"),
    "keras": (archive(["metadata.json", "config.json", "model.weights.h5"]), "a model of Keras"),
    "hdf5": (contents(b"\x89HDF\r\n\x1a\n" + bytes(500)), "an HDF5 file"),
    "npz": (archive(["a.npy"]), "an archive of NumPy's"),
    "npy": (contents(b"\x93NUMPY\1\0" + bytes(50)), "an array of NumPy's"),
    "gguf": (contents(b"GGUF\3\0\0\0" + bytes(50)), "a GGUF file"),
    "tflite": (contents(b"\x1c\0\0\0TFL3" + bytes(50)), "a model of TensorFlow Lite"),
    "gzip": (contents(b"\x1f\x8b\x08\0" + bytes(50)), "compressed with gzip.*decompress it"),
    "safetensors": (
        contents(safetensors.numpy.save({"w": np.zeros(3, np.float32)}, {"format": "pt"})),
        r"a safetensors file.* of another program.*torch.save\(model.state_dict",
    ),
}


@pytest.mark.parametrize(("write", "message"), KINDS.values(), ids=KINDS)
def test_a_kind_that_is_not_read_is_named(tmp_path, write, message):
    path = tmp_path / "weights"
    write(path)
    with pytest.raises(UserError, match=f"(?s){path}.*{message}") as error:
        conversion.parameters_of("fcn_vgg", None, path)
    assert "not read here" in str(error.value) or "name the file" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_no_safetensors_are_converted(tmp_path):
    for write, message in (
        (KINDS["safetensors"][0], "is a safetensors file of another program"),
        (lambda path: store.save(path, {"w": np.zeros(3, np.float32)}, {}), "reads safetensors of"),
    ):
        write(tmp_path / "a")
        with pytest.raises(UserError, match=message):
            conversion.convert_files("fcn_vgg", None, [tmp_path / "a"], tmp_path / "b")


def test_a_solver_s_state_is_no_onnx(tmp_path):
    (tmp_path / "a").write_bytes(b"\x08\x07\x12\x0ca.caffemodel\x1a\x00")
    with pytest.raises(UserError, match="is not a readable caffemodel: it is truncated, damaged"):
        conversion.read(tmp_path / "a")


@pytest.mark.parametrize("data", [b"PK\x03\x04", pickle.dumps([1] * 50), struct.pack("<Q", 9)])
def test_what_is_of_no_known_kind_is_damaged(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(UserError, match="truncated, damaged or of another kind"):
        conversion.read(tmp_path / "a")
