"""Images with ground truth: PASCAL VOC, COCO, plain folders, scenes that need no files.

TFDS is imported when a dataset is opened, and not before.
"""

import importlib

from dag_jax.datasets.classes import (
    CITYSCAPES_NAMES,
    CLASS_NAMES,
    COCO_NAMES,
    FREQUENT,
    VOID,
    VOID_COLOUR,
    palette,
)
from dag_jax.datasets.selection import ExampleSet, resize

DATASETS = ("scenes", "voc", "coco", "folder")  # by their names
_LAZY = {
    "open_dataset": "opening",
    "load_examples": "opening",
    "Examples": "examples",
    "FileExamples": "examples",
    "open_coco": "coco",
    "open_plain_folder": "folder",
    "PAPER_LISTS": "paper_lists",
    "Scenes": "scenes",
    "scenes_config": "scenes",
    "VocDevkit": "voc",
    "voc_config": "voc",
    "voc_splits": "voc",
}

__all__ = ["CITYSCAPES_NAMES", "CLASS_NAMES", "COCO_NAMES", "DATASETS", "FREQUENT", "VOID"]
__all__ += ["VOID_COLOUR", "ExampleSet", "palette", "resize", *sorted(_LAZY)]


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
