"""Image files: photographs as RGB of eight bits, masks as the samples that they hold.

Every image of a dataset and of a launch is opened here. It may have `LARGEST` pixels. Reading takes
up to 16 bytes of memory a pixel, and 24 for a drawing in colours.

Shapes: `H W` pixels.
"""

import contextlib
import dataclasses
import hashlib
import io
import os
import pathlib
import warnings

import numpy as np

from dag_jax.datasets.classes import CLASS_NAMES, VOID, VOID_COLOUR, palette
from dag_jax.errors import UserError, optional_import, reading

with optional_import("data"):
    from PIL import ExifTags, Image, UnidentifiedImageError

MIN_SIDE = 32  # pixels
LARGEST = 2**26  # pixels of an image
_WHITE_16 = 65535  # the largest grey level of 16 bits
_NO_CLASS = np.iinfo(np.int32).min
_TURNS = {  # what makes a stored image upright, by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BACK = {6: 8, 8: 6}  # the orientation whose turn undoes another; the others undo themselves
_STRETCHED = {"L;2": 85, "L;4": 17}  # what Pillow multiplies grey of few bits by


@dataclasses.dataclass(frozen=True)
class Photograph:
    """An image file: its name without its folder, its SHA-256, what was in it."""

    name: str
    sha256: str
    orientation: int  # of EXIF, 1 to 8, already applied to the pixels; 1 is upright
    pixels: np.ndarray  # u8[H, W, 3] RGB


def read_photograph(path) -> Photograph:
    """Read any image that Pillow reads, upright.

    The orientation that EXIF names is applied. Transparent pixels show white behind them. Of an
    animation it is the first frame. 16-bit grey is scaled to 8 bits. Colour profiles are not
    applied: RGB values are taken as they are stored, CMYK as Pillow converts it.

    Args:
      path: the file.

    Returns:
      Photograph.

    Raises:
      UserError: where the file is missing, damaged, no image, has more than `LARGEST` pixels, is of
        a kind without known grey levels (floats, 32 bits), or has a side of less than 32 pixels.
    """
    content = _bytes(path)
    pixels, orientation = _read(content, path, upright=True)
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise UserError(
            f"{path} has {width} x {height} pixels; a network needs at least {MIN_SIDE} a side"
        )
    name = printable(pathlib.Path(path).name)
    return Photograph(name, hashlib.sha256(content).hexdigest(), orientation, pixels)


def read_stored(file) -> np.ndarray:
    """Read the pixels of a dataset's image as they lie in the file, which is how boxes count them.

    Like `read_photograph`, but EXIF does not turn the image, and its sides may be short.

    Args:
      file: a path, or what reads like one.

    Returns:
      u8[H, W, 3] RGB.

    Raises:
      UserError: as `read_photograph`, but for short sides.
    """
    return decode(_bytes(file), file)


def decode(content: bytes, name) -> np.ndarray:
    """Return what `read_stored` reads, from the bytes of a file that is called `name`."""
    return _read(content, name, upright=False)[0]


def read_indices(file) -> np.ndarray:
    """Read a PNG whose grey levels, or places in its palette, are classes: i32[H, W].

    Of 1 to 16 bits: what the file holds, not what a viewer shows.

    Args:
      file: a path, or what reads like one.

    Raises:
      UserError: for what is no whole PNG of indices, or has more than `LARGEST` pixels.
    """
    with _opened(_bytes(file), file) as image:
        if image.format != "PNG":
            raise UserError(f"{file} is a {image.format} file; a mask is a palette or grey PNG")
        if image.mode != "P" and not _is_grey(image):
            raise UserError(f"{file} has mode {image.mode}; a mask is a palette or grey PNG")
        return _levels(image)


def read_class_map(path, *, classes=CLASS_NAMES, void=VOID) -> tuple[np.ndarray, str]:
    """Read a drawn segmentation.

    A grey PNG, of 1 to 16 bits, holds class indices; an image in colours, or with a palette, holds
    those of the VOC kit (`classes.palette`), as the figures and VOC's own masks do. How transparent
    a pixel is says nothing of its class.

    Args:
      path: the file; PNG or another format without loss.
      classes: names of the classes, by index.
      void: what a pixel of no class holds; None where every pixel is of a class.

    Returns:
      (class of each pixel i32[H, W], SHA-256 of the file).

    Raises:
      UserError: where the file cannot be read as an image, or a pixel is of no class.
    """
    content = _bytes(path)
    with _opened(content, path) as image:
        grey = _is_grey(image)
        if grey and image.format != "PNG":
            raise UserError(f"{path} is a grey {image.format} file; class indices are a PNG's")
        pixels = _levels(image) if grey else np.array(image.convert("RGBA"))
    indices = np.array([*range(len(classes)), *[void] * (void is not None)], np.int32)
    if grey:
        codes, places = pixels, indices
    else:
        pixels[..., 3] = 0
        drawn = [*palette(len(classes)), *[VOID_COLOUR] * (void is not None)]
        colours = np.pad(np.array(drawn, np.uint8), [(0, 0), (0, 1)])
        codes, places = (array.view("<u4")[..., 0] for array in (pixels, colours))
    table = np.full(2**16 if grey else 2**24, _NO_CLASS, np.int32)
    fits = (places >= 0) & (places < len(table))  # a void below 0 is no grey level
    table[places[fits]] = indices[fits]
    class_map = table.take(codes)
    wrong = class_map == _NO_CLASS
    if wrong.any():
        y, x = np.argwhere(wrong)[0]
        shown = pixels[y, x].tolist() if grey else pixels[y, x, :3].tolist()
        or_void = "" if void is None else f" and {void} for void"
        raise UserError(
            f"{path} has {wrong.sum()} pixel(s) of no class, the first {shown} at "
            f"column {x}, row {y}: a grey image holds class indices, 0 to {len(classes) - 1}"
            f"{or_void}, any other the colours of the VOC kit"
        )
    return class_map, hashlib.sha256(content).hexdigest()


def printable(name: str) -> str:
    r"""Return a file's name as text: a byte of it that is not UTF-8 becomes \udce9, say."""
    return name.encode(errors="backslashreplace").decode()


def _bytes(file):
    if isinstance(file, str | os.PathLike):
        file = pathlib.Path(file)
        if not file.is_file():
            raise UserError(f"{file}: no such image file")
    with reading(file):
        return file.read_bytes()


@contextlib.contextmanager
def _opened(content, name):
    """Open an image; whatever fails inside the block becomes one clear UserError."""
    size = f"{name} ({len(content)} bytes)"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of oddities that harm nothing
            # Pillow warns of a huge image inside an icon, whose own size is small.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > LARGEST:
                    raise Image.DecompressionBombError
                yield image
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{size} is no image of a format that Pillow reads") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{size} has more than {LARGEST:,} pixels: scale it down") from error
    except Exception as error:  # Pillow's exceptions differ by format and damage
        raise UserError(
            f"{size} is truncated, damaged or of a kind that is not read here "
            f"({str(error) or type(error).__name__})"
        ) from error


def _read(content, name, *, upright):
    """Return (u8[H, W, 3], orientation) of an image, turned by it or not."""
    with _opened(content, name) as image:
        orientation = _orientation(image)
        try:
            rgb = _to_rgb(image)
        except UserError as error:
            raise UserError(f"{name} has {error}") from error
        if upright and image.format != "TIFF":
            rgb = _turned(rgb, orientation)
        if not upright and image.format == "TIFF":  # which Pillow turns as it loads it
            rgb = _turned(rgb, _BACK.get(orientation, orientation))
        return np.array(rgb), orientation


def _orientation(image):
    """Return EXIF's orientation, 1 to 8. `ImageOps.exif_transpose` would write all of EXIF anew."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # EXIF is damaged, and the pixels may be whole
        return 1
    return orientation if orientation in _TURNS else 1


def _turned(image, orientation):
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _is_grey(image):
    return image.mode in ("1", "L") or image.mode.startswith("I")


def _levels(image):
    """Return the samples of a grey or palette PNG as its file has them: i32[H, W]."""
    factor = _STRETCHED.get(image.tile[0].args, 1)  # before it is loaded
    return np.array(image).astype(np.int32) // factor


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as RGB, on white where it is transparent, 16-bit grey scaled to 8 bits."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _eight_bits(image):
    """Scale 16-bit grey to 8 bits, to the nearest; Pillow's own conversion cuts off at 255."""
    levels = np.asarray(image)
    # Of the formats that Pillow opens as 32 bits, these two have 16.
    wide = image.mode == "I" and image.format not in ("PNG", "PPM")
    if image.mode == "F" or wide or levels.min() < 0 or levels.max() > _WHITE_16:
        kind = "floats" if image.mode == "F" else "whole numbers of 32 bits" if wide else "numbers"
        raise UserError(
            f"grey levels from {levels.min()} to {levels.max()}, {kind}: which of them is white is "
            "not known; save it with 8 or 16 bits"
        )
    scaled = (levels.astype(np.uint32) * 255 + _WHITE_16 // 2) // _WHITE_16
    return Image.fromarray(scaled.astype(np.uint8))
