"""Files of PASCAL VOC and SBD, by their place in the original layout, wherever they lie.

    VOC2012/ImageSets/Segmentation/val.txt   VOCdevkit/VOC2012/..., TrainVal/VOCdevkit/VOC2012/...,
                                             VOC2012/..., or inside VOC*.tar
    SBD/train.txt, SBD/cls/<id>.mat          benchmark_RELEASE/dataset/..., or inside benchmark.tgz
    VOC2012/SegmentationClassAug/<id>.png    there, SegmentationClassAug/..., or inside
                                             SegmentationClassAug*.zip

Each process looks through each archive once, which takes some seconds. An archive whose files are
also extracted only costs that time.
"""

import collections
import pathlib
import re

from dag_jax.datasets.archives import read_archive
from dag_jax.errors import UserError, reading

LAYOUT = (
    "the original layout is VOCdevkit/VOC2012/{ImageSets,JPEGImages,Annotations,SegmentationClass}"
    ", or the tar files as they were downloaded"
)

# host.robots.ox.ac.uk, which papers and older code name, sends the reader on to this address.
_VOC = "https://thor.robots.ox.ac.uk/pascal/VOC"
_HOME = "https://www.robots.ox.ac.uk/~vgg/projects/pascal/VOC/"
_BERKELEY = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours"
ADDRESSES = {
    "VOC2007": (
        f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar",
        f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar",
    ),
    "VOC2011": (f"{_VOC}/voc2011/VOCtrainval_25-May-2011.tar",),
    "VOC2012": (f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar",),
    "SBD": (f"{_BERKELEY}/benchmark.tgz",),
    "SegmentationClassAug": ("https://www.dropbox.com/s/oeu149j8qtbs1x0/SegmentationClassAug.zip",),
    "seg11valid.txt": (
        "https://github.com/shelhamer/fcn.berkeleyvision.org/blob/master/data/pascal/seg11valid.txt",
    ),
}

_YEAR = re.compile(r"VOC2\d\d\d")
_PARTS = ("ImageSets", "JPEGImages", "Annotations", "SegmentationClass", "SegmentationClassAug")
_ARCHIVES = ("VOC*.tar", "benchmark*.tgz", "benchmark*.tar*", "SegmentationClassAug*.zip")


class Devkit:
    """What a folder holds of VOC and SBD, extracted, in archives, or both.

    An extracted file comes before the same file in an archive.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder).expanduser().resolve()
        if self.folder.is_file():
            raise UserError(f"{self.folder} is a file: give the folder that it lies in")
        if not self.folder.is_dir():
            raise UserError(
                f"VOC folder {self.folder} does not exist; {LAYOUT}; {where('VOC2012')}"
            )
        self._roots = [
            self.folder / root
            for root in ("VOCdevkit", "TrainVal/VOCdevkit", ".")
            if (self.folder / root).is_dir()
        ]
        self._archived = {}
        self._found = {}
        for pattern in _ARCHIVES:
            for path in sorted(self.folder.glob(pattern)):
                if path.is_file():
                    for (place, name), member in read_archive(path, locate).items():
                        self._archived.setdefault(place, {}).setdefault(name, member)
        years = {path.name for root in self._roots for path in root.glob("VOC*") if path.is_dir()}
        years |= {place.split("/")[0] for place in self._archived}
        self.years = sorted(filter(_YEAR.fullmatch, years))
        if not self.years:
            raise UserError(
                f"{self.folder} holds neither VOCdevkit nor a year such as VOC2012, nor their tar "
                f"files; {LAYOUT}; {where('VOC2012', 'VOC2007')}"
            )

    def files(self, place) -> dict:
        """Return the files of a place, such as 'VOC2012/JPEGImages' or 'SBD/cls'.

        Returns:
          dict, file name -> `pathlib.Path` or `archives.Member`; empty where there is no such
          place.
        """
        if place not in self._found:
            entries = dict(self._archived.get(place, {}))
            # The first folder wins, so it comes last.
            for folder in reversed(self._folders(place)):
                if folder.is_dir():
                    # Names with a dot are another system's notes on files: ._val.txt.
                    entries |= {path.name: path for path in folder.glob("[!.]*")}
            self._found[place] = entries
        return self._found[place]

    def find(self, *paths):
        """Return the first file that is there, of paths such as 'VOC2012/JPEGImages/<id>.jpg'."""
        for path in paths:
            place, _, name = path.rpartition("/")
            if name in (files := self.files(place)):
                return files[name]
        return None

    def image_ids(self, path) -> tuple | None:
        """Return the images of a list, such as 'VOC2012/ImageSets/Main/val.txt', None if missing.

        A line may also be '/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png', as
        DeepLab's lists have it.

        Raises:
          ValueError: for a list that is no text, or names an image twice.
        """
        file = self.find(path)
        if file is None:
            return None
        lines = [line.split()[0] for line in read_lines(file)]
        ids = tuple(line.rsplit("/", 1)[-1].removesuffix(".jpg") for line in lines)
        if twice := repeated(ids):
            raise UserError(f"{file} has {twice!r} twice")
        return ids

    def _folders(self, place):
        if place.partition("/")[0] == "SBD":
            return [self.folder / "benchmark_RELEASE" / "dataset" / place.partition("/")[2]]
        folders = [root / place for root in self._roots]
        if place == "VOC2012/SegmentationClassAug":
            folders.append(self.folder / "SegmentationClassAug")
        return folders


def read_lines(file) -> list[str]:
    """Return the lines of a list that are not empty, stripped.

    It is UTF-8, or what its mark says: Windows' editors and shells write UTF-16, too.

    Args:
      file: a path, or what reads like one.

    Raises:
      UserError: naming the list, where it is no such text.
    """
    with reading(file):
        data = file.read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        lines = data.decode(encoding).splitlines()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not in {encoding.removesuffix('-sig').upper()}: {error}"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def repeated(names) -> str | None:
    """Return a name that occurs more than once; None where there is none."""
    return next((name for name, count in collections.Counter(names).items() if count > 1), None)


def locate(name):
    """Return (place, file name) of a file in an archive, or None if nothing here needs it."""
    *parts, file = pathlib.PurePosixPath(name).parts or ("",)
    if "__MACOSX" in parts or file.startswith("._"):
        return None
    for index, part in enumerate(parts):
        tail = parts[index + 1 :]
        if _YEAR.fullmatch(part):
            return ("/".join([part, *tail]), file) if tail and tail[0] in _PARTS else None
        if part == "benchmark_RELEASE" and tail[:1] == ["dataset"]:
            # Its photographs are VOC's, and its instances are not asked for.
            place = "/".join(["SBD", *tail[1:]])
            return (place, file) if place in ("SBD", "SBD/cls") else None
        if part == "SegmentationClassAug":
            return "VOC2012/SegmentationClassAug", file
    return None


def where(*paths) -> str:
    """Return a sentence on where to get the archives of some paths, as 'VOC2012/JPEGImages'."""
    parts = dict.fromkeys(part for path in paths for part in path.split("/"))
    archives = [part for part in parts if part in ADDRESSES]
    if not archives:
        return f"VOC can be had from {_HOME}"
    return "; ".join(f"{part} can be had from {' and '.join(ADDRESSES[part])}" for part in archives)
