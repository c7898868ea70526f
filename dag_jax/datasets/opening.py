"""Datasets by name, opened for random access or read as the examples of a run."""

import contextlib
import io
import logging
import pathlib
import re
import sys
from collections.abc import Collection

import tensorflow_datasets as tfds

from dag_jax.datasets import DATASETS
from dag_jax.datasets.coco import open_coco
from dag_jax.datasets.examples import Examples, FileExamples
from dag_jax.datasets.folder import open_plain_folder
from dag_jax.datasets.scenes import Scenes, scenes_config
from dag_jax.datasets.selection import ExampleSet, resize
from dag_jax.datasets.voc import VocDevkit, voc_config
from dag_jax.errors import UserError, writing
from dag_jax.files import PathLike

DEFAULT_CACHE = "~/.cache/dag_jax/tfds"
# What is read from its files whenever it is asked for, and what `data_dir` then is.
_READ = {
    "coco": (open_coco, "a folder with annotations/instances_<split>.json and <split>/"),
    "folder": (open_plain_folder, "a folder with images/, masks/ or annotations/, and classes.txt"),
}
_SLICE = re.compile(r"([^\[]*)(?:\[(\d{0,9}):(\d{0,9})\])?")


def open_dataset(
    name: str,
    split: str,
    *,
    data_dir: PathLike | None = None,
    cache_dir: PathLike | None = None,
    progress: bool = False,
) -> Examples | FileExamples:
    """Open a split for random access, preparing scenes and voc on their first use.

    The prepared copy is kept under `cache_dir`; nothing is written to `data_dir`. Only the split
    that was asked for is prepared. A VOC folder must stay where it is: it is looked at each time,
    and a changed one is prepared anew. Of a list that is shorter or longer than the paper's, both
    numbers are logged as a warning.

    Args:
      name: 'scenes' (rendered, needs no files), 'voc', 'coco' or 'folder' (see these modules).
      split: a split's name, optionally sliced: 'voc2012_seg_val', 'voc2012_seg_val[:50]'.
        PAPER_LISTS names those of the paper, which both datasets have; `voc_splits` lists the
        others of a VOC folder; those of COCO are like 'val2017[:50]', those of a folder are its
        lists and subfolders.
      data_dir: for 'voc', an extracted VOCdevkit, or the folder that holds it, SBD, or their
        archives as downloaded; for 'coco' and 'folder', the folder.
      cache_dir: where prepared copies lie; by default ~/.cache/dag_jax/tfds.
      progress: show TFDS's bar on stderr while a copy is prepared.

    Returns:
      An `Examples`, or a `FileExamples`: len(), [index], iteration, `classes`, `void`.

    Raises:
      ValueError: for an unknown name or split, and for a VOC folder that is missing or incomplete:
        with what is missing and where it can be had, before anything is written. For what
        `open_coco` and `open_plain_folder` name.
    """
    if name in _READ:
        return _read(name, split, data_dir)
    base = split.split("[")[0]
    cache = pathlib.Path(cache_dir or DEFAULT_CACHE).expanduser().resolve()
    if name == "scenes":
        if data_dir is not None:
            raise UserError(f"scenes are rendered, they are not read from data_dir {data_dir}")
        builder_class, config = Scenes, scenes_config(base)
    elif name == "voc":
        if data_dir is None:
            raise UserError(
                "voc needs data_dir: a VOCdevkit, or the folder that it or its tar files lie in"
            )
        builder_class, config = VocDevkit, voc_config(data_dir, splits=[base])
    else:
        raise UserError(f"unknown dataset {name!r}; the known ones are {', '.join(DATASETS)}")

    with _quiet(progress):
        builder = builder_class(data_dir=cache, config=config)
        if not builder.data_path.exists():
            _prepare(builder)
            builder = builder_class(data_dir=cache, config=config)
    if base not in builder.info.splits:
        known = ", ".join(sorted(builder.info.splits))
        raise UserError(f"{name} has no split {base}; it has {known}")
    return Examples(builder, split)


def _read(name, split, data_dir):
    open_files, layout = _READ[name]
    if data_dir is None:
        raise UserError(f"{name} needs data_dir: {layout}")
    parts = _SLICE.fullmatch(split)
    if parts is None:
        raise UserError(f"split {split!r} of {name} is neither a name nor name[first:last]")
    base, first, last = parts.groups()
    examples = open_files(data_dir, base)
    return examples[int(first or 0) : int(last) if last else None]


def _prepare(builder):
    try:
        builder.download_and_prepare(
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
    except OSError:
        # Another process may have finished the same copy first: then it is there, whole.
        if not builder.data_path.exists():
            with writing(builder.data_path):
                raise


@contextlib.contextmanager
def _quiet(progress):
    """Keep TFDS from printing, but for its bars where asked: the terminal is the caller's."""
    logger = logging.getLogger("absl")  # TFDS writes to it
    level = logger.level
    logger.setLevel(logging.ERROR)
    nowhere = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(sys.stderr if progress else nowhere),
        ):
            yield
    finally:
        logger.setLevel(level)


def load_examples(
    dataset: str,
    split: str,
    *,
    data_dir: PathLike | None = None,
    cache_dir: PathLike | None = None,
    limit: int | None = None,
    canvas: int | None = None,
    image_ids: Collection[str] | None = None,
    with_mask: bool = False,
) -> ExampleSet:
    """Read examples of a split.

    Args:
      dataset: one of DATASETS.
      split: name of a split.
      data_dir: as of `open_dataset`.
      cache_dir: where prepared datasets lie.
      limit: the most examples to read; None for all.
      canvas: pixels of the square to scale to; None leaves images as they are.
      image_ids: names of the images to use; None for all.
      with_mask: whether to leave out examples that nobody segmented.

    Returns:
      `ExampleSet`, in the order of the split.

    Raises:
      ValueError: for what `open_dataset` names, for an image that the split has not, and where
        nothing is left.
    """
    examples: list[dict] = []
    seen: set[str] = set()
    source = open_dataset(dataset, split, data_dir=data_dir, cache_dir=cache_dir, progress=True)
    for example in source:
        if limit is not None and len(examples) >= limit:
            break
        if image_ids is not None and example["image_id"] not in image_ids:
            continue
        seen.add(example["image_id"])
        if example["has_mask"] or not with_mask:
            examples.append(resize(example, canvas) if canvas else example)
    missing = sorted(set(image_ids or ()) - seen)
    if missing and (limit is None or len(examples) < limit):
        raise UserError(f"{dataset} {split} has no image {', '.join(missing)}")
    if not examples:
        raise UserError(f"{dataset} {split} has no example to use")
    return ExampleSet(examples, source.classes, void=source.void)
