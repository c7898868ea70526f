"""Shapes that a segmentation can be driven to: bool masks of any size.

Shapes: `H W` pixels.
"""

import pathlib

import numpy as np

from dag_jax.errors import UserError, optional_import

with optional_import("data"):
    from PIL import Image, ImageDraw, ImageFont

_RADIUS = 0.3  # of a circle and of a square's half side, as a share of the shorter side
_BAND = 0.25  # a strip's height, as a share of the image's
_WORD = 0.9, 0.6  # a word's room, as shares of width and height
_LEAST_HEIGHT = 8  # pixels of a word: below, letters are blots


def _from_centre(shape):
    """Return (f64[H, 1], f64[1, W]): distances from the centre of an image, in pixels."""
    height, width = shape
    y, x = np.ogrid[:height, :width]
    return y - (height - 1) / 2, x - (width - 1) / 2


def circle(shape) -> np.ndarray:
    """Return bool[H, W], a disc in the middle."""
    y, x = _from_centre(shape)
    return x * x + y * y <= (_RADIUS * min(shape)) ** 2


def square(shape) -> np.ndarray:
    """Return bool[H, W], a square in the middle."""
    y, x = _from_centre(shape)
    return np.maximum(abs(x), abs(y)) <= _RADIUS * min(shape)


def strip(shape) -> np.ndarray:
    """Return bool[H, W], a band across the middle, from the left border to the right one."""
    y, x = _from_centre(shape)
    return (abs(y) <= _BAND * shape[0] / 2) & (x == x)


def word(shape, text: str) -> np.ndarray:
    """Return bool[H, W], a word in the middle, as large as there is room for.

    Args:
      shape: (H, W).
      text: what DejaVu Sans has letters for.

    Raises:
      UserError: for a text without a letter, with one that the font lacks, or too long for H x W.
    """
    if not text.strip():
        raise UserError("a word needs a letter; this one is empty")
    font, letters = _font()
    if unknown := sorted({letter for letter in text if ord(letter) not in letters}):
        raise UserError(f"the word {text!r} has letters that the font lacks: {unknown}")
    height, width = shape
    wide, high = _ink(text, font, 100).size
    ink = _ink(text, font, 100 * min(_WORD[0] * width / wide, _WORD[1] * height / high))
    if ink.height < _LEAST_HEIGHT:
        raise UserError(
            f"the word {text!r} would be {ink.height} pixels high in an image of {width} x "
            f"{height}; below {_LEAST_HEIGHT} nobody can read it"
        )
    image = Image.new("L", (width, height))
    image.paste(ink, ((width - ink.width) // 2, (height - ink.height) // 2))
    return np.array(image) > 127


def _font():
    """Return (path of a font that Matplotlib brings, code points of its letters)."""
    with optional_import("experiments"):  # here: it takes its time, and words alone want it
        import matplotlib
        from matplotlib.ft2font import FT2Font

    path = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf")
    return path, FT2Font(path).get_charmap()


def _ink(text, font, size):
    """Return a grey image of a text in white, cut to its letters; `size` is the font's, pixels."""
    font = ImageFont.truetype(font, size)
    left, top, right, bottom = font.getbbox(text)
    margin = round(size)  # letters may reach beyond that box
    image = Image.new("L", (round(right - left) + 2 * margin, round(bottom - top) + 2 * margin))
    ImageDraw.Draw(image).text((margin - left, margin - top), text, fill=255, font=font)
    return image.crop(image.getbbox())
