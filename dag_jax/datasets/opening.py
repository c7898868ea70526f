"""Datasets by name, opened for random access or read as the examples of a run."""

import contextlib
import io
import logging
import pathlib
import re
import sys
from collections.abc import Collection

from dag_jax.datasets import DATASETS
from dag_jax.datasets.coco import open_coco
from dag_jax.datasets.examples import Examples, FileExamples
from dag_jax.datasets.folder import open_plain_folder
from dag_jax.datasets.scenes import Scenes, scenes_config
from dag_jax.datasets.selection import ExampleSet, resize
from dag_jax.datasets.voc import open_voc
from dag_jax.errors import StorageError, UserError, optional_import, writing
from dag_jax.files import PathLike

with optional_import("data"):
    import tensorflow_datasets as tfds

DEFAULT_CACHE = "~/.cache/dag_jax/tfds"
# Datasets that are read from their files each time: how, and what `data_dir` has to be.
_READ = {
    "voc": (open_voc, "a VOCdevkit, or the folder that it or its tar files lie in"),
    "coco": (open_coco, "a folder with annotations/instances_<split>.json and <split>/"),
    "folder": (open_plain_folder, "a folder with images/, masks/ or annotations/, and classes.txt"),
}
_NAMED = 100  # examples that an error lists, at most
_SLICE = re.compile(r"([^\[]*)(?:\[(-?\d{1,9})?:(-?\d{1,9})?\])?")


def open_dataset(
    name: str,
    split: str,
    *,
    data_dir: PathLike | None = None,
    cache_dir: PathLike | None = None,
    progress: bool = False,
) -> Examples | FileExamples:
    """Open a split for random access, preparing scenes on their first use.

    The prepared copy is kept under `cache_dir`; only the split that was asked for is prepared.
    Other datasets are read from their files, example by example: nothing is written. A list of VOC
    that is shorter or longer than the paper's is logged as a warning, with both lengths.

    Args:
      name: 'scenes' (rendered, needs no files), 'voc', 'coco' or 'folder' (see these modules).
      split: a split's name, optionally sliced: 'voc2012_seg_val', 'voc2012_seg_val[:50]'.
        PAPER_LISTS names those of the paper, which scenes and voc have; `voc_splits` lists the
        others of a VOC folder; those of COCO are like 'val2017[:50]', those of a folder are its
        lists and subfolders.
      data_dir: for 'voc', an extracted VOCdevkit, or the folder that holds it, SBD, or their
        archives as downloaded; for 'coco' and 'folder', the folder.
      cache_dir: where prepared copies lie; by default ~/.cache/dag_jax/tfds.
      progress: show TFDS's bar on stderr while a copy is prepared.

    Returns:
      An `Examples`, or a `FileExamples`: len(), [index], iteration, `classes`, `void`.

    Raises:
      ValueError: for an unknown name or split; for a VOC folder that is missing or incomplete, with
        what is missing and where to get it; and as `open_coco` and `open_plain_folder` say. An
        example that cannot be read raises one when it is asked for, which names its file.
    """
    if name in _READ:
        return _read(name, split, data_dir)
    base = split.split("[")[0]
    cache = pathlib.Path(cache_dir or DEFAULT_CACHE).expanduser().resolve()
    if name != "scenes":
        raise UserError(f"unknown dataset {name!r}; the known ones are {', '.join(DATASETS)}")
    if data_dir is not None:
        raise UserError(f"scenes are rendered, they are not read from data_dir {data_dir}")
    config = scenes_config(base)

    with _quiet(progress):
        builder = Scenes(data_dir=cache, config=config)
        if not builder.data_path.exists():
            _prepare(builder)
            builder = Scenes(data_dir=cache, config=config)
    return Examples(builder, split)


def _read(name, split, data_dir):
    open_files, layout = _READ[name]
    if data_dir is None:
        raise UserError(f"{name} needs data_dir: {layout}")
    parts = _SLICE.fullmatch(split)
    if parts is None:
        raise UserError(f"split {split!r} of {name} is neither a name nor name[first:last]")
    base, first, last = parts.groups()
    examples = open_files(data_dir, base)[int(first or 0) : int(last) if last else None]
    if not len(examples):
        raise UserError(f"{split!r} is no part of {base} that holds an example, as {base}[:50] is")
    return examples


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
    skip_bad: bool = False,
) -> ExampleSet:
    """Read examples of a split.

    On a terminal a bar shows how far it is where scenes have to be prepared first.

    Args:
      dataset: one of DATASETS.
      split: name of a split.
      data_dir: as of `open_dataset`.
      cache_dir: where prepared datasets lie.
      limit: the most examples to read; None for all.
      canvas: pixels of the square to scale to; None leaves images as they are.
      image_ids: names of the images to use; None for all.
      with_mask: whether to leave out examples that nobody segmented.
      skip_bad: whether to leave out examples that cannot be read, and take the next ones.

    Returns:
      `ExampleSet`, in the order of the split; `skipped` says which files cannot be used and why,
      by their paths in data_dir.

    Raises:
      ValueError: for what `open_dataset` names, for an image that the split has not, where nothing
        is left, and, all of them at once, for examples that cannot be read.
      StorageError: where a disk fails.
    """
    examples: list[dict] = []
    bad: list[str] = []
    seen: set[str] = set()
    bar = sys.stderr.isatty()  # elsewhere, such as in a notebook, each update would be a line
    source = open_dataset(dataset, split, data_dir=data_dir, cache_dir=cache_dir, progress=bar)
    file_ids = source.ids if isinstance(source, FileExamples) else None
    for index in range(len(source)):
        if limit is not None and len(examples) + len(bad) * (not skip_bad) >= limit:
            break
        if file_ids and image_ids is not None and file_ids[index] not in image_ids:
            continue
        try:
            example = source[index]
        except StorageError:
            raise
        except UserError as error:
            bad.append(str(error))
            seen |= {file_ids[index]} if file_ids else set()
            continue
        if image_ids is not None and example["image_id"] not in image_ids:
            continue
        seen.add(example["image_id"])
        if example["has_mask"] or not with_mask:
            examples.append(resize(example, canvas) if canvas else example)
    if bad and not skip_bad:
        lines = bad[:_NAMED] + [f"and {len(bad) - _NAMED:,} more"] * (len(bad) > _NAMED)
        raise UserError(
            f"{len(bad):,} images of {dataset} {split} cannot be used; --skip_bad "
            "(skip_bad=True) goes on without them:\n  " + "\n  ".join(lines)
        )
    missing = sorted(set(image_ids or ()) - seen)
    if missing and (limit is None or len(examples) < limit):
        raise UserError(f"{dataset} {split} has no image {', '.join(missing)}")
    if not examples:
        reason = f": {len(bad):,} cannot be used, the first: {bad[0]}" if bad else ""
        raise UserError(f"{dataset} {split} has no example to use{reason}")
    folder = f"{pathlib.Path(data_dir or '.').expanduser().resolve()}/"
    skipped = [text.removeprefix(folder) for text in bad]
    return ExampleSet(examples, source.classes, void=source.void, skipped=skipped)
