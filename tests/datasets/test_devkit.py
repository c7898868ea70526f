import io
import tarfile
import zipfile

import pytest

from dag_jax.datasets.archives import Member
from dag_jax.datasets.devkit import ADDRESSES, Devkit, locate, where


def write(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_tar(path, names, content=b"tar"):
    with tarfile.open(path, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("VOCdevkit/VOC2012/JPEGImages/a.jpg", "VOC2012/JPEGImages"),
        ("./VOCdevkit/VOC2012/ImageSets/Main/a.txt", "VOC2012/ImageSets/Main"),
        ("TrainVal/VOCdevkit/VOC2011/Annotations/a.xml", "VOC2011/Annotations"),
        ("VOC2012/SegmentationClass/a.png", "VOC2012/SegmentationClass"),
        ("VOCdevkit/VOC2012/SegmentationObject/a.png", None),
        ("VOCdevkit/VOC2012/a.txt", None),
        ("VOCdevkit/VOCcode/VOCinit.m", None),
        ("benchmark_RELEASE/dataset/train.txt", "SBD"),
        ("benchmark_RELEASE/dataset/cls/a.mat", "SBD/cls"),
        ("benchmark_RELEASE/dataset/inst/a.mat", None),
        ("benchmark_RELEASE/dataset/img/a.jpg", None),
        ("benchmark_RELEASE/benchmark_code_RELEASE/demo/datadir/cls/a.mat", None),
        ("SegmentationClassAug/a.png", "VOC2012/SegmentationClassAug"),
        ("__MACOSX/SegmentationClassAug/._a.png", None),
        ("SegmentationClassAug/._a.png", None),
        ("a.txt", None),
        ("", None),
        ("/", None),
    ],
)
def test_names_in_archives_have_places(name, place):
    place_and_file = locate(name)
    assert place_and_file == (place and (place, name.rsplit("/", 1)[-1]))


@pytest.mark.parametrize("root", ["VOCdevkit", "TrainVal/VOCdevkit", "."])
def test_extracted_kits_are_found(tmp_path, root):
    write(tmp_path / root / "VOC2011/JPEGImages/a.jpg")
    write(tmp_path / root / "VOC2011/ImageSets/Main/val.txt", b"a\nb\n")
    kit = Devkit(tmp_path)
    assert kit.years == ["VOC2011"]
    assert kit.files("VOC2011/JPEGImages") == {
        "a.jpg": (tmp_path / root).resolve() / "VOC2011/JPEGImages/a.jpg"
    }
    assert kit.files("VOC2011/Annotations") == {}
    assert kit.image_ids("VOC2011/ImageSets/Main/val.txt") == ("a", "b")
    assert kit.image_ids("VOC2011/ImageSets/Main/train.txt") is None


def test_archives_and_folders_mix(tmp_path):
    write_tar(
        tmp_path / "VOCtrainval_06-Nov-2007.tar",
        ["VOCdevkit/VOC2007/JPEGImages/000005.jpg", "VOCdevkit/VOC2007/ImageSets/Main/train.txt"],
    )
    write_tar(tmp_path / "VOCtest_06-Nov-2007.tar", ["VOCdevkit/VOC2007/JPEGImages/000001.jpg"])
    write_tar(tmp_path / "benchmark.tgz", ["benchmark_RELEASE/dataset/cls/a.mat"])
    with zipfile.ZipFile(tmp_path / "SegmentationClassAug.zip", "w") as archive:
        archive.writestr("SegmentationClassAug/b.png", b"zip")
    write(tmp_path / "VOCdevkit/VOC2012/Annotations/c.xml")
    write(tmp_path / "benchmark_RELEASE/dataset/train.txt", b"d\n")
    write(tmp_path / "SegmentationClassAug/e.png")
    write(tmp_path / "seg11valid.txt", b"f\n")
    kit = Devkit(tmp_path)
    assert kit.years == ["VOC2007", "VOC2012"]
    assert sorted(kit.files("VOC2007/JPEGImages")) == ["000001.jpg", "000005.jpg"]
    assert list(kit.files("SBD/cls")) == ["a.mat"]
    assert kit.image_ids("SBD/train.txt") == ("d",)
    assert sorted(kit.files("VOC2012/SegmentationClassAug")) == ["b.png", "e.png"]
    assert kit.find("VOC2012/SegmentationClassAug/b.png").read_bytes() == b"zip"
    assert kit.image_ids("seg11valid.txt") == ("f",)
    assert kit.find("VOC2007/JPEGImages/c.xml", "VOC2012/Annotations/c.xml").read_bytes() == b"x"
    assert kit.find("VOC2012/Annotations/g.xml", "VOC2013/Annotations/c.xml") is None


def test_an_extracted_file_comes_before_an_archived_one(tmp_path):
    names = [f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg" for name in "ab"]
    write_tar(tmp_path / "VOCtrainval_11-May-2012.tar", names)
    write(tmp_path / names[0], b"folder")
    files = Devkit(tmp_path).files("VOC2012/JPEGImages")
    assert [files[name].read_bytes() for name in ("a.jpg", "b.jpg")] == [b"folder", b"tar"]
    assert isinstance(files["b.jpg"], Member)


def test_lists_with_two_columns(tmp_path):
    lines = "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\n\na.rf.1 1\r\nb\n"
    write(tmp_path / "VOC2012/ImageSets/Segmentation/train_aug.txt", lines.encode())
    kit = Devkit(tmp_path)
    path = "VOC2012/ImageSets/Segmentation/train_aug.txt"
    assert kit.image_ids(path) == ("2007_000032", "a.rf.1", "b")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_of_windows(tmp_path, encoding):
    path = "VOC2012/ImageSets/Main/val.txt"
    write(tmp_path / path, "2007_000001\r\nb\r\n".encode(encoding))
    assert Devkit(tmp_path).image_ids(path) == ("2007_000001", "b")


def test_lists_that_cannot_be_are_named(tmp_path):
    path = "VOC2012/ImageSets/Main/val.txt"
    for content, message in (
        (b"caf\xe9", "val.txt is not in UTF-8"),
        (b"\xff\xfea", "val.txt is not in UTF-16"),
        (b"a\nb\n/JPEGImages/a.jpg 1\n", "val.txt has 'a' twice"),
    ):
        write(tmp_path / path, content)
        with pytest.raises(ValueError, match=message):
            Devkit(tmp_path).image_ids(path)


def test_notes_of_another_system_are_no_files(tmp_path):
    write(tmp_path / "VOC2012/ImageSets/Main/._val.txt", b"\0\5\x16\7")
    write(tmp_path / "VOC2012/ImageSets/Main/val.txt", b"a")
    assert list(Devkit(tmp_path).files("VOC2012/ImageSets/Main")) == ["val.txt"]


def test_other_archives_are_left_alone(tmp_path):
    write(tmp_path / "holiday.tar", b"no tar")
    write(tmp_path / "VOC2012/Annotations/a.xml")
    assert Devkit(tmp_path).years == ["VOC2012"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"<html>",
            "VOCtest_06-Nov-2007.tar is not a whole archive: it is neither a tar nor a zip",
        ),
        (None, "VOCtest_06-Nov-2007.tar holds nothing that is looked for; is it the right archive"),
    ],
)
def test_a_wrong_archive_is_named(tmp_path, content, message):
    path = tmp_path / "VOCtest_06-Nov-2007.tar"
    write_tar(path, ["holiday/beach.jpg"])
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Devkit(tmp_path)


def test_what_is_no_folder_of_voc_is_named_with_where_to_get_it(tmp_path):
    with pytest.raises(ValueError, match="holds neither VOCdevkit .*VOCtrainval_11-May-2012.tar"):
        Devkit(tmp_path)
    with pytest.raises(ValueError, match="does not exist; .*VOCtrainval_11-May-2012.tar"):
        Devkit(tmp_path / "nowhere")
    write(tmp_path / "a.tar")
    with pytest.raises(ValueError, match="a.tar is a file: give the folder that it lies in"):
        Devkit(tmp_path / "a.tar")


def test_addresses_are_given_once_and_for_what_is_known():
    text = where("VOC2007/JPEGImages", "VOC2007/Annotations", "SBD/cls")
    assert text.count("VOCtest_06-Nov-2007.tar") == text.count("benchmark.tgz") == 1
    assert "VOC2012" not in text
    assert where("VOC2008/JPEGImages").startswith("VOC can be had from https://")
    assert all(address.startswith("https://") for part in ADDRESSES.values() for address in part)
