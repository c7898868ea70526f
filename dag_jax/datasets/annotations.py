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


def read_objects(file):
    """Read the objects of one VOC annotation.

    Args:
      file: the XML file. Its boxes are 1-based, as VOC has them.

    Returns:
      dict of boxes float32 [N, 4] (0-based inclusive pixels), label int32 [N], difficult bool [N].

    Raises:
      ValueError: for XML that does not parse, lacks a field or names an unknown class.
    """
    boxes, labels, difficult = [], [], []
    try:
        for item in ElementTree.fromstring(file.read_bytes()).iterfind("object"):
            name = item.findtext("name").strip()
            if name not in CLASS_NAMES[1:]:
                raise UserError(f"unknown class {name!r}")
            labels.append(CLASS_NAMES.index(name))
            corners = item.find("bndbox")
            boxes.append(
                [float(corners.findtext(side)) - 1 for side in ("xmin", "ymin", "xmax", "ymax")]
            )
            difficult.append(int(item.findtext("difficult", "0")) == 1)
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
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
    mask = _read_sbd(file) if str(file).endswith(".mat") else _read_png(file)
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
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{file} is not a whole image file: {error}") from error
    return image


def _read_png(file):
    image = open_image(file.read_bytes(), file)
    if image.mode not in ("P", "L"):
        raise UserError(f"{file} has mode {image.mode}; a VOC mask is a palette or grey PNG")
    return np.array(image)


def _read_sbd(file):
    """Read GTcls.Segmentation; GTcls also holds outlines, which are sparse and of no use here."""
    data = file.read_bytes()
    try:
        content = scipy.io.loadmat(io.BytesIO(data), variable_names=["GTcls"])
        return np.asarray(content["GTcls"]["Segmentation"][0, 0])
    except Exception as error:  # of a broken file: of a dozen kinds, from several libraries
        raise UserError(f"{file} is not a whole annotation of SBD: {error!r}") from error
