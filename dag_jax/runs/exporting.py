"""A folder of results in the formats of other programs.

`export(folder, "npz")` and `export(folder, "safetensors")` write one file:

    manifest            settings and versions; JSON (npz: a text; safetensors: in the metadata)
    records             a list with a dict for each image, with its "key"; JSON, as manifest
    perturbation/<key>  f32[H, W, 3], RGB grey levels, not clipped
    image/<key>         u8[H, W, 3], RGB, the adversarial image as its PNG has it

`export(folder, "png")` writes a folder:

    run.json    {"manifest": ..., "records": ...}, as above
    <key>.png   the adversarial images

A key is percent-quoted as in the run's own file names: letters, digits and '_.-~' stay. Clean
images are not exported.

    arrays = np.load(dag_jax.runs.export("runs/table1/fcn_vgg", "npz"))
    for record in json.loads(str(arrays["records"])):
        change = arrays["perturbation/" + urllib.parse.quote(record["key"], safe="")]
"""

import json
import pathlib
import zipfile

import numpy as np

from dag_jax import files
from dag_jax.errors import UserError
from dag_jax.files import PathLike
from dag_jax.runs import layout, rundir

FORMATS = ("npz", "png", "safetensors")


def export(folder: PathLike, format: str, path: PathLike | None = None) -> pathlib.Path:
    """Write the finished images of a run, one at a time, in a format of other programs.

    Args:
      folder: a folder that `Results` wrote, e.g. runs/table1/fcn_vgg; also one in a bucket.
      format: "npz", "png" or "safetensors".
      path: the local file to write (for PNGs: the folder). None is export.npz, export.safetensors
        or export_png in `folder`. An earlier export there is replaced.

    Returns:
      The path.

    Raises:
      UserError: for another format, a folder without a finished image, or an impossible path.
      DamagedError, StorageError: naming the file that is damaged, or cannot be read or written.
    """
    if format not in FORMATS:
        raise UserError(f"format is {format!r}; there are {', '.join(FORMATS)}")
    run = rundir.read(folder)
    if not run.keys:
        raise UserError(f"{run.folder} has no finished image to export")
    if path is None:
        path = run.folder / ("export_png" if format == "png" else f"export.{format}")
    target = files.open_folder(path)
    if not files.is_local(target):
        raise UserError(f"{target} is in a bucket: give the path of a local file")
    writer = {"npz": _write_npz, "png": _write_png, "safetensors": _write_safetensors}[format]
    writer(run, target)
    return pathlib.Path(target)


def _texts(run):
    return {"manifest": json.dumps(run.manifest), "records": json.dumps(run.records)}


def _arrays(run):
    """Yield (name, function that reads the array); f32 first, so that all lie aligned."""
    for key in run.keys:
        yield f"perturbation/{layout.quoted(key)}", lambda key=key: run.perturbation(key)
    for key in run.keys:
        yield f"image/{layout.quoted(key)}", lambda key=key: run.image(key)


def _write_npz(run, path):
    with files.replacing(path) as file, zipfile.ZipFile(file, "w") as archive:

        def put(name, array):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)

        for name, text in _texts(run).items():
            put(name, np.array(text))
        for name, read in _arrays(run):
            put(name, read())


def _write_safetensors(run, path):
    # By hand, as the library takes all tensors at once: a run may be larger than the memory.
    header, end = {"__metadata__": _texts(run)}, 0
    for name, read in _arrays(run):
        array = read()
        header[name] = {
            "dtype": {"float32": "F32", "uint8": "U8"}[array.dtype.name],
            "shape": array.shape,
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with files.replacing(path) as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for _, read in _arrays(run):
            file.write(read().tobytes())


def _write_png(run, path):
    names = files.names_in(path)
    if names and "run.json" not in names:
        raise UserError(f"{path} is not empty and holds no export; give another path")
    files.make_folder(path)
    files.write_json(path / "run.json", {"manifest": run.manifest, "records": run.records})
    for key in run.keys:
        files.write(path / f"{layout.quoted(key)}.png", files.pack_image(run.image(key)))
