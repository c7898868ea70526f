"""The perturbations that Table 1 left in its folder, and the images that sums of them make.

Shapes: `H W` pixels.
"""

from typing import NamedTuple

from dag_jax import networks
from dag_jax.networks import zoo
from experiments import evaluation
from experiments.runs import files, rundir, scores


class Source(NamedTuple):
    """What is added to the images of a split: the sum of what was found for some networks."""

    split: str
    members: tuple[str, ...] = ()  # names of networks; none: the clean images
    permuted: bool = False  # whether rows and columns of the sum are shuffled

    @property
    def name(self) -> str:
        """Return a name that can be a file's: 'seg11valid fcn_vgg+fr_vgg_07 permuted'."""
        return f"{self.split} {'+'.join(self.members) or 'none'}{' permuted' * self.permuted}"

    @property
    def title(self) -> str:
        """Return what it is called in a table: 'FCN-VGG + FR-VGG-07, permuted'."""
        titles = " + ".join(evaluation.TITLES[name] for name in self.members)
        return (titles or "none") + ", permuted" * self.permuted


class Stored:
    """A folder of Table 1, its rows and the images that they are of.

    Attributes:
      settings: dict, of the launch.
      rows: {network: its row of the table}, in the table's order.
      runs: {network: `rundir.Run`}.

    Args:
      folder: `--workdir` of a launch of Table 1.
      data_dir: folder of VOC.
      cache_dir: where prepared datasets lie.

    Raises:
      ValueError: for a folder that has no row, or is damaged.
    """

    def __init__(self, folder, *, data_dir=None, cache_dir=None):
        self.folder = files.open_folder(folder)
        there = rundir.folders_in(folder, "row.json")
        names = [name for name in networks.NAMES if name in there]
        if not names:
            raise ValueError(
                f"{folder} has no row of Table 1; `python -m experiments.table1 --workdir={folder}`"
                " makes them"
            )
        self.settings = files.load_json(self.folder / rundir.MANIFEST)["settings"]
        self.runs = {name: rundir.read(self.folder / name) for name in names}
        self.rows = {name: files.load_json(self.folder / name / "row.json") for name in names}
        self._folders = {"data_dir": data_dir, "cache_dir": cache_dir}
        self._examples = {}

    def sources(self, sums) -> list[Source]:
        """Return the sources that can be made: nothing and each network's own, then sums.

        Args:
          sums: tuples of names of networks.

        Returns:
          List of `Source`, none of them permuted. A sum is there where all its members were
          attacked on the same split.

        Raises:
          ValueError: for a member without a row.
        """
        splits = {name: run.manifest["splits"] for name, run in self.runs.items()}
        missing = sorted({name for one in sums for name in one} - splits.keys())
        if missing:
            raise ValueError(f"{self.folder} has no row of {', '.join(missing)}")
        alone = [Source(split) for split in dict.fromkeys(splits.values())]
        alone += [Source(split, (name,)) for name, split in splits.items()]
        for members in sums:
            of = {splits[name] for name in members}
            if len(of) == 1:
                alone.append(Source(*of, tuple(members)))
        return alone

    def keys(self, source: Source) -> list[str]:
        """Return the ids of the images that a source changes, or that are clean in its split."""
        if not source.members:
            return list(self.examples(source.split))
        first, *others = (self.runs[name].keys for name in source.members)
        return [key for key in first if all(key in other for other in others)]

    def examples(self, split) -> dict[str, dict]:
        """Return the examples of a split by image id, those that were attacked.

        Raises:
          ValueError: where the dataset has another image of that name than was attacked.
        """
        if split not in self._examples:
            records = {
                record["key"]: record
                for run in self.runs.values()
                if run.manifest["splits"] == split
                for record in run.records
            }
            found = evaluation.load_examples(
                self.settings["dataset"],
                [split],
                image_ids=set(records),
                canvas=self.settings["canvas"],
                one_size=False,
                **self._folders,
            )
            for example in found:
                said = records[example["image_id"]]["image_sha256"]
                if files.sha256(example["image"]) != said:
                    raise ValueError(
                        f"{self.folder} was made of another image {example['image_id']!r} than "
                        f"{split} has now"
                    )
            self._examples[split] = {example["image_id"]: example for example in found}
        return self._examples[split]

    def image(self, source: Source, example, shuffle=0):
        """Return the image f32[H, W, 3] that a source makes of an example.

        Args:
          source: the source.
          example: the example.
          shuffle: which permutation, where it is permuted; those of a single network are Table 1's.
        """
        return scores.adversarial(
            [self.runs[name] for name in source.members],
            example,
            self.settings["rounded"],
            seed=self.settings["seed"],
            shuffle=shuffle if source.permuted else None,
        )

    def fingerprint(self) -> dict:
        """Return what tells these perturbations from any others, for a manifest."""
        return {
            name: {
                "weights_sha256": run.manifest["weights_sha256"],
                "margin": run.manifest["margin"],
                "records_sha256": files.sha256(files.canonical_json(run.records)),
            }
            for name, run in self.runs.items()
        } | {"settings": self.settings}

    def network(self, name, checkpoints=None) -> tuple[networks.Network, str]:
        """Load a network: one that was attacked, with the same weights, or another.

        Args:
          name: of the network.
          checkpoints: folder of <network>.safetensors; None for what is shipped.

        Returns:
          (the network, SHA-256 of its checkpoint).

        Raises:
          ValueError: where the weights are not those that were attacked.
        """
        path = files.open_folder(checkpoints or zoo.CHECKPOINTS) / f"{name}.safetensors"
        loaded = networks.load(
            name,
            miniature=self.settings["miniature"],
            checkpoint=path,
            precision=self.settings["precision"],
        )
        weights = files.sha256_of(path)
        if name in self.runs and weights != self.runs[name].manifest["weights_sha256"]:
            raise ValueError(
                f"{path} has other weights than {self.folder} was attacked with; --checkpoints "
                "names the folder of those"
            )
        return loaded, weights
