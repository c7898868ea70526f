"""COCO, and what else is in its format, extracted.

    annotations/instances_<split>.json    images, categories, objects
    <split>/<file_name>                   photographs
    stuffthingmaps/<split>/<stem>.png     masks of COCO-Stuff, if at hand; also within annotations/

The classes are the categories in the order of their ids, without gaps (COCO's 1 to 90 become 0 to
79), then "background", the pixels of no object. `iscrowd` becomes `difficult`: a crowd need not be
found, and a detection that matches one by IoU does not count. (COCO's own score also ignores
detections that lie within a crowd.)

Masks are those of COCO-Stuff, with its stuff as background. Where there are none, masks are drawn
from the outlines of objects: a pixel of two objects is void. An image with an object that has no
outline has no mask. Panoptic PNGs are not read. Of a split of VOC's classes, objects of others are
left out before masks are drawn, as for the scores that torchvision publishes.

Shapes: H W pixels, N objects, K corners of a polygon.

Reference: Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014.
"""

import dataclasses
import json
import os
import pathlib

import numpy as np
from jaxtyping import Bool

from dag_jax.datasets.classes import CLASS_NAMES
from dag_jax.datasets.examples import FileExamples
from dag_jax.datasets.photographs import printable, read_indices, read_stored
from dag_jax.datasets.selection import is_outside
from dag_jax.errors import UserError
from dag_jax.files import PathLike

_BACKGROUND = "background"
_LAYOUT = (
    "COCO is extracted as annotations/instances_val2017.json beside a folder val2017 of photographs"
)
_NAMED = 5  # wrong annotations of an image that an error lists
_UNLABELLED = 255  # in COCO-Stuff's PNGs
_OF_VOC = "_voc"  # at the end of a split's name
# Of VOC's classes from aeroplane to tvmonitor, the ids in COCO.
_VOC_IDS = (5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
_LARGEST = 1e9  # pixels: no image is as large
_LAST_STUFF = 181  # in COCO-Stuff's PNGs, which hold categories less 1


@dataclasses.dataclass(frozen=True)
class _Photo:
    """One image of a list, and its objects."""

    image_id: str
    path: pathlib.Path
    shape: tuple[int, int]
    mask_path: pathlib.Path | None
    objects: list = dataclasses.field(default_factory=list)  # (label, box, crowd, outline)
    faults: list = dataclasses.field(default_factory=list)  # what is wrong with others


def open_coco(folder: PathLike, split: str) -> FileExamples:
    """Open a split of a COCO folder: nothing is written, photographs are read when asked for.

    Args:
      folder: what `annotations` and the folders of photographs lie in.
      split: 'val2017' for annotations/instances_val2017.json; 'val2017_voc' for its objects of
        VOC's 20 classes alone, all else background, with masks drawn from outlines.

    Raises:
      UserError: for files that are missing and for what cannot be right in the JSON (unknown
        images, repeated ids), with the file and the value. Photographs, masks and objects (boxes
        without an area, not finite or outside of the image; unknown categories) are looked into
        when read: of COCO's own train2017 one box has no area.
    """
    folder = pathlib.Path(folder).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"COCO folder {folder} does not exist; {_LAYOUT}")
    path = folder / "annotations" / f"instances_{split}.json"
    of_voc = split.endswith(_OF_VOC) and not path.is_file()
    if of_voc:
        split = split.removesuffix(_OF_VOC)
        path = path.with_name(f"instances_{split}.json")
    if not path.is_file():
        lists = sorted(path.parent.glob("instances_*.json"))
        names = ", ".join(entry.stem.removeprefix("instances_") for entry in lists)
        raise UserError(
            f"coco has no split {split}: {path} is missing; it has {names or 'no other'}; {_LAYOUT}"
        )
    photographs = folder / split
    if not photographs.is_dir():
        raise UserError(f"{photographs}, the photographs of {path.name}, is missing; {_LAYOUT}")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a whole JSON file: {error}") from error
    places = [folder / "stuffthingmaps" / split, folder / "annotations/stuffthingmaps" / split]
    masks = None if of_voc else next((place for place in places if place.is_dir()), None)
    try:
        photos, table, classes, has_outlines = _listed(content, photographs, masks)
        if of_voc:
            classes = _keep_voc(photos, table)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    void = 255 if len(classes) <= 255 else -1
    background = classes.index(_BACKGROUND)

    def read(photo):
        if photo.faults:
            raise UserError(f"{path}: {photo.path.name}: {'; '.join(photo.faults[:_NAMED])}")
        pixels = read_stored(photo.path)
        shape = pixels.shape[:2]
        if shape != photo.shape:
            raise UserError(
                f"{photo.path} is {shape}, {path.name} says {photo.shape} (height, width)"
            )
        if photo.mask_path is not None:
            mask = _read_stuff(photo.mask_path, shape, table, background, void)
        else:
            mask = _draw(photo, background, void, path) if has_outlines else None
        return _example(photo, pixels, mask, void)

    return FileExamples([photo.image_id for photo in photos], photos, read, classes, void)


def _example(photo, pixels, mask, void):
    has_mask = mask is not None
    mask = np.full(photo.shape, void) if mask is None else mask
    labels, boxes, crowds, _ = zip(*photo.objects, strict=True) if photo.objects else [()] * 4
    return {
        "image": pixels,
        "mask": mask.astype(np.uint8 if void == 255 else np.int32)[:, :, None],
        "has_mask": has_mask,
        "objects": {
            "boxes": np.array(boxes, np.float32).reshape(-1, 4),
            "label": np.array(labels, np.int32),
            "difficult": np.array(crowds, np.bool_),
        },
    }


def _listed(content, photographs, masks):
    """Return the photos of a list, category -> label, the classes, whether there are outlines."""
    if not isinstance(content, dict):
        raise UserError(f"it holds a {type(content).__name__}, not COCO's lists")
    images, categories, annotations = (
        _by_id(content, kind) for kind in ("images", "categories", "annotations")
    )
    names = {number: entry.get("name") for number, entry in categories.items()}
    for number, name in names.items():
        if not isinstance(number, int) or not isinstance(name, str) or not name.strip():
            raise UserError(f"category {number!r} is called {name!r}: a number and a name are due")
    classes = [printable(names[number].strip()) for number in sorted(names)]
    if repeated := sorted({name for name in classes if classes.count(name) > 1}):
        raise UserError(f"several categories are called {repeated[0]!r}")
    table = {number: label for label, number in enumerate(sorted(names))}
    classes += [_BACKGROUND] * (_BACKGROUND not in classes)

    photos = {number: _photo(entry, photographs, masks) for number, entry in images.items()}
    if not photos:
        raise UserError("it lists no image")
    ids = set()
    for photo in photos.values():
        if photo.image_id in ids:
            raise UserError(f"several images are called {photo.image_id!r}")
        ids.add(photo.image_id)
    paths = [path for photo in photos.values() for path in (photo.path, photo.mask_path) if path]
    if missing := [path for path in paths if not os.path.isfile(path)]:  # nor can be, by its name
        first = f"{missing[0]!s:.300}"
        raise UserError(f"{len(missing):,} of its files are missing, the first {first}")

    has_outlines = False
    for number, entry in annotations.items():
        image_id, category = entry.get("image_id"), entry.get("category_id")
        if not _is_id(image_id) or image_id not in images:
            raise UserError(f"annotation {number} has image_id {image_id!r}, which is not listed")
        photo, crowd = photos[image_id], entry.get("iscrowd", 0)
        outline = entry.get("segmentation") or None
        has_outlines |= outline is not None
        try:
            if not _is_id(category) or category not in categories:
                raise UserError(f"has category_id {category!r}, which is not listed")
            if crowd not in (0, 1):
                raise UserError(f"has iscrowd {crowd!r}, neither 0 nor 1")
            box = _corners(entry.get("bbox"), photo.shape)
        except UserError as error:
            photo.faults.append(f"annotation {number} {error}")
            continue
        photo.objects.append((table[category], box, bool(crowd), outline))
    return list(photos.values()), table, classes, has_outlines


def _keep_voc(photos, table):
    """Keep objects of VOC's classes, under VOC's labels, and return the classes."""
    labels = {table.get(number): label for label, number in enumerate(_VOC_IDS, start=1)}
    if not labels.keys() - {None}:
        raise UserError("none of its categories has the id of one of VOC's classes in COCO")
    for photo in photos:
        photo.objects[:] = [
            (labels[label], *rest) for label, *rest in photo.objects if label in labels
        ]
    return list(CLASS_NAMES)


def _by_id(content, kind):
    entries = content.get(kind)
    if not isinstance(entries, list):
        raise UserError(f"it has no list of {kind}; an instances_<split>.json of COCO has")
    by_id = {}
    for entry in entries:
        number = entry.get("id") if isinstance(entry, dict) else None
        if not _is_id(number):
            raise UserError(f"{kind} has the entry {entry!r:.80} without an id")
        if number in by_id:
            raise UserError(f"{kind} has the id {number} twice")
        by_id[number] = entry
    return by_id


def _is_id(value):
    return isinstance(value, int | str) and not isinstance(value, bool)


def _photo(entry, photographs, masks):
    name, shape = entry.get("file_name"), (entry.get("height"), entry.get("width"))
    if not isinstance(name, str) or not name or ".." in pathlib.PurePath("/", name).parts:
        raise UserError(f"image {entry['id']} has the file_name {name!r}")
    if not all(type(side) is int and side > 0 for side in shape):
        raise UserError(f"image {entry['id']} has height and width {shape}")
    path = photographs / name.lstrip("/")
    mask_path = None if masks is None else masks / f"{path.stem}.png"
    return _Photo(printable(path.stem), path, shape, mask_path)


def _corners(box, shape):
    """Return inclusive corners of [x, y, width, height], whose last pixel is x + width - 1."""
    numbers = _finite(box)
    if numbers is None or len(numbers) != 4:
        raise UserError(f"has bbox {box!r:.80}, not [x, y, width, height], finite numbers")
    x, y, width, height = numbers
    if width <= 0 or height <= 0:
        raise UserError(f"has bbox {box}, which has no area")
    corners = [x, y, x + width - 1, y + height - 1]
    if is_outside(corners, shape):
        raise UserError(f"has bbox {box}, outside of its {shape[1]} x {shape[0]} pixels")
    return corners


def _finite(values):
    """Return a list's numbers as floats; None where it is no list, or holds anything else."""
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        return None
    if not all(abs(value) <= _LARGEST for value in values):  # false for NaN
        return None
    return [float(value) for value in values]


def _read_stuff(path, shape, table, background, void):
    """Read a mask of COCO-Stuff: category less 1, or 255."""
    stored = read_indices(path)
    if stored.shape != shape:
        raise UserError(f"{path} is {stored.shape}, its image is {shape} (height, width)")
    if (strange := np.setdiff1d(stored, [*range(_LAST_STUFF + 1), _UNLABELLED])).size:
        raise UserError(f"{path} holds {strange.tolist()}, which are no classes of COCO-Stuff")
    labels = np.full(_UNLABELLED + 1, background)
    labels[_UNLABELLED] = void
    for number, label in table.items():
        if 1 <= number <= _LAST_STUFF + 1:
            labels[number - 1] = label
    return labels[stored]


def _draw(photo, background, void, path):
    """Draw the objects of a photo, or return None where one has no outline."""
    mask, count = np.full(photo.shape, background), np.zeros(photo.shape, int)
    for label, box, _, outline in photo.objects:
        if outline is None:
            return None
        try:
            inside = fill(outline, photo.shape)
        except UserError as error:
            box = [round(side, 2) for side in box]
            raise UserError(f"{path}: object at {box} of {photo.path.name}: {error}") from error
        mask[inside] = label
        count += inside
    return np.where(count > 1, void, mask)


def fill(outline: list | dict, shape: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Return the pixels of an object by its `segmentation`.

    A pixel is inside of a polygon if its centre is, by the even-odd rule. pycocotools rounds
    corners to a fifth of a pixel before, so that pixels whose centre an outline all but touches may
    differ.

    Args:
      outline: polygons [x0, y0, x1, y1, ...], whose union it is, in pixels from the upper left
        corner of the image; or run lengths of columns, {"size": [H, W], "counts": list or text}.
      shape: (H, W).

    Raises:
      UserError: for what is neither, and run lengths that do not fit.
    """
    if isinstance(outline, dict):
        return _decode(outline, shape)
    inside = np.zeros(shape, bool)
    for polygon in outline if isinstance(outline, list) else [outline]:
        numbers = _finite(polygon)
        if numbers is None or len(numbers) % 2 or len(numbers) < 6:
            raise UserError(f"polygon {polygon!r:.80} is not three or more pairs of finite numbers")
        inside |= _fill_polygon(np.array(numbers).reshape(-1, 2), shape)
    return inside


def _fill_polygon(corners, shape):
    (x, y), (x_next, y_next) = corners.T, np.roll(corners, -1, 0).T
    centres = np.arange(shape[1]) + 0.5
    edge, column = np.nonzero((x[:, None] <= centres) != (x_next[:, None] <= centres))
    slopes = (y_next - y)[edge] / (x_next - x)[edge]
    heights = y[edge] + (centres[column] - x[edge]) * slopes
    # Below each crossing of a column it is inside, below the next one outside again.
    crossings = np.zeros((shape[0] + 1, shape[1]), int)
    rows = np.clip(np.ceil(heights - 0.5), 0, shape[0]).astype(int)
    np.add.at(crossings, (rows, column), 1)
    return np.cumsum(crossings[:-1], axis=0) % 2 == 1


def _decode(runs, shape):
    """Return the pixels of run lengths: outside, inside, outside, ... column by column."""
    counts = runs.get("counts")
    if isinstance(counts, str):
        counts = _unpacked(counts)
    numbers = isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts)
    if runs.get("size") != list(shape) or not numbers or sum(counts) != shape[0] * shape[1]:
        raise UserError(
            f"run lengths {runs!r:.80} do not fit {shape[0]} x {shape[1]} (height, width)"
        )
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return inside.reshape(shape[::-1]).T


def _unpacked(text):
    """Return counts of pycocotools' text: 5 bits a character, the lowest first, from "0" on.

    Bit 5 says that more follow, bit 4 of the last one is the sign; from the fourth on, a count is
    the difference to the one before the last.
    """
    counts, value, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) * bool(bits & 16)
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    return counts if shift == 0 else None
