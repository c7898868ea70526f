"""Files of Caffe and of torch to checkpoints of ours, and what is in them."""

import hashlib
import json
import math
import pathlib

import numpy as np
import safetensors

from dag_jax import networks
from dag_jax.errors import UserError
from dag_jax.weights import caffe, convert, store, torch

# NumPy's names of safetensors' dtypes; others keep the name that they have there.
_SAFETENSORS_TYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"},
}


def convert_files(
    name, sources, output, *, layout=None, offsets_folded=True, miniature=False
) -> convert.Converted:
    """Convert files to one checkpoint, and read that again.

    Args:
      name: one of `networks.NAMES`.
      sources: the files, of Caffe or of torch.
      output: the checkpoint, which must not exist yet.
      layout: as in `convert.convert`.
      offsets_folded: as in `convert.convert`.
      miniature: whether they are of the small network.

    Returns:
      What the files gave.

    Raises:
      ValueError: where `output` exists, a source cannot be read, or does not fit the network.
    """
    output, sources = pathlib.Path(output), [pathlib.Path(source) for source in sources]
    if output.exists():
        raise UserError(f"{output} exists already; name another --output, or remove it")
    _check_files(sources)
    module = networks.build(name, miniature=miniature)
    arrays = [read(source) for source in sources]
    try:
        converted = convert.convert(module, arrays, layout=layout, offsets_folded=offsets_folded)
    except ValueError as error:
        names = ", ".join(map(str, sources))
        raise UserError(f"{names} as {name}: {error}") from error
    del arrays
    record = {
        "network": name,
        "miniature": miniature,
        "layout": converted.layout,
        "dense": converted.dense,
        "offsets_folded": offsets_folded,
        "partial": converted.partial,
        "sources": [
            {"name": source.name, "bytes": source.stat().st_size, "sha256": sha256(source)}
            for source in sources
        ],
    }
    store.save(output, converted.parameters, record)
    if converted.partial:  # some layers of the network are not in it
        store.load(output)
    else:
        networks.load(name, miniature=miniature, checkpoint=output)
    return converted


def _check_files(sources):
    if missing := [str(source) for source in sources if not pathlib.Path(source).is_file()]:
        raise UserError(f"no such file: {', '.join(missing)}")


def read(path):
    """Read a file of Caffe or of torch, whichever it is."""
    return _reader(path).read(path)


def _reader(path):
    with open(path, "rb") as file:
        head = file.read(2)
    # A zip archive, or a pickle; a caffemodel begins with one of NetParameter's fields.
    return torch if head == b"PK" or head[:1] == b"\x80" else caffe


def list_files(sources):
    """Say what is in files of Caffe, of torch or of safetensors.

    Args:
      sources: the files.

    Returns:
      Text: for each file a line for each tensor with its name, shape, dtype and the SHA-256 of its
      bytes (C order, little-endian); then the number of tensors and of weights, and the file's own
      SHA-256. What a name has beyond printable ASCII is escaped. Floats of Caffe and of torch are
      float32, whatever is stored, as in a conversion; safetensors are listed as stored.

    Raises:
      ValueError: where a file does not exist or cannot be read.
    """
    _check_files(sources)
    return "\n\n".join(map(_list_file, sources))


def _list_file(path):
    rows, weights = [("name", "shape", "dtype", "SHA-256")], 0
    for name, shape, kind, contents in _tensors(path):
        name = name if name.isascii() and name.isprintable() else ascii(name)
        rows.append((name, str(list(shape)), kind, hashlib.sha256(contents).hexdigest()))
        weights += math.prod(shape)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.append(f"{len(rows) - 1} tensors, {weights} weights")
    lines.append(f"{path}: {pathlib.Path(path).stat().st_size} bytes, SHA-256 {sha256(path)}")
    return "\n".join(lines)


def _tensors(path):
    """Yield (name, shape, dtype, contents) of each tensor of a file."""
    with open(path, "rb") as file:
        head = file.read(10)
    if head[8:] == b'{"':  # after the header's length, which may look like any other file's head
        yield from _safetensors(path)
        return
    if _reader(path) is torch:
        arrays = torch.read(path).items()
    else:
        arrays = (
            (f"{layer.name} ({layer.type}) blob {number}", blob)
            for layer in caffe.layers(path)
            for number, blob in enumerate(layer.blobs)
        )
    for name, array in arrays:
        stored = array.astype(array.dtype.newbyteorder("<"), copy=False)
        yield name, array.shape, array.dtype.name, np.ascontiguousarray(stored)


def _safetensors(path):
    """Yield the same for a safetensors file, in its order; its dtypes need not be NumPy's.

    Reference: https://huggingface.co/docs/safetensors (the format).
    """
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass  # it compares lengths, shapes and dtypes
        with open(path, "rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start - 8))
    except Exception as error:  # the reader's exceptions differ by what is damaged
        raise UserError(
            f"{path} ({pathlib.Path(path).stat().st_size} bytes) is not a readable safetensors "
            f"file: it is truncated, damaged or of another kind ({error})"
        ) from error
    header.pop("__metadata__", None)
    if not header:
        raise UserError(f"{path} is a safetensors file without a tensor")
    with open(path, "rb") as file:
        for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            first, end = tensor["data_offsets"]
            file.seek(start + first)
            kind = _SAFETENSORS_TYPES.get(tensor["dtype"], tensor["dtype"])
            yield name, tensor["shape"], kind, file.read(end - first)


def sha256(path):
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(name, output, converted):
    """Say in one line what was made."""
    text = f"{output}: {name}, read as {converted.layout}"
    if converted.dense:
        text += f"; not bilinear: {', '.join(converted.dense)}"
    if converted.partial:
        text += "; a classifier's layers, to train from with experiments.train --initial"
    return text
