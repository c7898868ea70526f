"""What networks make of perturbations that were found for others: a matrix, cell by cell.

A cell is what one network says of the images of one source. It is kept as soon as it is there, so
that whatever kills a launch, the same command goes on with the next cell; of several processes each
makes the cells of its own networks.
"""

from typing import NamedTuple

import numpy as np

from dag_jax import metrics
from experiments import buckets, console, evaluation
from experiments.runs import files, rundir, scores
from experiments.runs.stored import Source, Stored


class Cell(NamedTuple):
    """Scores in percent of a network on the images of a source, and on sets drawn from these.

    Cells of the same images have the same sets, so that they can be compared set by set.
    """

    scores: np.ndarray  # f64[B + 1], the first of the images themselves: metrics.draw_images
    clean: np.ndarray  # f64[B + 1], of the same images without the source
    images: int  # 0 where none can be scored; all scores are nan then

    @property
    def left(self) -> np.ndarray:
        """Return f64[B + 1], the share of the clean score that is left."""
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

    def path(self, target, source) -> files.epath.Path:
        """Return the file of a cell."""
        return self.folder / "cells" / target / f"{source.name}.safetensors"

    def is_there(self, target) -> bool:
        """Return whether all cells of a network are there."""
        return all(self.path(target, source).exists() for source in self.sources)

    def fill(self, network, weights, *, mesh) -> None:
        """Make those cells of a network that are not there.

        Args:
          network: a `Network`.
          weights: SHA-256 of its checkpoint.
          mesh: from `console.open_mesh`.

        Raises:
          ValueError: where the cells that are there are of other weights.
          OSError: where a cell cannot be written; those that are finished are kept.
        """
        rundir.claim(self.folder / "cells" / network.name, {"weights_sha256": weights})
        missing = [one for one in self.sources if not self.path(network.name, one).exists()]
        if not missing:
            return
        label = f"{evaluation.TITLES[network.name]} sees"
        for source in console.progress(missing, desc=label, unit="source"):
            examples = self._examples(source)
            if not network.detects:
                examples = [example for example in examples if example["has_mask"]]
            content = {"keys": [example["image_id"] for example in examples]}
            arrays = self._look(network, source, examples, mesh)
            files.write(self.path(network.name, source), files.pack(arrays, content))

    def cell(self, target, source) -> Cell:
        """Score a cell.

        Args:
          target: name of a network.
          source: one of the sources.

        Raises:
          ValueError: where it is not there, or damaged.
        """
        found, clean = self._found(target, source), self._found(target, Source(source.split))
        keys = list(found[0])
        if not keys:  # an FCN, and no image of the split has a mask
            nothing = np.full(self._num_sets + 1, np.nan)
            return Cell(nothing, nothing, 0)
        by_id = self.stored.examples(source.split)
        examples = [by_id[key] for key in keys]
        sets = metrics.draw_images(self._seed, len(keys), self._num_sets)

        def score(versions):
            each = [
                evaluation.score_sets(examples, [one[key] for key in keys], sets)
                for one in versions
            ]
            return np.mean(each, axis=0)

        return Cell(score(found), score(clean), len(keys))

    def _examples(self, source):
        by_id = self.stored.examples(source.split)
        return [by_id[key] for key in self.stored.keys(source)]

    def _look(self, network, source, examples, mesh):
        """Return {'<row> <version> <kind>': array} of what a network says of a source's images."""
        shapes = [example["image"].shape for example in examples]
        arrays = {}
        for version in range(scores.PERMUTATIONS if source.permuted else 1):
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
        count = scores.PERMUTATIONS if source.permuted else 1
        found: list = [{key: {} for key in keys} for _ in range(count)]
        for name, array in arrays.items():
            row, version, kind = name.split(" ")
            found[int(version)][keys[int(row)]][kind] = array
        return found
