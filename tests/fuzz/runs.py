"""Readers of run folders, each on a whole folder in which one file is another."""

import functools
import pathlib
import shutil
import tempfile

import numpy as np

from dag_jax import files
from dag_jax.runs import rundir
from dag_jax.runs.dataset import ROW
from dag_jax.runs.stored import Stored
from tests.fuzz.children import Reader
from tests.fuzz.wrapping import signed, signed_json, unsigned

_KEYS = ["a", "b"]


@functools.cache
def _run():
    """A folder of Table 1 with one row of two images; it lasts as long as the process."""
    root = pathlib.Path(tempfile.mkdtemp(prefix="dag_jax_fuzz_run_"))
    settings = {"seed": 0, "rounded": False, "dataset": "scenes"}
    rundir.claim(root, {"launch": "table1", "settings": settings, "provenance": {"device": "cpu"}})
    manifest = {"model": "fcn_alex", "split": "val", "weights_sha256": "ab", "method": {"m": 1.5}}
    results = rundir.Results(root / "fcn_alex", manifest, _KEYS)
    for index in results.todo():
        image = np.full((4, 5, 3), 100, np.uint8)
        record = {"status": "FOOLED", "num_steps": 3, "image_sha256": files.sha256(image)}
        results.add(index, image, np.ones(image.shape, np.float32), record, 1.0)
        results.put("orig", index, {"confusion": np.eye(3, dtype=np.int64)})
    row = {"row": "fcn_alex", "network": "fcn_alex", "title": "FCN", "orig": 61.5}
    files.write_json(results.folder / ROW, row)
    return root


def _read_run(root):
    run = rundir.read(root / "fcn_alex")
    for key in run.keys:
        run.perturbation(key), run.image(key), run.get("orig", key)
    assert len(run.records) == len(run.keys)
    stored = Stored(root, dict)
    stored.sources([])
    results = rundir.Results(run.folder, _settings(run.manifest), _KEYS)
    assert len(list(map(results.timing, range(2)))) == 2
    results.records()


def _settings(manifest):
    return {name: manifest[name] for name in manifest if name not in ("format", "units")}


def readers() -> list[Reader]:
    """Return one for each kind of file of a folder, and one that signs what is changed."""
    places = {
        "manifest": "fcn_alex/manifest.json",
        "table manifest": "manifest.json",
        "row": f"fcn_alex/{ROW}",
        "timing": "fcn_alex/timings/a.json",
        "perturbation": "fcn_alex/perturbations/a.safetensors",
        "score": "fcn_alex/scores/orig/a.safetensors",
        "adversarial": "fcn_alex/images/a.png",
    }
    reader_list = []
    for name, place in places.items():
        whole = [(_run() / place).read_bytes()]
        read = functools.partial(_read_changed, place)
        reader_list.append(Reader(name, whole, read, lines=3))
        if place.endswith("json"):
            reader_list.append(Reader(f"signed {name}", whole, read, signed_json, lines=3))
        elif place.endswith("safetensors"):
            seeds = list(map(unsigned, whole))
            reader_list.append(Reader(f"signed {name}", seeds, read, signed, lines=3))
    return reader_list


def _read_changed(place, folder, data):
    """Read a copy of the run with one file that is another."""
    root = folder / "run"
    if not root.exists():
        shutil.copytree(_run(), root)
    path = root / place
    path.write_bytes(data)
    try:
        _read_run(root)
    finally:
        shutil.copy(_run() / place, path)
