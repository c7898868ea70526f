"""A plain folder of images with masks, with boxes, or with both.

    classes.txt                 a class a line; `void = 255` is the label of pixels of no class
    images/<stem>.jpg           or another format
    masks/<stem>.png            grey or palette PNGs of any bit depth, whose samples are classes
    annotations/<stem>.xml      boxes as VOC has them, 1-based
    <split>.txt                 a stem a line

A split is such a list, a folder of that name within images/, masks/ and annotations/, or `all` for
what lies in images/ itself. Where there is masks/ or annotations/, each image must have its own.

Shapes: H W pixels, N objects.
"""

import os
import pathlib
import re

import numpy as np

from dag_jax.datasets.annotations import read_objects
from dag_jax.datasets.devkit import read_lines, repeated
from dag_jax.datasets.examples import FileExamples
from dag_jax.datasets.photographs import printable, read_indices, read_stored
from dag_jax.errors import UserError
from dag_jax.files import PathLike

_EVERY = "all"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
_LAYOUT = (
    "a plain folder has images/, classes.txt, and masks/ (PNGs of the same stems) or annotations/ "
    "(XML files as VOC's)"
)
_VOID = re.compile(r"void\s*=\s*(.*)", re.IGNORECASE)


def open_plain_folder(folder: PathLike, split: str) -> FileExamples:
    """Open a split of a folder: nothing is written, images are read when asked for.

    Args:
      folder: what the folders and classes.txt lie in.
      split: name of a list, of a folder, or 'all'.

    Raises:
      UserError: for files that are missing, lists and classes that repeat a name. Masks, boxes and
        images are looked into when they are read.
    """
    folder = pathlib.Path(folder).expanduser().resolve()
    if not (folder / "images").is_dir():
        raise UserError(f"{folder} has no folder images; {_LAYOUT}")
    classes, void = _read_classes(folder / "classes.txt")
    place, stems = _listed(folder, split)
    images = _images(folder / "images" / place)
    stems = sorted(images) if stems is None else stems
    if not stems:
        raise UserError(f"{folder}: split {split} has no image")
    kinds = {"masks": ".png", "annotations": ".xml"}
    kinds = {kind: suffix for kind, suffix in kinds.items() if (folder / kind).is_dir()}
    if not kinds:
        raise UserError(f"{folder} has neither masks nor annotations; {_LAYOUT}")
    files = [
        {"image": images.get(stem, folder / "images" / place / f"{stem}.jpg")}
        | {kind: folder / kind / place / (stem + suffix) for kind, suffix in kinds.items()}
        for stem in stems
    ]
    paths = [path for row in files for path in row.values()]
    if missing := [path for path in paths if not os.path.isfile(path)]:  # nor can be, by its name
        first = f"{missing[0]!s:.300}"
        raise UserError(f"{len(missing):,} files of split {split} are missing, as {first}")

    fill = 255 if void is None else void
    mask_type = np.uint8 if max(fill, len(classes) - 1) <= 255 else np.int32

    def read(row):
        image = read_stored(row["image"])
        mask = np.full(image.shape[:2], fill)
        if "masks" in row:
            mask = _read_mask(row["masks"], image.shape[:2], classes, void)
        objects = {"boxes": np.zeros((0, 4)), "label": [], "difficult": []}
        if "annotations" in row:
            objects = read_objects(row["annotations"], classes, image.shape[:2])
        types = {"boxes": np.float32, "label": np.int32, "difficult": np.bool_}
        return {
            "image": image,
            "mask": mask.astype(mask_type)[:, :, None],
            "has_mask": "masks" in row,
            "objects": {name: np.asarray(objects[name], kind) for name, kind in types.items()},
        }

    ids = [printable(row["image"].stem) for row in files]
    return FileExamples(ids, files, read, classes, void)


def _read_classes(path):
    """Return (names, void or None) of a classes.txt."""
    if not path.is_file():
        raise UserError(f"{path} is missing: the names of the classes by index, one a line")
    names, void = [], None
    for line in read_lines(path):
        stated = _VOID.fullmatch(line)
        if stated is None:
            names.append(line)
        elif void is not None or not re.fullmatch("[0-9]{1,5}", stated[1]):
            raise UserError(f"{path}: {line!r:.80}; one line may say void = 255, or another number")
        else:
            void = int(stated[1])
    if not names:
        raise UserError(f"{path} names no class")
    if twice := repeated(names):
        raise UserError(f"{path} has the class {twice!r:.80} twice")
    if void is not None and void < len(names):
        raise UserError(f"{path}: void = {void} is the class {names[void]!r}, too")
    return tuple(names), void


def _listed(folder, split):
    """Return (folder within images/, stems or None for all that are there) of a split."""
    path, part = folder / f"{split}.txt", folder / "images" / split
    lists = [entry.stem for entry in folder.glob("[!.]*.txt") if entry.name != "classes.txt"]
    parts = [entry.name for entry in (folder / "images").glob("[!.]*") if entry.is_dir()]
    if split in lists and split in parts:
        raise UserError(f"split {split} is both a list, {path}, and a folder, {part}")
    if split in parts:
        return split, None
    if split in lists:
        endings = (*_SUFFIXES, ".xml")
        stems = [
            line[: line.rindex(".")] if line.lower().endswith(endings) else line
            for line in read_lines(path)
        ]
        if twice := repeated(stems):
            raise UserError(f"{path} has {twice!r:.80} twice")
        return "", stems
    if split == _EVERY:
        return "", None
    splits = ", ".join(sorted({*lists, *parts, _EVERY}))
    raise UserError(f"{folder} has no split {split}; it has {splits}")


def _images(folder):
    """Return stem -> file."""
    images: dict[str, pathlib.Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."):
            if path.stem in images:
                raise UserError(f"{path} and {images[path.stem].name} have the same stem")
            images[path.stem] = path
    return images


def _read_mask(path, shape, classes, void):
    mask = read_indices(path)
    if mask.shape != shape:
        raise UserError(f"{path} is {mask.shape}, its image is {shape} (height, width)")
    strange = np.setdiff1d(mask, [*range(len(classes)), *[void] * (void is not None)])
    if strange.size:
        hint = f"void ({void})" if void is not None else "void (a line `void = 255` would name it)"
        raise UserError(
            f"{path} holds {strange[:5].tolist()}, which are none of {len(classes)} classes of "
            f"classes.txt and not {hint}"
        )
    return mask
