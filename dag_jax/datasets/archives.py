"""Files inside tar and zip archives, read where they lie: nothing is extracted.

A plain tar gives any of its files by seeking. A compressed archive does not, so what is wanted of
it is held in memory, and must be small.
"""

import dataclasses
import functools
import pathlib
import tarfile
import zipfile
import zlib

from dag_jax.errors import UserError

# Masks are a few KB each, and there are twelve thousand of them. A kit's photographs are 2 GB.
LARGEST_COMPRESSED = 1 << 29  # bytes wanted of one compressed archive


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive, which reads like a `pathlib.Path`.

    archive: path of the archive.
    name: path inside it.
    stamp: size and time of the archive, to tell a changed one.
    offset, size: where its bytes lie in a plain tar.
    data: its bytes, if the archive is compressed.
    """

    archive: pathlib.Path
    name: str
    stamp: tuple
    offset: int
    size: int
    data: bytes | None = dataclasses.field(default=None, repr=False)

    def __str__(self):
        return f"{self.archive}:{self.name}"

    def read_bytes(self) -> bytes:
        """Return the content.

        Raises:
          ValueError: if the archive has become shorter since it was looked through.
        """
        if self.data is not None:
            return self.data
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise UserError(f"{self} is cut short: {len(data)} of {self.size} bytes are there")
        return data


def read_archive(path, locate) -> dict:
    """Return the files of an archive under the names that `locate` gives them.

    A process looks through an archive once, and again when its size or time has changed.

    Args:
      path: a zip or a tar, compressed or not, whatever its suffix says.
      locate: function, name in the archive -> key, or None for a file to leave out.

    Returns:
      dict, key -> `Member`.

    Raises:
      ValueError: for what is no archive, is cut short, has nothing that `locate` wants, or is
        compressed and large.
    """
    path = pathlib.Path(path)
    status = path.stat()
    return _read(path, (status.st_size, status.st_mtime_ns), locate)


@functools.lru_cache(maxsize=16)
def _read(path, stamp, locate):
    read = _read_zip if zipfile.is_zipfile(path) else _read_tar
    try:
        members = dict(read(path, stamp, locate))
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} is not a whole archive: {error}. It has {stamp[0]:,} bytes; was it downloaded "
            "to its end?"
        ) from error
    if not members:
        raise UserError(f"{path} holds nothing that is looked for; is it the right archive?")
    return members


def _read_tar(path, stamp, locate):
    try:
        tar = tarfile.open(path, "r:")
        compressed = False
    except tarfile.ReadError:
        try:
            tar = tarfile.open(path, "r:*")
        except tarfile.ReadError:
            raise tarfile.ReadError("it is neither a tar nor a zip") from None
        compressed = True
    total = 0
    with tar:
        for info in tar:
            key = locate(info.name) if info.isreg() and not info.issparse() else None
            if key is None:
                continue
            data = None
            if compressed:
                total = _add_size(path, total, info.size)
                data = tar.extractfile(info).read()
            yield key, Member(path, info.name, stamp, info.offset_data, info.size, data)
        # tarfile stops without a word where a tar is cut between two files or inside a header.
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"the zeros that end a tar are missing at byte {tar.offset:,}")
        while compressed and tar.fileobj.read(1 << 20):  # a checksum comes last
            pass


def _read_zip(path, stamp, locate):
    total = 0
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            key = None if info.is_dir() else locate(info.filename)
            if key is None:
                continue
            total = _add_size(path, total, info.file_size)
            data = archive.read(info)
            yield key, Member(path, info.filename, stamp, info.header_offset, len(data), data)


def _add_size(path, total, size):
    total += size
    if total > LARGEST_COMPRESSED:
        raise UserError(
            f"{path} is compressed and holds more than {LARGEST_COMPRESSED >> 20} MiB of what is "
            "looked for: decompress it, so that single files can be read"
        )
    return total
