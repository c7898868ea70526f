"""The folder that a launch writes to. It belongs to one run, and finished images stay in it.

`claim` makes the folder and its manifest, which says what the run is of. `Results` are the images
attacked in one way, in a folder of their own. After a kill the same command continues with the next
image and ends with the same bytes. `read` gives the folder's contents to other programs:

    run = rundir.read("runs/table1/fcn_vgg")
    for key in run.keys:
        change = run.perturbation(key)  # f32[H, W, 3], grey levels
        adversarial = run.image(key)  # u8[H, W, 3]

    manifest.json                       what the run is of: settings, versions, format, units
    images/<key>.png                    the adversarial image in whole grey levels
    perturbations/<key>.safetensors     the perturbation and its record, written last, and the
                                        pixels that `Run.clean` cannot get from the two
    scores/<column>/<key>.safetensors   small arrays that the launch computed of the image
    timings/<key>.json                  in a file apart, as they differ between equal runs

The choice of images is no setting: a launch with more images adds to the folder. File names are
percent-quoted keys. A folder is local, or gs://bucket/folder (s3://, az://), as in TFDS: see
`files`.

Shapes: `H W` pixels.
"""

import collections
import contextlib
import functools
import json
import urllib.parse

import numpy as np
from jaxtyping import Float32, Num, UInt8

from dag_jax import files
from dag_jax.arrays import Array
from dag_jax.errors import DamagedError, StorageError, UserError
from dag_jax.files import PathLike, write
from dag_jax.runs import layout, levels
from dag_jax.runs.manifest import (
    MANIFEST,
    accepted,
    check_same,
    claim,
    digest_of,
    folders_in,
    load_manifest,
)

__all__ = ["MANIFEST", "UNITS", "Results", "Run", "accepted", "check_same", "claim", "folders_in"]
__all__ += ["folder_name", "load_manifest", "read", "saved_pixels", "write"]

FORMAT = "dag_jax results 2"
UNITS = {
    "image": "u8[H, W, 3], RGB grey levels; the PNG is rint(clip(clean + perturbation, 0, 255))",
    "perturbation": "f32[H, W, 3], RGB grey levels, r of algorithm 1, not clipped",
    "step_size": "grey levels",
    "margin": "logits",
    "boxes": "[x0, y0, x1, y1], pixels of the image, 0-based, corners inclusive",
    "seconds": "wall-clock seconds",
}


def folder_name(name: str) -> str:
    """Return a name as that of a folder or file: percent-quoted, as for "mine:load"."""
    return urllib.parse.quote(name, safe=" +,=@")


def saved_pixels(
    image: Num[Array, "H W 3"], perturbation: Num[Array, "H W 3"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Return u8[H, W, 3], `dag_jax.perturb(image, perturbation, rounded=True)` as a file holds it.

    Args:
      image: [H, W, 3], RGB grey levels 0-255.
      perturbation: f32[H, W, 3], grey levels.

    Raises:
      UserError: for shapes that are not [H, W, 3] twice, or a value that is not finite.
    """
    shapes = np.shape(image), np.shape(perturbation)
    if shapes[0] != shapes[1] or len(shapes[0]) != 3 or shapes[0][2] != 3:
        raise UserError(f"image is {shapes[0]}, perturbation {shapes[1]}; both are [H, W, 3]")
    perturbed = np.asarray(image, np.float32) + np.asarray(perturbation, np.float32)
    if not np.isfinite(perturbed).all():
        raise UserError("image or perturbation has values that are not finite")
    return np.rint(np.clip(perturbed, 0, 255)).astype(np.uint8)


def _taken_back(pixels, perturbation):
    """Return the saved image minus its perturbation: the clean image but for a few values."""
    return np.rint(np.clip(pixels - perturbation, 0, 255)).astype(np.uint8)


def _missed(image, pixels, perturbation):
    """Return the places and values at which `_taken_back` misses the clean image of bytes."""
    image = np.asarray(image)
    if not ((image >= 0) & (image <= 255) & (image == np.rint(image))).all():
        return {}
    clean = image.astype(np.uint8)
    at = np.flatnonzero(clean != _taken_back(pixels, perturbation))
    return {"missed_at": at.astype(np.int32), "missed": clean.ravel()[at]} if at.size else {}


class Run:
    """The contents of a folder of `Results`; see `read`.

    Attributes:
      folder: the folder.
      manifest: dict, what the results are of.
      keys: sorted list of the ids of finished images.
    """

    def __init__(self, folder):
        self.folder = files.open_folder(folder)
        self.manifest = load_manifest(self.folder)
        if self.manifest.get("format") != FORMAT:
            raise UserError(f"{self.folder} holds no '{FORMAT}', which Results writes")
        self._load = functools.partial(layout.load, digest_of(self.manifest), self.folder)
        self.keys = sorted(layout.done(self.folder))

    @functools.cached_property
    def records(self) -> list[dict]:
        """The records of `keys`, dicts that name the key, in this order."""
        return [self.record(key) for key in self.keys]

    def record(self, key: str) -> dict:
        """Return the record of an image, a dict; raises as `files.load` does."""
        return self._load(layout.CHANGES, key, ())[0]["record"]

    def perturbation(self, key: str) -> Float32[np.ndarray, "H W 3"]:
        """Return f32[H, W, 3] in grey levels; raises as `files.load` does."""
        return self._load(layout.CHANGES, key)[1]["perturbation"]

    def image(self, key: str) -> UInt8[np.ndarray, "H W 3"]:
        """Return the adversarial image u8[H, W, 3]; raises as `files.load` does."""
        digest = self._load(layout.CHANGES, key, ())[0]["pixels_sha256"]
        return files.load_image(layout.path(self.folder, layout.IMAGES, key), digest)

    def clean(self, key: str) -> UInt8[np.ndarray, "H W 3"]:
        """Return the clean image u8[H, W, 3], from the two others; raises as `files.load` does.

        In folders from before the release of 0.2 a few pixels can differ, at 0, 255 and halves. A
        record's `image_sha256` tells.
        """
        arrays = self._load(layout.CHANGES, key)[1]
        image = _taken_back(self.image(key), arrays["perturbation"])
        if "missed_at" in arrays:
            image.reshape(-1)[arrays["missed_at"]] = arrays["missed"]
        return image

    def has(self, column: str, key: str) -> bool:
        """Return whether `Results.put` wrote this column of the image."""
        return files.exists(layout.path(self.folder, layout.column(column), key))

    def get(self, column: str, key: str) -> dict[str, np.ndarray]:
        """Return the arrays that `Results.put` wrote; raises as `files.load` does."""
        return self._load(layout.column(column), key)[1]


def read(folder: PathLike) -> Run:
    """Read a folder of results, finished or not, one image at a time.

    Args:
      folder: one with the manifest.json that `Results` wrote.

    Raises:
      UserError: where there is no such folder, or its manifest is damaged or cannot be read.
    """
    return Run(folder)


class Results:
    """The images attacked in one way, written so that a kill at any moment loses none.

        results = Results(workdir / "fcn_vgg", manifest, image_ids)
        for index in results.todo():
            results.add(index, image, attack.perturbation, record, seconds)
        records = results.records()

    Image i of `keys` belongs to process i % processes, and only that process writes it. On opening,
    the finished images of this process are verified.

    Attributes:
      folder: the folder.
      keys: list of the images of this launch.
      process, processes: this process's number, and how many there are.

    Args:
      folder: a folder of these results alone; it is made.
      manifest: JSON values of everything that changes the results: network, its weights' SHA-256,
        margin, ... Format and units are added. "store" is one of `levels.STORES`: how
        perturbations are kept.
      keys: image ids, texts. They are no setting: a later launch may have others.
      process: this process's number.
      processes: their number; a run may go on with another.
      accept_version: as in `claim`.

    Raises:
      UserError: for no keys, keys that repeat or are no file name, a folder of other settings, or
        damaged files, each named with what to do. The folder is unchanged then.
      StorageError: where the folder cannot be read or written.
    """

    def __init__(
        self, folder, manifest, keys, *, process=0, processes=1, accept_version: bool = False
    ):
        self.folder, self.keys = files.open_folder(folder), list(keys)
        self.process, self.processes = process, processes
        if not 0 <= process < processes:
            raise UserError(f"process {process} of {processes}")
        layout.check_keys(self.folder, self.keys)
        self._store = levels.store_of(manifest)
        manifest = manifest | {"format": FORMAT, "units": UNITS}
        claim(self.folder, manifest, accept_version=accept_version)
        self._run = digest_of(load_manifest(self.folder))
        self._load = functools.partial(layout.load, self._run, self.folder)
        self._records = self._verified()
        with self._kept():
            for kind in (layout.IMAGES, layout.CHANGES, layout.SCORES, layout.TIMINGS):
                files.make_folder(self.folder / kind)
            self._stale = self._tidy()

    def process_rows(self) -> list[int]:
        """Return the indices into `keys` of this process's images, in order."""
        return list(range(self.process, len(self.keys), self.processes))

    def todo(self) -> list[int]:
        """Return the indices into `keys` of this process's images that are not done, in order."""
        return [index for index in self.process_rows() if index not in self._records]

    def done(self) -> dict[int, dict]:
        """Return the records of this process's images that are done, by index."""
        return dict(sorted(self._records.items()))

    def add(self, index: int, image, perturbation, record: dict, seconds) -> None:
        """Write the result of an attack. Once this returns, the image is done and stays.

        Args:
          index: of the image in `keys`.
          image: the clean image [H, W, 3], f32 or u8, RGB grey levels.
          perturbation: f32[H, W, 3], grey levels, not clipped.
          record: JSON values that an equal run would give again; the entry "key" is set to the
            image's id.
          seconds: the time that it took: a number, or a dict of numbers.

        Raises:
          UserError: for an index of another process, for values that are not finite.
          StorageError: where it cannot be written; finished images stay.
        """
        key = self._own_key(index)
        try:
            pixels = saved_pixels(image, perturbation)
            record = json.loads(files.canonical_json(record | {"key": key}))
            content = {"record": record, "pixels_sha256": files.sha256(pixels)}
            change, arrays = levels.stored(self._store, image, perturbation)
            arrays |= _missed(image, pixels, change)
            packed = layout.pack(self._run, layout.CHANGES, key, arrays, **content)
        except ValueError as error:
            raise UserError(f"image {key!r}: {error}; nothing was written of it") from error
        with self._kept():
            while self._stale[index]:
                files.remove(self._stale[index][-1])
                self._stale[index].pop()
            write(self._path(layout.IMAGES, key), files.pack_image(pixels))
            files.write_json(self._path(layout.TIMINGS, key), {"key": key, "seconds": seconds})
            write(self._path(layout.CHANGES, key), packed)  # last: it says that all is there
            self._records[index] = record

    def put(self, column: str, index: int, arrays: dict[str, np.ndarray]) -> None:
        """Write arrays computed from an image, such as counts that scores are sums of.

        Args:
          column: name of this kind of arrays, of letters, digits and '_'.
          index: of the image in `keys`; it must be this process's.
          arrays: {name: array of numbers}.
        """
        key, kind = self._own_key(index), layout.column(column)
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
        with self._kept():
            files.make_folder(self.folder / kind)
            write(self._path(kind, key), layout.pack(self._run, kind, key, arrays))

    def has(self, column: str, index: int) -> bool:
        """Return whether any process has `put` this column of the image."""
        return files.exists(self._path(layout.column(column), self.keys[index]))

    def get(self, column: str, index: int) -> dict[str, np.ndarray]:
        """Return the arrays that any process has `put`; raises as `files.load` does."""
        return self._load(layout.column(column), self.keys[index])[1]

    def is_complete(self, column: str | None = None) -> bool:
        """Return whether every image of every process is done, and has this column."""
        keys = set(self.keys)
        return keys <= layout.done(self.folder) and (
            column is None or keys <= layout.keys_in(self.folder, layout.column(column))
        )

    def missing(self, column: str | None = None) -> dict[int, int]:
        """Return {process: number of its images that are not done, or lack this column}."""
        finished = layout.done(self.folder)
        if column is not None:
            finished &= layout.keys_in(self.folder, layout.column(column))
        late = [i % self.processes for i, key in enumerate(self.keys) if key not in finished]
        return dict(collections.Counter(late))

    def timing(self, index: int) -> dict:
        """Return the `seconds` that `add` was given for an image; {} if their file is lost."""
        key = self.keys[index]
        try:
            path = self._path(layout.TIMINGS, key)
            timing = files.load_json(path, digest=True, keys=("key", "seconds"))
        except UserError:
            return {}
        seconds = timing["seconds"] if timing["key"] == key else {}
        return seconds if isinstance(seconds, dict) else {"seconds": seconds}

    def records(self) -> list[dict]:
        """Return the records of all images of all processes, in the order of `keys`.

        Raises:
          UserError: saying how many images are missing; or as `files.load` does.
        """
        missing = len(set(self.keys) - layout.done(self.folder))
        if missing:
            raise UserError(
                f"{self.folder}: {missing} of {len(self.keys)} images are not done; the same "
                "command goes on with them"
            )
        if self.process == 0:  # every process is past its manifest
            files.remove_drafts(self.folder)
        return [
            self._records.get(index) or self._load(layout.CHANGES, key, ())[0]["record"]
            for index, key in enumerate(self.keys)
        ]

    def _path(self, kind, key):
        return layout.path(self.folder, kind, key)

    def _own_key(self, index):
        if index not in range(self.process, len(self.keys), self.processes):
            raise UserError(f"image {index} is of another process, or not of these results")
        return self.keys[index]

    def _columns(self):
        """Return the kinds of files that hold scores."""
        names = files.names_in(self.folder / layout.SCORES)
        return [layout.column(name) for name in sorted(names) if layout.COLUMN.fullmatch(name)]

    def _verified(self):
        """Return {index: record} of this process's finished images, after a check of digests."""
        records, damaged, done = {}, [], layout.done(self.folder)
        columns = {kind: layout.keys_in(self.folder, kind) for kind in self._columns()}
        for index in self.process_rows():
            key = self.keys[index]
            if key in done:
                try:
                    content, _ = self._load(layout.CHANGES, key)
                    files.load_image(self._path(layout.IMAGES, key), content["pixels_sha256"])
                    for kind in [kind for kind, keys in columns.items() if key in keys]:
                        self._load(kind, key)
                    records[index] = content["record"]
                except DamagedError as error:
                    damaged.append(str(error))
        if damaged:
            raise UserError("\n".join(damaged))
        return records

    def _tidy(self):
        """Remove half-written files of this process's images.

        Returns:
          {index: paths of whole files of an image that is not done}, which are of an older attack.
        """
        unrecorded = collections.defaultdict(list)
        for kind in (layout.CHANGES, layout.IMAGES, layout.TIMINGS, *self._columns()):
            row_by_name = {
                self._path(kind, self.keys[index]).name: index for index in self.process_rows()
            }
            for name in files.names_in(self.folder / kind):
                temporary = files.TEMPORARY.fullmatch(name)
                if temporary and temporary[1] in row_by_name:
                    files.remove(self.folder / kind / name)
                elif name in row_by_name and row_by_name[name] not in self._records:
                    unrecorded[row_by_name[name]].append(self.folder / kind / name)
        return unrecorded

    @contextlib.contextmanager
    def _kept(self):
        try:
            yield
        except StorageError as error:
            if not files.exists(self.folder):
                raise
            raise StorageError(
                error.errno,
                f"{error}. {len(self._records)} of the {len(self.process_rows())} images of this "
                "process are finished and kept; then the same command goes on with the rest",
            ) from error
