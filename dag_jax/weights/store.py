"""Our own checkpoint files: parameters, and a record of where they came from.

A file is a safetensors file. A tensor's name is its path in the parameter tree ('conv1/kernel');
the header carries one text, JSON of the format's name, the metadata record, and a SHA-256 over
names, shapes, types, values and record, so that a damaged file is never taken for a good one.
(One text, because safetensors writes several in an order that changes from run to run.)

Reference: https://huggingface.co/docs/safetensors
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from dag_jax.errors import UserError

FORMAT = "dag_jax checkpoint 1"
_HEADER = "dag_jax"


def save(path, parameters, metadata, *, half=False):
    """Write parameters and their record to one file, at once or not at all.

    Args:
      path: the file to write; missing folders are made, an existing file is replaced.
      parameters: nested dict of text keys with float32 leaves, NumPy or JAX.
      metadata: dict that JSON can hold, e.g. the network's name, the command and the scores.
      half: store float16, which halves the file and rounds each value to 11 significant bits.

    Raises:
      ValueError: for a key that is not text or contains '/', an empty tree, a leaf that is not
        float32, or, with `half`, a value that float16 cannot reach.
    """
    tensors = {}
    for name, leaf in _flatten(parameters).items():
        tensor = np.asarray(leaf)
        if tensor.dtype != np.float32:
            raise UserError(f"{name} is {tensor.dtype}, a checkpoint holds float32")
        if half:
            largest = np.abs(tensor).max(initial=0.0)
            if largest > np.finfo(np.float16).max:
                raise UserError(f"{name} reaches {largest:g}, float16 ends at 65504")
            tensor = tensor.astype(np.float16)
        # safetensors writes a buffer as it lies: a transposed view would be stored scrambled.
        tensors[name] = np.ascontiguousarray(tensor).reshape(tensor.shape)
    metadata = json.loads(json.dumps(metadata))  # as a reader will see it
    header = {"format": FORMAT, "metadata": metadata, "sha256": _digest(tensors, metadata)}
    header = {_HEADER: json.dumps(header, sort_keys=True)}

    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(partial, "wb") as file:
            file.write(safetensors.numpy.save(tensors, header))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load(path):
    """Read a file that `save` wrote.

    Args:
      path: the file.

    Returns:
      (parameters, metadata): nested dict of float32 NumPy arrays, and the record as JSON gives it
      back (tuples are lists, keys are text).

    Raises:
      ValueError: if there is no such file, or it is truncated, damaged or of another kind.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            texts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        header = dict(json.loads(texts.get(_HEADER, "{}")))
    except Exception as error:  # the reader's exceptions differ by what is damaged
        raise UserError(
            f"{path} ({path.stat().st_size} bytes) is not a readable safetensors file: it is "
            f"truncated, damaged or of another kind; a checkpoint is what "
            f"dag_jax.weights.store.save writes ({error})"
        ) from error
    if header.get("format") != FORMAT or not {"metadata", "sha256"} <= header.keys():
        raise UserError(
            f"{path} is a safetensors file without the header of a '{FORMAT}' (its format is "
            f"{header.get('format')!r}): it is damaged, or dag_jax.weights.store.save did not "
            f"write it"
        )
    if _digest(tensors, header["metadata"]) != header["sha256"]:
        raise UserError(f"{path} is damaged: its contents do not match the SHA-256 in its header")
    parameters = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    return traverse_util.unflatten_dict(parameters, sep="/"), header["metadata"]


def check(parameters, expected):
    """Compare the names and shapes of two parameter trees.

    Args:
      parameters: nested dict of arrays, e.g. from `load`.
      expected: nested dict of arrays or `jax.ShapeDtypeStruct`, e.g. from `jax.eval_shape`.

    Raises:
      ValueError: listing every parameter that is missing, left over or of another shape.
    """
    found = {name: np.shape(leaf) for name, leaf in _flatten(parameters).items()}
    wanted = {name: tuple(leaf.shape) for name, leaf in _flatten(expected).items()}
    lines = [f"missing: {name} {wanted[name]}" for name in sorted(wanted.keys() - found.keys())]
    lines += [f"left over: {name} {found[name]}" for name in sorted(found.keys() - wanted.keys())]
    lines += [
        f"other shape: {name} is {found[name]}, the network has {wanted[name]}"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name] != found[name]
    ]
    if lines:
        raise UserError("the parameters do not fit the network:\n  " + "\n  ".join(lines))


def _flatten(parameters):
    if not isinstance(parameters, Mapping) or not parameters:
        raise UserError(f"parameters must be a nested dict, not empty; got {parameters!r:.80}")
    flat = traverse_util.flatten_dict(parameters)
    for keys in flat:
        for key in keys:
            if not isinstance(key, str) or not key or "/" in key:
                raise UserError(f"parameter key {key!r} in {keys} must be text without '/'")
    return {"/".join(keys): leaf for keys, leaf in sorted(flat.items())}


def _digest(tensors, metadata):
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
