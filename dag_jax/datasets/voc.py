"""PASCAL VOC with boxes and masks, from extracted kits, from their tar files, or from both.

    VOC2012/ImageSets/Segmentation/val.txt    image ids, one a line  -> voc2012_seg_val
    VOC2012/ImageSets/Main/trainval.txt                              -> voc2012_main_trainval
    VOC2012/JPEGImages/<id>.jpg
    VOC2012/Annotations/<id>.xml              boxes, 1-based: 1 is subtracted here
    VOC2012/SegmentationClass/<id>.png        masks of the kit
    VOC2012/SegmentationClassAug/<id>.png     masks of the kit and of SBD
    SBD/cls/<id>.mat                          masks of SBD (benchmark_RELEASE/dataset/cls)

`devkit` has where each of them may lie, `paper_lists` the splits that the paper names.

TFDS's own `voc` has no masks and needs TensorFlow; this one needs neither network nor TensorFlow.

Reference: Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, IJCV 2010;
  Hariharan et al., Semantic Contours from Inverse Detectors (SBD), ICCV 2011.
"""

import collections
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable

import numpy as np

from dag_jax.datasets import examples, paper_lists
from dag_jax.datasets.annotations import read_mask, read_objects
from dag_jax.datasets.archives import Member
from dag_jax.datasets.classes import CLASS_NAMES, VOID
from dag_jax.datasets.devkit import LAYOUT, Devkit, where
from dag_jax.datasets.photographs import read_stored
from dag_jax.errors import UserError, optional_import
from dag_jax.files import PathLike

with optional_import("data"):
    import tensorflow_datasets as tfds

# 'train' is a class, too: train_val.txt is the validation list of trains, train_aug.txt is not one.
_OF_ONE_CLASS = re.compile(rf"({'|'.join(CLASS_NAMES[1:])})_(train|val|trainval|test)")
_SET_NAMES = {"Segmentation": "seg", "Main": "main"}
_NAMED = 3  # missing files that an error names


@dataclasses.dataclass(eq=False)
class VocConfig(tfds.core.BuilderConfig):
    """Which files `VocDevkit` reads; made by `voc_config`.

    files: split -> list of (image id, JPEG, XML, mask or None), each a path or a file in an
      archive.
    """

    files: dict = dataclasses.field(default_factory=dict, repr=False)


class VocDevkit(examples.ExampleBuilder):
    """Photographs of PASCAL VOC, masks and boxes: `VocDevkit(config=voc_config(folder))`."""

    VERSION = tfds.core.Version("1.0.0")

    def _split_generators(self, dl_manager):
        return {
            split: self._generate_examples(files)
            for split, files in self.builder_config.files.items()
        }

    def _generate_examples(self, files):
        for number, (image_id, *row) in enumerate(files):
            example = _read(row)
            image, mask = row[0].read_bytes(), example["mask"][:, :, 0]
            has_mask = example["has_mask"]
            yield (
                number,
                examples.encode(image_id, image, mask, example["objects"], has_mask=has_mask),
            )


def open_voc(folder: PathLike, split: str) -> examples.FileExamples:
    """Open a split of a VOC folder: nothing is written, files are read when asked for.

    Args:
      folder: as of `voc_config`.
      split: a name from `voc_splits` or of `paper_lists.PAPER_LISTS`.

    Raises:
      UserError: as `voc_config`. What is in a file is looked into when it is read.
    """
    rows = _rows(folder, [split], "voc")[split]
    ids = [row[0] for row in rows]
    return examples.FileExamples(ids, [row[1:] for row in rows], _read, CLASS_NAMES, VOID)


def _read(row):
    """Return an example, without its id, of (JPEG, XML, mask or None)."""
    image_file, xml_file, mask_file = row
    image = read_stored(image_file)
    mask = np.full(image.shape[:2], VOID, np.uint8)
    if mask_file is not None:
        mask = read_mask(mask_file, mask.shape)
    return {
        "image": image,
        "mask": mask[:, :, None],
        "has_mask": mask_file is not None,
        "objects": read_objects(xml_file, shape=mask.shape),
    }


def voc_config(
    folder: PathLike, *, splits: Iterable[str] | None = None, masks: str = "voc"
) -> VocConfig:
    """Find the files of some splits and name the configuration after them.

    The name is a fingerprint of the folder's path and of each file's size and time, so that the
    prepared copies of two folders, or of one before and after a change, lie apart. A file in an
    archive has the size and time of the archive.

    An image without a mask gets a void one. Images of ImageSets/Segmentation must have theirs.
    A list whose name ends in _aug is the augmented one (VOC2012 train and SBD: 10,582 images for
    FCN*) and takes SegmentationClassAug, whatever `masks` says.

    Args:
      folder: a VOCdevkit, or the folder that holds it or the archives; see `devkit`.
      splits: names from `voc_splits` and of `paper_lists.PAPER_LISTS`; None for all of
        `voc_splits`.
      masks: 'voc', the kit's own masks; 'aug', SBD's too where the kit has none. The lists of the
        paper take SBD's where they are made of SBD.

    Returns:
      A `VocConfig`.

    Raises:
      ValueError: for a folder without VOC in it, an archive that is cut short, an unknown split,
        or lists and files that are missing, with where to get them. Nothing has been written then.
    """
    if masks not in ("voc", "aug"):
        raise UserError(f"masks must be 'voc' or 'aug', got {masks!r}")
    files = _rows(folder, splits, masks)
    stamps = [
        [file and _stamp(file) for file in row[1:]] for rows in files.values() for row in rows
    ]
    identity = json.dumps([masks, [[s, [r[0] for r in rows]] for s, rows in files.items()], stamps])
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]
    label = next(iter(files)) if len(files) == 1 else "several"
    return VocConfig(name=f"{label}-{masks}-{fingerprint}", version=VocDevkit.VERSION, files=files)


def _rows(folder, splits, masks):
    """Return split -> list of (image id, JPEG, XML, mask or None)."""
    kit = Devkit(folder)
    lists = _lists(kit)
    names = sorted(lists) if splits is None else list(splits)
    unknown = [name for name in names if name not in lists and name not in paper_lists.PAPER_LISTS]
    if unknown:
        raise UserError(
            f"{folder} has no split {', '.join(unknown)}; it has {', '.join(sorted(lists))}; the "
            f"lists of the paper are {', '.join(paper_lists.PAPER_LISTS)}"
        )
    return {
        name: _files(kit, _of_list(kit, lists[name], masks))
        if name in lists
        else _files(kit, paper_lists.derive(kit, name))
        for name in names
    }


def voc_splits(folder: PathLike) -> dict[str, str]:
    """Return split name -> image list for the lists of a VOC folder.

    VOC2012/ImageSets/Segmentation/val.txt is 'voc2012_seg_val', VOC2007/ImageSets/Main/test.txt is
    'voc2007_main_test'. Lists of a single class (dog_train.txt) are left out.

    Raises:
      ValueError: if the folder is missing, holds no VOC year, or no image list.
    """
    return _lists(Devkit(folder))


def _lists(kit):
    """Return split name -> path of its list, as `Devkit.image_ids` takes it."""
    lists = {}
    for year in kit.years:
        for set_folder, set_name in _SET_NAMES.items():
            place = f"{year}/ImageSets/{set_folder}"
            for name in sorted(kit.files(place)):
                stem = name.removesuffix(".txt")
                if stem != name and not _OF_ONE_CLASS.fullmatch(stem):
                    stem = re.sub(r"\W", "_", stem)
                    lists[f"{year.lower()}_{set_name}_{stem}"] = f"{place}/{name}"
    if not lists:
        raise UserError(
            f"{kit.folder} has no image list: expected for example "
            f"{kit.years[-1]}/ImageSets/Segmentation/val.txt; {LAYOUT}; {where(*kit.years)}"
        )
    return lists


def _of_list(kit, path, masks):
    """Return the `ImageList` of a list that a kit holds."""
    year, _, set_folder, name = path.split("/")
    places = [f"{year}/SegmentationClass"]
    if name.endswith("_aug.txt"):
        places = [f"{year}/SegmentationClassAug", *places, "SBD/cls"]
    elif masks == "aug":
        places += [f"{year}/SegmentationClassAug", "SBD/cls"]
    needs_masks = set_folder == "Segmentation"
    return paper_lists.ImageList(kit.image_ids(path), path, (year,), tuple(places), needs_masks)


def _files(kit, images):
    """Return (image id, JPEG, XML, mask or None) for each image of a list."""
    if not images.ids:
        raise UserError(f"{kit.folder}: {images.origin} lists no image")
    rows, missing = [], []
    for image_id in images.ids:
        row = [image_id]
        for needed, paths in (
            (True, [f"{year}/JPEGImages/{image_id}.jpg" for year in images.years]),
            (True, [f"{year}/Annotations/{image_id}.xml" for year in images.years]),
            (images.needs_masks, [_mask_path(place, image_id) for place in images.masks]),
        ):
            row.append(kit.find(*paths))
            if needed and row[-1] is None:
                missing.append(paths)
        rows.append(tuple(row))
    if missing:
        names = [paths[0].partition("/")[2] for paths in missing]
        shown_names = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        counts = collections.Counter(name.partition("/")[0] for name in names)
        counts = ", ".join(f"{count:,} of {folder}" for folder, count in counts.items())
        places = {path.rpartition("/")[0]: None for paths in missing for path in paths}
        raise UserError(
            f"{kit.folder} is incomplete: {images.origin} lists {len(rows):,} images, and "
            f"{len(missing):,} of their files are missing: {shown_names} ({counts}); {LAYOUT}; "
            f"{where(*places)}"
        )
    return rows


def _mask_path(place, image_id):
    return f"{place}/{image_id}.{'mat' if place == 'SBD/cls' else 'png'}"


def _stamp(file):
    """Return a value that differs once the file has changed."""
    if isinstance(file, Member):
        stamp, size = (str(file), file.stamp), file.size
    else:
        status = file.stat()
        stamp, size = (str(file), (status.st_size, status.st_mtime_ns)), status.st_size
    if size == 0:
        raise UserError(f"{file} is empty: VOC was not extracted to the end")
    return stamp
