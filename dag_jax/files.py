"""Files that are there entirely or not at all, and that say whether they are whole.

Paths are local, or gs://bucket/name (s3://, az://), as in TFDS. A bucket needs TensorFlow, or gcsfs
(s3fs, adlfs). A local file is written beside its name and renamed, an object of a bucket appears
when it is complete. Damaged files and disks that fail are told apart, as in `errors`.

Shapes: `H W` pixels.
"""

import contextlib
import hashlib
import io
import json
import operator
import os
import re
import secrets
from typing import TypeAlias

import fsspec
import numpy as np
import safetensors.numpy
from etils import epath

from dag_jax.errors import UserError, optional_import, parsing, reading, writing

FORMAT = "dag_jax arrays 1"
TEMPORARY = re.compile(r"(.+)\.tmp-[0-9a-f]{8}")  # a file that `write` has not finished
_MOST_PIXELS = 1 << 26
_HEADER, _DIGEST = "dag_jax", "sha256"
PathLike: TypeAlias = str | os.PathLike[str]


def open_folder(path) -> epath.Path:
    """Return a path on disk or in a bucket; UserError where nothing installed can open it."""
    try:
        path = epath.Path(path)
        if not is_local(path):
            for protocol in ("gs", "gcs", "s3", "az", "abfs"):  # other processes write there, too
                options = fsspec.config.conf.setdefault(protocol, {})
                options.setdefault("use_listings_cache", False)
            path.exists()
    except (ImportError, KeyError, NotImplementedError) as error:
        raise UserError(
            f"{path} cannot be opened ({error}). A bucket is gs://, s3:// or az:// and needs "
            "gcsfs, s3fs or adlfs, or TensorFlow"
        ) from error
    except Exception:
        with reading(path):
            raise
    return path


def is_local(path) -> bool:
    """Return whether a path is on this machine, not in a bucket."""
    return "://" not in os.fspath(path)


def exists(path: epath.Path) -> bool:
    """Return whether there is such a file or folder. Raises `StorageError`."""
    with reading(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return bool(path.stat())  # path.exists() is False, too, where a disk or connection fails
    return False


def names_in(folder: epath.Path) -> set[str]:
    """Return the names in a folder; none where there is no folder. Raises `StorageError`."""
    with reading(folder):
        return {path.name for path in folder.iterdir()} if exists(folder) else set()


def make_folder(folder: epath.Path) -> None:
    """Make a folder where there is none; a bucket needs none. Raises `StorageError`."""
    with writing(folder):
        if is_local(folder):
            folder.mkdir(parents=True, exist_ok=True)


def remove(path: epath.Path) -> None:
    """Remove a file if it is there. Raises `StorageError`."""
    with writing(path):
        path.unlink(missing_ok=True)


def remove_drafts(folder: epath.Path) -> None:
    """Remove the unfinished files that killed processes left in a folder. Raises `StorageError`.

    No process may be writing into the folder.
    """
    for name in filter(TEMPORARY.fullmatch, names_in(folder)):
        remove(folder / name)


def write(path, content: str | bytes) -> None:
    """Write a file at once or not at all.

    Args:
      path: the file; its folder exists. An existing file is replaced.
      content: text or bytes.

    Raises:
      StorageError: naming the reason and what helps.
    """
    path = epath.Path(path)
    content = content.encode() if isinstance(content, str) else content
    if is_local(path):
        with replacing(path) as file:
            file.write(content)
    else:
        with writing(path):
            path.write_bytes(content)


@contextlib.contextmanager
def replacing(path):
    """Open a local file to write it in pieces. It appears, whole, once the context ends."""
    path = epath.Path(path)
    # A name of its own, as two processes may write the same manifest at the same time.
    partial = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    with writing(path):
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise


def canonical_json(value, *, allow_nan=False) -> str:
    """Return JSON in one fixed form: equal values give equal bytes. NaN is a ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=allow_nan)


def sha256(value) -> str:
    """Return the SHA-256 of text, or of an array's type, shape and values."""
    if isinstance(value, str):
        return hashlib.sha256(value.encode()).hexdigest()
    digest = hashlib.sha256(f"{value.dtype} {value.shape}\n".encode())
    digest.update(value.tobytes())
    return digest.hexdigest()


def sha256_of(path) -> str:
    """Return the SHA-256 of a file's bytes. Raises as `load` does."""
    return hashlib.sha256(_bytes_of(epath.Path(path))).hexdigest()


def write_json(path, content: dict) -> None:
    """Write a dict as JSON, with its own SHA-256 as a last entry for `load_json` to check.

    NaN, the score over no image, is written as Python's json does.
    """
    content = json.loads(json.dumps(content))  # as a reader will see it
    if _DIGEST in content:
        raise ValueError(f"{path}: {_DIGEST!r} is the name of the digest")
    digest = sha256(canonical_json(content, allow_nan=True))
    write(path, json.dumps(content | {_DIGEST: digest}, indent=2) + "\n")


def load_json(path, *, digest=False, keys=()) -> dict:
    """Return the dict that `write_json` wrote, without its SHA-256. Raises as `load` does.

    It takes memory of at most 40 times the file's size.

    Args:
      path: the file.
      digest: whether JSON without a SHA-256 is refused.
      keys: that the dict must have.
    """
    with parsing(path):
        content = dict(json.loads(_bytes_of(epath.Path(path))))
        written = content.pop(_DIGEST, None)
        if written is None and digest:
            raise ValueError("it has no SHA-256: an earlier version wrote it, or someone by hand")
        if written not in (None, sha256(canonical_json(content, allow_nan=True))):
            raise ValueError("it does not match its SHA-256")
        if lacking := [key for key in keys if key not in content]:
            raise ValueError(f"it has no {', '.join(lacking)}: another version wrote it")
    return content


def pack(arrays: dict[str, np.ndarray], content) -> bytes:
    """Return a safetensors file of arrays and of what JSON can hold.

    The same arrays and content give the same bytes: its metadata is one text, as safetensors
    writes several in an order that changes from run to run.
    """
    # safetensors writes a buffer as it lies: a transposed view would be stored scrambled.
    arrays = {name: np.ascontiguousarray(a).reshape(np.shape(a)) for name, a in arrays.items()}
    digests = {name: sha256(array) for name, array in arrays.items()}
    header = {"format": FORMAT, "content": content, "arrays": digests}
    header[_DIGEST] = sha256(canonical_json(header))
    return safetensors.numpy.save(arrays, {_HEADER: canonical_json(header)})


def load(path, names=None):
    """Return what `pack` packed: (content, arrays by name).

    Args:
      path: the file.
      names: of the arrays to read; None for all. No other is read.

    Raises:
      MissingError: where it is not there.
      DamagedError: where it does not match its digests.
      StorageError: where it cannot be read now, whatever is in it.

    It takes memory of at most 40 times the header's bytes and twice those of the arrays read.
    """
    with parsing(path):
        texts, arrays = _load_ranges(epath.Path(path), names)
        header = json.loads(texts[_HEADER])
        digest = header.pop(_DIGEST)
        if sha256(canonical_json(header)) != digest or header["format"] != FORMAT:
            raise ValueError("its header does not match its SHA-256")
        if names is None and arrays.keys() != header["arrays"].keys():
            raise ValueError("it does not hold the arrays that its header names")
        for name, array in arrays.items():
            if sha256(array) != header["arrays"][name]:
                raise ValueError(f"{name!r} does not match its SHA-256")
        return header["content"], arrays


def _load_ranges(path, names):
    """Return (metadata, arrays by name) of a safetensors file, of which no other bytes are read.

    The library's own reader reports a file that it may not open as missing. It also maps files into
    memory, where a bad sector ends the process.
    """
    with reading(path):
        file = path.open("rb")

    def read(begin, end):
        if not 0 <= operator.index(begin) <= operator.index(end) <= size:
            raise ValueError(f"it has {size} bytes, too few")
        with reading(path):
            file.seek(begin)
            return file.read(end - begin)

    with file:
        with reading(path):
            size = file.seek(0, os.SEEK_END)
        start = 8 + int.from_bytes(read(0, 8), "little")
        header, arrays = json.loads(read(8, start)), {}
        texts, at = header.pop("__metadata__"), 0
        # Arrays lie one after another, as the format has it: none is read twice.
        for begin, end in sorted(tensor["data_offsets"] for tensor in header.values()):
            if begin != at or operator.index(end) < begin:
                raise ValueError(f"its arrays overlap or leave gaps at byte {start + at}")
            at = end
        if size != start + at:
            raise ValueError(f"it has {size} bytes, and its header says {start + at}")
        for name in header if names is None else names:
            begin, end = header[name]["data_offsets"]
            head = json.dumps({name: {**header[name], "data_offsets": [0, end - begin]}}).encode()
            data = len(head).to_bytes(8, "little") + head + read(start + begin, start + end)
            arrays |= safetensors.numpy.load(data)
    return texts, arrays


def pack_image(pixels: np.ndarray) -> bytes:
    """Return u8[H, W, 3], or u8 or u16[H, W] of one channel, as a PNG."""
    with optional_import("data"):
        from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def load_image(path: epath.Path, digest: str) -> np.ndarray:
    """Return the pixels u8[H, W, 3] of an image file. Raises as `load` does.

    An image of more than 2^26 pixels, which would take 400 MB, is refused: no dataset has one.

    Args:
      path: the file.
      digest: the SHA-256 that the pixels must have.
    """
    with optional_import("data"):
        from PIL import Image

    with parsing(path):
        with Image.open(io.BytesIO(_bytes_of(path))) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels")
            pixels = np.asarray(image)
        if sha256(pixels) != digest:
            raise ValueError("its pixels do not match their SHA-256")
    return pixels


def _bytes_of(path):
    with reading(path):
        return path.read_bytes()
