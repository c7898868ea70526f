"""Scores of models on perturbations that were found for other models: a matrix, cell by cell.

A cell has one model's predictions on the images of one source. It is written once it is made, so
that after a kill the same command continues with the next cell. Each of several processes makes the
cells of its own models. A cell records the perturbations of its source: a cell of other
perturbations is refused, and cells of new sources are added.
"""

import json
import os
from typing import NamedTuple

import numpy as np

from dag_jax import files, metrics
from dag_jax.errors import StorageError, UserError, parsing
from dag_jax.progress import progress
from dag_jax.runs import buckets, evaluation, rundir, scores
from dag_jax.runs.stored import Source, Stored
from dag_jax.runs.subject import Subject


class Cell(NamedTuple):
    """A model's scores in percent on the images of a source, and on sets drawn from these images.

    Cells of the same images have the same sets, so that they can be compared set by set.
    """

    scores: np.ndarray  # f64[B + 1], the first of the images themselves: metrics.draw_images
    clean: np.ndarray  # f64[B + 1], of the same images without the source
    keys: tuple[str, ...]  # of the images; none where none can be scored: all scores are nan then

    @property
    def images(self) -> int:
        """Return the number of its images."""
        return len(self.keys)

    @property
    def remaining_share(self) -> np.ndarray:
        """Return f64[B + 1], the scores as shares of the clean ones; nan where those are 0."""
        return self.scores / np.where(self.clean > 0, self.clean, np.nan)


class Matrix:
    """The cells of some models and sources.

    Args:
      folder: where the cells are written.
      stored: the perturbations.
      sources: list of `Source`, which includes the clean images of each split.
      looking: {name: (model, SHA-256 of its weights)} of the models to score.
      seed: of the sets of images.
      num_sets: B.
    """

    def __init__(self, folder, stored: Stored, sources, looking, *, seed=0, num_sets=1000):
        self.folder, self.stored = files.open_folder(folder), stored
        self.sources = list(sources)
        self.looking = dict(looking)
        self._seed, self._num_sets = seed, num_sets
        self._fingerprints: dict = {}

    def subject(self, target, source) -> Subject | None:
        """Return the `Subject` of a model and a source's images; None if none can be scored."""
        model, weights = self.looking[target]
        try:
            return self.stored.subject(target, model, weights, source)
        except StorageError:
            raise
        except UserError:
            return None

    def check_shown(self) -> None:
        """Raise a ValueError where none of the models can be scored on any image."""
        pairs = ((target, source) for target in self.looking for source in self.sources)
        if not any(self.subject(*pair) for pair in pairs):
            raise UserError(
                f"none of the models can be scored on an image of {self.stored.folder}: segmenters "
                "need masks, and models classes that the dataset has; add others to --models"
            )

    def path(self, target, source) -> files.epath.Path:
        """Return the file of a cell."""
        name = rundir.folder_name(source.name)
        return self.folder / "cells" / rundir.folder_name(target) / f"{name}.safetensors"

    def is_complete(self, target) -> bool:
        """Return whether all cells of a model are there.

        Raises:
          ValueError: where a cell is of other perturbations than those of `stored`.
        """
        return all(self._has(self.path(target, source), source) for source in self.sources)

    def _has(self, path, source):
        """Return whether the file of a cell is there and of the source's present images.

        A cell of other images is made again, as the source may have more of them now.
        """
        if not path.exists():
            return False
        then, now = self._load(path, ())[0].get("source", {}), self._fingerprint(source)
        selection = {name: now[name] for name in ("images", "records")}
        rundir.check_same(path, now, then | selection)
        return then == now

    def _fingerprint(self, source):
        if source not in self._fingerprints:
            self._fingerprints[source] = json.loads(json.dumps(self.stored.fingerprint(source)))
        return self._fingerprints[source]

    def fill(self, target, *, mesh=None) -> None:
        """Make the missing cells of a model.

        Args:
          target: name of the model.
          mesh: devices.

        Raises:
          ValueError: where the cells there are of other weights or perturbations.
          OSError: where a cell cannot be written. Finished cells stay.
        """
        model, weights = self.looking[target]
        folder = self.folder / "cells" / rundir.folder_name(target)
        rundir.claim(folder, {"weights_sha256": weights})
        missing = [
            source for source in self.sources if not self._has(self.path(target, source), source)
        ]
        title = getattr(model, "title", target)
        for source in progress(missing, desc=f"{title} sees", unit="source", disable=not missing):
            subject = self.subject(target, source)
            keys, arrays = [], {}
            if subject is not None:
                keys = list(map(str, subject.ids))
                arrays = self._look(subject, source, mesh)
            self._write(self.path(target, source), source, keys, arrays)

    def _write(self, path, source, keys, arrays):
        content = {"keys": keys, "source": self._fingerprint(source), "place": self._place(path)}
        files.write(path, files.pack(arrays, content))

    def _place(self, path):
        return os.fspath(path).removeprefix(os.fspath(self.folder))

    def _load(self, path, names=None):
        """Return the content that `_write` wrote. DamagedError for another cell's file."""
        content, arrays = files.load(path, names)
        with parsing(path):
            if content.get("place", self._place(path)) != self._place(path):
                raise ValueError(f"it is {content['place']}")
        return content, arrays

    def size(self, source) -> float:
        """Return the mean perceptibility of a source; it is stored in a file like a cell.

        It is that of the changed images, so after clipping to 0 to 255. For a permuted source it is
        the mean over the shuffles.

        Raises:
          ValueError: where the file is of other perturbations, or damaged.
          OSError: where it cannot be written.
        """
        path = self.folder / "added" / f"{rundir.folder_name(source.name)}.safetensors"
        if not self._has(path, source):
            wanted = set(self.stored.keys(source))
            examples = [
                example
                for example in self.stored.examples(source.split)
                if str(example["image_id"]) in wanted
            ]
            sizes = [
                [
                    metrics.perceptibility(self.stored.image(source, example, i) - example["image"])
                    for i in range(_versions(source))
                ]
                for example in progress(examples, desc=f"size of {source.name}", leave=False)
            ]
            files.make_folder(path.parent)
            keys = [str(example["image_id"]) for example in examples]
            self._write(path, source, keys, {"p": np.array(sizes, np.float32)})
        sizes = self._load(path)[1]["p"]
        return float(sizes.mean()) if sizes.size else 0.0

    def cell(self, target, source, keys=None) -> Cell:
        """Return the `Cell` of a model and a source, from its file.

        Args:
          target: name of a model.
          source: one of the sources.
          keys: ids of the images to score; None for all of the cell.

        Raises:
          ValueError: where the file is missing or damaged.
        """
        seen, clean = self._kept(target, source), self._kept(target, Source(source.split))
        keys = tuple(seen[0] if keys is None else keys)
        if not keys:  # a segmenter, and no image of the split has a mask
            nothing = np.full(self._num_sets + 1, np.nan)
            return Cell(nothing, nothing, ())
        subject = self.subject(target, source)
        if subject is None:
            raise UserError(f"{target} can be scored on no image of {source.split}")
        by_id = {str(example["image_id"]): example for example in subject.examples}
        examples = [by_id[key] for key in keys]
        sets = metrics.draw_images(self._seed, len(keys), self._num_sets)

        def score(versions):
            each = [
                evaluation.score_sets(subject, examples, [version[key] for key in keys], sets)
                for version in versions
            ]
            return np.mean(each, axis=0)

        return Cell(score(seen), score(clean), keys)

    def _look(self, subject, source, mesh):
        """Return {'<row> <version> <kind>': array}, a model's evidence on a source's images."""
        examples = subject.examples
        shapes = [example["image"].shape for example in examples]
        arrays = {}
        for version in range(_versions(source)):
            images = buckets.Computed(
                lambda example, version=version: self.stored.image(source, example, version),
                examples,
            )
            seen = evaluation.predict_each(subject.model, images, shapes=shapes, mesh=mesh)
            for row, prediction in seen:
                evidence = evaluation.evidence(subject, examples[row], prediction)
                arrays |= {f"{row} {version} {kind}": array for kind, array in evidence.items()}
        return arrays

    def _kept(self, target, source) -> list[dict]:
        """Return {image id: evidence} of each version of a cell."""
        content, arrays = self._load(self.path(target, source))
        keys = content["keys"]
        versions: list = [{key: {} for key in keys} for _ in range(_versions(source))]
        for name, array in arrays.items():
            row, version, kind = name.split(" ")
            versions[int(version)][keys[int(row)]][kind] = array
        return versions


def _versions(source):
    """Return how many images a source makes of each clean one: one for each shuffle."""
    return scores.PERMUTATIONS if source.permuted else 1
