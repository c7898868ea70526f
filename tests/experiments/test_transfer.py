"""Transfer over the perturbations of three models of nobody's framework, with a built-in one."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import dag_jax
from dag_jax import datasets, files, metrics, networks
from dag_jax.datasets import ExampleSet
from dag_jax.runs import claims, evaluation, rundir
from dag_jax.runs.matrix import Matrix
from dag_jax.runs.stored import SUMS, Stored, default_sums
from dag_jax.runs.subject import weights_digest
from tests import toy_models
from tests.experiments import small
from tests.experiments.small import SEGMENTER, SIGMOID, TWO_STAGE, everything, folder, written

UNSEEN = "fcn_alex"
BOTH, ACROSS = f"{TWO_STAGE}+{SIGMOID}", f"{SEGMENTER}+{TWO_STAGE}"
FLAGS = (f"--sums={BOTH},{ACROSS}", f"--black_boxes={UNSEEN}", "--sets=50")


@pytest.fixture(scope="module")
def run(launch, toys, once):
    def make(workdir):
        return workdir, launch("transfer", f"--run={toys[0]}", *FLAGS, f"--workdir={workdir}")

    return once("transfer", make)


def cells_of(workdir):
    """Return {(members, permuted, model): cell} of transfer.json."""
    content = json.loads((workdir / "transfer.json").read_text())
    return {
        ("+".join(cell["added"]), cell["permuted"], cell["network"]): cell
        for cell in content["cells"]
    }


def test_every_source_meets_every_model(run):
    sources = ["", *small.TITLES, BOTH, ACROSS]
    expected = {
        (source, permuted, name)
        for source in sources
        for permuted in ((False, True) if source else (False,))
        for name in (*small.TITLES, UNSEEN)
    }
    cells = cells_of(run[0])
    assert cells.keys() == expected
    assert all(cell["images"] == 2 and cell["split"] == small.SPLIT for cell in cells.values())


def test_kinds_of_cells(run):
    cells = cells_of(run[0])
    assert cells[SEGMENTER, False, SEGMENTER]["kind"] == "white box"
    assert cells[ACROSS, False, TWO_STAGE]["kind"] == "white box"
    assert cells[SEGMENTER, True, SEGMENTER]["kind"] == "permuted"
    assert cells[TWO_STAGE, False, SIGMOID]["kind"] == "cross-network"
    assert cells[SEGMENTER, False, UNSEEN]["kind"] == "cross-network"
    assert cells[SIGMOID, False, SEGMENTER]["kind"] == "cross-task"


def test_the_tables_are_printed_and_written(run):
    workdir, process = run
    text = (workdir / "transfer.md").read_text()
    assert text in process.stdout and f"results: {workdir}" in process.stdout
    for part in ("Within segmentation", "Within detection", "Across tasks", "What holds"):
        assert f"## {part}" in text
    assert "not shown (fewer than 10 images)" in text and "p x1000" in text
    assert "Streets: compared on 6 classes (Person, background, motorcycle, " in text
    assert "## Audit\n\n44 checks of 3 rows: " in text  # of Table 1


def test_the_diagonal_is_table_1(run, toys):
    content = json.loads((run[0] / "transfer.json").read_text())
    rows = json.loads((toys[0] / "table1.json").read_text())["rows"]
    assert content["diagonal"] == {row["network"]: [row["advr"]] * 2 for row in rows}
    cells = cells_of(run[0])
    for row in rows:
        name = row["network"]
        assert cells["", False, name]["score"] == row["orig"] == cells[name, False, name]["clean"]
        assert cells[name, True, name]["score"] == row["perm"]
        sizes = [record["perceptibility"] for record in rundir.read(toys[0] / folder(name)).records]
        size = cells[name, False, name]["perceptibility"]
        assert size == pytest.approx(np.mean(sizes), abs=1e-6) and size > 0
    assert cells["", False, SEGMENTER]["perceptibility"] == 0
    assert content["seed"] == 0 and content["sets"] == 50
    assert "The diagonal equals ADVR of Table 1 (3 cells)" in run[1].stdout


@pytest.mark.parametrize("members", [(SEGMENTER,), (SEGMENTER, TWO_STAGE)])
def test_a_model_alone_gives_the_same_number(run, toys, scenes, members):
    model = networks.load(UNSEEN, miniature=True)
    runs = [rundir.read(toys[0] / folder(name)) for name in members]
    images = []
    for example in scenes:
        change = sum(each.perturbation(example["image_id"]) for each in runs)
        images.append(dag_jax.perturb(example["image"].astype(np.float32), change))
    confusion = sum(
        metrics.confusion_matrix(example["mask"][:, :, 0], seen, 21)
        for example, seen in zip(scenes, evaluation.predict(model, images), strict=True)
    )
    cell = cells_of(run[0])["+".join(members), False, UNSEEN]
    assert cell["score"] == round(100 * metrics.mean_iou(confusion), 2) != cell["clean"]


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
    with Image.open(workdir / "transfer.png") as image:
        assert min(image.size) > 400


def test_a_cell_that_is_missing_is_made_anew_and_no_other(run, toys, call, tmp_path):
    workdir = shutil.copytree(run[0], tmp_path / "run")
    before = written(workdir / "cells")
    missing = f"{folder(SIGMOID)}/{small.SPLIT} {folder(BOTH)}.safetensors"
    (workdir / "cells" / missing).unlink()
    call("transfer", f"--run={toys[0]}", *FLAGS, f"--workdir={workdir}")
    after = written(workdir / "cells")
    assert {name for name in before if after[name] != before[name]} == {missing}
    assert everything(workdir) == everything(run[0])


def test_two_processes_share_the_models(run, toys, call, tmp_path):
    workdir = tmp_path / "run"
    alone = ("--sums=", "--black_boxes=")
    flags = (f"--run={toys[0]}", *alone, f"--workdir={workdir}", "--processes=2")
    call("transfer", *flags, "--process=1")
    assert not (workdir / "transfer.json").exists()
    assert len(list((workdir / "cells").iterdir())) == 1
    call("transfer", *flags, "--process=0")
    cells = everything(workdir / "cells")
    whole = everything(run[0] / "cells")
    assert len(cells) >= 12 and cells == {name: whole[name] for name in cells}
    assert (workdir / "transfer.json").exists()


def test_a_process_that_failed_is_named_and_not_waited_for(run, toys, call, tmp_path):
    workdir = shutil.copytree(run[0], tmp_path / "run")
    shutil.rmtree(workdir / "cells" / folder(SIGMOID))  # the second: process 1 makes it
    trouble = workdir / "failed" / folder(SIGMOID)
    trouble.mkdir(parents=True)
    (trouble / "1.txt").write_text("no such luck")
    flags = (f"--run={toys[0]}", *FLAGS, f"--workdir={workdir}", "--processes=2", "--process=0")
    with pytest.raises(ValueError, match="process 1: no such luck"):
        call("transfer", *flags)


def test_another_version_is_refused_or_accepted_and_the_tables_say_so(
    run, toys, call, refuse, tmp_path
):
    workdir = shutil.copytree(run[0], tmp_path / "run")
    content = files.load_json(workdir / "manifest.json", digest=True)
    content["provenance"]["device"] = "abacus"
    files.write_json(workdir / "manifest.json", content)
    flags = (f"--run={toys[0]}", *FLAGS, f"--workdir={workdir}")
    assert 'device: now "cpu", there "abacus"' in refuse("transfer", *flags)
    call("transfer", *flags, "--accept_version")
    assert "began this folder (--accept_version)" in (workdir / "transfer.md").read_text()


@pytest.fixture
def altered(toys, tmp_path):
    """Return a copy of the run of which a model's manifest says something else."""

    def alter(model, **changes):
        copy = shutil.copytree(toys[0], tmp_path / "table1")
        path = copy / folder(model) / "manifest.json"
        files.write_json(path, files.load_json(path, digest=True) | changes)
        return copy

    return alter


def test_models_of_different_splits_have_no_sum(altered, refuse, tmp_path):
    run = altered(TWO_STAGE, split="seg11valid")
    text = refuse("transfer", f"--run={run}", *FLAGS, f"--workdir={tmp_path / 'run'}")
    assert f"{BOTH} is no sum: its members were attacked on different splits" in text
    assert f"({TWO_STAGE} on seg11valid, {SIGMOID} on {small.SPLIT})" in text


def test_other_weights_than_those_attacked_are_refused(altered, refuse, tmp_path):
    run = altered(SEGMENTER, weights_sha256="ab")
    text = refuse("transfer", f"--run={run}", *FLAGS, f"--workdir={tmp_path / 'run'}")
    assert f"{SEGMENTER} has other weights than {run} was attacked with" in text


def test_default_sums_are_those_that_can_be_made():
    splits = dict.fromkeys(networks.NAMES, "val")
    assert tuple(default_sums(splits)) == SUMS
    for name, task in networks.TASKS.items():
        splits[name] = task
    assert tuple(default_sums(splits)) == SUMS[:4]
    del splits["fcn_vgg"]
    assert ("fcn_alex", "fcn_vgg") not in default_sums(splits)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--run=/nowhere",), "there is no folder /nowhere; `python -m experiments.table1"),
        (("--run={tmp}/empty",), "empty is empty; `python -m experiments.table1"),
        (("--run={tmp}/full",), "full is no folder of Table 1; `python"),
        (("--run={tmp}/full/file",), "full/file is not a folder; `python"),
        (("--run={run}",), "is no folder of Table 1"),
        (("--run={tmp}/fresh",), "has no row of Table 1"),
        ((f"--sums={SEGMENTER}+{SEGMENTER}",), "is not a sum of different models"),
        ((f"--sums={SEGMENTER}",), "is not a sum of different models"),
        (("--sums=fcn_alex+fcn_vgg",), "no row of fcn_alex, fcn_vgg; it has rows of tests.toy_"),
        (("--black_boxes=fcn_google",), "unknown model 'fcn_google'; known are fcn_alex"),
        (("--black_boxes=no_module:load",), "there is no module no_module here"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(run, toys, refuse, tmp_path, flags, message):
    for name in ("empty", "full", "fresh"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    shutil.copy(toys[0] / "manifest.json", tmp_path / "fresh")
    flags = [flag.format(tmp=tmp_path, run=run[0]) for flag in flags]
    workdir = tmp_path / "run"
    assert message in refuse(
        "transfer", f"--run={toys[0]}", "--black_boxes=", f"--workdir={workdir}", *flags
    )
    assert not workdir.exists()


@pytest.mark.parametrize("name", ["manifest.json", "row.json", "manifest of the run"])
def test_a_damaged_run_is_named(toys, refuse, tmp_path, name):
    copy = shutil.copytree(toys[0], tmp_path / "table1")
    path = copy / "manifest.json" if "run" in name else copy / folder(SIGMOID) / name
    path.write_text(path.read_text().replace("0.5", "0.6", 1).replace("3.0", "3.1", 1))
    text = refuse("transfer", f"--run={copy}", *FLAGS, f"--workdir={tmp_path / 'run'}")
    assert text.startswith(f"{path} is damaged")


def load_scenes(cache):
    return lambda settings, split, ids: datasets.load_examples(
        "scenes", split, cache_dir=cache, image_ids=ids
    )


def test_segmenters_are_not_asked_of_images_without_masks(toys, cache, tmp_path):
    def without_masks(*arguments):
        examples = load_scenes(cache)(*arguments)
        return ExampleSet(
            [{**example, "has_mask": False} for example in examples], examples.classes
        )

    stored = Stored(toys[0], without_masks)
    sources = stored.sources([])
    looking = {
        SEGMENTER: (toy_models.segmenter(), "a"),
        TWO_STAGE: (toy_models.two_stage(), "b"),
    }
    matrix = Matrix(tmp_path, stored, sources, looking)
    assert matrix.subject(SEGMENTER, sources[0]) is None
    assert matrix.subject(TWO_STAGE, sources[0]) is not None
    matrix.check_shown()
    with pytest.raises(ValueError, match="none of the models can be scored on an image"):
        Matrix(tmp_path, stored, sources, {SEGMENTER: looking[SEGMENTER]}).check_shown()


@pytest.fixture
def matrix(run, toys, cache, tmp_path):
    """The finished matrix, in a folder of its own."""
    shutil.copytree(run[0] / "cells", tmp_path / "matrix" / "cells")
    stored = Stored(toys[0], load_scenes(cache))
    sources = stored.sources([(TWO_STAGE, SIGMOID)])
    makers = {SEGMENTER: "segmenter", TWO_STAGE: "two_stage", SIGMOID: "sigmoid"}
    models = {name: getattr(toy_models, maker)() for name, maker in makers.items()}
    looking = {name: (model, weights_digest(model)) for name, model in models.items()}
    return Matrix(tmp_path / "matrix", stored, sources, looking, num_sets=50)


def test_cells_are_compared_on_common_images(matrix):
    targets = (TWO_STAGE, SIGMOID, SEGMENTER)
    *_, both = matrix.sources
    whole = {
        (source, name): matrix.cell(name, source) for source in matrix.sources for name in targets
    }
    keys = whole[both, SEGMENTER].keys[1:]
    common = {pair: matrix.cell(pair[1], pair[0], keys) for pair in whole}
    assert {cell.keys for cell in common.values()} == {keys}
    assert common[both, SEGMENTER].scores[0] != whole[both, SEGMENTER].scores[0]
    # A sum of members that have not all the same images.
    for name in targets:
        path = matrix.path(name, both)
        content, arrays = files.load(path)
        arrays = {
            f"{int(key[0]) - 1}{key[1:]}": array for key, array in arrays.items() if key[0] != "0"
        }
        files.write(path, files.pack(arrays, content | {"keys": list(keys)}))
        whole[both, name] = matrix.cell(name, both)
        np.testing.assert_array_equal(whole[both, name].scores, common[both, name].scores)
    lookers = {
        name: claims.Looker(name, "segmentation" if name == SEGMENTER else "detection")
        for name in targets
    }
    actual, expected = (
        [claim for claim in claims.of_transfer(cells, lookers, matrix.cell) if "+" in claim.cells]
        for cells in (whole, common)
    )
    assert len(actual) == 2 and actual == expected


def test_cells_of_other_perturbations_are_refused_and_others_kept(matrix, toys, cache, tmp_path):
    run_folder = shutil.copytree(toys[0], tmp_path / "table1")
    shutil.rmtree(run_folder / folder(SIGMOID))
    fewer = Stored(run_folder, load_scenes(cache))  # as before the third model was attacked
    assert Matrix(matrix.folder, fewer, fewer.sources([]), matrix.looking).is_complete(SEGMENTER)
    assert matrix.is_complete(SEGMENTER)
    more = [*matrix.sources, matrix.sources[-1]._replace(members=(SEGMENTER, SIGMOID))]
    assert not Matrix(matrix.folder, matrix.stored, more, matrix.looking).is_complete(SEGMENTER)
    shutil.copytree(toys[0] / folder(SIGMOID), run_folder / folder(SIGMOID))
    stored = Stored(run_folder, load_scenes(cache))
    stored.runs[SIGMOID].manifest["weights_sha256"] = "ab"
    changed = Matrix(matrix.folder, stored, matrix.sources, matrix.looking)
    with pytest.raises(ValueError, match=r"settings \(members.*weights_sha256.* another --work"):
        changed.is_complete(SEGMENTER)


def test_a_cell_of_other_images_is_made_anew(matrix):
    path = matrix.path(SEGMENTER, matrix.sources[0])
    content, arrays = files.load(path)
    content["source"]["images"] = "0"
    files.write(path, files.pack(arrays, content))
    assert not matrix.is_complete(SEGMENTER)


def test_a_damaged_cell_is_named(matrix):
    path = matrix.path(SEGMENTER, matrix.sources[0])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged"):
        matrix.cell(SEGMENTER, matrix.sources[0])
