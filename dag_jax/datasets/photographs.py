"""Image files as a launch takes them: upright, RGB, eight bits, whatever they were saved as.

Shapes: `H W` pixels of the upright image.
"""

import contextlib
import dataclasses
import hashlib
import io
import pathlib

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from dag_jax.datasets.annotations import stored_levels
from dag_jax.datasets.classes import CLASS_NAMES, VOID, VOID_COLOUR, palette
from dag_jax.errors import UserError

MIN_SIDE = 32  # pixels
_WHITE_16 = 65535  # the largest grey level of 16 bits


@dataclasses.dataclass(frozen=True)
class Photograph:
    """An image file: its name without its folder, its SHA-256, what was in it."""

    name: str
    sha256: str
    orientation: int  # of EXIF, 1 to 8, already applied to the pixels; 1 is upright
    pixels: np.ndarray  # u8[H, W, 3] RGB


def read_photograph(path) -> Photograph:
    """Read any image that Pillow reads.

    The orientation that EXIF names is applied. Transparent pixels show white behind them. Of an
    animation it is the first frame. 16-bit grey is scaled to 8 bits. Colour profiles are not
    applied: RGB values are taken as they are stored, CMYK as Pillow converts it.

    Args:
      path: the file.

    Returns:
      Photograph.

    Raises:
      UserError: where the file is missing, damaged, no image, of a kind without grey levels
        (floats), or has a side of less than 32 pixels.
    """
    content = _bytes(path)
    with _opened(path, content) as image:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)  # a TIFF's goes on loading
        pixels = np.array(to_rgb(ImageOps.exif_transpose(image)))
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise UserError(
            f"{path} has {width} x {height} pixels; a network needs at least {MIN_SIDE} a side"
        )
    orientation = orientation if orientation in range(1, 9) else 1
    return Photograph(
        pathlib.Path(path).name, hashlib.sha256(content).hexdigest(), orientation, pixels
    )


def read_stored(path) -> np.ndarray:
    """Read the pixels of a dataset's image as they lie in the file, which is how boxes count them.

    Like `read_photograph`, but EXIF does not turn the image, and its sides may be short.

    Returns:
      u8[H, W, 3] RGB.

    Raises:
      UserError: where the file is missing, damaged or no image.
    """
    content = _bytes(path)
    with _opened(path, content) as image:
        return np.array(to_rgb(image))


def read_class_map(path, *, classes=CLASS_NAMES, void=VOID) -> tuple[np.ndarray, str]:
    """Read a drawn segmentation.

    A grey image, of 1 to 16 bits, holds class indices; one in colours, or with a palette, holds
    those of the VOC kit (`classes.palette`), as the figures and VOC's own masks do.

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
    with _opened(path, content) as image:
        grey = image.mode in ("1", "L") or image.mode.startswith("I")
        pixels = stored_levels(image, content) if grey else np.array(to_rgb(image))
    indices = list(range(len(classes))) + [void] * (void is not None)
    if grey:
        known = dict(zip(indices, indices, strict=True))
        codes, places = np.unique(pixels, return_inverse=True)
    else:
        colours = [*palette(len(classes)), *[VOID_COLOUR] * (void is not None)]
        known = dict(zip(_code(np.array(colours)).tolist(), indices, strict=True))
        codes, places = np.unique(_code(pixels), return_inverse=True)
    wrong = np.array([code not in known for code in codes.tolist()])[places]
    if wrong.any():
        y, x = np.argwhere(wrong)[0]
        or_void = "" if void is None else f" and {void} for void"
        raise UserError(
            f"{path} has {wrong.sum()} pixel(s) of no class, the first {pixels[y, x].tolist()} at "
            f"column {x}, row {y}: a grey image holds class indices, 0 to {len(classes) - 1}"
            f"{or_void}, any other the colours of the VOC kit"
        )
    class_map = np.array([known[code] for code in codes.tolist()], np.int32)[places]
    return class_map, hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def _opened(path, content):
    """Open an image; whatever fails inside the block becomes one clear UserError."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            yield image
    except UnidentifiedImageError as error:
        raise UserError(
            f"{path} ({len(content)} bytes) is no image of a format that Pillow reads"
        ) from error
    except Exception as error:  # Pillow's exceptions differ by format and damage
        raise UserError(
            f"{path} ({len(content)} bytes) is truncated, damaged or of a kind that is not read "
            f"here ({error})"
        ) from error


def _bytes(path):
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such image file")
    return path.read_bytes()


def to_rgb(image: Image.Image) -> Image.Image:
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
    if image.mode == "F" or levels.min() < 0 or levels.max() > _WHITE_16:
        raise UserError(f"grey levels from {levels.min()} to {levels.max()}, not of 8 or 16 bits")
    return Image.fromarray(
        ((levels.astype(np.int64) * 255 + _WHITE_16 // 2) // _WHITE_16).astype(np.uint8)
    )


def _code(colours):
    """Return one number for each colour u8[..., 3]."""
    return colours.astype(np.int64) @ np.array([65536, 256, 1])
