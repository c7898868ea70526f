"""PyTorch's checkpoints (.pth, .pt) as NumPy arrays, without PyTorch and without running anything.

`torch.save` writes one of two forms. Since PyTorch 1.6 it is a zip archive: a pickle `data.pkl`
that describes the tensors, and a record `data/KEY` for each storage that they view. Before, it was
five pickles (magic number, protocol, the writer's system, the tensors, the storages' keys) and then
each storage as its length and its values.

Bounds: values that a little-endian file holds as float32, or as integers, stay where they were read
to; others are converted. With what describes them that is at most 4 times the file's size and
130 MB more.

Reference: torch/serialization.py of https://github.com/pytorch/pytorch
"""

import io
import math
import pathlib
import struct
import zipfile
import zlib

import jax.numpy as jnp
import numpy as np

from dag_jax.errors import MissingError, UserError, reading
from dag_jax.weights import kinds, torch_pickle

_ZIP = b"PK\x03\x04"
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
# Beyond any real checkpoint, so that a hostile one ends.
_DEEPEST = 64
_LONGEST_NAME = 500
_MOST_TENSORS = 10_000
_MOST_RECORDS = _MOST_TENSORS + 100
_MOST_PENDING = 50_000  # tensors and containers in one
_MOST_ENTRIES = 1 << 18  # of containers; a history of losses may be long
_CONTAINERS = (dict, list, tuple)


def read(path):
    """Read every tensor of a PyTorch checkpoint.

    A tensor's name is its path in the saved object, joined by dots, positions in lists included:
    `torch.save({"state_dict": {"conv.weight": w}}, path)` gives 'state_dict.conv.weight'. No prefix
    is taken off. What is no tensor (an epoch, a learning rate, a bare storage) is left out.

    Damage to a zip archive shows where its records carry checksums, as they do unless PyTorch was
    told otherwise (`set_crc32_options(False)`). The older form has none: there a changed weight, a
    changed name or even a lost tensor may go unseen.

    Args:
      path: the file, of either form.

    Returns:
      Dict of name to read-only array, in the file's order. float64, float32, float16 and bfloat16
      become float32; integers and booleans keep their type. Arrays are views as the tensors were:
      tensors that shared a storage share memory, a transposed tensor is not contiguous.

    Raises:
      MissingError: where there is no such file.
      StorageError: where it cannot be read now.
      UserError: if it is truncated, damaged or of another kind; if it
        asks for more than tensors and plain containers; if it holds no tensor, two of one name, or
        a float64 beyond float32.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise MissingError(f"{path}: no such checkpoint file")
    with reading(path):
        data = path.read_bytes()
    try:
        read_form = _read_zip if data.startswith(_ZIP) else _read_legacy
        tree, storages, byte_order = read_form(data)
        tensors = _named_tensors(tree)
        # Tensors may share a storage and, with stride 0, repeat its values, but only so far: who
        # copies the arrays of a small file must not need a huge memory.
        limit = 4 * len(data) + 2**20
        if sum(math.prod(tensor.shape) for tensor in tensors.values()) > limit:
            raise UserError(f"its tensors repeat their values until there are more than {limit}")
        _check_kinds(tensors, storages)
        converted = {}
        return {
            name: _array(name, tensor, storages, byte_order, converted)
            for name, tensor in tensors.items()
        }
    except MemoryError:
        with reading(path):
            raise
    except Exception as error:  # zipfile's exceptions differ by what is damaged
        if description := kinds.description(path):
            raise UserError(f"{path} is {description}") from error
        is_user_error = isinstance(error, UserError)
        reason = str(error) if is_user_error else f"{type(error).__name__}: {error!s:.200}"
        raise UserError(
            f"{path} ({len(data)} bytes) is not a readable PyTorch checkpoint: {reason}. It is "
            f"truncated, damaged or of another kind; right would be a whole file of tensors in "
            f"plain containers, as torch.save(model.state_dict(), path) writes it"
        ) from error


def _read_zip(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if len(entries) > _MOST_RECORDS:
            raise UserError(f"it has {len(entries)} records, more than {_MOST_RECORDS}")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise UserError(f"record {entry.filename!r:.80} is compressed, torch.save stores")
        if sum(entry.file_size for entry in entries) > len(data):
            raise UserError("its records are longer than the file")
        if len({entry.filename for entry in entries}) < len(entries):
            raise UserError("two of its records have one name")
        # All of them, wanted or not: only opening compares a record's name, and one whose name is
        # damaged would pass for absent.
        records = {entry.filename: _record(data, archive, entry) for entry in entries}

    pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UserError(f"it has {len(pickles)} records FOLDER/data.pkl, a checkpoint has one")
    folder = pickles[0].removesuffix("data.pkl")
    byte_order = bytes(records.get(folder + "byteorder", b"little"))
    if byte_order not in (b"little", b"big"):
        raise UserError(f"its byte order is {byte_order!r:.80}, neither little nor big")

    unpickler = torch_pickle.Unpickler(records[pickles[0]])
    tree = unpickler.load()
    storages = {}
    for key, (kind, length) in unpickler.storages.items():
        name = f"{folder}data/{key}"
        if name not in records:
            raise UserError(f"record {name!r:.80} is missing")
        if len(records[name]) != length * kind.itemsize:
            raise UserError(
                f"record {name!r:.80} has {len(records[name])} bytes, but {length} values of "
                f"{kind.name} take {length * kind.itemsize}"
            )
        storages[key] = records[name]
    return tree, storages, "<" if byte_order == b"little" else ">"


def _record(data, archive, entry):
    """Return a record, which is stored as it is, where it lies."""
    with archive.open(entry):
        pass
    end = entry.header_offset + zipfile.sizeFileHeader
    *_, name, extra = struct.unpack(zipfile.structFileHeader, data[entry.header_offset : end])
    start = end + name + extra
    record = memoryview(data)[start : start + entry.file_size]
    if len(record) < entry.file_size:
        raise UserError(f"record {entry.filename!r:.80} ends after {len(record)} bytes")
    if entry.CRC and zlib.crc32(record) != entry.CRC:  # 0: PyTorch was told not to compute it
        raise UserError(f"Bad CRC-32 for record {entry.filename!r:.80}")
    return record


def _read_legacy(data):
    unpickler = torch_pickle.Unpickler(data)
    try:
        magic, reason = unpickler.load(), "another value is there"
    except UserError as error:
        magic, reason = None, error
    if type(magic) is not int or magic != _MAGIC:
        raise UserError(
            f"it starts with {data[:8]!r}, neither as a zip archive nor with the magic number of "
            f"PyTorch's older form ({reason}); the tar archives of torch < 0.1.10 are not read"
        )
    protocol = unpickler.load()
    if type(protocol) is not int or protocol != _PROTOCOL:
        raise UserError(f"its protocol number is not {_PROTOCOL}")
    unpickler.load()  # The writer's system; whatever its byte order, storages are little-endian.
    tree = unpickler.load()
    keys = unpickler.load()
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise UserError("its list of storages is no list of keys")
    if len(set(keys)) < len(keys) or set(keys) != unpickler.storages.keys():
        raise UserError(
            f"its list of {len(keys)} storages is not that of the {len(unpickler.storages)} which "
            f"its tensors view"
        )
    storages, at = {}, unpickler.at
    for key in keys:
        kind, length = unpickler.storages[key]
        written = int.from_bytes(data[at : at + 8], "little", signed=True)
        start, at = at + 8, at + 8 + length * kind.itemsize
        if at > len(data):
            raise UserError(f"it ends {at - len(data)} bytes too early")
        if written != length:
            raise UserError(
                f"storage {key!r:.80} has {written} values where it lies, {length} in its tensors"
            )
        storages[key] = memoryview(data)[start:at]
    if at != len(data):
        raise UserError(f"{len(data) - at} bytes follow the last storage")
    return tree, storages, "<"


def _named_tensors(tree):
    """Flatten nested containers to {dotted name: tensor}."""
    tensors, entries = {}, 0
    pending = [("", 0, tree)]
    while pending:
        name, depth, node = pending.pop()
        if isinstance(node, torch_pickle.Tensor):
            if depth == 0:
                raise UserError("it holds a single tensor, which has no name")
            if name in tensors:
                raise UserError(f"two of its tensors have the name {name!r}")
            if len(tensors) == _MOST_TENSORS:
                raise UserError(f"it has more than {_MOST_TENSORS} tensors")
            tensors[name] = node
        elif isinstance(node, _CONTAINERS):
            # A container may be met in many places, or within itself, and every visit counts.
            entries += len(node)
            if entries > _MOST_ENTRIES or depth == _DEEPEST:
                raise UserError("its containers are within each other too deep or too often")
            items = list(node.items() if isinstance(node, dict) else enumerate(node))
            for key, child in reversed(items):
                if isinstance(child, (torch_pickle.Tensor, *_CONTAINERS)):
                    path = f"{name}.{key}" if depth else str(key)
                    if len(path) > _LONGEST_NAME:
                        raise UserError(f"{path!r:.80}... is a name of {len(path)} characters")
                    if len(pending) > _MOST_PENDING:
                        raise UserError(f"it has more than {_MOST_PENDING} tensors and containers")
                    pending.append((path, depth + 1, child))
    if not tensors:
        raise UserError("no tensor is in it")
    return tensors


def _check_kinds(tensors, storages):
    """Refuse storages that are viewed as so many types that converting them takes much memory."""
    views = {(tensor.key, tensor.kind) for tensor in tensors.values()}
    whole = sum(len(storages[key]) for key, _ in views)
    if whole > 1.5 * sum(map(len, storages.values())) + 2**20:
        raise UserError("its tensors view the same values as too many types")


def _array(name, tensor, storages, byte_order, converted):
    """The tensor as a view of its storage's values, which are converted once."""
    of_storage = tensor.key, tensor.kind
    if of_storage not in converted:
        converted[of_storage] = _values(name, storages[tensor.key], tensor.kind, byte_order)
        converted[of_storage].flags.writeable = False
    values = converted[of_storage]
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, values.dtype)
    # PyTorch writes any stride for a dimension of one element, where none is walked.
    strides = [
        stride * values.itemsize if count > 1 else 0
        for count, stride in zip(tensor.shape, tensor.strides, strict=True)
    ]
    offset = tensor.offset * values.itemsize
    return np.ndarray(tensor.shape, values.dtype, buffer=values, offset=offset, strides=strides)


def _values(name, raw, kind, byte_order):
    raw = raw[: len(raw) // kind.itemsize * kind.itemsize]
    stored = np.frombuffer(raw, f"{byte_order}u{kind.itemsize}")
    stored = np.require(stored.astype(f"u{kind.itemsize}", copy=False), requirements="A")
    if kind == np.bool_:
        return stored != 0
    stored = stored.view(kind)
    if not jnp.issubdtype(kind, jnp.floating):
        return stored
    with np.errstate(all="ignore"):
        values = stored.astype(np.float32, copy=False)
    if kind == np.float64 and np.any(np.isinf(values) & np.isfinite(stored)):
        largest = np.abs(stored[np.isfinite(stored)]).max()
        raise UserError(f"the storage of {name} reaches {largest:g}, float32 ends at 3.4e38")
    return values
