"""Transfer over stored perturbations, on two scenes."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

import dag_jax
from dag_jax import datasets, files, metrics, networks
from dag_jax.networks import zoo
from dag_jax.runs import claims, rundir
from dag_jax.runs.matrix import Matrix
from dag_jax.runs.stored import SUMS, Stored, check_shown, default_sums, open_run
from dag_jax.weights import store

pytestmark = pytest.mark.slow  # it compiles whole networks

ATTACKED = ("fcn_alex", "fcn_alex_star", "fr_zf_07")
UNSEEN = "fcn_resnet"
FLAGS = ("--sums=fcn_alex+fcn_alex_star,fcn_alex+fr_zf_07", f"--black_boxes={UNSEEN}", "--sets=50")


@pytest.fixture(scope="module")
def table(launch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfer") / "table1"
    flags = (f"--networks={','.join(ATTACKED)}", "--split=seg11valid", "--limit=2")
    launch("table1", *flags, "--max_steps=3", "--noaudit", f"--workdir={folder}")
    return folder


@pytest.fixture(scope="module")
def run(launch, table):
    workdir = table.parent / "transfer"
    return workdir, launch("transfer", f"--run={table}", *FLAGS, f"--workdir={workdir}")


def cells_of(workdir):
    """Return {(members, permuted, network): cell} of transfer.json."""
    content = json.loads((workdir / "transfer.json").read_text())
    return {
        ("+".join(cell["added"]), cell["permuted"], cell["network"]): cell
        for cell in content["cells"]
    }


def test_every_source_meets_every_network(run):
    workdir, process = run
    sources = ["", *ATTACKED, "fcn_alex+fcn_alex_star", "fcn_alex+fr_zf_07"]
    expected = {
        (source, permuted, name)
        for source in sources
        for permuted in ((False, True) if source else (False,))
        for name in (*ATTACKED, UNSEEN)
    }
    cells = cells_of(workdir)
    assert cells.keys() == expected
    assert all(cell["images"] == 2 and cell["split"] == "seg11valid" for cell in cells.values())
    kinds = {
        cells[source, False, name]["kind"]
        for source, name in (("fcn_alex", "fcn_alex"), ("fcn_alex+fr_zf_07", "fr_zf_07"))
    }
    assert kinds == {"white box"}
    assert cells["fcn_alex", True, "fcn_alex"]["kind"] == "permuted"
    assert cells["fcn_alex", False, "fcn_alex_star"]["kind"] == "cross-training"
    assert cells["fcn_alex", False, UNSEEN]["kind"] == "cross-network"
    assert cells["fr_zf_07", False, "fcn_alex"]["kind"] == "cross-task"
    text = (workdir / "transfer.md").read_text()
    assert text in process.stdout and f"results: {workdir}" in process.stdout
    assert "Not audited: FCN-Alex, FCN-Alex*, FR-ZF-07; `python -m experiments.table1" in text
    assert "not shown (fewer than 10 images)" in text and "p x1000" in text
    for part in ("Within segmentation", "Within detection", "Across tasks", "What holds"):
        assert f"## {part}" in text


def test_the_diagonal_is_table_1(run, table):
    content = json.loads((run[0] / "transfer.json").read_text())
    rows = json.loads((table / "table1.json").read_text())["rows"]
    assert content["diagonal"] == {row["network"]: [row["advr"]] * 2 for row in rows}
    cells = cells_of(run[0])
    for row in rows:
        name = row["network"]
        assert cells["", False, name]["score"] == row["orig"] == cells[name, False, name]["clean"]
        assert cells[name, True, name]["score"] == row["perm"]
        added = [record["perceptibility"] for record in rundir.read(table / name).records]
        size = cells[name, False, name]["perceptibility"]
        assert size == pytest.approx(np.mean(added), abs=1e-6) and size > 0
    assert cells["", False, "fcn_alex"]["perceptibility"] == 0
    assert content["seed"] == 0 and content["sets"] == 50
    assert "The diagonal equals ADVR of Table 1 (3 cells)" in run[1].stdout


@pytest.mark.parametrize("members", [("fcn_alex",), ("fcn_alex", "fr_zf_07")])
def test_a_network_alone_gives_the_same_number(run, table, cache, members):
    network, predict = networks.load(UNSEEN, miniature=True), jax.jit(networks.predict)
    runs = [rundir.read(table / name) for name in members]
    source = datasets.open_dataset("scenes", "seg11valid[:2]", cache_dir=cache)
    confusion = 0
    for example in source:
        change = sum(one.perturbation(example["image_id"]) for one in runs)
        image = dag_jax.perturb(example["image"].astype(np.float32), change)
        labels = np.asarray(predict(network, image))
        confusion = confusion + metrics.confusion_matrix(example["mask"][:, :, 0], labels, 21)
    cell = cells_of(run[0])["+".join(members), False, UNSEEN]
    assert cell["score"] == round(100 * metrics.mean_iou(confusion), 2)
    assert cell["score"] != cell["clean"]


def test_tables_for_other_programs(run):
    workdir, _ = run
    with open(workdir / "transfer.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert {(line["added"], line["permuted"] == "True", line["network"]) for line in lines} == set(
        cells_of(workdir)
    )
    for line in lines:
        assert 0 <= float(line["low"]) <= float(line["score"]) <= float(line["high"]) <= 100
    latex = (workdir / "transfer.tex").read_text()
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 3
    assert r"FCN-Alex$^*$" in latex and r"\textbf{" in latex
    with Image.open(workdir / "transfer.png") as image:
        assert min(image.size) > 400


def test_a_cell_that_is_missing_is_made_anew_and_no_other(run, table, launch):
    workdir, _ = run
    before = (workdir / "transfer.json").read_bytes()
    cells = sorted((workdir / "cells").rglob("*.safetensors"))
    content = cells[3].read_bytes()
    cells[3].unlink()
    at = {path: path.stat().st_mtime_ns for path in cells if path.exists()}
    launch("transfer", f"--run={table}", *FLAGS, f"--workdir={workdir}")
    assert (workdir / "transfer.json").read_bytes() == before
    assert cells[3].read_bytes() == content
    assert {path: path.stat().st_mtime_ns for path in at} == at


def test_two_processes_share_the_networks(run, table, launch):
    workdir = table.parent / "shared"
    flags = (f"--run={table}", *FLAGS, f"--workdir={workdir}", "--processes=2")
    # Process 0 does its part, and does not wait for one that has failed.
    trouble = workdir / "cells" / "fcn_alex_star" / "failed"
    trouble.mkdir(parents=True)
    for name in ("manifest.json", "cells/fcn_alex_star/manifest.json"):
        shutil.copy(run[0] / name, workdir / name)
    (trouble / "1.txt").write_text("process 1: no such luck")
    process = launch("transfer", *flags, "--process=0", fails=True)
    assert "error: process 1: no such luck" in process.stderr
    assert "process 1 is done" in launch("transfer", *flags, "--process=1").stdout
    assert not list(trouble.iterdir()) and not (workdir / "transfer.json").exists()
    done = {path.parent.name for path in workdir.glob("cells/*/*.safetensors")}
    assert done == {*ATTACKED, UNSEEN}
    launch("transfer", *flags, "--process=0")
    assert (workdir / "transfer.json").read_bytes() == (run[0] / "transfer.json").read_bytes()


def test_networks_of_different_splits_have_no_sum(table, launch):
    folder, workdir = table.parent / "two_splits", table.parent / "two"
    flags = ("--networks=fcn_alex,fr_zf_07", "--limit=2", "--max_steps=3", "--noaudit")
    launch("table1", *flags, f"--workdir={folder}")
    flags = ("--black_boxes=", "--sets=20", f"--workdir={workdir}")
    text = launch("transfer", f"--run={folder}", *flags).stdout
    assert "none (seg11valid)" in text and "none (voc07_test)" in text
    cells = cells_of(workdir)
    assert cells["fr_zf_07", False, "fcn_alex"]["split"] == "voc07_test"
    with pytest.raises(
        ValueError, match=r"no sum: .* different splits \(fcn_alex on seg11valid, fr"
    ):
        Stored(folder).sources([("fcn_alex", "fr_zf_07")])


def test_default_sums_are_those_that_can_be_made():
    splits = dict.fromkeys(networks.NAMES, "val")
    assert tuple(default_sums(splits)) == SUMS
    for name in networks.NAMES:
        splits[name] = str(name.startswith("fr_"))
    assert tuple(default_sums(splits)) == SUMS[:4]
    del splits["fcn_vgg"]
    assert ("fcn_alex", "fcn_vgg") not in default_sums(splits)


def test_perturbations_that_are_not_there_are_named(table, tmp_path):
    with pytest.raises(ValueError, match="there is no folder .*/none; `python .*table1"):
        Stored(tmp_path / "none")
    with pytest.raises(ValueError, match="the folder .* is empty; .* with --split=seg11valid"):
        Stored(tmp_path)
    with pytest.raises(ValueError, match=r"manifest.json is not a folder"):
        Stored(table / "manifest.json")
    (tmp_path / "something").mkdir()
    with pytest.raises(ValueError, match="has no row of Table 1"):
        Stored(tmp_path)
    with pytest.raises(ValueError, match="--run is empty"):
        open_run("")
    with pytest.raises(ValueError, match="no row of fcn_vgg; it has rows of fcn_alex, fcn_alex_st"):
        Stored(table).sources([("fcn_alex", "fcn_vgg")])


def test_fcns_are_not_asked_of_images_without_masks(table, cache):
    stored = Stored(table, cache_dir=cache)
    sources = stored.sources([])
    check_shown(stored, ["fcn_alex"], sources)
    for example in stored.examples("seg11valid").values():
        example["has_mask"] = False
    check_shown(stored, ["fcn_alex", "fr_zf_07"], sources)
    with pytest.raises(ValueError, match="none of the images of .* has a mask"):
        check_shown(stored, ["fcn_alex"], sources)


@pytest.fixture
def matrix(run, table, cache, tmp_path):
    """The finished matrix, in a folder of its own."""
    shutil.copytree(run[0] / "cells", tmp_path / "matrix" / "cells")
    stored = Stored(table, cache_dir=cache)
    sources = stored.sources([("fcn_alex", "fcn_alex_star")])
    return Matrix(epath.Path(tmp_path / "matrix"), stored, sources, num_sets=50)


def test_cells_are_compared_on_common_images(matrix):
    targets = ("fcn_alex", "fcn_alex_star", UNSEEN)
    *_, both = matrix.sources
    whole = {(one, name): matrix.cell(name, one) for one in matrix.sources for name in targets}
    keys = whole[both, UNSEEN].keys[1:]
    some = {pair: matrix.cell(pair[1], pair[0], keys) for pair in whole}
    assert {cell.keys for cell in some.values()} == {keys}
    assert some[both, UNSEEN].scores[0] != whole[both, UNSEEN].scores[0]
    # A sum of members that have not all the same images.
    for name in targets:
        path = matrix.path(name, both)
        content, arrays = files.load(path)
        arrays = {f"{int(n[0]) - 1}{n[1:]}": one for n, one in arrays.items() if n[0] != "0"}
        files.write(path, files.pack(arrays, content | {"keys": list(keys)}))
        whole[both, name] = matrix.cell(name, both)
        np.testing.assert_array_equal(whole[both, name].scores, some[both, name].scores)
    lookers = {
        name: claims.Looker(name, "segmentation", networks.build(name)) for name in targets
    } | {"fr_zf_07": claims.Looker("fr_zf_07", "detection")}
    found, expected = (
        [claim for claim in claims.of_transfer(cells, lookers, matrix.cell) if "+" in claim.cells]
        for cells in (whole, some)
    )
    assert len(found) == 3 and found == expected


def test_cells_of_other_perturbations_are_refused_and_others_kept(matrix, table, cache, tmp_path):
    other = tmp_path / "table1"
    shutil.copytree(table, other)
    shutil.rmtree(other / "fcn_alex_star")
    fewer = Stored(other, cache_dir=cache)  # as before fcn_alex_star was attacked
    assert Matrix(matrix.folder, fewer, fewer.sources([])).is_there(UNSEEN)
    assert matrix.is_there(UNSEEN)
    more = [*matrix.sources, matrix.sources[-1]._replace(members=("fcn_alex_star", "fr_zf_07"))]
    assert not Matrix(matrix.folder, matrix.stored, more).is_there(UNSEEN)
    shutil.copytree(table / "fcn_alex", other / "fcn_alex_star")
    changed = Matrix(matrix.folder, Stored(other, cache_dir=cache), matrix.sources)
    with pytest.raises(ValueError, match=r"settings \(members.fcn_alex_star.* Give another --work"):
        changed.is_there(UNSEEN)
    path = matrix.path(UNSEEN, matrix.sources[0])  # clean images, when there were others
    content, arrays = files.load(path)
    content["of"]["images"] = "0"
    files.write(path, files.pack(arrays, content))
    assert not matrix.is_there(UNSEEN)


def test_other_weights_than_those_attacked_are_refused(table, tmp_path):
    parameters, record = store.load(zoo.CHECKPOINTS / "fcn_alex.safetensors")
    store.save(tmp_path / "fcn_alex.safetensors", parameters, record)
    with pytest.raises(ValueError, match="other weights than"):
        Stored(table).network("fcn_alex", tmp_path)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--sums=fcn_alex+fcn_alex", "fcn_alex+fcn_alex is not a sum of different networks"),
        ("--black_boxes=fcn_google", "unknown fcn_google; known: fcn_alex"),
    ],
)
def test_bad_flags_are_named_and_nothing_is_written(table, launch, tmp_path, flag, message):
    flags = (f"--run={table}", f"--workdir={tmp_path / 'run'}", flag)
    process = launch("transfer", *flags, fails=True)
    assert message in process.stderr + process.stdout
    assert not (tmp_path / "run").exists()
