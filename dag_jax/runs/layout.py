"""Paths and contents of the files of each image in a folder of results; see `rundir`.

Each kind of file has a folder with one file for each image: images, perturbations, timings,
scores/<column>.
"""

import collections
import re
import urllib.parse

import numpy as np

from dag_jax import files
from dag_jax.errors import UserError, parsing
from dag_jax.runs import levels

IMAGES, CHANGES, SCORES, TIMINGS = "images", "perturbations", "scores", "timings"
COLUMN = re.compile(r"[A-Za-z0-9_]+")
_ENDS = {IMAGES: ".png", TIMINGS: ".json"}  # of other kinds: .safetensors
_LONGEST_KEY = 230  # bytes, quoted; 255 is most systems' limit, .safetensors.tmp-... comes on top


def check_keys(folder, keys) -> None:
    """Raise UserError for no image ids at all, and for ids that repeat or are no file names."""
    if not keys:
        raise UserError(f"{folder}: there is no image to attack")
    for key in keys:
        try:
            length = len(quoted(key))
        except (TypeError, UnicodeError) as error:
            raise UserError(f"{folder}: an image id that is no text: {key!r:.80}") from error
        if not 0 < length <= _LONGEST_KEY:
            raise UserError(f"{folder}: an image id that can name no file: {key!r:.80}")
    key, count = collections.Counter(keys).most_common(1)[0]
    if count > 1:
        raise UserError(f"{folder}: there are {count} images of the id {key!r}")


def column(name) -> str:
    """Return the kind of file that holds a column of scores. UserError for an invalid name."""
    if not COLUMN.fullmatch(name):
        raise UserError(f"{name!r} names no scores: letters, digits and '_' do")
    return f"{SCORES}/{name}"


def path(folder, kind, key) -> files.epath.Path:
    """Return the path of an image's file. An image's id may hold any character."""
    return folder / kind / f"{quoted(key)}{_ENDS.get(kind, '.safetensors')}"


def keys_in(folder, kind) -> set[str]:
    """Return the ids of the images that have a file of this kind."""
    end = _ENDS.get(kind, ".safetensors")
    names = [n.removesuffix(end) for n in files.names_in(folder / kind) if n.endswith(end)]
    keys = {urllib.parse.unquote(name, errors="surrogateescape"): name for name in names}
    return {key for key, name in keys.items() if quoted(key) == name}


def done(folder) -> set[str]:
    """Return the ids of the images that are done, by any process."""
    return keys_in(folder, IMAGES) & keys_in(folder, CHANGES)


def pack(run, kind, key, arrays, **content) -> bytes:
    """Return a file of arrays and content, with its kind, key and the digest of its run."""
    return files.pack(arrays, {"run": run, "kind": kind, "key": key, **content})


def load(run, folder, kind, key, names=None):
    """Return what `files.load` does of a file by `pack`. DamagedError for another run's file."""
    file = path(folder, kind, key)
    content, arrays = files.load(file, names)
    with parsing(file):
        if (content["kind"], content["key"]) != (kind, key):
            raise ValueError(f"it is {content['kind']} of image {content['key']!r}")
        if content.get("run", run) != run:  # files before 0.2 was finished do not say it
            raise ValueError("it is of another run")
        if kind == CHANGES:
            arrays = levels.unpack(arrays)
            _check_change(content, arrays, names)
    return content, arrays


def _check_change(content, arrays, names):
    if not isinstance(content["record"], dict) or not isinstance(content["pixels_sha256"], str):
        raise ValueError("it has no record or no digest of its image")
    if names is None:
        change = arrays["perturbation"]
        if change.dtype != np.float32 or change.ndim != 3 or change.shape[2] != 3:
            raise ValueError(f"its perturbation is {change.dtype}{list(change.shape)}")


def quoted(key) -> str:
    """Return an image's id as file names have it, percent-quoted."""
    # Bytes of a file's name that are no UTF-8 are kept as Python keeps them.
    return urllib.parse.quote(key, safe="", errors="surrogateescape")
