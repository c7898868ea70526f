"""Images with ground truth: PASCAL VOC as downloaded, and rendered scenes that need no files.

TFDS is imported when a dataset is opened, and not before.
"""

import importlib

from dag_jax.datasets.classes import CLASS_NAMES, FREQUENT, VOID, VOID_COLOUR, palette
from dag_jax.datasets.selection import ExampleSet, resize

_LAZY = {
    "DATASETS": "opening",
    "open_dataset": "opening",
    "load_examples": "opening",
    "Examples": "examples",
    "PAPER_LISTS": "paper_lists",
    "Scenes": "scenes",
    "scenes_config": "scenes",
    "VocDevkit": "voc",
    "voc_config": "voc",
    "voc_splits": "voc",
}

__all__ = ["CLASS_NAMES", "FREQUENT", "VOID", "VOID_COLOUR", "ExampleSet", "palette", "resize"]
__all__ += sorted(_LAZY)


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
