"""Files of Caffe and of torch as parameters of our networks, and listings of what is in them.

The content of a file tells its kind, not its name.
"""

import hashlib
import json
import math
import os
import pathlib

import numpy as np
import safetensors
from etils import epath

from dag_jax import files
from dag_jax.errors import MissingError, UserError, reading
from dag_jax.weights import convert, darknet, darknet_cfg, kinds, store, torch

# NumPy's names of safetensors' dtypes; others keep the name that they have there.
_SAFETENSORS_TYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"},
}


def parameters_of(name, module, sources, *, layout=None, offsets_folded=True, part=None):
    """Return the parameters of a network from its files: a checkpoint of ours, or published ones.

    Args:
      name: of the network, for the record and for messages.
      module: the network.
      sources: a checkpoint of ours, a file of Caffe or torch, or the two files of one network.
      layout: as in `convert.convert`.
      offsets_folded: as in `convert.convert`.
      part: as in `convert.convert`.

    Returns:
      (nested dict of float32 arrays, record): for a checkpoint as `store.load` has them, else the
      record's "network" is `name`, "dense" says which upsamplings of the module have parameters,
      "partial" whether layers are missing that training has to start anew, "layout" as what the
      files were read, "left_out" what else they hold, and "sources" their names, sizes and SHA-256.

    Raises:
      UserError: where a source does not exist, cannot be read or does not fit the network.
    """
    sources = _existing([sources] if isinstance(sources, str | os.PathLike) else sources)
    names = ", ".join(map(str, sources))
    if any(map(_is_safetensors, sources)):
        if len(sources) > 1:
            raise UserError(f"{names}: a checkpoint of ours comes alone")
        return store.load(sources[0])
    arrays = [read(source) for source in sources]
    try:
        converted = convert.convert(
            module, arrays, layout=layout, offsets_folded=offsets_folded, part=part
        )
    except UserError as error:
        raise UserError(f"{names} as {name}: {error}") from error
    record = {
        "network": name,
        "layout": converted.layout,
        "dense": list(converted.dense),
        "offsets_folded": offsets_folded,
        "partial": converted.partial,
        "left_out": list(converted.left_out),
        "sources": _record_of(sources),
    }
    return converted.parameters, record


def read_network(name, module, sources, **options):
    """Return a network with the parameters of its files.

    Args:
      name: as in `parameters_of`.
      module: as there.
      sources: as there.
      **options: as there.

    Returns:
      (module, parameters, record); the module has the upsamplings that the files have.

    Raises:
      UserError: as `parameters_of` says.
    """
    parameters, record = parameters_of(name, module, sources, **options)
    dense = record.get("dense") or []  # upsamplings of an FCN that are not bilinear
    if not isinstance(dense, list) or not all(isinstance(path, str) for path in dense):
        raise UserError(f"the record of {sources} has no list of names as dense: {dense!r:.80}")
    if unknown := set(dense) - set(getattr(module, "upsamplings", tuple)()):
        raise UserError(f"{sources} has upsamplings that {name} has not: {sorted(unknown)!s:.300}")
    return module.clone(dense=tuple(dense)) if dense else module, parameters, record


def read_darknet(name, module, sources, **options):
    """Return a network of darknet's with the parameters of its files.

    Args:
      name: of the network, for the record and for messages.
      module: the network.
      sources: a checkpoint of ours, the `.weights`, or that and the `.cfg`.
      **options: none: the options of `read_network` do not apply to such files.

    Returns:
      As `read_network`.

    Raises:
      UserError: where a source does not exist, cannot be read or is of another network; for an
        option.
    """
    if options:
        raise UserError(f"{name} is read from darknet's files, which have no {', '.join(options)}")
    sources = _existing([sources] if isinstance(sources, str | os.PathLike) else sources)
    if len(sources) == 1 and _is_safetensors(sources[0]):
        return module, *store.load(sources[0])
    cfgs = [source for source in sources if source.suffix == ".cfg"]
    weights = [source for source in sources if source.suffix != ".cfg"]
    if len(weights) != 1 or len(cfgs) > 1:
        raise UserError(
            f"{', '.join(map(str, sources))}: a network of darknet's is a .weights file, and the "
            ".cfg beside it if you like"
        )
    for path in cfgs:
        if darknet_cfg.parse(darknet_cfg.read_cfg(path), path.name) != module.cfg:
            raise UserError(f"{path} describes another network than {name}")
    parameters = darknet.fold(darknet.read(weights[0], module.cfg))
    record = {"network": name, "layout": "darknet", "dense": [], "partial": False}
    return module, parameters, record | {"sources": _record_of(sources)}


def convert_files(name, module, sources, output, *, read=read_network) -> dict:
    """Convert files to one checkpoint, and read that again.

    Args:
      name: of the network.
      module: the network.
      sources: the published files.
      output: the checkpoint, which must not exist yet.
      read: `read_network`, or a network's own reader.

    Returns:
      The checkpoint's record.

    Raises:
      UserError: where `output` exists, or as `read` says.
    """
    output = pathlib.Path(output)
    if output.exists():
        raise UserError(f"{output} exists already; name another --output, or remove it")
    for source in filter(_is_safetensors, _existing(sources)):
        if description := kinds.description(source):
            raise UserError(f"{source} is {description}")
        raise UserError(f"{source}: `networks.load` reads safetensors of ours as they are")
    _, parameters, record = read(name, module, sources)
    store.save(output, parameters, record)
    return store.load(output)[1]


def describe(output, record) -> str:
    """Say in one line what `convert_files` made."""
    text = f"{output}: {record['network']}, read as {record['layout']}"
    if record["dense"]:
        text += f"; not bilinear: {', '.join(record['dense'])}"
    if record.get("left_out"):
        text += f"; left out: {', '.join(record['left_out'])}"
    if record["partial"]:
        text += "; a classifier's layers, to train from with experiments.train --initial"
    return text


def _record_of(sources):
    return [
        {"name": source.name, "bytes": source.stat().length, "sha256": files.sha256_of(source)}
        for source in sources
    ]


def _existing(sources):
    paths = [epath.Path(source) for source in sources]
    for path in [path for path in paths if path.is_dir()]:
        raise UserError(f"{path} is {kinds.description(path) or 'a folder; name the file in it'}")
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise MissingError(f"{', '.join(missing)}: no such checkpoint file")
    return paths


def _head(path):
    with reading(path), path.open("rb") as file:
        return file.read(10)


def _is_safetensors(path):
    return _head(path)[8:] == b'{"'  # behind the header's length, whose bytes can be any


def read(path):
    """Read a file of Caffe or of torch; its content tells which."""
    return _reader(epath.Path(path)).read(path)


def _reader(path):
    head = _head(path)
    if head[:2] == b"PK" or head[:1] == b"\x80":  # a zip archive, or a pickle
        return torch
    from dag_jax.weights import caffe  # its file begins with one of NetParameter's fields

    return caffe


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
      UserError: where a file does not exist or cannot be read.
    """
    return "\n\n".join(map(_list_file, _existing(sources)))


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
    lines.append(f"{path}: {path.stat().length} bytes, SHA-256 {files.sha256_of(path)}")
    return "\n".join(lines)


def _tensors(path):
    """Yield (name, shape, dtype, contents) of each tensor of a file."""
    if _is_safetensors(path):
        yield from _safetensors(path)
        return
    reader = _reader(path)
    if reader is torch:
        arrays = torch.read(path).items()
    else:
        arrays = (
            (f"{layer.name} ({layer.type}) blob {number}", blob)
            for layer in reader.layers(path)
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
            f"{path} ({path.stat().length} bytes) is not a readable safetensors "
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
