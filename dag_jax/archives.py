"""Files in zip and tar archives, one after another, in pieces.

Bounds: of a compressed archive at most `RATIO` times its size, and `SLACK` bytes, are decompressed.
A zip's list of names takes 20 times the archive's size at most, a tar's a few KiB.
"""

import bz2
import contextlib
import errno
import functools
import gzip
import lzma
import pathlib
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from dag_jax.errors import UserError, reading

RATIO = 100  # repetitive text, such as annotations, shrinks to a fiftieth
SLACK = 1 << 24  # bytes; a tar is padded
_PIECE = 1 << 20  # bytes
_OPENERS = {rb"\x1f\x8b": gzip.open, rb"BZh[1-9]1AY&SY": bz2.open, rb"\xfd7zXZ\0": lzma.open}
_TAR = slice(257, 262), b"ustar"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others decompress without a bound


class Entry(NamedTuple):
    """A file of an archive.

    Attributes:
      name: its path there.
      size: its bytes.
      offset: where its bytes lie in a plain tar; None in a zip or a compressed tar.
      pieces: function that returns an iterator over its bytes, valid until the next entry is taken.
    """

    name: str
    size: int
    offset: int | None
    pieces: Callable[[], Iterator[bytes]]


def entries(path) -> Iterator[Entry]:
    """Yield the files of an archive, in the order of the archive.

    The content tells what kind of archive it is, not the suffix. Links and folders are left out.
    Checksums are compared: of a zip those of the files that are read, of a compressed tar that of
    the whole, after its last file.

    Args:
      path: a zip or a tar, compressed or not.

    Raises:
      UserError: where it is no whole archive, or what it gives is out of proportion.
      StorageError: where it cannot be read now.
    """
    path = pathlib.Path(path)
    with _archive(path):
        with open(path, "rb") as file:
            head = file.read(512)
        opener = next((_OPENERS[start] for start in _OPENERS if re.match(start, head)), None)
        # A zip may begin with anything, and a tar end with a zip.
        tar = opener or head[_TAR[0]] == _TAR[1] or not zipfile.is_zipfile(path)
        read = _tar if tar else _zip
        yield from read(path, opener)


@contextlib.contextmanager
def _archive(path):
    """Turn any error of the block into one that says: the archive is damaged."""
    try:
        yield
    except (UserError, GeneratorExit):
        raise
    except Exception as error:  # what the libraries raise differs by what is damaged
        # The disk's errors have a number; EINVAL is of a place before the archive's first byte.
        number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
        if number not in (None, errno.EINVAL):
            with reading(path):
                raise
        size, reason = path.stat().st_size, " ".join(str(error).split())
        raise UserError(
            f"{path} is not a whole archive: {reason:.200}. It has {size:,} bytes; was it "
            "downloaded to its end?"
        ) from error


class _Stream:
    """The bytes of a tar, up to a bound."""

    def __init__(self, path, file, limit):
        self._path, self._file, self._limit = path, file, limit

    def _check(self, end):
        if end > self._limit:
            raise UserError(
                f"{self._path} holds more than {self._limit:,} bytes, out of proportion to its size"
            )

    def read(self, size):
        if size > _PIECE:
            raise UserError(f"{self._path} has a header that claims {size:,} bytes")
        self._check(self._file.tell() + size - _PIECE)
        return self._file.read(size)

    def seek(self, place):
        self._check(place)
        return self._file.seek(place)

    def tell(self):
        return self._file.tell()


def _tar(path, opener):
    size = path.stat().st_size
    with (opener or open)(path, "rb") as file:
        stream = _Stream(path, file, size * RATIO + SLACK if opener else size + _PIECE)
        try:
            tar = tarfile.open(fileobj=stream, mode="r:")
        except tarfile.ReadError:
            raise tarfile.ReadError("it is neither a tar nor a zip") from None
        while (info := tar.next()) is not None:
            tar.members.clear()  # it keeps them
            if info.isreg() and not info.issparse():
                pieces = functools.partial(_tar_pieces, path, stream, info)
                yield Entry(info.name, info.size, None if opener else info.offset_data, pieces)
        # tarfile stops without a word where a tar is cut between two files or inside a header.
        stream.seek(tar.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"the zeros that end a tar are missing at byte {tar.offset:,}")
        while opener and stream.read(_PIECE):  # a checksum comes last
            pass


def _tar_pieces(path, stream, info):
    with _archive(path):
        stream.seek(info.offset_data)
        remaining = info.size
        while remaining:
            piece = stream.read(min(remaining, _PIECE))
            if not piece:
                raise tarfile.ReadError(f"{info.name!r:.80} lacks {remaining:,} bytes")
            remaining -= len(piece)
            yield piece


def _zip(path, _):
    budget = [path.stat().st_size * RATIO + SLACK]
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                pieces = functools.partial(_zip_pieces, path, archive, info, budget)
                yield Entry(info.filename, info.file_size, None, pieces)


def _zip_pieces(path, archive, info, budget):
    with _archive(path):
        if info.compress_type not in _METHODS or info.flag_bits & 1:
            raise UserError(
                f"{info.filename!r:.80} of {path} is encrypted, or compressed otherwise than by "
                "deflate: zip it anew"
            )
        budget[0] -= info.file_size
        if budget[0] < 0:
            raise UserError(
                f"{info.filename!r:.80} of {path} has {info.file_size:,} bytes, out of proportion "
                "to the archive's size"
            )
        with archive.open(info) as file:
            while piece := file.read(_PIECE):
                yield piece
