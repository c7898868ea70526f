"""The folder that a launch writes to: one run's, and what is finished in it stays.

`claim` makes the folder and its manifest, which says what the run is of. `Results` are the images
attacked in one way, in a folder of their own; whatever kills the launch, the same command goes on
with the next image and ends with the same bytes. `read` gives other people's code what is there:

    run = rundir.read("runs/table1/fcn_vgg")
    for key in run.keys:
        change = run.perturbation(key)  # f32[H, W, 3], grey levels
        adversarial = run.image(key)  # u8[H, W, 3]

    manifest.json                               settings, format, units, shard size, keys
    images/<key>.png                            the adversarial image in whole grey levels
    parts/000101.safetensors                    an image that is done, its shard not yet
    perturbations/00012-of-00619.safetensors    a shard: perturbations by key, their records
    scores/<name>-00012-of-00619.safetensors    small arrays that the launch computed of a shard
    timings/00012-of-00619.json                 apart, as no two runs agree on them
    records.jsonl, timings.jsonl                a line for each image, once all are done

A folder is local, or gs://bucket/folder (s3://, az://), as in TFDS: see `files`.

Shapes: `H W` pixels.
"""

import contextlib
import dataclasses
import json

import numpy as np
from etils import epath

from dag_jax import files
from dag_jax.errors import UserError
from dag_jax.files import write
from dag_jax.runs.layout import Entry, Layout

FORMAT = "dag_jax results 1"
MANIFEST = "manifest.json"
UNITS = {
    "image": "u8[H, W, 3], RGB grey levels; the PNG is rint(clip(clean + perturbation, 0, 255))",
    "perturbation": "f32[H, W, 3], RGB grey levels, r of algorithm 1, not clipped",
    "step_size": "grey levels",
    "margin": "logits",
    "boxes": "[x0, y0, x1, y1], pixels of the image, 0-based, corners inclusive",
    "seconds": "wall-clock seconds",
}
_MOST_NAMED = 5  # differing settings in one message


def claim(workdir, manifest: dict) -> epath.Path:
    """Make a run's folder and write its manifest first, or check that it is the same.

    Args:
      workdir: folder of the run.
      manifest: what JSON can hold, of all that changes the results.

    Returns:
      The folder.

    Raises:
      ValueError: where the folder holds a run with other settings, or anything else, or is in a
        bucket that nothing installed can open.
      OSError: where it cannot be written.
    """
    workdir = files.open_folder(workdir)
    path = workdir / MANIFEST
    # The listing first: another process may write its manifest between two looks.
    others = [n for n in files.names_in(workdir) if not files.TEMPORARY.fullmatch(n)]
    if path.exists():
        check_same(workdir, manifest, files.load_json(path))
    elif others:
        raise UserError(f"{workdir} is not empty and holds no run of this launch")
    else:
        files.make_folder(workdir)
        write(path, json.dumps(manifest, indent=2) + "\n")
    return workdir


def check_same(path, manifest: dict, there: dict) -> None:
    """Raise ValueError where the manifest of a file or folder, `there`, is another than now."""
    now, then = dict(_leaves(json.loads(json.dumps(manifest)))), dict(_leaves(there))
    other = [
        f"{name}: now {now.get(name, 'nothing'):.60}, there {then.get(name, 'nothing'):.60}"
        for name in sorted(now | then)
        if now.get(name) != then.get(name)
    ]
    if other:
        more = [f"and {len(other) - _MOST_NAMED} more"] if len(other) > _MOST_NAMED else []
        raise UserError(
            f"{path} holds results of a run with other settings "
            f"({'; '.join(other[:_MOST_NAMED] + more)}); nothing was changed there. Give "
            "another --workdir, or remove the folder"
        )


def folders_in(workdir, name) -> set[str]:
    """Return the names of the folders of a run, if it is there, that have a file of this name."""
    workdir = files.open_folder(workdir)
    return {one for one in files.names_in(workdir) if (workdir / one / name).exists()}


def _leaves(value, name=""):
    """Yield ('a.b', JSON of the leaf) of nested dicts and lists."""
    for key, one in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(one, dict | list) and one:
            yield from _leaves(one, f"{name}{key}.")
        else:
            yield f"{name}{key}", json.dumps(one)


def saved_pixels(image, perturbation) -> np.ndarray:
    """Return u8[H, W, 3], `dag_jax.perturb(image, perturbation, rounded=True)` as a file holds it.

    Args:
      image: [H, W, 3], RGB grey levels 0-255.
      perturbation: f32[H, W, 3], grey levels.

    Raises:
      ValueError: for shapes that are not [H, W, 3] twice, or a value that is not finite.
    """
    shapes = np.shape(image), np.shape(perturbation)
    if shapes[0] != shapes[1] or len(shapes[0]) != 3 or shapes[0][2] != 3:
        raise UserError(f"image is {shapes[0]}, perturbation {shapes[1]}; both are [H, W, 3]")
    perturbed = np.asarray(image, np.float32) + np.asarray(perturbation, np.float32)
    if not np.isfinite(perturbed).all():
        raise UserError("image or perturbation has values that are not finite")
    return np.rint(np.clip(perturbed, 0, 255)).astype(np.uint8)


class Run:
    """What a folder of `Results` holds; see `read`.

    Attributes:
      folder: the folder.
      manifest: dict, what the results are of.
      keys: list of the images that are done, in the order of the run.
      records: list of their records, dicts that name the key, in the order of `keys`.
      num_shards: number of shards that all images of the run make.
    """

    def __init__(self, folder):
        self.folder = files.open_folder(folder)
        self.manifest = files.load_json(self.folder / MANIFEST)
        if self.manifest.get("format") != FORMAT:
            raise UserError(f"{self.folder} holds no '{FORMAT}', which Results writes")
        layout = Layout(self.folder, self.manifest["keys"], self.manifest["shard_size"])
        found = layout.scan(range(layout.num_shards), whole=False)
        self.keys = [layout.keys[index] for index in sorted(found)]
        self.records = [found[index].record for index in sorted(found)]
        self.num_shards = layout.num_shards
        self._layout = layout
        self._entries = {layout.keys[index]: entry for index, entry in found.items()}

    def perturbation(self, key: str) -> np.ndarray:
        """Return f32[H, W, 3] in grey levels; ValueError where it is damaged or not there."""
        path = self._entry(key).path
        if not path.exists():  # a part, of which its process has made a shard meanwhile
            path = self._layout.shard(self._layout.shard_of(self._layout.keys.index(key)))
        return files.load(path, [key])[1][key]

    def image(self, key: str) -> np.ndarray:
        """Return the adversarial image u8[H, W, 3]; ValueError where damaged or not there."""
        return files.load_image(self._layout.image(key), self._entry(key).pixels_sha256)

    def get(self, name: str, shard: int) -> dict[str, np.ndarray]:
        """Return what `Results.put` wrote; ValueError where it is damaged or not there."""
        return files.load(self._layout.scores(name, shard))[1]

    def _entry(self, key):
        if key not in self._entries:
            raise UserError(f"{self.folder} has no image {key!r}")
        return self._entries[key]


def read(folder) -> Run:
    """Read a folder of results, finished or not, one perturbation at a time.

    Args:
      folder: one with the manifest.json that `Results` wrote.

    Raises:
      ValueError: where there is no such folder, or a file of it is damaged.
    """
    return Run(folder)


class Results:
    """The images attacked in one way, written so that a kill at any moment loses none.

        results = Results(workdir / "fcn_vgg", manifest, image_ids)
        for index in results.todo():
            results.add(index, attack_of(index), record, seconds)
        results.finalise()

    Shard k holds shard_size keys from k * shard_size and belongs to process k % processes. What
    this process finds of its own is verified first.

    Attributes:
      folder: the folder.
      keys: list of all images.
      num_shards: number of shards, all processes'.

    Args:
      folder: a folder of these results alone; it is made.
      manifest: what JSON can hold, of all that changes the results: network, its weights' SHA-256,
        margin, ... Format, units, shard size and keys are put beside.
      keys: image ids, in the order of the results.
      shard_size: images of a file.
      process: this process's number.
      processes: their number; a run may go on with another.

    Raises:
      ValueError: for keys that repeat, are none or no file name; a folder of other settings; or
        damaged files, each named with what to do. Nothing was changed then.
      OSError: where the folder cannot be written.
    """

    def __init__(self, folder, manifest, keys, *, shard_size=8, process=0, processes=1):
        self.keys = list(keys)
        if not 0 <= process < processes or shard_size < 1:
            raise UserError(f"process {process} of {processes}, shards of {shard_size} images")
        self.folder = files.open_folder(folder)
        self._layout = Layout(self.folder, self.keys, shard_size)
        self.num_shards = self._layout.num_shards
        own = {"format": FORMAT, "units": UNITS, "shard_size": shard_size, "keys": self.keys}
        claim(self.folder, manifest | own)
        self._shards = range(process, self._layout.num_shards, processes)
        self._entries = self._layout.scan(self._shards, whole=True)
        self._done = self._layout.with_image(self._entries)
        with self._kept():
            for name in ("images", "parts", "perturbations", "scores", "timings"):
                files.make_folder(self.folder / name)
                self._remove_temporaries(self.folder / name)
            for shard in self._shards:
                self._compact(shard)

    def shards(self) -> range:
        """Return the numbers of this process's shards."""
        return self._shards

    def indices(self, shard: int) -> range:
        """Return the indices into `keys` of a shard's images."""
        return self._layout.indices(shard)

    def todo(self) -> list[int]:
        """Return the indices into `keys` of this process's images that are not done, in order."""
        return [i for i in self._own() if i not in self._done]

    def done(self) -> dict[int, dict]:
        """Return the records of this process's images that are done, by index."""
        return {index: self._entries[index].record for index in sorted(self._done)}

    def add(self, index: int, attack, record: dict, seconds) -> None:
        """Write what an attack found; it is done, and stays, once this returns.

        Args:
          index: of the image in `keys`.
          attack: a `dag_jax.Attack`, its image f32 or u8[H, W, 3].
          record: what JSON can hold and another run of the same would say again; its entry "key"
            is the image's id, whatever it says.
          seconds: what it took: a number, or a dict of numbers.

        Raises:
          ValueError: for an index of another process, for values that are not finite.
          OSError: where it cannot be written; what is finished is kept.
        """
        if self._layout.shard_of(index) not in self._shards:
            raise UserError(f"image {index} is of another process, or not of these results")
        key = self.keys[index]
        record = record | {"key": key}
        try:
            pixels = saved_pixels(attack.image, attack.perturbation)
            said = {"record": record, "pixels_sha256": files.sha256(pixels), "seconds": seconds}
            part = files.pack({key: np.asarray(attack.perturbation, np.float32)}, {key: said})
        except ValueError as error:
            raise UserError(f"image {key!r}: {error}; nothing was written of it") from error
        with self._kept():
            write(self._layout.image(key), files.pack_image(pixels))
            path = self._layout.part(index)
            write(path, part)  # after the image: a part says that all is there
            self._entries[index] = Entry(path, **said)
            self._done.add(index)
            self._compact(self._layout.shard_of(index))

    def put(self, name: str, shard: int, arrays: dict[str, np.ndarray]) -> None:
        """Write arrays computed of a shard's images, such as counts that scores are sums of.

        Args:
          name: what they are, of letters, digits and '_'.
          shard: its number.
          arrays: any numbers, by any name.
        """
        arrays = {key: np.asarray(value) for key, value in arrays.items()}
        with self._kept():
            write(self._layout.scores(name, shard), files.pack(arrays, {}))

    def has(self, name: str, shard: int) -> bool:
        """Return whether `put` wrote this."""
        return self._layout.scores(name, shard).exists()

    def get(self, name: str, shard: int) -> dict[str, np.ndarray]:
        """Return what any process `put`; ValueError where it is damaged or not there."""
        return files.load(self._layout.scores(name, shard))[1]

    def finalise(self) -> list[dict]:
        """Write records.jsonl and timings.jsonl once every image of every process is there.

        Returns:
          The records in the order of the keys, as records.jsonl has them.

        Raises:
          ValueError: saying how many images are missing; or for a damaged shard.
        """
        layout = self._layout
        found = layout.scan(range(layout.num_shards), whole=False)
        done = layout.with_image(found)
        parts = [index for index in done if found[index].path == layout.part(index)]
        if len(done) < len(self.keys) or parts:
            raise UserError(
                f"{self.folder}: {len(self.keys) - len(done)} of {len(self.keys)} images are not "
                f"done, and of {len(parts)} that are, their process has still to make the shard; "
                "the same command goes on with them"
            )
        records = [found[index].record for index in range(len(self.keys))]
        seconds = {}
        for shard in range(layout.num_shards):
            seconds |= layout.seconds(shard)
        timings = [{"key": key, "seconds": seconds.get(key)} for key in self.keys]
        with self._kept():
            for name, lines in (("records", records), ("timings", timings)):
                text = "".join(json.dumps(line) + "\n" for line in lines)
                write(self.folder / f"{name}.jsonl", text)
            for name in filter(files.TEMPORARY.fullmatch, files.names_in(self.folder)):
                files.remove(self.folder / name)  # every process is past its manifest
        return records

    def _own(self):
        return [index for shard in self._shards for index in self._layout.indices(shard)]

    def _compact(self, shard):
        """Make one file of a shard's parts, if all are there."""
        layout, indices = self._layout, self._layout.indices(shard)
        if not all(index in self._entries for index in indices):
            return
        parts = [i for i in indices if self._entries[i].path == layout.part(i)]
        if not parts:
            return
        arrays, said, seconds = {}, {}, layout.seconds(shard)
        for index in indices:
            key, entry = self.keys[index], self._entries[index]
            arrays |= files.load(entry.path, [key])[1]
            said[key] = {"record": entry.record, "pixels_sha256": entry.pixels_sha256}
            if index in parts:
                seconds[key] = entry.seconds
        # The parts go last: until then all of this can be done again.
        write(layout.timing(shard), files.canonical_json(seconds) + "\n")
        write(layout.shard(shard), files.pack(arrays, said))
        for index in indices:
            entry = dataclasses.replace(self._entries[index], path=layout.shard(shard))
            self._entries[index] = entry
        for index in parts:
            files.remove(layout.part(index))

    def _remove_temporaries(self, folder):
        """Remove what this process was writing when it was killed, and no other process's."""
        own = {path.name for i in self._own() for path in self._layout.paths(i)}
        shards = tuple(self._layout.name(shard) for shard in self._shards)
        for name in files.names_in(folder):
            match = files.TEMPORARY.fullmatch(name)
            if match and (match[1] in own or match[1].rpartition(".")[0].endswith(shards)):
                files.remove(folder / name)

    @contextlib.contextmanager
    def _kept(self):
        try:
            yield
        except OSError as error:
            if not self.folder.exists():
                raise
            raise OSError(
                error.errno,
                f"{error.strerror}. {len(self._done)} of the {len(self._own())} images of this "
                "process are finished and kept; then the same command goes on with the rest",
            ) from error
