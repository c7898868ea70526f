"""Runs in the formats of other programs, read by those programs' own readers."""

import json
import os
import pathlib
import re
import urllib.parse

import numpy as np
import pytest
import safetensors
from PIL import Image

from dag_jax import files, runs
from dag_jax.errors import DamagedError, StorageError, UserError
from dag_jax.runs import rundir

KEYS = ["2008_000464", "a/b c", "odd"]


@pytest.fixture
def run(tmp_path):
    """A run of three images of several sizes, one of which is not done."""
    results = rundir.Results(tmp_path / "run", {"network": "fcn_alex"}, [*KEYS, "not done"])
    rng = np.random.default_rng(0)
    for index, shape in enumerate([(4, 5, 3), (2, 2, 3), (3, 1, 3)]):
        image = rng.integers(0, 256, shape, np.uint8)
        change = rng.normal(0, 9, shape).astype(np.float32)
        results.add(index, image, change, {"num_steps": index}, 1.0)
    return rundir.read(results.folder)


def check(run, manifest, records, arrays):
    """Check that what a format holds is what the run holds."""
    assert json.loads(manifest) == run.manifest and json.loads(records) == run.records
    assert len(arrays) == 2 * len(KEYS)
    for record in json.loads(records):
        name = urllib.parse.quote(record["key"], safe="")
        change, image = arrays[f"perturbation/{name}"], arrays[f"image/{name}"]
        np.testing.assert_array_equal(change, run.perturbation(record["key"]), strict=True)
        np.testing.assert_array_equal(image, run.image(record["key"]), strict=True)


def test_npz(run, tmp_path):
    path = runs.export(tmp_path / "run", "npz")
    assert path == tmp_path / "run" / "export.npz" and type(path) is type(pathlib.Path())
    with np.load(path) as file:
        arrays = dict(file)
    check(run, str(arrays.pop("manifest")), str(arrays.pop("records")), arrays)


def test_safetensors(run, tmp_path):
    path = runs.export(os.fspath(tmp_path / "run"), "safetensors", tmp_path / "a.safetensors")
    with safetensors.safe_open(path, "numpy") as file:
        texts = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}
    check(run, texts["manifest"], texts["records"], arrays)


def test_png(run, tmp_path):
    path = runs.export(tmp_path / "run", "png", tmp_path / "deep" / "pictures")
    assert {file.name for file in path.iterdir()} == {
        "run.json",
        *("2008_000464.png", "a%2Fb%20c.png", "odd.png"),
    }
    assert files.load_json(path / "run.json", digest=True)["records"] == run.records
    with Image.open(path / "a%2Fb%20c.png") as image:
        np.testing.assert_array_equal(np.asarray(image), run.image("a/b c"), strict=True)


@pytest.mark.parametrize("format", ["npz", "png", "safetensors"])
def test_an_export_is_made_again_with_the_same_bytes(run, tmp_path, format):
    def content(path):
        paths = sorted(path.iterdir()) if path.is_dir() else [path]
        return [file.read_bytes() for file in paths]

    first = content(runs.export(tmp_path / "run", format))
    assert content(runs.export(tmp_path / "run", format)) == first
    assert rundir.read(tmp_path / "run").keys == sorted(KEYS)


def test_a_folder_of_other_files_is_left_alone(run, tmp_path):
    for folder in (tmp_path, tmp_path / "run"):
        with pytest.raises(UserError, match="is not empty and holds no export"):
            runs.export(tmp_path / "run", "png", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_cannot_be_exported_is_said(run, tmp_path):
    with pytest.raises(UserError, match="format is 'pkl'; there are npz, png, safetensors"):
        runs.export(tmp_path / "run", "pkl")
    with pytest.raises(UserError, match=r"manifest\.json: no such file"):
        runs.export(tmp_path / "nothing", "npz")
    with pytest.raises(StorageError, match="its folder is not there"):
        runs.export(tmp_path / "run", "npz", tmp_path / "nothing" / "a.npz")
    rundir.Results(tmp_path / "empty", {}, KEYS)
    with pytest.raises(UserError, match="no finished image"):
        runs.export(tmp_path / "empty", "npz")


@pytest.mark.parametrize("format", ["npz", "png", "safetensors"])
def test_damage_is_named_and_not_exported(run, tmp_path, format):
    path = tmp_path / "run" / "images" / "odd.png"
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(DamagedError, match=re.escape(f"{path} is damaged")):
        runs.export(tmp_path / "run", format, tmp_path / "out")
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == (["out", "run"] if format == "png" else ["run"])
