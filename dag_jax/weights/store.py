"""Our own checkpoint files: parameters, and a record of where they came from.

A file is what `dag_jax.files.pack` makes: safetensors with a SHA-256 of each array and of the
header, so that a damaged file is never taken for a good one. A tensor's name is its path in the
parameter tree ('conv1/kernel'), the content is {"checkpoint": record}.

Bounds: reading takes at most 4 times the file's size (float16 becomes float32), and that is what
`dag_jax.files.load` says of the header.
"""

import json
from collections.abc import Mapping

import numpy as np
from etils import epath
from flax import traverse_util

from dag_jax import files
from dag_jax.errors import DamagedError, MissingError, UserError, reading
from dag_jax.weights import kinds

_ANEW = (
    "Make it anew: experiments.fetch_weights and experiments.convert_weights do so from published "
    "files, experiments.train from a dataset"
)


def save(path, parameters, metadata, *, half=False):
    """Write parameters and their record to one file, at once or not at all.

    Args:
      path: the file to write; missing folders are made, an existing file is replaced.
      parameters: nested dict of text keys with float32 leaves, NumPy or JAX.
      metadata: dict that JSON can hold, e.g. the network's name, the command and the scores.
      half: store float16, which halves the file and rounds each value to 11 significant bits.

    Raises:
      UserError: for a key that is not text or contains '/', an empty tree, a leaf that is not
        float32, or, with `half`, a value that float16 cannot reach.
      StorageError: where the file cannot be written.
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
        tensors[name] = tensor
    record = json.loads(json.dumps(metadata))  # as a reader will see it
    packed = files.pack(tensors, {"checkpoint": record})
    path = epath.Path(path)
    files.make_folder(path.parent)
    files.write(path, packed)


def load(path):
    """Read a file that `save` wrote.

    Args:
      path: the file.

    Returns:
      (parameters, metadata): nested dict of float32 NumPy arrays, and the record as JSON gives it
      back (tuples are lists, keys are text).

    Raises:
      MissingError: where there is no such file.
      DamagedError: where it is truncated, damaged or of another kind.
      UserError: where it is no checkpoint, or one of a version before 0.2.
      StorageError: where it cannot be read now.
    """
    path = epath.Path(path)
    try:
        content, tensors = files.load(path)
    except MissingError as error:
        raise MissingError(f"{path}: no such checkpoint file") from error
    except DamagedError as error:
        with reading(path), path.open("rb") as file:
            head = file.read(200)
        if b"dag_jax checkpoint 1" in head:
            raise UserError(f"{path} is a checkpoint of dag_jax before 0.2. {_ANEW}") from error
        description = kinds.description(path)
        reason = f"it is {description}" if description else error.reason
        raise DamagedError(path, f"or no checkpoint of ours: {reason}", _ANEW) from error
    if not isinstance(content, dict) or content.keys() != {"checkpoint"}:
        raise UserError(f"{path} holds arrays of ours, but no checkpoint: it is of a run")
    _check_loaded(path, content["checkpoint"], tensors)
    parameters = {name: tensor.astype(np.float32, copy=False) for name, tensor in tensors.items()}
    return traverse_util.unflatten_dict(parameters, sep="/"), content["checkpoint"]


def _check_loaded(path, record, tensors):
    """Refuse what `save` does not write, whoever wrote it with a right digest."""
    if not isinstance(record, dict):
        raise UserError(f"{path} has a record that is a {type(record).__name__}, not a dict")
    for name, tensor in tensors.items():
        if tensor.dtype not in (np.float32, np.float16):
            raise UserError(f"{path}: {name!r:.80} is {tensor.dtype}, not float32 or float16")
        parts = name.split("/")
        for end in range(1, len(parts)):
            if (parent := "/".join(parts[:end])) in tensors:
                raise UserError(f"{path}: {parent!r:.80} is an array and holds {name!r:.80}, too")


def check(parameters, expected):
    """Compare the names and shapes of two parameter trees.

    Args:
      parameters: nested dict of arrays, e.g. from `load`.
      expected: nested dict of arrays or `jax.ShapeDtypeStruct`, e.g. from `jax.eval_shape`.

    Raises:
      UserError: listing every parameter that is missing, left over or of another shape.
    """
    shapes = {name: np.shape(leaf) for name, leaf in _flatten(parameters).items()}
    expected_shapes = {name: tuple(leaf.shape) for name, leaf in _flatten(expected).items()}
    lines = [
        f"missing: {name} {expected_shapes[name]}"
        for name in sorted(expected_shapes.keys() - shapes.keys())
    ]
    lines += [
        f"left over: {name} {shapes[name]}"
        for name in sorted(shapes.keys() - expected_shapes.keys())
    ]
    lines += [
        f"other shape: {name} is {shapes[name]}, the network has {expected_shapes[name]}"
        for name in sorted(expected_shapes.keys() & shapes.keys())
        if expected_shapes[name] != shapes[name]
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
