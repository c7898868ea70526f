"""Datasets by name, opened for random access or read as the examples of a run."""

import contextlib
import io
import logging
import pathlib
import sys
from collections.abc import Collection

import tensorflow_datasets as tfds

from dag_jax.datasets.classes import CLASS_NAMES, VOID
from dag_jax.datasets.examples import Examples
from dag_jax.datasets.scenes import Scenes, scenes_config
from dag_jax.datasets.selection import ExampleSet, resize
from dag_jax.datasets.voc import VocDevkit, voc_config
from dag_jax.errors import UserError
from dag_jax.files import PathLike

DATASETS = ("scenes", "voc")
DEFAULT_CACHE = "~/.cache/dag_jax/tfds"


def open_dataset(
    name: str,
    split: str,
    *,
    data_dir: PathLike | None = None,
    cache_dir: PathLike | None = None,
    progress: bool = False,
) -> Examples:
    """Open a split for random access, preparing it on its first use.

    The prepared copy is kept under `cache_dir`; nothing is written to `data_dir`. Only the split
    that was asked for is prepared. A VOC folder must stay where it is: it is looked at each time,
    and a changed one is prepared anew. Of a list that is shorter or longer than the paper's, both
    numbers are logged as a warning.

    Args:
      name: 'scenes' (rendered, needs no files) or 'voc'.
      split: a split's name, optionally sliced: 'voc2012_seg_val', 'voc2012_seg_val[:50]'.
        PAPER_LISTS names those of the paper, which both datasets have; `voc_splits` lists the
        others of a VOC folder.
      data_dir: for 'voc', an extracted VOCdevkit, or the folder that holds it, SBD, or their
        archives as downloaded.
      cache_dir: where prepared copies lie; by default ~/.cache/dag_jax/tfds.
      progress: show TFDS's bar on stderr while a copy is prepared.

    Returns:
      An `Examples`: len(), [index], iteration.

    Raises:
      ValueError: for an unknown name or split, and for a VOC folder that is missing or incomplete:
        with what is missing and where it can be had, before anything is written.
    """
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


def _prepare(builder):
    try:
        builder.download_and_prepare(
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
    except OSError:
        # Another process may have finished the same copy first: then it is there, whole.
        if not builder.data_path.exists():
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
      dataset: 'scenes' or 'voc'.
      split: name of a split.
      data_dir: folder of VOC.
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
    return ExampleSet(examples, CLASS_NAMES, void=VOID)
