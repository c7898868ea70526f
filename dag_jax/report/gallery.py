"""The images of a row as the HTML report shows them: pictures on disk, numbers for its script.

Names of pictures are digests of what they show, so that one that is there is never made again.

Shapes: `H W` pixels, `C` classes.
"""

import collections
import concurrent.futures
import functools
import io
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from dag_jax import files
from dag_jax.arrays import Array
from dag_jax.datasets.classes import palette
from dag_jax.engine.algorithm import Status
from dag_jax.errors import optional_import, reading
from dag_jax.report.figures import MIN_SCORE
from dag_jax.runs import attacks, rundir, scores

with optional_import("experiments"):
    from PIL import Image

# What an image can be filtered by: a bit each. Unfinished is the table's word: targets are left.
FLOAT, PNG, UNFINISHED, NO_TARGETS, FAILED = 1, 2, 4, 8, 16
_FAILURES = (Status.ZERO_GRADIENT.name, Status.NON_FINITE.name)
_SMALL = 192  # pixels of the longer side of a preview; an image up to that size is its own
_LEAST_SHARE = 0.01  # of an image's pixels: a class of fewer is not named
_THREADS = 8  # they wait for the disk most of the time: `files.write` is sure that a file is there
_NEAR = "_near.webp"  # end of the file of a clean image that is not exact
# Columns with what the model made of the clean image, of the attacked, of its saved PNG.
_SEEN = (("before", "orig"), ("after", scores.ADVR), ("png", "advr_uint8"))


class Folder:
    """A folder of files that are named by content; `tidy` removes those that nobody asked for."""

    def __init__(self, folder):
        self._folder = folder
        files.make_folder(folder)
        self._there, self._wanted = files.names_in(folder), set()

    def has(self, name) -> bool:
        """Return whether there is a file of this name."""
        return name in self._there

    def put(self, name, content=None) -> str:
        """Write a file if it is another now, or with None keep the one there; return its name."""
        self._wanted.add(name)
        if content is not None and not self._is(name, content):
            files.write(self._folder / name, content)
            self._there.add(name)
        return name

    def _is(self, name, content):
        if name not in self._there:
            return False
        with reading(self._folder / name):
            return (self._folder / name).read_bytes() == content

    def tidy(self) -> None:
        """Remove the files that were not put."""
        for name in self._there - self._wanted:
            files.remove(self._folder / name)


class Shown(NamedTuple):
    """The images of a row.

    Attributes:
      images: for each what the page has of it at once.
      details: for each what is read once it is opened.
      exact: whether every clean image is the one that was attacked, to the last bit.
    """

    images: list[list]
    details: list[dict]
    exact: bool


def outcome(record) -> int:
    """Return what became of an image, the bits of those of `FLOAT` to `FAILED` that hold."""
    if record["status"] == Status.NO_TARGETS.name:
        return NO_TARGETS
    bits = FLOAT if record["fooled"] else UNFINISHED
    return bits | PNG * record["fooled_png"] | FAILED * (record["status"] in _FAILURES)


def numbers(record) -> list:
    """Return [outcome, steps, largest change, p, targets at first, left, left on the PNG]."""
    counts = record["active_counts"]
    return [
        outcome(record),
        record["num_steps"],
        round(record["largest_change"], 2),
        round(record["perceptibility"], 6),
        counts[0],
        counts[-1],
        record["active_png"],
    ]


def webp(pixels: UInt8[np.ndarray, "H W C"], *, lossless=True) -> bytes:
    """Return an image as WebP; without `lossless` at a tenth of the size."""
    file = io.BytesIO()
    # Method 3 takes half the time of Pillow's default, 4, and the file is 1.4% larger (miniatures).
    options = {"lossless": True, "method": 3, "quality": 20} if lossless else {"quality": 40}
    Image.fromarray(pixels).save(file, "WEBP", **options)
    return file.getvalue()


def signed(change: Float[Array, "H W 3"], scale: float) -> UInt8[np.ndarray, "H W 3"]:
    """Return a change as an image: none is grey, -`scale` is black, `scale` is full colour."""
    share = np.asarray(change, np.float64) / (scale or 1)
    return np.rint(127.5 + 127.5 * np.clip(share, -1, 1)).astype(np.uint8)


def show(run: rundir.Run, pictures: Folder, clean: Folder) -> Shown:
    """Write the pictures of a row's images, and return what is said of them.

    Args:
      run: the row's folder.
      pictures: where the others go.
      clean: where clean images go, those of all rows.

    Returns:
      Of each image, in the order of `run.keys`: [key, name of its pictures, file of the clean
      image, whether there is a preview, *numbers].

    Raises:
      DamagedError, MissingError, StorageError: naming a file that the run has no more.
    """
    show_one = functools.partial(_show_one, run, pictures, clean)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        shown = list(pool.map(show_one, run.keys, run.records))
    images = [numbers_of for numbers_of, _ in shown]
    details = [detail for _, detail in shown]
    exact = not any(image[2].endswith(_NEAR) for image in images)
    return Shown(images, details, exact)


def _show_one(run, pictures, clean, key, record):
    name = files.sha256(files.canonical_json(record))[:16]
    clean_name = _put_clean(clean, run, key, record)
    preview = _put_attacked(pictures, name, run, key)
    detail = {"counts": record["active_counts"]}
    for of_what, column in _SEEN:
        if run.has(column, key):
            detail[of_what] = _prediction(run, column, key, pictures)
    return [key, name, clean_name, int(preview), *numbers(record)], detail


def _put_clean(clean, run, key, record):
    """Write a clean image, and return the name of its file, which says whether it is exact."""
    name = record["image_sha256"][:16]
    if clean.has(f"{name}.webp"):
        return clean.put(f"{name}.webp")
    pixels = run.clean(key)
    exact = files.sha256(pixels) == record["image_sha256"]
    return clean.put(f"{name}{'.webp' if exact else _NEAR}", webp(pixels))


def _put_attacked(pictures, name, run, key):
    """Write the pictures of an attack, and return whether there is a preview among them."""
    whole, change, preview = (f"{name}{end}.webp" for end in ("", "_change", "_small"))
    if not pictures.has(whole):
        saved, clean = run.image(key), run.clean(key)
        rounded = run.manifest["method"]["rounded"]
        attacked = scores.adversarial([run], {"image": clean, "image_id": key}, rounded)
        difference = attacks.change_of(clean, attacked)
        shown = signed(difference, float(np.abs(difference).max()))
        pictures.put(change, webp(shown, lossless=False))
        if max(saved.shape) > _SMALL:
            pictures.put(preview, webp(_shrunk(saved), lossless=False))
        pictures.put(whole, webp(saved))  # last: it says that all are there
    pictures.put(whole)
    pictures.put(change)
    return pictures.has(preview) and bool(pictures.put(preview))


def _shrunk(pixels):
    image = Image.fromarray(pixels)
    image.thumbnail((_SMALL, _SMALL))
    return np.asarray(image)


def _prediction(run, column, key, pictures):
    """Return what the model made of an image: boxes, or a picture of its labels, and classes."""
    kept = run.get(column, key)
    if "boxes" in kept:
        order = np.argsort(-kept["scores"], kind="stable")
        order = order[kept["scores"][order] >= MIN_SCORE]
        rounded = [np.round(kept["boxes"][i].astype(float), 1).tolist() for i in order]
        classes, values = kept["classes"][order].tolist(), kept["scores"][order].tolist()
        boxes = [
            [*box, label, round(value, 2)]
            for box, label, value in zip(rounded, classes, values, strict=True)
        ]
        counts = collections.Counter(classes)
        return {"boxes": boxes, "classes": [[c, f"{n} ×"] for c, n in counts.most_common()]}
    if scores.LABELS in kept:
        labels = scores.unpack_labels(kept[scores.LABELS])
        picture = f"{files.sha256(labels)[:16]}_labels.webp"
        if not pictures.has(picture):
            pictures.put(picture, webp(palette(len(run.manifest["classes"]))[labels]))
        pictures.put(picture)
        classes = _shares(kept["confusion"].sum(axis=0))
        named = {label for label, _ in classes}
        unscored = [label for label, _ in _shares(np.bincount(labels.ravel()))]
        classes += [[label, "< 1%"] for label in unscored if label not in named]
        return {"labels": picture, "classes": classes}
    return {"classes": _shares(kept["confusion"].sum(axis=0))}


def _shares(counts):
    """Return [class, 'percent of the pixels'] of the classes that are named, most pixels first."""
    shares = counts / max(counts.sum(), 1)
    order = np.argsort(-shares, kind="stable")
    return [[int(c), f"{shares[c]:.0%}"] for c in order if shares[c] >= _LEAST_SHARE]
