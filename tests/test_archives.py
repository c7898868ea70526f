"""Archives within bounds; what is read out of them is tested in datasets/ and experiments/."""

import gzip
import io
import struct
import tarfile
import time
import tracemalloc
import zipfile

import pytest

from dag_jax import archives
from dag_jax.errors import StorageError, UserError
from tests import damage

CONTENT = {"a/1": b"one" * 400, "b": bytes(range(256)) * 3, "empty": b""}


def tar_bytes(content, mode="w"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def zip_bytes(content, method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return file.getvalue()


KINDS = {
    "zip": zip_bytes(CONTENT),
    "stored zip": zip_bytes(CONTENT, zipfile.ZIP_STORED),
    **{mode: tar_bytes(CONTENT, mode) for mode in ("w", "w:gz", "w:bz2", "w:xz")},
}


def read(path, contents):
    path.write_bytes(contents)
    return {entry.name: b"".join(entry.pieces()) for entry in archives.entries(path)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "archive"


@pytest.mark.parametrize("contents", KINDS.values(), ids=KINDS)
def test_files_come_in_order_and_whole(path, contents):
    assert list(read(path, contents).items()) == list(CONTENT.items())
    assert [entry.name for entry in archives.entries(path)] == list(CONTENT)  # or unread
    for entry in archives.entries(path):
        if entry.offset is not None:
            assert contents[entry.offset : entry.offset + entry.size] == CONTENT[entry.name]


def test_a_tar_may_end_with_a_zip(path):
    contents = tar_bytes({"last": zip_bytes({"inner": b"1"})})
    assert list(read(path, contents)) == ["last"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_one_error_or_harmless(path, kind):
    whole, refused = KINDS[kind], []

    @damage.given(300, copy=damage.damaged(whole))
    def check(copy):
        try:
            contents = read(path, copy)
        except UserError as error:
            assert str(path) in str(error)
            refused.append(copy)
        else:
            # A plain tar has no checksum of contents; nothing else may change.
            changed = [n for n, data in contents.items() if n in CONTENT and data != CONTENT[n]]
            assert kind == "w" or not changed

    check()
    assert len(refused) > 100


def test_the_checksum_of_gzip_is_compared(path):
    whole = KINDS["w:gz"]
    crc, size = struct.unpack("<2I", whole[-8:])
    for ending in (struct.pack("<2I", crc ^ 1, size), struct.pack("<2I", crc, size + 1)):
        with pytest.raises(UserError, match="archive is not a whole archive: .*CRC|length"):
            read(path, whole[:-8] + ending)


# What a small archive would have made of it.


def headers(kind, size):
    """A tar whose first header claims so many bytes for a name or for other headers."""
    info = tarfile.TarInfo("a")
    info.type, info.size = kind, size
    return info.tobuf() + bytes(size)


ZEROS = bytes(1 << 26)
BOMBS = {
    "a large file in a zip": (zip_bytes({"a": ZEROS}), "has 67,108,864 bytes, out of proportion"),
    "many files in a zip": (
        zip_bytes({f"{i}": bytes(1 << 22) for i in range(9)}),
        "has 4,194,304 bytes, out of proportion",
    ),
    "a large file in a tgz": (tar_bytes({"a": ZEROS}, "w:gz"), "holds more than .* bytes, out of"),
    "what follows a tar": (gzip.compress(KINDS["w"] + ZEROS), "holds more than .* bytes, out of"),
    "a long name": (
        gzip.compress(headers(tarfile.GNUTYPE_LONGNAME, 1 << 24)),
        "has a header that claims 16,777,216 bytes",
    ),
    "long settings": (headers(tarfile.XHDTYPE, 1 << 22), "a header that claims 4,194,304 bytes"),
    "settings of settings": (
        b"".join(headers(tarfile.XHDTYPE, 0) for _ in range(3000)),
        "not a whole archive",
    ),
}


@pytest.mark.parametrize(("contents", "message"), BOMBS.values(), ids=BOMBS)
def test_a_small_archive_does_not_become_huge(path, contents, message):
    start = time.process_time()
    tracemalloc.start()
    with pytest.raises(UserError, match=message):
        read(path, contents)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < archives.SLACK + 20 * len(contents) + (1 << 23)
    assert time.process_time() - start < 4


def test_many_empty_files_take_no_room(path):
    """A tar keeps none of its headers."""
    path.write_bytes(gzip.compress(tar_bytes(dict.fromkeys(map(str, range(16_000)), b""))))
    tracemalloc.start()
    assert sum(1 for _ in archives.entries(path)) == 16_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 << 20  # kept, the headers take 8 MiB


# What Python's libraries raise otherwise: NotImplementedError, RuntimeError, LZMAError, KeyError.


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_of_zips_are_named(path, method):
    with pytest.raises(UserError, match="compressed otherwise than by deflate: zip it anew"):
        read(path, zip_bytes(CONTENT, method))


def test_an_encrypted_zip_is_named(path):
    contents = bytearray(zip_bytes({"a": b"1"}))
    contents[6] |= 1
    contents[contents.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(UserError, match="'a' of .*archive is encrypted, or"):
        read(path, contents)


def test_a_zip_whose_names_differ_is_damaged(path):
    contents = zip_bytes({"aaaa": b"1"})
    with pytest.raises(UserError, match="is not a whole archive: .*differ"):
        read(path, contents.replace(b"aaaa", b"bbbb", 1))


def test_what_is_no_archive_is_named(path, tmp_path):
    for contents in (b"", b"<html>", b"PK\x03\x04", b"\x1f\x8b", b"\xfd7zXZ\0"):
        with pytest.raises(UserError, match=f"{path} is not a whole archive: .*{len(contents):,}"):
            read(path, contents)
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises((UserError, StorageError), match=f"{missing}"):
            list(archives.entries(missing))
