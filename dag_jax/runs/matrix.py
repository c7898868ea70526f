"""What networks make of perturbations that were found for others: a matrix, cell by cell.

A cell is what one network says of the images of one source. It is kept as soon as it is there, so
that whatever kills a launch, the same command goes on with the next cell; of several processes each
makes the cells of its own networks. Each says what its source was made of: one of other
perturbations is refused, and those of a new source join those that are there.
"""

import json
from typing import NamedTuple

import numpy as np

from dag_jax import files, metrics
from dag_jax.progress import progress
from dag_jax.runs import buckets, evaluation, rundir, scores
from dag_jax.runs.stored import Source, Stored


class Cell(NamedTuple):
    """Scores in percent of a network on the images of a source, and on sets drawn from these.

    Cells of the same images have the same sets, so that they can be compared set by set.
    """

    scores: np.ndarray  # f64[B + 1], the first of the images themselves: metrics.draw_images
    clean: np.ndarray  # f64[B + 1], of the same images without the source
    keys: tuple[str, ...]  # of the images; none where none can be scored: all scores are nan then

    @property
    def images(self) -> int:
        """Return how many images it is of."""
        return len(self.keys)

    @property
    def left(self) -> np.ndarray:
        """Return f64[B + 1], the share of the clean score that is left; nan of a clean score 0."""
        return self.scores / np.where(self.clean > 0, self.clean, np.nan)


class Matrix:
    """The cells of some networks and sources.

    Args:
      folder: where the cells are kept.
      stored: the perturbations.
      sources: list of `Source`; clean images of each split among them.
      seed: of the sets of images.
      num_sets: B.
    """

    def __init__(self, folder, stored: Stored, sources, *, seed=0, num_sets=1000):
        self.folder, self.stored, self.sources = folder, stored, list(sources)
        self._seed, self._num_sets = seed, num_sets
        self._fingerprints: dict = {}

    def path(self, target, source) -> files.epath.Path:
        """Return the file of a cell."""
        return self.folder / "cells" / target / f"{source.name}.safetensors"

    def is_there(self, target) -> bool:
        """Return whether all cells of a network are there.

        Raises:
          ValueError: where one is of other perturbations than `stored` has now.
        """
        return all(self._has(self.path(target, source), source) for source in self.sources)

    def _has(self, path, source):
        """Return whether a file is there, made of what a source is now."""
        if not path.exists():
            return False
        then, now = files.load(path, ())[0].get("of", {}), self._fingerprint(source)
        rundir.check_same(path, now, then | {"images": now["images"]} if "images" in now else then)
        return then == now  # clean images are looked at anew where there are more

    def _fingerprint(self, source):
        if source not in self._fingerprints:
            self._fingerprints[source] = json.loads(json.dumps(self.stored.fingerprint(source)))
        return self._fingerprints[source]

    def fill(self, network, weights, *, mesh) -> None:
        """Make those cells of a network that are not there.

        Args:
          network: a `Network`.
          weights: SHA-256 of its checkpoint.
          mesh: from `console.open_mesh`.

        Raises:
          ValueError: where the cells that are there are of other weights or perturbations.
          OSError: where a cell cannot be written; those that are finished are kept.
        """
        rundir.claim(self.folder / "cells" / network.name, {"weights_sha256": weights})
        paths = {source: self.path(network.name, source) for source in self.sources}
        missing = [source for source, path in paths.items() if not self._has(path, source)]
        if not missing:
            return
        label = f"{evaluation.TITLES[network.name]} sees"
        for source in progress(missing, desc=label, unit="source"):
            examples = self.stored.seen(network.name, source)
            arrays = self._look(network, source, examples, mesh)
            self._write(paths[source], source, examples, arrays)

    def _write(self, path, source, examples, arrays):
        keys = [example["image_id"] for example in examples]
        files.write(path, files.pack(arrays, {"keys": keys, "of": self._fingerprint(source)}))

    def size(self, source) -> float:
        """Return the mean perceptibility of what a source adds; made once, and kept as a cell is.

        It is of the images that are looked at, so within 0 to 255; of a permuted source, the mean
        over its shuffles.

        Raises:
          ValueError: where what is kept is of other perturbations, or damaged.
          OSError: where it cannot be written.
        """
        path = self.folder / "added" / f"{source.name}.safetensors"
        if not self._has(path, source):
            by_id = self.stored.examples(source.split)
            examples = [by_id[key] for key in self.stored.keys(source)]
            sizes = [
                [
                    metrics.perceptibility(self.stored.image(source, one, version) - one["image"])
                    for version in range(_versions(source))
                ]
                for one in progress(examples, desc=f"size of {source.title}", leave=False)
            ]
            files.make_folder(path.parent)
            self._write(path, source, examples, {"p": np.array(sizes, np.float32)})
        found = files.load(path)[1]["p"]
        return float(found.mean()) if found.size else 0.0

    def cell(self, target, source, keys=None) -> Cell:
        """Score a cell.

        Args:
          target: name of a network.
          source: one of the sources.
          keys: ids of those of its images to score; None for all.

        Raises:
          ValueError: where it is not there, or damaged.
        """
        found, clean = self._found(target, source), self._found(target, Source(source.split))
        keys = tuple(found[0] if keys is None else keys)
        if not keys:  # an FCN, and no image of the split has a mask
            nothing = np.full(self._num_sets + 1, np.nan)
            return Cell(nothing, nothing, ())
        by_id = self.stored.examples(source.split)
        examples = [by_id[key] for key in keys]
        sets = metrics.draw_images(self._seed, len(keys), self._num_sets)

        def score(versions):
            each = [
                evaluation.score_sets(examples, [one[key] for key in keys], sets)
                for one in versions
            ]
            return np.mean(each, axis=0)

        return Cell(score(found), score(clean), keys)

    def _look(self, network, source, examples, mesh):
        """Return {'<row> <version> <kind>': array} of what a network says of a source's images."""
        shapes = [example["image"].shape for example in examples]
        arrays = {}
        for version in range(_versions(source)):
            images = buckets.Computed(
                lambda one, version=version: self.stored.image(source, one, version), examples
            )
            seen = evaluation.predict_each(network, images, shapes=shapes, mesh=mesh)
            for row, prediction in seen:
                for kind, array in evaluation.evidence(examples[row], prediction).items():
                    arrays[f"{row} {version} {kind}"] = array
        return arrays

    def _found(self, target, source) -> list[dict]:
        """Return {image id: evidence} of each version of a cell."""
        content, arrays = files.load(self.path(target, source))
        keys = content["keys"]
        found: list = [{key: {} for key in keys} for _ in range(_versions(source))]
        for name, array in arrays.items():
            row, version, kind = name.split(" ")
            found[int(version)][keys[int(row)]][kind] = array
        return found


def _versions(source):
    """Return how many images a source makes of one."""
    return scores.PERMUTATIONS if source.permuted else 1
