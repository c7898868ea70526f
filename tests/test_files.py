"""Files that are whole or not there; folders of them are tested in test_rundir.py."""

import hashlib
import math

import numpy as np
import pytest
from etils import epath

from dag_jax import files

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((0, 4), np.int64)}


def packed(folder, arrays=ARRAYS, content=("x", 1)):
    path = epath.Path(folder) / "file.safetensors"
    files.write(path, files.pack(arrays, list(content)))
    return path


def test_arrays_come_back_as_they_went(tmp_path):
    path = packed(tmp_path, ARRAYS | {"t": ARRAYS["a"].T, "number": np.float64(3)})
    content, arrays = files.load(path)
    assert content == ["x", 1]
    for name, expected in (ARRAYS | {"t": ARRAYS["a"].T, "number": np.float64(3)}).items():
        assert arrays[name].dtype == expected.dtype
        np.testing.assert_array_equal(arrays[name], expected)
    assert files.load(path, ["b"])[1].keys() == {"b"}


def test_the_same_content_gives_the_same_bytes():
    backwards = dict(reversed(ARRAYS.items()))
    assert files.pack(ARRAYS, {"p": 1, "q": 2}) == files.pack(backwards, {"q": 2, "p": 1})
    assert files.pack(ARRAYS, 1) != files.pack(ARRAYS, 2)


@pytest.mark.parametrize("place", [-1, -9, 60])
def test_a_changed_byte_is_noticed(tmp_path, place):
    path = packed(tmp_path)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"file\.safetensors is damaged"):
        files.load(path)


def test_json_of_one_form():
    assert files.canonical_json({"b": [1.5, None], "a": "é"}) == '{"a":"\\u00e9","b":[1.5,null]}'
    with pytest.raises(ValueError, match="JSON"):
        files.canonical_json({"p": math.nan})


def test_digests_tell_types_and_shapes_apart(tmp_path):
    (tmp_path / "file").write_bytes(b"weights")
    assert files.sha256_of(tmp_path / "file") == hashlib.sha256(b"weights").hexdigest()
    zeros = [np.zeros(4, np.float32), np.zeros((2, 2), np.float32), np.zeros(4, np.int32)]
    assert len({files.sha256(one) for one in zeros}) == 3
    assert files.sha256(zeros[0]) == files.sha256(np.zeros(4, np.float32))
