"""Files that are whole or not there; folders of them are tested in runs/test_rundir.py."""

import contextlib
import errno
import hashlib
import json
import math
import os
import pathlib
import resource
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from PIL import Image

from dag_jax import files
from dag_jax.errors import DamagedError, MissingError, StorageError, UserError
from tests import damage

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((0, 4), np.int64)}
PIXELS = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)


def packed(folder, arrays=ARRAYS, content=("x", 1)):
    path = epath.Path(folder) / "file.safetensors"
    files.write(path, files.pack(arrays, list(content)))
    return path


def json_file(folder):
    path = epath.Path(folder) / "row.json"
    files.write_json(path, {"orig": 61.25, "name": "é"})
    return path


def image_file(folder):
    path = epath.Path(folder) / "image.png"
    files.write(path, files.pack_image(PIXELS))
    return path


READERS = {
    "arrays": (packed, files.load),
    "json": (json_file, lambda path: files.load_json(path, digest=True)),
    "image": (image_file, lambda path: files.load_image(path, files.sha256(PIXELS))),
}
each_reader = pytest.mark.parametrize(("make", "reader"), READERS.values(), ids=READERS)


def test_arrays_come_back_as_they_went(tmp_path):
    path = packed(tmp_path, ARRAYS | {"t": ARRAYS["a"].T, "number": np.float64(3)})
    content, arrays = files.load(path)
    assert content == ["x", 1]
    for name, expected in (ARRAYS | {"t": ARRAYS["a"].T, "number": np.float64(3)}).items():
        assert arrays[name].dtype == expected.dtype
        np.testing.assert_array_equal(arrays[name], expected)


def test_no_more_is_read_than_is_asked_for(tmp_path):
    path = packed(tmp_path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # of the array "a"
    path.write_bytes(bytes(data))
    assert files.load(path, ())[1] == {}
    assert files.load(path, ["b"])[1].keys() == {"b"}
    with pytest.raises(DamagedError, match="'a' does not match"):
        files.load(path, ["a"])


def test_other_programs_read_the_arrays(tmp_path):
    arrays = safetensors.numpy.load_file(os.fspath(packed(tmp_path)))
    np.testing.assert_array_equal(arrays["a"], ARRAYS["a"])


def test_the_same_content_gives_the_same_bytes():
    backwards = dict(reversed(ARRAYS.items()))
    assert files.pack(ARRAYS, {"p": 1, "q": 2}) == files.pack(backwards, {"q": 2, "p": 1})
    assert files.pack(ARRAYS, 1) != files.pack(ARRAYS, 2)


def test_json_comes_back_as_it_went(tmp_path):
    files.write_json(tmp_path / "a.json", {"b": (1, 2.5, None), "c": {"d": "é"}, "e": math.nan})
    content = files.load_json(tmp_path / "a.json", digest=True)
    assert math.isnan(content.pop("e")) and content == {"b": [1, 2.5, None], "c": {"d": "é"}}
    assert json.loads((tmp_path / "a.json").read_text()).keys() == {"b", "c", "e", "sha256"}


def test_json_without_a_digest_is_read_unless_one_is_demanded(tmp_path):
    (tmp_path / "a.json").write_text('{"b": 1}')
    assert files.load_json(tmp_path / "a.json") == {"b": 1}
    with pytest.raises(DamagedError, match=r"a\.json is damaged \(it has no SHA-256: an earlier"):
        files.load_json(tmp_path / "a.json", digest=True)


def test_a_flipped_digit_in_json_is_noticed(tmp_path):
    path = json_file(tmp_path)
    path.write_text(path.read_text().replace("61.25", "61.26"))
    with pytest.raises(DamagedError, match=r"row\.json is damaged \(it does not match its SHA-256"):
        files.load_json(path)


@pytest.mark.parametrize("text", ["", "{", "3", '{"a": 1}}', "\udcff", "[" * 100_000])
def test_what_is_no_json_is_damaged(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DamagedError, match=r"a\.json is damaged"):
        files.load_json(tmp_path / "a.json")


def test_the_name_of_the_digest_is_taken(tmp_path):
    with pytest.raises(ValueError, match="'sha256' is the name of the digest"):
        files.write_json(tmp_path / "a.json", {"sha256": "ab"})


def contents(path, reader):
    """Return what a reader says, or the error of a damaged file."""
    try:
        return str(reader(path))
    except DamagedError as error:
        assert error.path == path and str(error).startswith(f"{path} is damaged ({error.reason:.9}")
        assert "Delete that file: the same command then makes anew what was in it" in str(error)
        return None


@pytest.mark.slow
@each_reader
def test_damage_is_noticed_or_changes_nothing(tmp_path, make, reader):
    path, answers = make(tmp_path), []
    whole, expected = path.read_bytes(), str(reader(path))

    @damage.given(300, copy=damage.damaged(whole))
    def check(copy):
        pathlib.Path(path).write_bytes(copy)
        answers.append(contents(path, reader))
        # A PNG has checksums, JSON \\u00e9 and \\u00E9; what is put in may be what was there.
        assert answers[-1] in (None, expected)

    check()
    assert answers.count(None) > 0.7 * len(answers)


@each_reader
def test_each_truncation_is_noticed(tmp_path, make, reader):
    path = make(tmp_path)
    whole, expected = path.read_bytes(), str(reader(path))
    for length in range(len(whole)):
        pathlib.Path(path).write_bytes(whole[:length])
        assert contents(path, reader) in (None, expected), length
    pathlib.Path(path).write_bytes(whole[: len(whole) // 2])
    assert contents(path, reader) is None


def test_a_truncated_file_is_noticed_without_its_arrays(tmp_path):
    path = packed(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    assert contents(path, lambda path: files.load(path, ())) is None


def test_wild_offsets_are_damage(tmp_path):
    path = packed(tmp_path)
    for offsets in ("[0,-4]", "[-4,0]", "[1.5,24]", "[24,0]", '["0",24]', "[0,99]", "[]", "0"):
        header = '{"__metadata__":{"dag_jax":"{}"},"a":{"dtype":"F32","shape":[6],"data_offsets":'
        head = f"{header}{offsets}}}}}".encode()
        path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(24))
        assert contents(path, files.load) is None, offsets


def test_a_pixel_that_another_program_changed_is_noticed(tmp_path):
    path = image_file(tmp_path)
    pixels = PIXELS.copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    with pytest.raises(DamagedError, match=r"image\.png is damaged \(its pixels do not match"):
        files.load_image(path, files.sha256(PIXELS))


@each_reader
def test_a_file_that_is_not_there_is_named(tmp_path, make, reader):
    with pytest.raises(MissingError, match=r"nothing: no such file"):
        reader(epath.Path(tmp_path) / "nothing")


def test_an_image_that_nobody_attacks_is_not_decoded(tmp_path):
    path = epath.Path(tmp_path) / "large.png"
    Image.new("1", (9000, 9000)).save(path)  # 10 KB
    tracemalloc.start()
    with pytest.raises(DamagedError, match="it has 9000 x 9000 pixels"):
        files.load_image(path, "ab")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("piece", ["[],", "{},", '"a",', "1.5,", '[[""]],'])
def test_json_takes_a_bounded_room(tmp_path, piece):
    text = '{"a": [' + piece * (120_000 // len(piece)) + "0]}"
    (tmp_path / "a.json").write_text(text)
    head = (text[:-1] + "}").encode()
    (tmp_path / "a").write_bytes(len(head).to_bytes(8, "little") + head)
    for read in (lambda: files.load_json(tmp_path / "a.json"), lambda: files.load(tmp_path / "a")):
        tracemalloc.start()
        with contextlib.suppress(DamagedError):
            read()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 40 * len(text) + (1 << 20)


def test_arrays_take_twice_their_bytes(tmp_path):
    path = packed(tmp_path, {name: np.zeros(1 << 18, np.float32) for name in "abcd"})
    for names, most in ((None, 8), (["b"], 2), ((), 0)):
        tracemalloc.start()
        files.load(path, names)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < (most << 20) + (1 << 20)


def test_json_has_the_keys_that_are_asked_for(tmp_path):
    path = json_file(tmp_path)
    assert files.load_json(path, keys=("orig", "name"))["orig"] == 61.25
    with pytest.raises(DamagedError, match=r"row\.json is damaged \(it has no a, b: another"):
        files.load_json(path, keys=("a", "orig", "b"))


def cannot(path, reader, *numbers):
    """Check that a reader cannot read now, for a reason that says nothing about the file."""
    with pytest.raises(StorageError) as error:
        reader(path)
    assert str(error.value).startswith(f"{path} cannot be read now, and nothing is known to be")
    assert error.value.errno in numbers and os.strerror(error.value.errno) in str(error.value)
    assert "elete" not in str(error.value)


@each_reader
def test_too_many_open_files_are_no_damage(tmp_path, make, reader):
    path, expected = make(tmp_path), str(reader(make(tmp_path)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = os.open(os.devnull, os.O_RDONLY)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken, hard))  # the next number is too high
        cannot(path, reader, errno.EMFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(taken)
    assert str(reader(path)) == expected


@each_reader
def test_a_disk_that_fails_is_no_damage(make, reader):
    # Has no byte at 0, as a bad sector, and no end.
    cannot(epath.Path("/proc/self/mem"), reader, errno.EIO, errno.EINVAL)


@each_reader
def test_a_folder_in_place_of_a_file_is_no_damage(tmp_path, make, reader):
    cannot(epath.Path(tmp_path), reader, errno.EISDIR)


def test_errors_are_caught_as_what_they_are(tmp_path):
    with pytest.raises(OSError, match="a file lies where a folder should be"):
        files.write(packed(tmp_path) / "below", "")
    for kind in (DamagedError, MissingError, StorageError):
        assert issubclass(kind, UserError)


def test_write_replaces_whole_files(tmp_path):
    path = tmp_path / "table.md"
    files.write(path, "old")
    files.write(path, "new é")
    assert path.read_text(encoding="utf-8") == "new é"
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.md"]


def test_what_fails_in_between_leaves_the_old_file(tmp_path):
    files.write(tmp_path / "a", "old")
    for error in (UserError("an image is damaged"), KeyError("a fault"), KeyboardInterrupt()):
        with pytest.raises(type(error)), files.replacing(tmp_path / "a") as file:
            file.write(b"new")
            raise error
    assert (tmp_path / "a").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_drafts_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    names = {"a.json.tmp-0123abcd", "b.png.tmp-00000000", "a.json", "c.tmp-0123abcd.json", "tmp-1"}
    for name in names:
        (tmp_path / name).write_text("x")
    files.remove_drafts(epath.Path(tmp_path))
    assert files.names_in(epath.Path(tmp_path)) == {"a.json", "c.tmp-0123abcd.json", "tmp-1"}


def test_json_of_one_form():
    assert files.canonical_json({"b": [1.5, None], "a": "é"}) == '{"a":"\\u00e9","b":[1.5,null]}'
    with pytest.raises(ValueError, match="JSON"):
        files.canonical_json({"p": math.nan})


def test_digests_tell_types_and_shapes_apart(tmp_path):
    (tmp_path / "file").write_bytes(b"weights")
    assert files.sha256_of(tmp_path / "file") == hashlib.sha256(b"weights").hexdigest()
    zeros = [np.zeros(4, np.float32), np.zeros((2, 2), np.float32), np.zeros(4, np.int32)]
    assert len({files.sha256(array) for array in zeros}) == 3
    assert files.sha256(zeros[0]) == files.sha256(np.zeros(4, np.float32))
