"""PASCAL VOC with boxes and masks, from an extracted VOCdevkit in its original layout.

    VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt    image ids, one a line  -> voc2012_seg_val
    VOCdevkit/VOC2012/ImageSets/Main/trainval.txt                         -> voc2012_main_trainval
    VOCdevkit/VOC2012/JPEGImages/<id>.jpg
    VOCdevkit/VOC2012/Annotations/<id>.xml              boxes, 1-based: 1 is subtracted here
    VOCdevkit/VOC2012/SegmentationClass/<id>.png        masks of the kit
    VOCdevkit/VOC2012/SegmentationClassAug/<id>.png     masks of the kit and of SBD

TFDS's own `voc` has no masks and needs TensorFlow; this one needs neither network nor TensorFlow.

Reference: Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, IJCV 2010;
  Hariharan et al., Semantic Contours from Inverse Detectors (SBD), ICCV 2011.
"""

import dataclasses
import hashlib
import io
import json
import pathlib
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from dag_jax.datasets import examples
from dag_jax.datasets.classes import CLASS_NAMES
from dag_jax.metrics.segmentation import VOID

_LAYOUT = (
    "the original layout is VOCdevkit/VOC2012/{ImageSets,JPEGImages,Annotations,SegmentationClass}"
)
# 'train' is a class, too: train_val.txt is the validation list of trains, train_aug.txt is not one.
_OF_ONE_CLASS = re.compile(rf"({'|'.join(CLASS_NAMES[1:])})_(train|val|trainval|test)")
_SET_NAMES = {"Segmentation": "seg", "Main": "main"}


@dataclasses.dataclass(eq=False)
class VocConfig(tfds.core.BuilderConfig):
    """Which files `VocDevkit` reads; made by `voc_config`.

    files: split -> list of (image id, JPEG path, XML path, mask path or None).
    """

    files: dict = dataclasses.field(default_factory=dict)


class VocDevkit(examples.ExampleBuilder):
    """Photographs of PASCAL VOC, masks and boxes: `VocDevkit(config=voc_config(folder))`."""

    VERSION = tfds.core.Version("1.0.0")

    def _split_generators(self, dl_manager):
        return {
            split: self._generate_examples(files)
            for split, files in self.builder_config.files.items()
        }

    def _generate_examples(self, files):
        for number, (image_id, image_path, xml_path, mask_path) in enumerate(files):
            image = image_path.read_bytes()
            width, height = _open_image(image, image_path).size
            mask = np.full((height, width), VOID, np.uint8)
            if mask_path is not None:
                mask = _read_mask(mask_path, mask.shape)
            objects = read_objects(xml_path)
            yield (
                number,
                examples.encode(image_id, image, mask, objects, has_mask=mask_path is not None),
            )


def voc_config(folder, *, splits=None, masks="voc"):
    """Find the files of some splits and name the configuration after them.

    The name is a fingerprint of the folder's path and of each file's size and time, so that the
    prepared copies of two folders, or of one before and after a change, lie apart.

    An image without a mask gets a void one. Images of ImageSets/Segmentation must have theirs.
    A list whose name ends in _aug is the augmented one (VOC2012 train and SBD: 10,582 images for
    FCN*) and takes SegmentationClassAug, whatever `masks` says.

    Args:
      folder: a VOCdevkit, or the folder that holds it.
      splits: names from `voc_splits`; None for all of them.
      masks: 'voc', the kit's own masks; 'aug', SBD's too where the kit has none.

    Returns:
      A `VocConfig`.

    Raises:
      ValueError: for a folder without VOC in it, an unknown split, or files that a list names and
        the folder lacks. Nothing has been written then.
    """
    if masks not in ("voc", "aug"):
        raise ValueError(f"masks must be 'voc' or 'aug', got {masks!r}")
    lists = voc_splits(folder)
    unknown = [split for split in splits or () if split not in lists]
    if unknown:
        raise ValueError(
            f"{folder} has no split {', '.join(unknown)}; it has {', '.join(sorted(lists))}"
        )
    files = {
        split: _files_of_list(lists[split], masks)
        for split in (sorted(lists) if splits is None else splits)
    }
    paths = [path for rows in files.values() for row in rows for path in row[1:]]
    stats = [path and (str(path.resolve()), *_size_and_time(path)) for path in paths]
    identity = json.dumps([masks, [[s, [r[0] for r in rows]] for s, rows in files.items()], stats])
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]
    label = next(iter(files)) if len(files) == 1 else "several"
    return VocConfig(name=f"{label}-{masks}-{fingerprint}", version=VocDevkit.VERSION, files=files)


def voc_splits(folder):
    """Return split name -> image list for the lists of a VOC folder.

    VOC2012/ImageSets/Segmentation/val.txt is 'voc2012_seg_val', VOC2007/ImageSets/Main/test.txt is
    'voc2007_main_test'. Lists of a single class (dog_train.txt) are left out.

    Raises:
      ValueError: if the folder is missing, holds no VOC year, or no image list.
    """
    folder = pathlib.Path(folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"VOC folder {folder} does not exist; {_LAYOUT}")
    root = folder / "VOCdevkit" if (folder / "VOCdevkit").is_dir() else folder
    years = sorted(path for path in root.glob("VOC2[0-9][0-9][0-9]") if path.is_dir())
    if not years:
        raise ValueError(f"{folder} holds neither VOCdevkit nor a year such as VOC2012; {_LAYOUT}")
    lists = {}
    for year in years:
        for set_folder, set_name in _SET_NAMES.items():
            for path in sorted((year / "ImageSets" / set_folder).glob("*.txt")):
                if not _OF_ONE_CLASS.fullmatch(path.stem):
                    stem = re.sub(r"\W", "_", path.stem)
                    lists[f"{year.name.lower()}_{set_name}_{stem}"] = path
    if not lists:
        raise ValueError(
            f"{root} has no image list: expected for example "
            f"{years[-1].name}/ImageSets/Segmentation/val.txt; {_LAYOUT}"
        )
    return lists


def read_objects(path):
    """Read the objects of one VOC annotation.

    Args:
      path: the XML file. Its boxes are 1-based, as VOC has them.

    Returns:
      dict of boxes float32 [N, 4] (0-based inclusive pixels), label int32 [N], difficult bool [N].

    Raises:
      ValueError: for XML that does not parse, lacks a field or names an unknown class.
    """
    boxes, labels, difficult = [], [], []
    try:
        for item in ElementTree.parse(path).getroot().iterfind("object"):
            name = item.findtext("name").strip()
            if name not in CLASS_NAMES[1:]:
                raise ValueError(f"unknown class {name!r}")
            labels.append(CLASS_NAMES.index(name))
            corners = item.find("bndbox")
            boxes.append(
                [float(corners.findtext(side)) - 1 for side in ("xmin", "ymin", "xmax", "ymax")]
            )
            difficult.append(int(item.findtext("difficult", "0")) == 1)
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a whole VOC annotation: {error}") from error
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "label": np.array(labels, np.int32),
        "difficult": np.array(difficult, np.bool_),
    }


def _files_of_list(path, masks):
    """Return (image id, JPEG, XML, mask or None) for each line of an image list."""
    year, of_masks = path.parents[2], path.parent.name == "Segmentation"
    mask_folders = ["SegmentationClass"] + ["SegmentationClassAug"] * (masks == "aug")
    if path.stem.endswith("_aug"):
        mask_folders = ["SegmentationClassAug", "SegmentationClass"]
    ids = path.read_text().split()
    if not ids:
        raise ValueError(f"{path} lists no image")
    # One listing of each folder instead of several look-ups per image.
    present = {
        name: {entry.name for entry in (year / name).iterdir()} if (year / name).is_dir() else ()
        for name in ("JPEGImages", "Annotations", *mask_folders)
    }
    files, missing = [], []
    for image_id in ids:
        mask_name = f"{image_id}.png"
        mask_folder = next((name for name in mask_folders if mask_name in present[name]), None)
        needed = [("JPEGImages", f"{image_id}.jpg"), ("Annotations", f"{image_id}.xml")]
        if mask_folder or of_masks:
            needed.append((mask_folder or mask_folders[0], mask_name))
        missing += [f"{folder}/{name}" for folder, name in needed if name not in present[folder]]
        paths = [year / folder / name for folder, name in needed]
        files.append((image_id, *paths, *[None] * (3 - len(paths))))
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ValueError(
            f"{year} is incomplete: ImageSets/{path.parent.name}/{path.name} lists {len(ids)} "
            f"images, and {len(missing)} of their files are missing: {some}; {_LAYOUT}"
        )
    return files


def _size_and_time(path):
    status = path.stat()
    if status.st_size == 0:
        raise ValueError(f"{path} is empty: the VOC folder was not extracted to the end")
    return status.st_size, status.st_mtime_ns


def _open_image(data, path):
    """Return a wholly decoded Pillow image."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is not a whole image file: {error}") from error
    return image


def _read_mask(path, shape):
    image = _open_image(path.read_bytes(), path)
    if image.mode not in ("P", "L"):
        raise ValueError(f"{path} has mode {image.mode}; a VOC mask is a palette or grey PNG")
    mask = np.array(image)
    if mask.shape != shape:
        raise ValueError(f"{path} is {mask.shape}, its image is {shape} (height, width)")
    strange = np.setdiff1d(mask, [*range(len(CLASS_NAMES)), VOID])
    if strange.size:
        raise ValueError(f"{path} holds {strange.tolist()}, which are neither classes nor void")
    return mask
