"""Reader of darknet's `.weights` files, without darknet.

A file is a header and then numbers, in the order of the layers. Nothing in it names them, so it
must have exactly the length that the `.cfg` asks for.

Bounds: reading takes memory of twice the file's size; a file of another length is not read.

Reference: https://github.com/AlexeyAB/darknet, src/parser.c.
"""

import math
import struct

import numpy as np
from etils import epath

from dag_jax.errors import MissingError, UserError, reading
from dag_jax.weights.darknet_cfg import Cfg

# What darknet adds to a variance. Its GPU code and OpenCV differ (1e-5, 1e-6), as do its versions.
EPSILON = 1e-6


def read(path, cfg: Cfg) -> dict[str, dict[str, np.ndarray]]:
    """Read the `.weights` of a network.

    Args:
      path: the file.
      cfg: the network, of `parse`.

    Returns:
      {name of a convolution, as in `cfg.convolutions`: its arrays}: "kernel" f32[K, K, I / groups,
      O] and "bias" f32[O]; with batch norm "scale", "mean" and "variance" f32[O], too, and "bias"
      is what comes after it.

    Raises:
      UserError: where there is no such file, or it has another length than the network asks for,
        or numbers that are not finite or no variances.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise MissingError(f"{path}: no such .weights file")
    shapes = {
        (name, part): part_shape
        for name, layer in cfg.convolutions.items()
        for part, part_shape in _stored(layer).items()
    }
    count = sum(map(math.prod, shapes.values()))
    with reading(path):
        size = path.stat().length
        with path.open("rb") as file:
            start = _header(file.read(12))
            if size != start + 4 * count:
                problem = "truncated" if size < start + 4 * count else "too long"
                raise UserError(
                    f"{path} has {size} bytes, and the network asks for {start + 4 * count}: it is "
                    f"{problem}, no .weights file of darknet, or of another network than the .cfg"
                )
            file.seek(start)
            numbers = np.frombuffer(file.read(4 * count), "<f4").astype(np.float32)
    arrays: dict = {}
    place = 0
    for (name, part), stored in shapes.items():
        array = numbers[place : place + math.prod(stored)].reshape(stored)
        place += array.size
        if not np.isfinite(array).all() or (part == "variance" and (array <= -EPSILON).any()):
            raise UserError(
                f"{path}: {part} of {name} has numbers that it cannot have: the file is damaged, "
                "or the .cfg is of another network"
            )
        kernel = array.ndim == 4
        arrays.setdefault(name, {})[part] = array.transpose(2, 3, 1, 0) if kernel else array
    return arrays


def fold(arrays: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    """Fold batch norm into the kernels and biases before it.

    Args:
      arrays: of `read`.

    Returns:
      The same with "kernel" and "bias" alone, f32.
    """
    return {name: _folded(**parts) for name, parts in arrays.items()}


def _folded(kernel, bias, scale=None, mean=None, variance=None):
    if scale is not None:
        gain = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + EPSILON)
        kernel, bias = kernel * gain, bias - mean * gain
    return {"kernel": np.ascontiguousarray(kernel, np.float32), "bias": np.float32(bias)}


def _stored(layer):
    """Return the shapes of a convolution's arrays in the order of the file."""
    norm = ("scale", "mean", "variance") if layer.batch_norm else ()
    kernel = (layer.filters, layer.channels // layer.groups, layer.size, layer.size)
    return dict.fromkeys(("bias", *norm), (layer.filters,)) | {"kernel": kernel}


def _header(head):
    """Return the bytes before the first number: three numbers, and that of images seen."""
    major, minor, _ = struct.unpack("<3i", head) if len(head) == 12 else (0, 0, 0)
    wide = major * 10 + minor >= 2 and major < 1000 and minor < 1000
    return 20 if wide else 16
