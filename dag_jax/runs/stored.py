"""The perturbations that Table 1 left in its folder, and the images that sums of them make.

Shapes: `H W` pixels.
"""

from typing import NamedTuple

from dag_jax import files, networks
from dag_jax.errors import UserError
from dag_jax.networks import zoo
from dag_jax.runs import evaluation, rundir, scores

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

    def is_white_box(self, target) -> bool:
        """Return whether it is what was found for a network, not shuffled."""
        return not self.permuted and target in self.members


def open_run(folder):
    """Return the folder that a launch of Table 1 wrote, as a path.

    Args:
      folder: what a user gives as --run.

    Raises:
      ValueError: where there is no such folder, or nothing in it.
    """
    if not str(folder):
        raise UserError("--run is empty; it is the folder that experiments.table1 wrote")
    path = files.open_folder(folder)
    if not path.exists():
        raise UserError(f"--run: there is no folder {folder}; {_makes(folder)}")
    if not path.is_dir():
        raise UserError(f"--run: {folder} is not a folder; {_makes(folder)}")
    if not files.names_in(path):
        raise UserError(f"--run: the folder {folder} is empty; {_makes(folder)}")
    return path


def _makes(folder):
    return (
        f"`python -m experiments.table1 --workdir={folder}` makes it, and with --split=seg11valid "
        "attacks all networks on one split, as sums across tasks need it"
    )


def default_sums(splits):
    """Return those of `SUMS` that can be made of {network: split that it was attacked on}."""
    return [one for one in SUMS if len({splits.get(name, name) for name in one}) == 1]


class Stored:
    """A folder of Table 1, its rows and the images that they are of.

    Attributes:
      settings: dict, of the launch.
      rows: {network: its row of the table}, in the table's order.
      runs: {network: `rundir.Run`}.
      splits: {network: the split that it was attacked on}.

    Args:
      folder: `--workdir` of a launch of Table 1.
      data_dir: folder of VOC.
      cache_dir: where prepared datasets lie.

    Raises:
      ValueError: for a folder that has no row, or is damaged.
    """

    def __init__(self, folder, *, data_dir=None, cache_dir=None):
        self.folder = open_run(folder)
        there = rundir.folders_in(folder, "row.json")
        names = [name for name in networks.NAMES if name in there]
        if not names:
            raise UserError(f"--run: {folder} has no row of Table 1; {_makes(folder)}")
        self.settings = files.load_json(self.folder / rundir.MANIFEST)["settings"]
        self.runs = {name: rundir.read(self.folder / name) for name in names}
        self.rows = {name: files.load_json(self.folder / name / "row.json") for name in names}
        self.splits = {name: run.manifest["splits"] for name, run in self.runs.items()}
        self._folders = {"data_dir": data_dir, "cache_dir": cache_dir}
        self._examples = {}

    def sources(self, sums) -> list[Source]:
        """Return the sources that can be made: nothing and each network's own, then sums.

        Args:
          sums: tuples of names of networks.

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
        of = {name: self.splits[name] for name in members}
        if len(set(of.values())) > 1:
            said = ", ".join(f"{name} on {split}" for name, split in of.items())
            raise UserError(
                f"{'+'.join(members)} is no sum: its members were attacked on different splits "
                f"({said}). Attack them on one: `python -m experiments.table1 --split=...`"
            )
        return of[members[0]]

    def keys(self, source: Source) -> list[str]:
        """Return the ids of the images that a source changes, or that are clean in its split."""
        if not source.members:
            return list(self.examples(source.split))
        first, *others = (self.runs[name].keys for name in source.members)
        common = set(first).intersection(*others)
        return [key for key in first if key in common]

    def seen(self, target, source: Source) -> list[dict]:
        """Return those examples of a source that a network can be scored on: FCNs need a mask."""
        by_id = self.examples(source.split)
        found = [by_id[key] for key in self.keys(source)]
        return [one for one in found if target.startswith("fr_") or one["has_mask"]]

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
                    raise UserError(
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

    def fingerprint(self, source: Source) -> dict:
        """Return what tells a source from any other of its name.

        Returns:
          {"members": of each network, "settings": of the launch, "images": SHA-256 of those of
          clean images, which are more once another network was attacked on others}.
        """
        of = {
            name: {
                "weights_sha256": run.manifest["weights_sha256"],
                "margin": run.manifest["margin"],
                "records_sha256": files.sha256(files.canonical_json(run.records)),
            }
            for name, run in ((name, self.runs[name]) for name in source.members)
        }
        found = {"members": of, "settings": self.settings}
        if not source.members:
            images = {
                key: files.sha256(one["image"]) for key, one in self.examples(source.split).items()
            }
            found["images"] = files.sha256(files.canonical_json(images))
        return found

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
            raise UserError(
                f"{path} has other weights than {self.folder} was attacked with; --checkpoints "
                "names the folder of those"
            )
        return loaded, weights


def check_shown(stored, names, sources):
    """Raise ValueError where none of the networks can be scored on any image."""
    if not any(stored.seen(name, source) for name in names for source in sources):
        raise UserError(
            f"none of the images of {stored.folder} has a mask, and an FCN is scored on nothing "
            "else: add a detector to --networks"
        )
