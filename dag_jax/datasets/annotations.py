"""Readers of what people drew on VOC's photographs: boxes in XML, masks in PNG and MATLAB files.

A file is anything with `read_bytes` and a name to print: a `pathlib.Path`, or a file inside an
archive.

Shapes: H W pixels, N objects.
"""

import struct
import xml.etree.ElementTree as ElementTree
import zlib

import numpy as np

from dag_jax.datasets.classes import CLASS_NAMES, VOID
from dag_jax.datasets.photographs import LARGEST, read_indices
from dag_jax.datasets.selection import is_outside
from dag_jax.errors import UserError, reading

# What tools write for `difficult`; VOC itself writes 0 and 1.
_FLAGS = {"0": False, "1": True, "": False, "0.0": False, "1.0": True, "false": False, "true": True}

# MATLAB's files of version 5: kinds of elements, and NumPy's type of the numbers of each kind.
_MATRIX, _COMPRESSED, _STRUCT = 14, 15, 2
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8"}
_NUMBERS |= {13: "u8"}
_NUMERIC = range(6, 16)  # classes of matrices that are numbers


def read_objects(file, classes=CLASS_NAMES, shape=None):
    """Read the objects of one VOC annotation.

    Args:
      file: the XML file. Its boxes are 1-based, as VOC has them: one from 5 to 5 is a pixel wide.
      classes: names of the classes by index; "background" has no objects.
      shape: (H, W) of the photograph, which boxes are compared with; None where it is not known.

    Returns:
      dict of boxes float32 [N, 4] (0-based inclusive pixels), label int32 [N], difficult bool [N].

    Raises:
      ValueError: for XML that does not parse or is no VOC annotation, lacks a field or names an
        unknown class, and for a box that ends before it starts, is not finite, or has no pixel of
        the photograph.
    """
    boxes, labels, difficult = [], [], []
    with reading(file):
        data = file.read_bytes()
    try:
        root = ElementTree.fromstring(data)
        if root.tag != "annotation":
            raise UserError(f"its root is <{root.tag}>, not <annotation>")
        items = root.findall("object")
        tags = [str(item.tag).rpartition("}")[2].lower() for item in root.iter()]
        if tags.count("object") != len(items):
            raise UserError("it has objects in a place, or a namespace, where VOC has none")
        for item in items:
            name = _text(item, "name")
            if name not in classes or name == "background":
                raise UserError(f"unknown class {name!r}")
            labels.append(classes.index(name))
            sides = ("xmin", "ymin", "xmax", "ymax")
            box = [float(_text(item, f"bndbox/{side}")) for side in sides]
            if not np.isfinite(box).all() or box[2] < box[0] or box[3] < box[1]:
                raise UserError(f"box {box} of {name!r} must be finite, its least corner first")
            boxes.append([side - 1 for side in box])
            if shape is not None and is_outside(boxes[-1], shape):
                raise UserError(f"box {box} lies outside of its {shape[1]} x {shape[0]} pixels")
            flag = item.findtext("difficult", "0").strip().lower()
            if flag not in _FLAGS:
                raise UserError(f"difficult is {flag!r}, neither 0 nor 1")
            difficult.append(_FLAGS[flag])
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(f"{file} is not a whole VOC annotation: {error!s:.300}") from error
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "label": np.array(labels, np.int32),
        "difficult": np.array(difficult, np.bool_),
    }


def _text(item, path):
    text = item.findtext(path)
    if text is None:
        raise UserError(f"an object has no {path}")
    return text.strip()


def read_mask(file, shape):
    """Read the mask of one photograph.

    Args:
      file: a palette or grey PNG, as VOC has them, or SBD's MATLAB file of the same image.
      shape: (H, W) of the photograph.

    Returns:
      uint8 [H, W], class of each pixel, 255 = void. SBD draws no void.

    Raises:
      ValueError: for a file that is not whole, or does not fit the photograph or the classes.
    """
    mask = _read_sbd(file) if str(file).endswith(".mat") else read_indices(file)
    if mask.shape != shape:
        raise UserError(f"{file} is {mask.shape}, its image is {shape} (height, width)")
    strange = np.setdiff1d(mask, [*range(len(CLASS_NAMES)), VOID])
    if strange.size:
        raise UserError(f"{file} holds {strange[:5].tolist()}, which are neither classes nor void")
    return mask.astype(np.uint8)


def _read_sbd(file):
    """Return GTcls.Segmentation [H, W] of a MATLAB file of version 5; nothing else is read.

    Reference: MAT-File Format, The MathWorks. SciPy's reader crashes on damaged files.
    """
    with reading(file):
        data = file.read_bytes()
    try:
        order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
        if order is None:
            raise UserError("it is no MATLAB file of version 5")
        for kind, content in _elements(data[128:], order):
            if kind == _COMPRESSED:
                ((kind, content),) = _elements(_inflated(content), order)
            if kind == _MATRIX:
                name, fields = _matrix(content, order)
                if name == "GTcls":
                    mask = _matrix(fields["Segmentation"], order)[1]
                    if not isinstance(mask, np.ndarray):
                        raise UserError("its Segmentation is no matrix of numbers")
                    return mask
        raise UserError("it has no GTcls")
    except (ValueError, LookupError, TypeError, struct.error, zlib.error) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{file} is not a whole annotation of SBD: {reason}") from error


def _elements(data, order):
    """Yield (kind, content) of the elements that lie one after another."""
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from(order + "II", data, place)
        place, room, unit = place + 8, len(data) - place - 8, 8
        if kind >> 16:  # up to four bytes lie in the place of their number
            kind, size, place, room, unit = kind & 0xFFFF, kind >> 16, place - 4, 4, 4
        if size > room:
            raise UserError(f"an element of {size:,} bytes goes beyond what is there")
        yield kind, data[place : place + size]
        place += size if kind == _COMPRESSED else -(-size // unit) * unit


def _inflated(data):
    stream = zlib.decompressobj()
    content = stream.decompress(data, LARGEST)
    if not stream.eof:
        raise UserError(f"it is cut short, or holds more than {LARGEST:,} bytes")
    return content


def _matrix(data, order):
    """Return (name, numbers [H, W]), (name, field -> its matrix's bytes), or (name, None)."""
    elements = _elements(data, order)

    def numbers():
        kind, content = next(elements, (None, b""))
        return np.frombuffer(content, order + _NUMBERS[kind])

    flags, shape, name = numbers(), tuple(numbers().tolist()), numbers().tobytes().decode("ascii")
    kind = int(flags[0]) & 0xFF
    if kind == _STRUCT and shape == (1, 1):
        (width,), names = numbers().tolist(), numbers().tobytes()
        if width < 1:
            raise UserError(f"names of {width} bytes")
        names = [names[at : at + width].split(b"\0")[0] for at in range(0, len(names), width)]
        matrices = [content for _, content in elements]
        return name, dict(zip(map(bytes.decode, names), matrices, strict=True))
    values = numbers() if kind in _NUMERIC else None
    whole = values is not None and len(shape) == 2 and next(elements, None) is None
    return name, values.reshape(shape, order="F") if whole else None
