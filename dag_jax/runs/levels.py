"""Perturbations as a run folder keeps them: as they are, or in whole 256ths of a grey level.

Those take about a third of the bytes: int16, its low and its high bytes apart, compressed.

Shapes: `H W` pixels.
"""

import zlib

import numpy as np

from dag_jax.errors import UserError

FLOAT32, LEVEL256 = STORES = "float32", "level256"
_PARTS = 256  # of a grey level
_LARGEST = np.iinfo(np.int16).max  # parts; a larger perturbation is kept as it is
_NAME, _SHAPE = "perturbation_256ths", "perturbation_shape"


def _saved(image, change):
    return np.rint(np.clip(np.asarray(image, np.float32) + change, 0, 255))


def nearest(image, change: np.ndarray) -> np.ndarray:
    """Return a perturbation in whole 256ths of a grey level that saves the same PNG.

    Args:
      image: [H, W, 3], the clean image in grey levels.
      change: f32[H, W, 3], grey levels.

    Returns:
      f32[H, W, 3], within 1/512 of `change`, or within 1/256 where else the image, rounded to
      whole grey levels, would be another.
    """
    change = np.asarray(change, np.float32)
    rounded = np.rint(change * _PARTS) / np.float32(_PARTS)
    neighbour = rounded + np.sign(change - rounded) / np.float32(_PARTS)
    return np.where(_saved(image, rounded) == _saved(image, change), rounded, neighbour)


def pack(change: np.ndarray) -> dict[str, np.ndarray]:
    """Return arrays that hold a perturbation f32[H, W, 3]: compressed where it allows that."""
    parts = change * np.float32(_PARTS)
    if not (np.abs(parts) <= _LARGEST).all() or not (parts == np.rint(parts)).all():
        return {"perturbation": change}
    bytes_of_parts = parts.astype("<i2").view(np.uint8).reshape(-1, 2)
    packed = zlib.compress(bytes_of_parts.T.tobytes())
    return {_NAME: np.frombuffer(packed, np.uint8), _SHAPE: np.array(change.shape, np.int32)}


def unpack(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays in which `pack` put a perturbation, with "perturbation" f32[H, W, 3].

    Raises:
      ValueError: for what `pack` does not make; no more is unpacked than the shape says.
    """
    if _NAME not in arrays:
        return arrays
    arrays = dict(arrays)
    packed, shape = arrays.pop(_NAME), arrays.pop(_SHAPE)
    if packed.dtype != np.uint8 or shape.dtype != np.int32 or shape.shape != (3,) or shape[2] != 3:
        raise ValueError("its perturbation is packed in another way")
    size = 2 * int(np.prod(np.maximum(shape, 0), dtype=np.int64))
    decompressor = zlib.decompressobj()
    try:
        content = decompressor.decompress(packed.tobytes(), size + 1)
    except zlib.error as error:
        raise ValueError(f"its perturbation cannot be unpacked: {error}") from error
    if len(content) != size or not decompressor.eof:
        raise ValueError(f"its perturbation has other than {size} bytes")
    bytes_of_parts = np.frombuffer(content, np.uint8).reshape(2, -1).T
    parts = np.ascontiguousarray(bytes_of_parts).view("<i2").reshape(shape)
    return arrays | {"perturbation": parts.astype(np.float32) / np.float32(_PARTS)}


def store_of(manifest: dict) -> str:
    """Return how a run keeps its perturbations; UserError for what is no way to."""
    store = manifest.get("store", FLOAT32)
    if store not in STORES:
        raise UserError(f"store is {store!r}; it is one of {', '.join(STORES)}")
    return store


def stored(store: str, image, change) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return a perturbation as it is kept, f32[H, W, 3], and the arrays that hold it.

    Args:
      store: one of `STORES`.
      image: [H, W, 3], the clean image in grey levels.
      change: [H, W, 3], grey levels.
    """
    change = np.asarray(change, np.float32)
    if store == FLOAT32:
        return change, {"perturbation": change}
    change = nearest(image, change)
    return change, pack(change)
