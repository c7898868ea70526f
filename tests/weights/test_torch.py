import collections
import dataclasses
import hashlib
import io
import pickle
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from dag_jax.weights.torch import read
from tests import damage

MAGIC = 0x1950A86A20F9469CFC6C


# What `torch.save` writes, written without PyTorch.


@dataclasses.dataclass(frozen=True)
class Global:
    module: str
    name: str

    def __call__(self):
        """Only so that pickle takes it for a function."""


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    key: str
    type: str
    raw: bytes
    itemsize: int
    view: tuple | None = None

    def __len__(self):
        return len(self.raw) // self.itemsize


def storage(key, type_name, values, *, view=None, order="<"):
    values = np.asarray(values)
    values = values.astype(values.dtype.newbyteorder(order))
    return Storage(key, type_name, values.tobytes(), values.itemsize, view)


class Call:
    def __init__(self, name, *arguments, state=None):
        self.reduced = (Global(*name.rsplit(".", 1)), arguments, state)

    def __reduce__(self):
        return self.reduced


def tensor(storage_id, shape, strides, offset=0, *hooks):
    arguments = (storage_id, offset, shape, strides, False, collections.OrderedDict(), *hooks)
    return Call("torch._utils._rebuild_tensor_v2", *arguments)


def row(storage_id):
    return tensor(storage_id, (len(storage_id),), (1,))


class Pickler(pickle._Pickler):  # The one in C looks up every global in the module it names.
    def __init__(self, file, protocol, legacy):
        super().__init__(file, protocol)
        self.storages, self.legacy = {}, legacy

    def save(self, obj, save_persistent_id=True):
        if not isinstance(obj, Global):
            super().save(obj, save_persistent_id)
        elif self.proto >= 4:
            self.save(obj.module)
            self.save(obj.name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        self.storages[obj.key] = obj
        module = "torch.storage" if obj.type == "UntypedStorage" else "torch"
        identity = ("storage", Global(module, obj.type), obj.key, "cuda:0", len(obj))
        return (*identity, obj.view) if self.legacy else identity


def pickled(tree, protocol=2, legacy=False):
    file = io.BytesIO()
    pickler = Pickler(file, protocol, legacy)
    pickler.dump(tree)
    return file.getvalue(), pickler.storages


def write_records(path, records, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, raw in records.items():
            archive.writestr(name, raw)
    return path


def zip_records(tree, protocol=2, byte_order=b"little"):
    text, storages = pickled(tree, protocol)
    records = {"archive/data.pkl": text, "archive/byteorder": byte_order}
    records |= {f"archive/data/{key}": storage.raw for key, storage in storages.items()}
    return records | {"archive/version": b"3\n"}


def write_zip(path, tree, protocol=2):
    return write_records(path, zip_records(tree, protocol))


def legacy_bytes(text, storages):
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    parts = [pickle.dumps(part, 2) for part in (MAGIC, 1001, system)]
    parts += [text, pickle.dumps(sorted(storages), 2)]
    for key in sorted(storages):
        parts += [struct.pack("<q", len(storages[key])), storages[key].raw]
    return b"".join(parts)


def write_legacy(path, tree, protocol=2):
    path.write_bytes(legacy_bytes(*pickled(tree, protocol, legacy=True)))
    return path


WRITERS = {"zip": write_zip, "legacy": write_legacy}
both_forms = pytest.mark.parametrize("form", ["zip", "legacy"])


def small_checkpoint():
    """A tree as of a state_dict, and what is to be read of it."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=24).astype(np.float32)
    halves = rng.normal(size=5).astype(np.float16)
    doubles = rng.normal(size=3)
    brains = rng.normal(size=4).astype(np.float32).view(np.uint32) >> 16
    kernels = storage("0", "FloatStorage", kernel)
    state = collections.OrderedDict()
    state["conv.weight"] = tensor(kernels, (2, 3, 4), (12, 4, 1))
    state["conv.transposed"] = tensor(kernels, (4, 6), (1, 4))
    state["conv.sliced"] = tensor(kernels, (2, 2), (8, 3), 5)
    state["bn.num_batches_tracked"] = tensor(storage("1", "LongStorage", np.int64([7])), (), ())
    state["scale"] = tensor(storage("2", "FloatStorage", np.float32([2.5])), (), ())
    state["half"] = row(storage("3", "HalfStorage", halves))
    state["double"] = row(storage("4", "DoubleStorage", doubles))
    state["brain"] = row(storage("5", "BFloat16Storage", brains.astype(np.uint16)))
    state["bytes"] = row(storage("6", "ByteStorage", np.uint8([0, 255])))
    state["flags"] = row(storage("7", "BoolStorage", np.array([True, False])))
    state["empty"] = tensor(storage("8", "IntStorage", np.int32([])), (0, 3), (3, 1))
    state["one"] = tensor(kernels, (1, 3), (2**62, 1))
    state["repeated"] = tensor(kernels, (3, 2), (0, 1))
    state._metadata = collections.OrderedDict({"": {"version": 1}})
    expected = {
        "conv.weight": kernel.reshape(2, 3, 4),
        "conv.transposed": kernel.reshape(6, 4).T,
        "conv.sliced": kernel[[[5, 8], [13, 16]]],
        "bn.num_batches_tracked": np.array(7, np.int64),
        "scale": np.array(2.5, np.float32),
        "half": halves.astype(np.float32),
        "double": doubles.astype(np.float32),
        "brain": (brains << 16).view(np.float32),
        "bytes": np.uint8([0, 255]),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3), np.int32),
        "one": kernel[None, :3],
        "repeated": np.stack([kernel[:2]] * 3),
    }
    return state, expected


def assert_same(actual, expected):
    assert list(actual) == list(expected)
    for name, array in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (array.dtype, array.shape), name
        assert actual[name].tobytes() == array.tobytes(), name


def assert_refused(path, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


@both_forms
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_names_shapes_types_and_values(tmp_path, form, protocol):
    state, expected = small_checkpoint()
    assert_same(read(WRITERS[form](tmp_path / "a.pth", state, protocol)), expected)


@both_forms
def test_arrays_share_memory_as_the_tensors_did_and_are_read_only(tmp_path, form):
    read_arrays = read(WRITERS[form](tmp_path / "a.pth", small_checkpoint()[0]))
    assert np.shares_memory(read_arrays["conv.weight"], read_arrays["conv.sliced"])
    assert not np.shares_memory(read_arrays["conv.weight"], read_arrays["scale"])
    assert not any(array.flags.writeable for array in read_arrays.values() if array.size)


@both_forms
def test_nested_containers_become_dotted_names_and_the_rest_is_left_out(tmp_path, form):
    weight = storage("0", "FloatStorage", np.float32([1, 2]))
    tree = {
        "epoch": 3,
        "model": collections.OrderedDict(conv=row(weight), nothing=None),
        "optimizer": {"state": {0: {"step": row(weight)}}, "lr": 0.1, "betas": (0.9, 0.999)},
        "averages": [1, row(weight), (row(weight),)],
        "set": {1, 2},
        "milestones": collections.Counter([3, 4]),
        "device": Call("torch.device", "cuda", 0),
        "size": Call("torch.Size", (2, 3)),
        "type": Global("torch", "float16"),
        "storage": weight,
        "bytes": [2**40, -3, 2.5, True, "text"],
    }
    read_arrays = read(WRITERS[form](tmp_path / "a.pth", tree))
    names = ["model.conv", "optimizer.state.0.step", "averages.1", "averages.2.0"]
    assert_same(read_arrays, {name: np.float32([1, 2]) for name in names})


def test_big_endian_archives(tmp_path):
    kinds = {"Float": "f4", "Half": "f2", "Double": "f8", "Long": "i8", "Short": "i2"}
    values = np.array([1, -2, 3])
    tree = {
        kind: row(storage(kind, f"{kind}Storage", values.astype(code), order=">"))
        for kind, code in kinds.items()
    }
    brain = np.float32([1, -2, 3]).view(np.uint32) >> 16
    tree["BFloat16"] = row(storage("b", "BFloat16Storage", brain.astype(np.uint16), order=">"))
    read_arrays = read(write_records(tmp_path / "a.pth", zip_records(tree, byte_order=b"big")))
    assert {array.dtype.name for array in read_arrays.values()} == {"float32", "int64", "int16"}
    for name, array in read_arrays.items():
        assert array.dtype.isnative and array.tolist() == [1, -2, 3], name

    write_records(tmp_path / "a.pth", zip_records(tree, byte_order=b"middle"))
    assert_refused(tmp_path / "a.pth", "byte order is b'middle', neither little nor big")


def test_types_without_a_storage_of_their_own(tmp_path):
    values = np.array([1, 2, 65535], np.uint16)
    untyped = Storage("0", "UntypedStorage", values.tobytes(), 1)
    arguments = (untyped, 1, (2,), (1,), False, {}, Global("torch", "uint16"))
    tree = {"w": Call("torch._utils._rebuild_tensor_v3", *arguments)}
    assert_same(read(write_zip(tmp_path / "a.pth", tree)), {"w": values[1:]})


def test_parameters_old_and_new(tmp_path):
    values = np.float32([1, 2, 3])
    weights = storage("0", "FloatStorage", values)
    old = Call("torch._utils._rebuild_tensor", weights, 1, (2,), (1,))
    tree = {
        "new": Call("torch._utils._rebuild_parameter", row(weights), True, {}),
        "old": Call("torch.nn.parameter.Parameter", old, state=(True, False, None)),
    }
    read_arrays = read(write_legacy(tmp_path / "a.pth", tree))
    assert_same(read_arrays, {"new": values, "old": values[1:]})


def test_a_legacy_storage_may_be_a_part_of_another(tmp_path):
    values = np.arange(6, dtype=np.float32)
    part = storage("0", "FloatStorage", values, view=("1", 2, 3))
    write_legacy(tmp_path / "a.pth", {"w": tensor(part, (2,), (1,), 1)})
    assert_same(read(tmp_path / "a.pth"), {"w": values[3:5]})
    write_legacy(tmp_path / "a.pth", {"w": tensor(part, (4,), (1,))})
    assert_refused(tmp_path / "a.pth", "ends at value 4 of storage '0', which has 3")
    for wrong in [("1", 4, 3), ("1", -1, 3), ("1", 0), ("1", 0, None)]:
        part = storage("0", "FloatStorage", values, view=wrong)
        write_legacy(tmp_path / "a.pth", {"w": row(part)})
        assert_refused(tmp_path / "a.pth", "beyond its end|refers to something else")


def test_text_and_ordered_dicts_of_python_2(tmp_path):
    values = np.float32([1, 2])
    state = Call("collections.OrderedDict", [["w", row(storage("0", "FloatStorage", values))]])
    text, storages = pickled(state, 2, legacy=True)
    for word in ("storage", "w", "0", "cuda:0"):
        new = pickle.BINUNICODE + struct.pack("<I", len(word)) + word.encode()
        assert new in text
        text = text.replace(new, pickle.SHORT_BINSTRING + bytes([len(word)]) + word.encode())
    (tmp_path / "a.pth").write_bytes(legacy_bytes(text, storages))
    assert_same(read(tmp_path / "a.pth"), {"w": values})


def test_tensors_beyond_their_storage_are_refused(tmp_path):
    values = storage("0", "FloatStorage", np.zeros(24, np.float32))
    for shape, strides, offset in [
        ((25,), (1,), 0), ((24,), (1,), 1), ((2, 3, 4), (12, 5, 1), 0), ((2,), (24,), 0),
        ((), (), 24), ((0,), (1,), 25), ((2**62, 4), (1, 1), 0), ((2**200,), (0,), 0),
        ((-1,), (1,), 0), ((2,), (-1,), 5), ((2,), (1,), -1), ((2, 2), (1,), 0),
        ((2.0,), (1,), 0), ((True,), (1,), 0), ([2], (1,), 0), ((2,), 1, 0),
        ((1,) * 65, (1,) * 65, 0), ((2**40,), (0,), 0), ((2**20,) * 4, (0,) * 4, 0),
    ]:  # fmt: skip
        for write in WRITERS.values():
            path = write(tmp_path / "a.pth", {"w": tensor(values, shape, strides, offset)})
            message = "ends at value|natural numbers|no tuple|dimensions|repeat their values"
            assert_refused(path, message)


def test_what_a_tensor_must_be_made_of(tmp_path):
    values = storage("0", "FloatStorage", np.zeros(4, np.float32))
    integers = storage("0", "IntStorage", np.zeros(4, np.int32))
    for tree, message in [
        ({"w": tensor("0", (1,), (1,))}, "no storage"),
        ({"w": tensor(values, (1,), (1,), 0, {"neg": True})}, "negated or conjugated"),
        ({"w": Call("torch._utils._rebuild_tensor_v2", values)}, "missing 3 required"),
        ({"w": Call("torch._utils._rebuild_tensor_v3", *[values, 0, (), (), 0, 0])}, "missing 1"),
        ({"w": Call("torch._utils._rebuild_tensor_v3", *[values, 0, (), (), 0, 0, 4])}, "no type"),
        ({"w": Call("torch._utils._rebuild_parameter", values)}, "a parameter has no tensor"),
        ({"v": row(values), "w": row(integers)}, "two types or lengths for storage '0'"),
        ({"w": Call("torch.FloatStorage", 3)}, "object is not callable"),
        (row(values), "a single tensor, which has no name"),
        ({"epoch": 3}, "no tensor is in it"),
        (None, "no tensor is in it"),
        ({"a": {"b": row(values)}, "a.b": row(values)}, "two of its tensors have the name 'a.b'"),
        ({(1, 2): row(values)}, "a key of a dict is a tuple"),
        ({2**70: row(values)}, "a key of a dict is a int"),
        ({"a" * 501: row(values)}, "a name of 501 characters"),
    ]:
        assert_refused(write_zip(tmp_path / "a.pth", tree), message)


@pytest.mark.parametrize("value", [1e39, -1e300])
def test_float64_beyond_float32_is_refused(tmp_path, value):
    tree = {"w": row(storage("0", "DoubleStorage", np.array([1, value, np.inf, np.nan])))}
    assert_refused(
        write_zip(tmp_path / "a.pth", tree), "the storage of w reaches 1e.* float32 ends"
    )


def test_other_values_survive_the_conversion(tmp_path):
    doubles = np.array([np.inf, -np.inf, np.nan, 1e-320, 0.1])
    halves = np.uint16([0x7C01, 0xFC00, 0x0001]).view(np.float16)  # a signalling NaN among them
    tree = {
        "double": row(storage("0", "DoubleStorage", doubles)),
        "half": row(storage("1", "HalfStorage", halves)),
    }
    read_arrays = read(write_zip(tmp_path / "a.pth", tree))
    np.testing.assert_array_equal(
        read_arrays["double"], np.float32([np.inf, -np.inf, np.nan, 0, np.float32(0.1)])
    )
    np.testing.assert_array_equal(read_arrays["half"], np.float32([np.nan, -np.inf, 2.0**-24]))


# Files that are not what they should be.


def peak_of(path, bound):
    """Read a file, or find it refused, within a bound on memory and 4 seconds."""
    start = time.process_time()
    tracemalloc.start()
    try:
        read_arrays = read(path)
    except ValueError:
        read_arrays = {}
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < bound and time.process_time() - start < 4
    return read_arrays


def test_what_a_file_takes_is_bounded_by_its_size(tmp_path):
    values = storage("0", "FloatStorage", np.zeros(2**18, np.float32))
    path = write_zip(tmp_path / "a.pth", {"w": row(values)})
    assert peak_of(path, 2.1 * path.stat().st_size)["w"].size == 2**18
    # The same bytes as eight types, of which most become float32 anew.
    kinds = ["float16", "bfloat16", "float64", "float32", "bool", "uint8", "int16", "uint16"]
    raw = Storage("0", "UntypedStorage", bytes(2**20), 1)
    tree = {
        kind: Call("torch._utils._rebuild_tensor_v3", raw, 0, (9,), (1,), False, {}, kind_)
        for kind in kinds
        for kind_ in [Global("torch", kind)]
    }
    path = write_zip(tmp_path / "a.pth", tree)
    assert_refused(path, "the same values as too many types")
    peak_of(path, 1.1 * path.stat().st_size)
    write_records(path, {f"a/{number}": b"" for number in range(11_000)})
    assert_refused(path, "has 11000 records, more than 10100")


def test_small_files_do_not_become_huge(tmp_path):
    weights = row(storage("0", "FloatStorage", np.zeros(5000, np.float32)))
    within_itself = {"w": weights}
    within_itself["again"] = [within_itself]
    doubled, deep = {"n": 1}, weights
    for _ in range(50):
        doubled = {"a": doubled, "b": doubled}
    for _ in range(70):
        deep = [deep]
    views = [tensor(weights.reduced[1][0], (5000,), (1,)) for _ in range(2000)]
    for tree, message in [
        (within_itself, "within each other too deep or too often"),
        (doubled, "within each other too deep or too often"),
        (deep, "within each other too deep or too often"),
        ([[weights] * 200] * 200, "more than 10000 tensors"),
        ({"a" * 300: {"b" * 300: weights}}, "a name of 601 characters"),
        (views, "repeat their values"),
    ]:
        path = write_zip(tmp_path / "a.pth", tree)
        start = time.process_time()
        assert_refused(path, message)
        assert time.process_time() - start < 4


def test_a_missing_file_is_named(tmp_path):
    assert_refused(tmp_path / "none.pth", "no such checkpoint file")
    assert_refused(tmp_path, "no such checkpoint file")


def test_foreign_files_are_refused(tmp_path):
    foreign = tmp_path / "foreign"
    for contents in (
        b"",
        b"P",
        b"\x89PNG\r\n\x1a\n" * 9,
        b"{}" * 50,
        pickle.dumps(3),
        b"\x80\x02.",
    ):
        foreign.write_bytes(contents)
        assert_refused(
            foreign, "neither as a zip archive nor with the magic number.*right would be"
        )
    write_records(foreign, {"word/document.xml": b"<a/>"})
    assert_refused(foreign, "0 records FOLDER/data.pkl, a checkpoint has one")
    foreign.write_bytes(pickle.dumps(MAGIC, 2) + pickle.dumps(1002, 2))
    assert_refused(foreign, "protocol number is not 1001")


def test_foreign_globals_are_named_and_not_run(tmp_path):
    path = tmp_path / "a.pth"
    for text, name in [
        (b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.", "os.system"),
        (b"cposix\nsystem\n(X\x04\x00\x00\x00truetR.", "posix.system"),
        (b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.", "__builtin__.eval"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.", "builtins.eval"),
        (b"\x80\x04\x8c\x05torch\x8c\x11storage.os.system\x93.", "torch.storage.os.system"),
        (b"\x80\x04\x8c\x0bcollections\x8c\x10_sys.modules.get\x93.", "collections._sys.modules"),
        (b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.", "OrderedDict.__init__"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", "v2.__globals__"),
        (b"\x80\x02ctorch.storage\n_load_from_bytes\nC\x01a\x85R.", "_load_from_bytes"),
        (b"\x80\x02cdag_jax.weights.torch\nread\n.", "dag_jax.weights.torch.read"),
        (b"\x80\x02ccopyreg\n_reconstructor\n.", "copyreg._reconstructor"),
    ]:
        for contents in (legacy_bytes(text, {}), text):
            path.write_bytes(contents)
            assert_refused(path, f"asks for '.*{name}")
        assert_refused(write_records(path, {"archive/data.pkl": text}), f"asks for '.*{name}")


@both_forms
def test_nothing_in_a_checkpoint_runs(tmp_path, form):
    class Touch:
        def __reduce__(self):
            return must_not_run, (str(tmp_path / "touched"),)

    weights = row(storage("0", "FloatStorage", np.float32([1])))
    for hostile in (Touch(), {"w": weights, "x": [Touch()]}, Call("os.mkdir", str(tmp_path / "b"))):
        path = WRITERS[form](tmp_path / "a.pth", hostile)
        assert_refused(path, "asks for .*must_not_run|asks for .*mkdir")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pth"]


def must_not_run(path):
    raise AssertionError(f"this ran, with {path}")


def test_damaged_archives_are_named(tmp_path):
    path = tmp_path / "a.pth"
    state, _ = small_checkpoint()
    good = zip_records(state)

    def assert_records_refused(records, message):
        assert_refused(write_records(path, records), message)

    without = {name: raw for name, raw in good.items() if name != "archive/data/5"}
    assert_records_refused(without, "record 'archive/data/5' is missing")
    without = {name: raw for name, raw in good.items() if name != "archive/data.pkl"}
    assert_records_refused(without, "0 records FOLDER/data.pkl")
    assert_records_refused(good | {"other/data.pkl": b"N."}, "2 records FOLDER/data.pkl")
    short = good | {"archive/data/0": good["archive/data/0"][:-1]}
    assert_records_refused(short, "95 bytes, but 24 values of float32 take 96")
    ended = good | {"archive/data.pkl": good["archive/data.pkl"][:-1]}
    assert_records_refused(ended, "its pickle ends too early")

    write_records(path, good, zipfile.ZIP_DEFLATED)
    assert_refused(path, "is compressed, torch.save stores")
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"N.")
        archive.writestr("archive/data.pkl", b"N.")
    assert_refused(path, "two of its records have one name")

    write_records(path, good)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(good["archive/data/0"], bytes(96)))
    assert_refused(path, "Bad CRC-32 for record 'archive/data/0'")


def test_an_archive_without_checksums_is_read(tmp_path):
    """As PyTorch writes it after set_crc32_options(False)."""
    state, expected = small_checkpoint()
    path = write_zip(tmp_path / "a.pth", state)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    contents = path.read_bytes()
    for entry in entries:
        contents = contents.replace(struct.pack("<I", entry.CRC), bytes(4))
    path.write_bytes(contents)
    assert_same(read(path), expected)
    path.write_bytes(contents.replace(b"conv.sliced", b"conv.spiced"))
    assert "conv.spiced" in read(path)  # nothing tells


def test_damaged_legacy_files_are_named(tmp_path):
    path = tmp_path / "a.pth"
    values = storage("0", "FloatStorage", np.float32([1, 2, 3]))
    text, storages = pickled({"w": row(values)}, legacy=True)
    for contents, message in [
        (legacy_bytes(text, {}), "list of 0 storages is not that of the 1 which"),
        (legacy_bytes(text, storages | {"1": values}), "list of 2 storages is not that of the 1"),
        (legacy_bytes(text, storages)[:-1], "it ends 1 bytes too early"),
        (legacy_bytes(text, storages) + b"a", "1 bytes follow the last storage"),
        (legacy_bytes(text, {"0": storage("0", "", np.float32([1]))}), "ends 8 bytes too early"),
        (
            legacy_bytes(text, storages).replace(struct.pack("<q", 3), struct.pack("<q", -3)),
            "-3 values where it lies, 3 in its tensors",
        ),
    ]:
        path.write_bytes(contents)
        assert_refused(path, message)


@both_forms
def test_every_truncation_is_refused(tmp_path, form):
    path = WRITERS[form](tmp_path / "a.pth", small_checkpoint()[0])
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 11), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert_refused(path, f"{length} bytes.*truncated")


# As zip archives have checksums, they are damaged before and after these are computed.
DAMAGED = {
    "archive": lambda path, copy: path.write_bytes(copy),
    "legacy": lambda path, copy: path.write_bytes(copy),
    "pickle in an archive": lambda path, copy: write_records(
        path, zip_records(small_checkpoint()[0], 4) | {"archive/data.pkl": copy}
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_refused_or_harmless(tmp_path, kind):
    state, expected = small_checkpoint()
    path, refused = tmp_path / "a.pth", []
    write = write_legacy if kind == "legacy" else write_zip
    whole = write(path, state).read_bytes()
    if kind.startswith("pickle"):
        whole = zip_records(state, 4)["archive/data.pkl"]

    @damage.given(400, copy=damage.damaged(whole))
    def check(copy):
        DAMAGED[kind](path, copy)
        start = time.process_time()
        try:
            arrays = read(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused.append(copy)
        else:
            assert sum(array.size for array in arrays.values()) < 2**21
            if kind == "archive":  # e.g. a record's date is another, or bytes lie before it
                assert_same(arrays, expected)
        assert time.process_time() - start < 4

    check()
    assert len(refused) > 100


# Real files, of the legacy form: SHA-256 of their names, types, shapes and values.
REAL = {
    "0.5_pascal_384x384": "5c6176e7583e591577066ccd0e5c7367d431ad0a17674f6efacd0a5d0bf98a45",
    "1.0_pascal_384x384": "9259eaf164a4d5c99e5ff791079827be14960926a12ed4ef3fa5cc3c8e99abb1",
    "2.0_pascal_256x256": "96b99547d843a3f73256fdf412ae4864b44b84278efc40b5988173f59e27db43",
    "2.0_pascal_384x384": "41fc07258d03d9410dfc9509ee0393f83f0808539eeae2b527c42833e95c0947",
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_read_as_ever(shared, name):
    path = shared / "weights" / f"espnetv2_s_{name}.pth"
    if not path.is_file():
        pytest.skip(f"no {path.name} in the folder named shared")
    read_arrays, digest = read(path), hashlib.sha256()
    for key, array in read_arrays.items():
        digest.update(f"{key} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    assert len(read_arrays) == 526 and digest.hexdigest() == REAL[name]


def test_a_real_file_reads_as_pytorch_reads_it(shared):
    torch = pytest.importorskip("torch")
    path = shared / "weights" / "espnetv2_s_0.5_pascal_384x384.pth"
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    assert_same(read(path), {key: array.numpy() for key, array in theirs.items()})


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_what_pytorch_saves_now(tmp_path, zipped, protocol):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2).half()
    )
    weight = network[0].weight
    optimizer = torch.optim.Adam(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    tensors = {
        "transposed": weight.detach().permute(2, 3, 1, 0),
        "sliced": weight.detach()[1:, :, ::2],
        "repeated": torch.ones(1).expand(5),
        "last": weight.detach().to(memory_format=torch.channels_last),
        "brain": torch.randn(7, dtype=torch.bfloat16),
        "double": torch.randn(7, dtype=torch.float64),
        "short": torch.tensor([1, 65535], dtype=torch.uint16),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 3),
        "parameter": weight,
    }
    tree = {
        "epoch": 3,
        "state_dict": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "tensors": tensors,
        "device": weight.device,
        "size": weight.shape,
        "type": weight.dtype,
    }
    path = tmp_path / "a.pth"
    torch.save(tree, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)

    def as_numpy(value):
        value = value.detach()
        return (value.float() if value.is_floating_point() else value).numpy()

    expected = {f"state_dict.{name}": as_numpy(v) for name, v in network.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        expected |= {f"optimizer.state.{index}.{name}": as_numpy(v) for name, v in values.items()}
    expected |= {f"tensors.{name}": as_numpy(value) for name, value in tensors.items()}
    assert_same(read(path), expected)


@both_forms
def test_pytorch_reads_the_same_from_the_files_written_here(tmp_path, form):
    torch = pytest.importorskip("torch")
    weights = storage("more", "FloatStorage", np.float32([1, 2, 3]))
    tree, _ = small_checkpoint()
    del tree["one"]  # its stride overflows there
    old = Call("torch._utils._rebuild_tensor", weights, 1, (2,), (1,))
    tree["old"] = Call("torch.nn.parameter.Parameter", old, state=(True, False, None))
    tree["new"] = Call("torch._utils._rebuild_parameter", row(weights), True, {})
    if form == "legacy":
        values = np.arange(6, dtype=np.float32)
        part = storage("part", "FloatStorage", values, view=("view", 2, 3))
        tree["part"] = tensor(part, (2,), (1,), 1)
    path = WRITERS[form](tmp_path / "a.pth", tree)
    theirs = torch.load(path, map_location="cpu", weights_only=False)
    ours = read(path)
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        value = value.detach()
        value = value.float() if value.is_floating_point() else value
        assert_same({name: ours[name]}, {name: value.numpy()})
