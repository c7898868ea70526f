"""Readers of what people drew on VOC's photographs: boxes in XML, masks in PNG and MATLAB files.

A file is anything with `read_bytes` and a name to print: a `pathlib.Path`, or a file inside an
archive.

Shapes: H W pixels, N objects.
"""

import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import scipy.io
from PIL import Image

from dag_jax.datasets.classes import CLASS_NAMES, VOID
from dag_jax.errors import UserError

# What tools write for `difficult`, beside VOC's 0 and 1.
_FLAGS = {"0": False, "1": True, "": False, "0.0": False, "1.0": True, "false": False, "true": True}
_GREY_BITS = 24  # the byte of a PNG that says how many bits a sample has


def read_objects(file, classes=CLASS_NAMES):
    """Read the objects of one VOC annotation.

    Args:
      file: the XML file. Its boxes are 1-based, as VOC has them.
      classes: names of the classes by index; "background" has no objects.

    Returns:
      dict of boxes float32 [N, 4] (0-based inclusive pixels), label int32 [N], difficult bool [N].

    Raises:
      ValueError: for XML that does not parse or is no VOC annotation, lacks a field or names an
        unknown class, and for a box that ends before it starts or is not finite.
    """
    boxes, labels, difficult = [], [], []
    try:
        root = ElementTree.fromstring(file.read_bytes())
        if root.tag != "annotation":
            raise UserError(f"its root is <{root.tag}>, not <annotation>")
        for item in root.iterfind("object"):
            name = item.findtext("name").strip()
            if name not in classes or name == "background":
                raise UserError(f"unknown class {name!r}")
            labels.append(classes.index(name))
            corners = item.find("bndbox")
            box = [float(corners.findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax")]
            if not np.isfinite(box).all() or box[2] < box[0] or box[3] < box[1]:
                raise UserError(f"box {box} of {name!r} must be finite, its least corner first")
            boxes.append([side - 1 for side in box])
            flag = item.findtext("difficult", "0").strip().lower()
            if flag not in _FLAGS:
                raise UserError(f"difficult is {flag!r}, neither 0 nor 1")
            difficult.append(_FLAGS[flag])
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError, LookupError) as error:
        raise UserError(f"{file} is not a whole VOC annotation: {error}") from error
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "label": np.array(labels, np.int32),
        "difficult": np.array(difficult, np.bool_),
    }


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
        raise UserError(f"{file} holds {strange.tolist()}, which are neither classes nor void")
    return mask.astype(np.uint8)


def open_image(data, file):
    """Return a wholly decoded Pillow image of the bytes of a file."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as error:  # Pillow's exceptions differ by format and damage
        raise UserError(f"{file} is not a whole image file: {error}") from error
    return image


def read_indices(file):
    """Read a PNG whose grey levels, or places in its palette, are classes: int32 [H, W].

    Of 1 to 16 bits: what the file holds, not what a viewer shows.

    Raises:
      UserError: for what is no whole PNG of indices.
    """
    data = file.read_bytes()
    image = open_image(data, file)
    if image.format != "PNG":
        raise UserError(f"{file} is a {image.format} file; a mask is a palette or grey PNG")
    if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        raise UserError(f"{file} has mode {image.mode}; a mask is a palette or grey PNG")
    return stored_levels(image, data)


def stored_levels(image, data):
    """Return the samples of a grey or palette image as its file has them: int32 [H, W].

    Args:
      image: by Pillow, which stretches grey of 2 and 4 bits to 255.
      data: bytes of its file.
    """
    levels = np.array(image).astype(np.int32)
    if image.format == "PNG" and image.mode == "L":
        levels //= 255 // (2 ** data[_GREY_BITS] - 1)
    return levels


def _read_sbd(file):
    """Read GTcls.Segmentation; GTcls also holds outlines, which are sparse and of no use here."""
    data = file.read_bytes()
    try:
        content = scipy.io.loadmat(io.BytesIO(data), variable_names=["GTcls"])
        return np.asarray(content["GTcls"]["Segmentation"][0, 0])
    except Exception as error:  # of a broken file: of a dozen kinds, from several libraries
        raise UserError(f"{file} is not a whole annotation of SBD: {error!r}") from error
