import io
import os
import tarfile
import zipfile

import numpy as np
import pytest

from dag_jax.datasets import archives
from dag_jax.datasets.archives import read_archive

# Sizes around a tar's block of 512 bytes.
CONTENT = {
    f"folder/{size}": np.random.default_rng(size).bytes(size)
    for size in (0, 1, 511, 512, 513, 4000)
}


def every(name):
    return name


def write_tar(path, content, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_zip(path, content):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def write_any(path, content):
    if path.suffix == ".zip":
        return write_zip(path, content)
    return write_tar(path, content, "w:gz" if path.suffix == ".tgz" else "w")


@pytest.fixture(params=["a.tar", "a.tgz", "a.zip"])
def archive(request, tmp_path):
    return write_any(tmp_path / request.param, CONTENT)


def test_files_come_back_in_any_order(archive):
    members = read_archive(archive, every)
    assert set(members) == set(CONTENT)
    for name in reversed(sorted(CONTENT)):
        assert members[name].read_bytes() == CONTENT[name]
        assert members[name].size == len(CONTENT[name])
        assert str(members[name]) == f"{archive}:{name}"


def test_only_what_is_located_is_kept_under_its_key(archive):
    members = read_archive(archive, lambda name: 7 if name == "folder/513" else None)
    assert list(members) == [7]
    assert members[7].read_bytes() == CONTENT["folder/513"]


def test_a_suffix_does_not_matter(tmp_path):
    path = write_tar(tmp_path / "a.tar", CONTENT).rename(tmp_path / "a.tgz")
    assert read_archive(path, every)["folder/513"].read_bytes() == CONTENT["folder/513"]


def test_a_tar_is_not_held_in_memory_and_a_compressed_one_is(archive):
    member = read_archive(archive, every)["folder/4000"]
    assert (member.data is None) == (archive.suffix == ".tar")


def test_an_archive_is_read_once_and_a_changed_one_again(archive):
    first = read_archive(archive, every)
    assert read_archive(archive, every) is first
    write_any(archive, CONTENT | {"folder/512": b"another"})
    os.utime(archive, ns=(0, 0))
    second = read_archive(archive, every)
    assert second["folder/512"].read_bytes() == b"another"
    assert second["folder/1"].stamp != first["folder/1"].stamp


def test_links_and_folders_are_passed_over(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"a": b"1"})
    with tarfile.open(path, "a") as tar:
        for name, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("d", b"5")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    assert list(read_archive(path, every)) == ["a"]


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.zip"])
def test_an_archive_cut_anywhere_is_refused(tmp_path, name):
    whole = write_any(tmp_path / name, CONTENT).read_bytes()
    if name == "a.tar":
        # tarfile writes zeros up to 10 KiB; a tar is whole with the first 512 of them.
        ends = range(1, len(whole.rstrip(b"\0")), 97)
        ends = [*ends, *range(512, 512 * 10, 512)]
    else:
        ends = range(0, len(whole) - 1, 97)
    for number, end in enumerate(ends):
        path = tmp_path / f"{number}-{name}"
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=rf"{name} is not a whole archive: .*{end:,} bytes"):
            read_archive(path, every)


def test_a_broken_header_is_not_taken_for_the_end(tmp_path):
    path = write_tar(tmp_path / "a.tar", CONTENT)
    data = bytearray(path.read_bytes())
    data[1536 + 10] ^= 0xFF  # of the third header: the first two files take 512 and 1024 bytes
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is not a whole archive"):
        read_archive(path, every)


def test_what_is_no_archive_and_what_holds_nothing_are_refused(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"<html>Not found</html>" * 100)
    with pytest.raises(ValueError, match="a.tar is not a whole archive: it is neither a tar nor"):
        read_archive(path, every)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="a.tar is not a whole archive"):
        read_archive(path, every)
    write_tar(path, CONTENT)
    with pytest.raises(ValueError, match="holds nothing that is looked for; is it the right"):
        read_archive(path, lambda name: None)


def test_a_compressed_archive_must_be_small(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_COMPRESSED", 1 << 12)
    read_archive(write_tar(tmp_path / "a.tar", CONTENT), every)
    for name in ("a.tgz", "a.zip"):
        path = write_any(tmp_path / name, CONTENT)
        with pytest.raises(ValueError, match=f"{name} is compressed and holds more than 0 MiB"):
            read_archive(path, every)


def test_a_tar_that_shrinks_later_is_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"a": bytes(3000)})
    member = read_archive(path, every)["a"]
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"a.tar:a is cut short: 1488 of 3000 bytes"):
        member.read_bytes()
