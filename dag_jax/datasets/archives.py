"""Files inside tar and zip archives, read where they lie: nothing is extracted.

A file of a plain tar is read by seeking. A compressed archive cannot be entered in the middle, so
the files that are wanted of it are held in memory: at most `LARGEST_COMPRESSED` bytes, and within
the bounds of `dag_jax.archives`.
"""

import dataclasses
import functools
import pathlib

from dag_jax import archives
from dag_jax.errors import UserError, reading

# Twelve thousand masks of a few KB fit; a kit's photographs, 2 GB, do not.
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
          UserError: if the archive has become shorter since it was looked through, or is gone.
        """
        if self.data is not None:
            return self.data
        with reading(self.archive), open(self.archive, "rb") as file:
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
      UserError: for what is no archive, is cut short, has nothing that `locate` wants, or is
        compressed and large.
    """
    path = pathlib.Path(path)
    with reading(path):
        status = path.stat()
    return _read(path, (status.st_size, status.st_mtime_ns), locate)


@functools.lru_cache(maxsize=16)
def _read(path, stamp, locate):
    members, total = {}, 0
    for entry in archives.entries(path):
        key = locate(entry.name)
        if key is None:
            continue
        data = None
        if entry.offset is None:
            total = _add_size(path, total, entry.size)
            data = b"".join(entry.pieces())
        members[key] = Member(path, entry.name, stamp, entry.offset or 0, entry.size, data)
    if not members:
        raise UserError(f"{path} holds nothing that is looked for; is it the right archive?")
    return members


def _add_size(path, total, size):
    total += size
    if total > LARGEST_COMPRESSED:
        raise UserError(
            f"{path} is compressed and holds more than {LARGEST_COMPRESSED >> 20} MiB of what is "
            "looked for: decompress it, so that single files can be read"
        )
    return total
