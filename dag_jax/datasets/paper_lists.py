"""The image lists of the paper, derived from the image sets that are there.

    seg11valid      736     VOC2011's segmentation val less SBD's train
    fcn_train       9,610   VOC2011's segmentation train and SBD's train: 1,112 + 8,498. That sum
                            counts the images on both lists twice; here each is one example, which
                            leaves less than 9,000.
    fcn_star_train  10,582  VOC2012's segmentation train and all of SBD, less VOC2012's val
    voc07_trainval  5,011   voc07_test  4,952   voc12_trainval  11,540

The names are those that rendered scenes use. Counts are of the whole sets: part of VOC gives part
of a list, and the difference is said.

Reference: Long et al., Fully Convolutional Networks for Semantic Segmentation, CVPR 2015, footnote
  7, and its published list seg11valid.txt; Chen et al., DeepLab, TPAMI 2018, whose train_aug.txt
  is fcn_star_train.
"""

import dataclasses
import logging
from collections.abc import Callable

from dag_jax.datasets.devkit import where
from dag_jax.errors import UserError

_SEG11 = "VOC2011/ImageSets/Segmentation"
_SEG12 = "VOC2012/ImageSets/Segmentation"


@dataclasses.dataclass(frozen=True)
class ImageList:
    """Names of images, and where their files are looked for.

    ids: names, in order.
    origin: where the names are from, in words.
    years: kits to look for photographs and boxes in; the first that has a file gives it.
    masks: places to look for masks in, likewise.
    needs_masks: whether an image without a mask is an error.
    """

    ids: tuple
    origin: str
    years: tuple
    masks: tuple
    needs_masks: bool


@dataclasses.dataclass(frozen=True)
class _PaperList:
    """How to come by one list.

    count: images of the whole list.
    published: files that hold it; the first that is there gives it.
    sources, combine: else, files whose sets of names make it, and how.
    note: what to add where the count differs.
    """

    count: int
    years: tuple
    published: tuple = ()
    sources: tuple = ()
    combine: Callable | None = None
    needs_masks: bool = False
    note: str = ""


PAPER_LISTS = {
    "seg11valid": _PaperList(
        count=736,
        years=("VOC2011", "VOC2012"),
        published=(
            "seg11valid.txt",
            f"{_SEG11}/seg11valid.txt",
            f"{_SEG12}/seg11valid.txt",
        ),
        sources=(f"{_SEG11}/val.txt", "SBD/train.txt"),
        combine=lambda val, sbd_train: val - sbd_train,
        needs_masks=True,
    ),
    "fcn_train": _PaperList(
        count=9610,
        years=("VOC2011", "VOC2012"),
        sources=(f"{_SEG11}/train.txt", "SBD/train.txt"),
        combine=lambda train, sbd_train: train | sbd_train,
        needs_masks=True,
        note=", which is 1,112 + 8,498 and counts images on both lists twice",
    ),
    "fcn_star_train": _PaperList(
        count=10582,
        years=("VOC2012",),
        published=(f"{_SEG12}/train_aug.txt", f"{_SEG12}/trainaug.txt"),
        sources=(f"{_SEG12}/train.txt", f"{_SEG12}/val.txt", "SBD/train.txt", "SBD/val.txt"),
        combine=lambda train, val, sbd_train, sbd_val: (train | sbd_train | sbd_val) - val,
        needs_masks=True,
    ),
    "voc07_trainval": _PaperList(
        count=5011, years=("VOC2007",), published=("VOC2007/ImageSets/Main/trainval.txt",)
    ),
    "voc07_test": _PaperList(
        count=4952, years=("VOC2007",), published=("VOC2007/ImageSets/Main/test.txt",)
    ),
    "voc12_trainval": _PaperList(
        count=11540, years=("VOC2012",), published=("VOC2012/ImageSets/Main/trainval.txt",)
    ),
}


def derive(kit, name) -> ImageList:
    """Return a list of the paper, from what a kit holds.

    A published list comes before a derived one; a derived one is sorted by name. A mask is the
    kit's where it has one, else SBD's: that is how SegmentationClassAug was made, which stands in
    for SBD where that is not there.

    Warns, with both numbers, where the list is not as long as the paper's.

    Args:
      kit: a `Devkit`.
      name: of PAPER_LISTS.

    Raises:
      ValueError: naming each image set that is missing, and where it can be had.
    """
    paper = PAPER_LISTS[name]
    lists = {file: ids for file in paper.published if (ids := kit.image_ids(file)) is not None}
    if lists:
        lists = dict([next(iter(lists.items()))])
        (ids,) = lists.values()
    else:
        lists = {file: kit.image_ids(file) for file in paper.sources}
        missing = [file for file, ids in lists.items() if ids is None]
        if missing or paper.combine is None:
            raise UserError(_lacks(kit, name, missing))
        ids = tuple(sorted(paper.combine(*map(set, lists.values()))))
    made_of = " and ".join(f"{file} ({len(ids_of):,})" for file, ids_of in lists.items())
    if len(ids) != paper.count:
        logging.getLogger(__name__).warning(
            "%s holds %s images here, made of %s; the paper's list has %s%s",
            *(name, f"{len(ids):,}", made_of, f"{paper.count:,}", paper.note),
        )
    masks = [f"{year}/SegmentationClass" for year in paper.years]
    if paper.needs_masks:
        masks += ["SBD/cls", "VOC2012/SegmentationClassAug"]
    return ImageList(
        ids, f"{name}, made of {made_of},", paper.years, tuple(masks), paper.needs_masks
    )


def _lacks(kit, name, missing):
    published = PAPER_LISTS[name].published[:1]
    sources = " or ".join(filter(None, [*published, " and ".join(missing)]))
    # Only seg11valid.txt is on its own somewhere; the other published lists are in a kit.
    alone = [file for file in published if "/" not in file or not missing]
    return f"{kit.folder} lacks {sources}, which {name} is made of; {where(*alone, *missing)}"
