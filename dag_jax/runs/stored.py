"""The stored perturbations of a table's folder, and the images that their sums make.

Shapes: `H W` pixels.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dag_jax import files, networks
from dag_jax.datasets.selection import ExampleSet
from dag_jax.errors import UserError
from dag_jax.runs import attacks, rundir, scores
from dag_jax.runs.dataset import ROW
from dag_jax.runs.subject import Subject, subject_of

# Sums of the paper: within detection, within segmentation, across tasks; each for both sets of
# training data.
SUMS = (
    ("fr_zf_07", "fr_vgg_07"),
    ("fr_zf_0712", "fr_vgg_0712"),
    ("fcn_alex", "fcn_vgg"),
    ("fcn_alex_star", "fcn_vgg_star"),
    ("fcn_alex", "fcn_vgg", "fr_zf_07", "fr_vgg_07"),
    ("fcn_alex_star", "fcn_vgg_star", "fr_zf_0712", "fr_vgg_0712"),
)


LAUNCH = "table1"  # whose folders are read


class Source(NamedTuple):
    """A perturbation of the images of a split: the sum of those found for some models."""

    split: str
    members: tuple[str, ...] = ()  # names of models; none: the clean images
    permuted: bool = False  # whether rows and columns of the sum are shuffled

    @property
    def name(self) -> str:
        """Return its name, such as 'seg11valid fcn_vgg+fr_vgg_07 permuted'."""
        return f"{self.split} {'+'.join(self.members) or 'none'}{' permuted' * self.permuted}"

    def is_white_box(self, target) -> bool:
        """Return whether it contains the perturbation found for `target`, and is not permuted."""
        return not self.permuted and target in self.members


def table_order(name):
    """Return a model's sort key in tables: built-in models first, in the paper's order."""
    known = list(networks.TASKS)
    return known.index(name) if name in known else len(known), name


def open_run(folder):
    """Return the folder that a launch of Table 1 wrote, as a path.

    Args:
      folder: the value of --run.

    Raises:
      ValueError: where the folder does not exist, is empty or is another launch's.
    """
    if not str(folder):
        raise UserError("--run is empty; it is the folder that experiments.table1 wrote")
    path = files.open_folder(folder)
    if not path.exists():
        raise UserError(f"--run: there is no folder {folder}; {_makes(folder)}")
    if not path.is_dir():
        raise UserError(f"--run: {folder} is not a folder; {_makes(folder)}")
    if not (names := files.names_in(path)):
        raise UserError(f"--run: the folder {folder} is empty; {_makes(folder)}")
    if rundir.MANIFEST in names and rundir.load_manifest(path).get("launch") == LAUNCH:
        return path
    raise UserError(f"--run: {folder} is no folder of Table 1; {_makes(folder)}")


def _makes(folder):
    return (
        f"`python -m experiments.table1 --workdir={folder}` makes it, and with --split=seg11valid "
        "attacks all models on one split, as sums across tasks need it"
    )


def default_sums(splits) -> list[tuple[str, ...]]:
    """Return those of `SUMS` that `splits`, {model: split that it was attacked on}, allow."""
    return [sum_ for sum_ in SUMS if len({splits.get(name, name) for name in sum_}) == 1]


class Stored:
    """A folder of Table 1: its rows, perturbations and images.

    Attributes:
      settings: dict, of the launch.
      rows: {model: its row of the table}, in the table's order.
      runs: {model: `rundir.Run`}.
      splits: {model: the split that it was attacked on}.

    Args:
      folder: `--workdir` of a launch of Table 1.
      load_examples: function of the settings, a split and a set of image ids that returns the
        `ExampleSet` that the launch attacked.

    Raises:
      ValueError: for a folder that has no row, or is damaged.
    """

    def __init__(self, folder, load_examples: Callable):
        self.folder = open_run(folder)
        self.settings = rundir.load_manifest(self.folder, ("settings",))["settings"]
        contents = [
            files.load_json(self.folder / name / ROW, digest=True, keys=("row", "network"))
            for name in rundir.folders_in(self.folder, ROW)
        ]
        # A row of margin 0 is beside that of its model.
        rows = {row["network"]: row for row in contents if row["row"] == row["network"]}
        if not rows:
            raise UserError(f"--run: {folder} has no row of Table 1; {_makes(folder)}")
        self.rows = {name: rows[name] for name in sorted(rows, key=table_order)}
        self.runs = {
            name: rundir.read(self.folder / rundir.folder_name(name)) for name in self.rows
        }
        for run in self.runs.values():
            rundir.load_manifest(run.folder, ("split", "weights_sha256", "method"))
        self.splits = {name: run.manifest["split"] for name, run in self.runs.items()}
        self._load_examples = load_examples
        self._examples: dict = {}
        self._subjects: dict = {}

    def sources(self, sums) -> list[Source]:
        """Return all sources: for each split the clean images, each model's own, then the sums.

        Args:
          sums: tuples of names of models.

        Returns:
          List of `Source`, none of them permuted.

        Raises:
          ValueError: for a member without a row, or members attacked on different splits.
        """
        alone = [Source(split) for split in dict.fromkeys(self.splits.values())]
        alone += [Source(split, (name,)) for name, split in self.splits.items()]
        return alone + [Source(self._split_of(members), tuple(members)) for members in sums]

    def _split_of(self, members):
        """Return the split that all members of a sum were attacked on."""
        missing = [name for name in members if name not in self.splits]
        if missing:
            raise UserError(
                f"{self.folder} has no row of {', '.join(missing)}; it has rows of "
                f"{', '.join(self.splits)}"
            )
        splits = {name: self.splits[name] for name in members}
        if len(set(splits.values())) > 1:
            pairs = ", ".join(f"{name} on {split}" for name, split in splits.items())
            raise UserError(
                f"{'+'.join(members)} is no sum: its members were attacked on different splits "
                f"({pairs}). Attack them on one: `python -m experiments.table1 --split=...`"
            )
        return splits[members[0]]

    def keys(self, source: Source) -> list[str]:
        """Return the ids of the images of a source; of a clean source all of its split."""
        ids = map(str, self.examples(source.split).ids)
        if not source.members:
            return list(ids)
        common = set.intersection(*(set(self.runs[name].keys) for name in source.members))
        return [name for name in ids if name in common]

    def subject(self, name, model, weights_sha256, source: Source) -> Subject:
        """Return the `Subject` of a model and the examples of a source that can be scored.

        Args:
          name: of the model.
          model: the model.
          weights_sha256: of its parameters.
          source: the source.

        Raises:
          ValueError: where the model is invalid, or shares no class with the dataset.
        """
        keys = tuple(self.keys(source))
        if (name, source.split, keys) not in self._subjects:
            examples = self.examples(source.split)
            wanted = set(keys)
            rows = [i for i, image_id in enumerate(examples.ids) if str(image_id) in wanted]
            subject = subject_of(
                model, examples.pick(rows), name=name, weights_sha256=weights_sha256
            )
            self._subjects[name, source.split, keys] = subject
        return self._subjects[name, source.split, keys]

    def examples(self, split) -> ExampleSet:
        """Return the attacked examples of a split.

        Raises:
          ValueError: where the dataset's image of a name is not the attacked one.
        """
        if split not in self._examples:
            records = [
                record
                for run in self.runs.values()
                if run.manifest["split"] == split
                for record in run.records
            ]
            split_examples = self._load_examples(
                self.settings, split, {record["key"] for record in records}
            )
            attacks.check_images(self.folder, records, split_examples)
            self._examples[split] = split_examples
        return self._examples[split]

    def image(self, source: Source, example, shuffle=0) -> np.ndarray:
        """Return the image f32[H, W, 3] that a source makes of an example.

        Args:
          source: the source.
          example: the example.
          shuffle: number of the permutation of a permuted source; for a single model those of
            Table 1.
        """
        return scores.adversarial(
            [self.runs[name] for name in source.members],
            example,
            self.settings["rounded"],
            seed=self.settings["seed"],
            shuffle=shuffle if source.permuted else None,
        )

    def fingerprint(self, source: Source) -> dict:
        """Return JSON values that differ between sources of the same name but other contents.

        Returns:
          {"members": facts of each model, "settings": of the launch, "images": SHA-256 of the
          images, "records": SHA-256 of the records}.
        """
        members = {
            name: {
                "weights_sha256": self.runs[name].manifest["weights_sha256"],
                "method": self.runs[name].manifest["method"],
            }
            for name in source.members
        }
        wanted = set(self.keys(source))
        images = {
            str(example["image_id"]): files.sha256(example["image"])
            for example in self.examples(source.split)
            if str(example["image_id"]) in wanted
        }
        facts = {
            name: {key: self.runs[name].record(key) for key in images} for name in source.members
        }
        digests = {"images": images, "records": facts}
        return {
            "members": members,
            "settings": self.settings,
            **{
                name: files.sha256(files.canonical_json(content))
                for name, content in digests.items()
            },
        }
