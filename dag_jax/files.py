"""Files that are there entirely or not at all, and that say whether they are whole.

Paths are local, or gs://bucket/name (s3://, az://), as in TFDS. A bucket needs TensorFlow, or gcsfs
(s3fs, adlfs). A local file is written beside its name and renamed, an object of a bucket appears
when it is complete.

Shapes: `H W` pixels.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets

import fsspec
import numpy as np
import safetensors.numpy
from etils import epath
from PIL import Image

from dag_jax.errors import UserError

FORMAT = "dag_jax arrays 1"
TEMPORARY = re.compile(r"(.+)\.tmp-[0-9a-f]{8}")  # a name while `write` is at it
_HEADER = "dag_jax"
_HINTS = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room within the quota",
    errno.EFBIG: "raise the limit on the size of a file",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
    errno.ENOENT: "its folder is gone",
}


def open_folder(path) -> epath.Path:
    """Return a path, of a bucket too, that something installed can open.

    Raises:
      ValueError: where nothing can.
    """
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
    return path


def is_local(path) -> bool:
    """Return whether a path is no bucket's."""
    return "://" not in os.fspath(path)


def names_in(folder: epath.Path) -> set[str]:
    """Return the names in a folder; none where there is no folder."""
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def make_folder(folder: epath.Path) -> None:
    """Make a folder where there is none; a bucket needs none. Raises as `write` does."""
    with _explained(folder):
        if is_local(folder):
            folder.mkdir(parents=True, exist_ok=True)


def remove(path: epath.Path) -> None:
    """Remove a file if it is there. Raises as `write` does."""
    with _explained(path):
        path.unlink(missing_ok=True)


def write(path, content: str | bytes) -> None:
    """Write a file at once or not at all.

    Args:
      path: the file; its folder exists. An existing file is replaced.
      content: text or bytes.

    Raises:
      OSError: naming the path, the reason and what helps.
    """
    path = epath.Path(path)
    content = content.encode() if isinstance(content, str) else content
    with _explained(path):
        if not is_local(path):
            path.write_bytes(content)
            return
        # A name of its own, as two processes may write the same manifest at the same time.
        partial = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise


def canonical_json(value) -> str:
    """Return JSON of one form only, so that its bytes can be compared; NaN is a ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256(value) -> str:
    """Return the SHA-256 of text, or of an array's type, shape and values."""
    if isinstance(value, str):
        return hashlib.sha256(value.encode()).hexdigest()
    digest = hashlib.sha256(f"{value.dtype} {value.shape}\n".encode())
    digest.update(value.tobytes())
    return digest.hexdigest()


def sha256_of(path) -> str:
    """Return the SHA-256 of a file's bytes."""
    return hashlib.sha256(epath.Path(path).read_bytes()).hexdigest()


def pack(arrays: dict[str, np.ndarray], content) -> bytes:
    """Return a safetensors file of arrays and of what JSON can hold.

    The same arrays and content give the same bytes: its metadata is one text, as safetensors
    writes several in an order that changes from run to run.
    """
    # safetensors writes a buffer as it lies: a transposed view would be stored scrambled.
    arrays = {name: np.ascontiguousarray(one).reshape(one.shape) for name, one in arrays.items()}
    digests = {name: sha256(one) for name, one in arrays.items()}
    header = {"format": FORMAT, "content": content, "arrays": digests}
    header["sha256"] = sha256(canonical_json(header))
    return safetensors.numpy.save(arrays, {_HEADER: canonical_json(header)})


def load(path: epath.Path, names=None):
    """Read what `pack` packed.

    Args:
      path: the file.
      names: of the arrays to read; None for all. Of a local file the others are left alone.

    Returns:
      (content, arrays by name).

    Raises:
      ValueError: where it is not there, or does not match its digests.
    """
    with _undamaged(path):
        if is_local(path):
            with safetensors.safe_open(os.fspath(path), "numpy") as file:
                texts = file.metadata()
                some = file.keys() if names is None else names
                arrays = {name: file.get_tensor(name) for name in some}
        else:
            texts, arrays = _load_ranges(path, names)
        header = json.loads(texts[_HEADER])
        digest = header.pop("sha256")
        if sha256(canonical_json(header)) != digest or header["format"] != FORMAT:
            raise UserError("its header does not match its SHA-256")
        if names is None and arrays.keys() != header["arrays"].keys():
            raise UserError("it does not hold the arrays that its header names")
        for name, array in arrays.items():
            if sha256(array) != header["arrays"][name]:
                raise UserError(f"{name!r} does not match its SHA-256")
    return header["content"], arrays


def _load_ranges(path, names):
    """Return (metadata, arrays by name) of a safetensors file, reading no more than these."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        texts, start, arrays = header.pop("__metadata__"), file.tell(), {}
        for name in header if names is None else names:
            begin, end = header[name]["data_offsets"]
            file.seek(start + begin)
            one = {name: {**header[name], "data_offsets": [0, end - begin]}}
            head = json.dumps(one).encode()
            head += b" " * (-len(head) % 8)
            data = len(head).to_bytes(8, "little") + head + file.read(end - begin)
            arrays |= safetensors.numpy.load(data)
    return texts, arrays


def pack_image(pixels: np.ndarray) -> bytes:
    """Return u8[H, W, 3] as a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def load_image(path: epath.Path, digest: str) -> np.ndarray:
    """Return the pixels u8[H, W, 3] of a file; ValueError where their SHA-256 is another."""
    with _undamaged(path):
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            pixels = np.asarray(image)
        if sha256(pixels) != digest:
            raise UserError("its pixels do not match their SHA-256")
    return pixels


def load_json(path: epath.Path) -> dict:
    """Return the dict in a JSON file; ValueError where it is none or not there."""
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Put it back as it was, or remove its folder"
        ) from error


@contextlib.contextmanager
def _undamaged(path):
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        if error.errno is not None:  # the disk's; Pillow's own, of a bad image, have no number
            raise
        raise UserError(_damaged(path, error)) from error
    except Exception as error:  # readers' exceptions differ by what is damaged
        raise UserError(_damaged(path, error)) from error


def _damaged(path, error):
    return (
        f"{path} is damaged ({error!s:.200}). Nothing was changed. Delete that file: the same "
        "command then makes anew what was in it"
    )


@contextlib.contextmanager
def _explained(path):
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        hint = f" ({_HINTS[error.errno]})" if error.errno in _HINTS else ""
        text = f"{path} cannot be written: {reason}{hint}"
        raise OSError(error.errno or errno.EIO, text) from error
    except Exception as error:
        if is_local(path):
            raise
        # A bucket's client has errors of its own.
        raise OSError(errno.EIO, f"{path} cannot be written: {error}") from error
