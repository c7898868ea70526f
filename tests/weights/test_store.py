import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from dag_jax import files
from dag_jax.weights import store

METADATA = {"network": "fcn_alex", "scores": {"miou": 0.5}, "seed": 3, "classes": ["a", "é"]}


def some_parameters():
    rng = np.random.default_rng(0)
    return {
        "backbone": {
            "conv1": {"kernel": rng.normal(size=(3, 3, 3, 4)), "bias": rng.normal(size=4)},
        },
        "head": {"kernel": rng.normal(size=(4, 2)), "scale": np.array(2.5)},
    }


def as_float32(parameters, as_array=np.asarray):
    return jax.tree.map(lambda leaf: as_array(leaf, np.float32), parameters)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "network.safetensors"
    store.save(path, as_float32(some_parameters()), METADATA)
    return path


HALF = np.zeros(2, np.float16)


def assert_refused(path, message):
    with pytest.raises(ValueError, match=message) as caught:
        store.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_returns_what_was_saved(tmp_path, as_array):
    parameters = as_float32(some_parameters(), as_array)
    store.save(tmp_path / "new" / "folder" / "a.safetensors", parameters, METADATA)
    loaded, metadata = store.load(tmp_path / "new" / "folder" / "a.safetensors")
    assert metadata == METADATA
    assert jax.tree.structure(loaded) == jax.tree.structure(parameters)
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(parameters), strict=True):
        assert isinstance(ours, np.ndarray) and ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs)


def test_memory_order_does_not_matter(tmp_path):
    kernel = np.arange(12, dtype=np.float32).reshape(3, 4)
    for number, view in enumerate((np.asfortranarray(kernel), kernel[::-1, ::2], kernel.T)):
        store.save(tmp_path / f"{number}", {"kernel": view}, {})
        np.testing.assert_array_equal(store.load(tmp_path / f"{number}")[0]["kernel"], view)


def test_the_same_parameters_make_the_same_file(tmp_path):
    parameters = as_float32(some_parameters())
    backwards = dict(reversed(parameters.items()))
    store.save(tmp_path / "a", parameters, {"x": 1, "y": 2})
    store.save(tmp_path / "b", backwards, {"y": 2, "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path):
    kernel = np.random.default_rng(0).normal(size=(100, 100)).astype(np.float32)
    store.save(tmp_path / "full", {"kernel": kernel}, {})
    store.save(tmp_path / "half", {"kernel": kernel}, {}, half=True)
    assert (tmp_path / "half").stat().st_size < 0.52 * (tmp_path / "full").stat().st_size
    loaded = store.load(tmp_path / "half")[0]["kernel"]
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, kernel.astype(np.float16).astype(np.float32))


def test_any_safetensors_reader_opens_it(checkpoint):
    assert sorted(safetensors.numpy.load_file(checkpoint)) == [
        "backbone/conv1/bias",
        "backbone/conv1/kernel",
        "head/kernel",
        "head/scale",
    ]


def test_a_missing_file_is_named(tmp_path):
    assert_refused(tmp_path / "none.safetensors", "no such checkpoint file")
    assert_refused(tmp_path, "cannot be read now.*Is a directory")


def test_every_truncation_is_refused(checkpoint):
    whole = checkpoint.read_bytes()
    for length in {0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1}:
        checkpoint.write_bytes(whole[:length])
        assert_refused(checkpoint, "is damaged .or no checkpoint of ours")
    checkpoint.write_bytes(whole + b"\0")
    assert_refused(checkpoint, "damaged")


@pytest.mark.slow
def test_every_flipped_byte_is_refused(checkpoint):
    whole = checkpoint.read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        checkpoint.write_bytes(damaged)
        assert_refused(checkpoint, "damaged")
    checkpoint.write_bytes(whole)
    store.load(checkpoint)


def test_foreign_files_are_refused(tmp_path):
    foreign = tmp_path / "foreign"
    for contents in (
        b"",
        b"PK\x03\x04 a zip file of PyTorch",
        b"\x89PNG\r\n\x1a\n",
        b"{}" * 50,
        safetensors.numpy.save({"kernel": np.zeros(3, np.float32)}),
        safetensors.numpy.save({"w": np.zeros(3, np.float32)}, {"dag_jax": '{"format": "9"}'}),
    ):
        foreign.write_bytes(contents)
        assert_refused(foreign, "is damaged .or no checkpoint of ours.*convert_weights")
    foreign.write_bytes(files.pack({"kernel": np.zeros(3, np.float32)}, {"keys": [1]}))
    assert_refused(foreign, "arrays of ours, but no checkpoint")


@pytest.mark.parametrize(
    ("arrays", "content", "message"),
    [
        ({"a": np.zeros(2), "b": np.zeros(2)}, {}, "'a' is float64, not float32 or float16"),
        ({"a": np.zeros(2, np.int32)}, {}, "'a' is int32, not float32"),
        ({"a": HALF, "a/b": HALF}, {}, "'a' is an array and holds 'a/b', too"),
        ({"a/b/c": HALF, "a": HALF}, {}, "'a' is an array and holds 'a/b/c', too"),
        ({"a": HALF}, [1], "a record that is a list, not a dict"),
        ({"a": HALF}, None, "a record that is a NoneType"),
    ],
)
def test_what_is_never_saved_is_not_loaded(tmp_path, arrays, content, message):
    files.write(tmp_path / "a", files.pack(arrays, {"checkpoint": content}))
    assert_refused(tmp_path / "a", message)


def test_arrays_that_overlap_are_not_read(tmp_path):
    """A thousand arrays of the same bytes would take a thousand times the file."""
    for offsets in ([0, 0], [4, 4], [0, 4]):
        header = {"__metadata__": {"dag_jax": "{}"}}
        for number, begin in enumerate(offsets):
            data_offsets = [begin, begin + 4]
            header[f"{number}"] = {"dtype": "F32", "shape": [1], "data_offsets": data_offsets}
        text = json.dumps(header, separators=(",", ":")).encode()
        (tmp_path / "a").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
        message = "'sha256'" if offsets == [0, 4] else "overlap or leave gaps"
        assert_refused(tmp_path / "a", message)


def test_loading_takes_a_bounded_room(tmp_path):
    kernel = np.zeros(1 << 19, np.float32)
    store.save(tmp_path / "a", {name: kernel for name in "abcd"}, {}, half=True)
    tracemalloc.start()
    store.load(tmp_path / "a")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * (tmp_path / "a").stat().st_size


def test_the_format_before_0_2_says_how_to_make_a_new_one(tmp_path):
    header = {"format": "dag_jax checkpoint 1", "metadata": {}, "sha256": "0" * 64}
    tensors = {"kernel": np.zeros(3, np.float32)}
    old = safetensors.numpy.save(tensors, {"dag_jax": json.dumps(header)})
    (tmp_path / "old").write_bytes(old)
    assert_refused(tmp_path / "old", "before 0.2. Make it anew: experiments.fetch_weights and")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"a/b": np.zeros(1, np.float32)}, "'a/b'.*without '/'"),
        ({"a": {3: np.zeros(1, np.float32)}}, "3.*must be text"),
        ({}, "not empty"),
        (np.zeros(3), "must be a nested dict"),
        ({"a": {"b": np.zeros(1)}}, "a/b is float64, a checkpoint holds float32"),
    ],
)
def test_what_cannot_be_saved_is_named(tmp_path, parameters, message):
    with pytest.raises(ValueError, match=message):
        store.save(tmp_path / "a", parameters, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [1e5, np.inf])
def test_half_precision_refuses_what_it_cannot_hold(tmp_path, value):
    with pytest.raises(ValueError, match="a reaches .* float16 ends at 65504"):
        store.save(tmp_path / "a", {"a": np.float32([1, -value])}, {}, half=True)


def test_a_record_that_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(TypeError):
        store.save(tmp_path / "a", as_float32(some_parameters()), {"a": np.zeros(2)})


def test_a_record_comes_back_as_json_has_it(tmp_path):
    store.save(tmp_path / "a", as_float32(some_parameters()), {10: (1, 2), 2: None})
    assert store.load(tmp_path / "a")[1] == {"10": [1, 2], "2": None}


def test_the_record_lies_in_the_header_as_json(checkpoint):
    header = safetensors.safe_open(checkpoint, framework="numpy").metadata()
    assert json.loads(header["dag_jax"])["content"] == {"checkpoint": METADATA}


def test_check_accepts_what_fits_and_lists_all_that_does_not():
    parameters = as_float32(some_parameters())
    expected = jax.eval_shape(lambda: as_float32(some_parameters(), jnp.asarray))
    store.check(parameters, expected)

    del parameters["backbone"]["conv1"]["bias"]
    parameters["head"]["kernel"] = np.zeros((4, 3), np.float32)
    parameters["head"]["extra"] = np.zeros(7, np.float32)
    with pytest.raises(ValueError) as caught:
        store.check(parameters, expected)
    assert str(caught.value).splitlines() == [
        "the parameters do not fit the network:",
        "  missing: backbone/conv1/bias (4,)",
        "  left over: head/extra (7,)",
        "  other shape: head/kernel is (4, 3), the network has (4, 2)",
    ]
