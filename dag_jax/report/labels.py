"""Places for names on a picture: beside what they name, and beside each other.

Shapes: `H W` pixels.
"""

import math
import unicodedata

import numpy as np

from dag_jax.errors import optional_import

POINTS = 7.5  # of a name's letters
_LETTER = 0.58, 1.05  # width and height of a letter, of its points
_MARGIN = 4  # points around a name, both sides together


class Labels:
    """What is taken of a picture by the names that it carries.

    Args:
      shape: (H, W).
      points: width of the picture where it is printed.
    """

    def __init__(self, shape, points):
        self._height, self._width = shape
        self._scale = shape[1] / points  # pixels of a point
        self._tiles: list[tuple[float, float, float, float]] = []  # x0, y0, x1, y1

    def size(self, text: str) -> tuple[float, float]:
        """Return the width and height of a name on its tile, in pixels."""
        columns = sum(1 + (unicodedata.east_asian_width(letter) in "FW") for letter in text)
        width = _LETTER[0] * POINTS * columns + _MARGIN
        return self._scale * width, self._scale * (_LETTER[1] * POINTS + _MARGIN)

    def inside(self, text: str, region) -> tuple[float, float] | None:
        """Return a free place for a name in a region, as deep as it can be, and take it.

        Args:
          text: the name.
          region: bool[H, W].

        Returns:
          (x, y) of its middle in pixels; None where there is no room for all of it in the region.
        """
        with optional_import("experiments"):
            from scipy import ndimage

        width, height = map(math.ceil, self.size(text))
        free = (region & ~self._taken()).astype(np.uint8)
        if width > self._width or height > self._height:
            return None
        fits = ndimage.minimum_filter(free, (height, width), mode="constant") > 0
        if not fits.any():
            return None
        # In pixels from the region's border and the image's.
        depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
        y, x = np.unravel_index(np.where(fits, depth, -1).argmax(), depth.shape)
        return self._take((float(x), float(y)), self.size(text))

    def beside(self, text: str, box) -> tuple[float, float]:
        """Return a place for a box's name, and take it: outside if there is room, else in a corner.

        Args:
          text: the name.
          box: x0, y0, x1, y1, pixels, inclusive corners.

        Returns:
          (x, y) of its middle in pixels; it lies on the picture, and on other names only where
          every place is taken.
        """
        width, height = self.size(text)
        x0, y0, x1, y1 = map(float, box)
        rows = [y0 - height / 2, y1 + height / 2, y0 + height / 2, y1 - height / 2, (y0 + y1) / 2]
        rows = [y for y in rows if height / 2 <= y + 0.5 <= self._height - height / 2]
        rows = rows or [self._height / 2]
        sides = x0 + width / 2, x1 - width / 2
        columns = [float(np.clip(x, width / 2, self._width - width / 2)) - 0.5 for x in sides]
        places = [(x, y) for y in rows for x in columns]
        size = width, height
        return self._take(min(places, key=lambda place: self._hidden(place, size)), size)

    def _take(self, place, size):
        self._tiles.append(_tile(place, size))
        return place

    def _taken(self):
        """Return bool[H, W], the pixels that names lie on."""
        taken = np.zeros((self._height, self._width), bool)
        for x0, y0, x1, y1 in self._tiles:
            rows, columns = (
                slice(max(math.floor(low + 0.5), 0), max(math.ceil(high + 0.5), 0))
                for low, high in ((y0, y1), (x0, x1))
            )
            taken[rows, columns] = True
        return taken

    def _hidden(self, place, size):
        """Return how many pixels of other names a name would lie on."""
        x0, y0, x1, y1 = _tile(place, size)
        return sum(
            max(0, min(x1, right) - max(x0, left)) * max(0, min(y1, bottom) - max(y0, top))
            for left, top, right, bottom in self._tiles
        )


def _tile(place, size):
    (x, y), (width, height) = place, size
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2
