"""Where a folder of results keeps each image, and what is in it: for `rundir`, which says what."""

import collections
import dataclasses
import re
import urllib.parse

from etils import epath

from dag_jax import files
from dag_jax.errors import UserError

_LONGEST_NAME = 230  # bytes of a file name; 255 is the limit of most systems, .tmp-... comes on top


@dataclasses.dataclass(frozen=True)
class Entry:
    """An image that is done: the file that holds it, and what is said of it there."""

    path: epath.Path
    record: dict
    pixels_sha256: str
    seconds: float | dict | None = None  # in a part; a shard has its timings apart


class Layout:
    """The files of a folder of results.

    Args:
      folder: the folder.
      keys: list of the ids of its images, in order.
      shard_size: images of a shard; shard k holds keys from k * shard_size.

    Raises:
      ValueError: for ids that repeat, are none or no file name.
    """

    def __init__(self, folder, keys, shard_size):
        self.folder, self.keys, self.shard_size = folder, keys, shard_size
        self.num_shards = -(-len(keys) // shard_size)
        if not keys:
            raise UserError(f"{folder}: there is no image to attack")
        key, count = collections.Counter(keys).most_common(1)[0]
        if count > 1:
            raise UserError(f"{folder}: there are {count} images of the id {key!r}")
        for key in keys:  # __metadata__ is what safetensors calls something else
            if key in ("", "__metadata__") or len(self.image(key).name) > _LONGEST_NAME:
                raise UserError(f"{folder}: an image id that can name no file: {key!r:.80}")

    def indices(self, shard):
        """Return the range of indices into keys of a shard's images."""
        return range(len(self.keys))[shard * self.shard_size : (shard + 1) * self.shard_size]

    def shard_of(self, index):
        """Return the number of an image's shard, None where there is no such image."""
        return index // self.shard_size if index in range(len(self.keys)) else None

    def name(self, shard):
        """Return what the name of each file of a shard has in it."""
        return f"{shard:05d}-of-{self.num_shards:05d}"

    def image(self, key):
        """Return the path of an image; its id may hold any character."""
        return self.folder / "images" / f"{urllib.parse.quote(key, safe='')}.png"

    def part(self, index):
        """Return the path of an image that is done, its shard not yet."""
        return self.folder / "parts" / f"{index:06d}.safetensors"

    def paths(self, index):
        """Return the paths that only an image has."""
        return self.image(self.keys[index]), self.part(index)

    def shard(self, shard):
        """Return the path of a shard."""
        return self.folder / "perturbations" / f"{self.name(shard)}.safetensors"

    def timing(self, shard):
        """Return the path of a shard's timings."""
        return self.folder / "timings" / f"{self.name(shard)}.json"

    def scores(self, name, shard):
        """Return the path of what was computed of a shard's images."""
        if not re.fullmatch(r"\w+", name) or shard not in range(self.num_shards):
            raise UserError(f"{self.folder} can have no scores {name!r} of shard {shard}")
        return self.folder / "scores" / f"{name}-{self.name(shard)}.safetensors"

    def seconds(self, shard):
        """Return {key: seconds} of a shard; lost timings are worth no error."""
        try:
            return files.load_json(self.timing(shard))
        except ValueError:
            return {}

    def with_image(self, indices):
        """Return the set of those indices whose PNG is there."""
        present = files.names_in(self.folder / "images")
        return {index for index in indices if self.image(self.keys[index]).name in present}

    def scan(self, shards, *, whole):
        """Return {index: Entry} of what is there; a part is newer than its shard.

        With `whole`, perturbations and images are read and compared with their digests, too.
        """
        found, wrong = {}, []

        def look(path, indices):
            keys = [self.keys[index] for index in indices]
            try:
                said, _ = files.load(path, keys if whole else ())
                if said.keys() != set(keys):
                    raise UserError(f"{path} is of other images than {keys[0]!r} to {keys[-1]!r}")
                found.update({i: Entry(path, **said[self.keys[i]]) for i in indices})
            except ValueError as error:
                number = self.shard_of(indices[0])
                if path != self.shard(number) and not path.exists() and self.shard(number).exists():
                    look(self.shard(number), self.indices(number))  # another process just made it
                else:
                    wrong.append(str(error))

        parts, complete = (files.names_in(self.folder / d) for d in ("parts", "perturbations"))
        for shard in shards:
            if self.shard(shard).name in complete:
                look(self.shard(shard), self.indices(shard))
            for index in self.indices(shard):
                if self.part(index).name in parts:
                    look(self.part(index), [index])
        for index in self.with_image(found) if whole else ():
            try:
                files.load_image(self.image(self.keys[index]), found[index].pixels_sha256)
            except ValueError as error:
                wrong.append(str(error))
        if wrong:
            raise UserError("\n".join(wrong))
        return found
