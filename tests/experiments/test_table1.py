"""The main launch on two images, what it writes, and what it refuses."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import dag_jax
from dag_jax import datasets, metrics, networks
from dag_jax.networks import zoo
from dag_jax.runs import rundir
from dag_jax.weights import store

ROOT = pathlib.Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow  # it compiles whole networks

KEYS = {
    *("network", "orig", "advr", "perm", "advr_uint8", "steps_median", "perceptibility"),
    *("largest_change_median", "unfinished", "images"),
}


@pytest.fixture(scope="module")
def run(launch, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("table1") / "run"
    flags = ("--networks=fcn_alex,fr_zf_07", "--limit=2", "--max_steps=3", f"--workdir={workdir}")
    return workdir, flags, launch("table1", *flags)


def test_prints_and_writes_the_table(run):
    workdir, _, process = run
    text = (workdir / "table1.md").read_text()
    assert text in process.stdout
    assert f"results: {workdir}" in process.stdout
    assert "miniatures on rendered scenes" in text and "paper ORIG" in text
    content = json.loads((workdir / "table1.json").read_text())
    assert content["settings"]["max_steps"] == 3
    assert [row["network"] for row in content["rows"]] == ["fcn_alex", "fr_zf_07"]
    for row in content["rows"]:
        assert row.keys() >= KEYS
        assert row["images"] == 2
    assert (workdir / "examples.png").stat().st_size > 10_000


def test_prints_and_keeps_the_audit(run):
    workdir, _, process = run
    assert "## Audit\n\n28 checks of 2 rows: " in process.stdout
    content = json.loads((workdir / "table1.json").read_text())
    assert set(content["audit"]) == {"fcn_alex", "fr_zf_07"}
    for name, found in content["audit"].items():
        assert json.loads((workdir / name / "audit.json").read_text())["findings"] == found
        verdicts = {one["check"]: one["passed"] for one in found}
        # What rounding takes from the attack cannot be judged on two images.
        assert verdicts["scores are logits"]
        assert verdicts["saved PNGs score as the table says"] is not False
        # Three steps are too few, and one network of a kind has no other to be compared with.
        assert verdicts["twice the steps change little"] is False
        assert verdicts["white-box beats transfer"] is None
    assert '"twice the steps change little" does not hold**: 2 of 2 images' in process.stdout


def everything(workdir, *, without=("timings", "finished")):
    """Return {name: bytes} of a run's files, but those that no two runs agree on."""
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in workdir.rglob("*")
        if path.is_file() and not any(word in str(path.relative_to(workdir)) for word in without)
    }


def test_stored_perturbations_and_images_give_the_row_again(run, cache):
    workdir, _, _ = run
    row = json.loads((workdir / "fcn_alex" / "row.json").read_text())
    stored = rundir.read(workdir / "fcn_alex")
    assert stored.manifest["network"] == "fcn_alex" and stored.manifest["max_steps"] == 3
    assert stored.manifest["settings"]["seed"] == 0
    assert stored.manifest["versions"]["jax"] and stored.manifest["device"]
    network, predict = networks.load("fcn_alex", miniature=True), jax.jit(networks.predict)
    confusion, saved = 0, 0
    source = datasets.open_dataset("scenes", "seg11valid[:2]", cache_dir=cache)
    for example, key, record in zip(source, stored.keys, stored.records, strict=True):
        r = stored.perturbation(key)
        assert record["key"] == example["image_id"] == key
        assert record["largest_change"] == pytest.approx(np.abs(r).max(), rel=1e-4)
        assert 0 < record["largest_change"] <= 0.5 * record["num_steps"] + 1e-5
        assert len(record["active_counts"]) == record["num_steps"] + 1
        clean, truth = example["image"].astype(np.float32), example["mask"][:, :, 0]
        with Image.open(workdir / "fcn_alex" / "images" / f"{key}.png") as file:
            pixels = np.asarray(file)
        np.testing.assert_array_equal(pixels, np.rint(np.clip(clean + r, 0, 255)))
        for image, total in ((dag_jax.perturb(clean, r), "whole"), (np.float32(pixels), "saved")):
            labels = np.asarray(predict(network, image))
            counts = metrics.confusion_matrix(truth, labels, 21)
            if total == "whole":
                confusion = confusion + counts
            else:
                saved = saved + counts
    assert row["advr"] == pytest.approx(100 * metrics.mean_iou(confusion), abs=0.01)
    assert row["advr_uint8"] == pytest.approx(100 * metrics.mean_iou(saved), abs=0.01)


def test_two_processes_make_the_same_files(run, cache, tmp_path):
    workdir, flags, _ = run
    flags = ["--networks=fr_zf_07", "--limit=4", "--noaudit", *flags[2:3]]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"

    def start(folder, *more):
        command = [sys.executable, "-m", "experiments.table1", *flags, f"--workdir={folder}", *more]
        command.append(f"--cache_dir={cache}")
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    alone = start(tmp_path / "alone")
    output = alone.communicate()[0].decode()
    assert alone.returncode == 0, output
    shared = ["--distributed", f"--coordinator={address}", "--processes=2"]
    both = [start(tmp_path / "both", *shared, f"--process={number}") for number in (0, 1)]
    outputs = [process.communicate()[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert everything(tmp_path / "both") == everything(tmp_path / "alone")
    assert "process 1 is done" in outputs[1] and "| FR-ZF-07" in outputs[0]


def test_a_damaged_shard_of_a_finished_row_is_made_anew(run, launch):
    workdir, flags, _ = run
    before = everything(workdir / "fr_zf_07")
    shard = workdir / "fr_zf_07" / "perturbations" / "00000-of-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    assert "Delete that file" in launch("table1", *flags, fails=True).stderr
    shard.unlink()
    launch("table1", *flags)
    assert everything(workdir / "fr_zf_07") == before


def test_a_killed_and_an_interrupted_run_go_on_and_end_the_same(launch, tmp_path):
    flags = ("--networks=fcn_alex", "--limit=16", "--max_steps=12", "--slots=1", "--noaudit")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    launch("table1", *flags, f"--workdir={whole}")
    flags = (*flags, f"--workdir={cut}")
    launch("table1", *flags, kill_at=cut / "fcn_alex" / "parts" / "000001.safetensors")
    assert not (cut / "table1.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in (cut / "fcn_alex" / "images").iterdir()}
    assert 2 <= len(kept) < 16
    shard = cut / "fcn_alex" / "perturbations" / "00000-of-00002.safetensors"
    process = launch("table1", *flags, kill_at=shard, kill_by=signal.SIGINT)
    assert process.returncode == 130, process.stderr
    assert not (cut / "table1.json").exists()
    launch("table1", *flags)
    assert everything(cut) == everything(whole)
    assert "Not audited: FCN-Alex; --audit does it." in (cut / "table1.md").read_text()
    assert json.loads((cut / "table1.json").read_text())["audit"] == {}
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items())


def test_the_same_command_keeps_finished_rows(run, launch):
    workdir, flags, first = run
    before = (workdir / "fr_zf_07" / "row.json").stat().st_mtime_ns
    again = launch("table1", *flags)
    assert (workdir / "fr_zf_07" / "row.json").stat().st_mtime_ns == before
    table = first.stdout.split("results:")[0].rsplit("\n", 2)[0]
    assert again.stdout.startswith(table)


def test_convergence_reads_the_run(run, launch, tmp_path):
    workdir = tmp_path / "convergence"
    launch("convergence", f"--run={run[0]}", f"--workdir={workdir}")
    row = json.loads((workdir / "convergence.json").read_text())["rows"][0]
    said = json.loads((run[0] / "fcn_alex" / "row.json").read_text())
    assert row["network"] == "fcn_alex" and row["images"] == said["images"] == 2
    assert row["steps"][1] == said["steps_median"]
    curve = row["curves"]["mean"]
    assert curve[0] == 1 and len(curve) == 4 and curve[3] < 1
    assert row["left"] == {"3": curve[3]}


def test_more_networks_add_rows(run, launch):
    workdir, flags, _ = run
    launch("table1", "--networks=fcn_alex_star", *flags[1:])
    content = json.loads((workdir / "table1.json").read_text())
    names = ["fcn_alex", "fcn_alex_star", "fr_zf_07"]
    assert [row["network"] for row in content["rows"]] == names
    said = {name: found[-1]["said"] for name, found in content["audit"].items()}
    assert said["fcn_alex"] == "images to compare it with FCN-Alex* on: 2"
    assert said["fcn_alex_star"] == "images to compare it with FCN-Alex on: 2"
    assert "FR-ZF-07" in (workdir / "table1.md").read_text()


def test_a_row_of_other_weights_is_refused_before_any_attack(run, launch, tmp_path):
    workdir, flags, _ = run
    other = tmp_path / "other"
    other.mkdir()
    for name in ("fcn_alex", "fcn_alex_star", "fcn_vgg", "fr_zf_07"):
        parameters, record = store.load(zoo.CHECKPOINTS / f"{name}.safetensors")
        store.save(other / f"{name}.safetensors", parameters, record)
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    flags = ("--networks=fcn_vgg", *flags[1:], f"--checkpoints={other}")
    assert "other settings (weights_sha256: now " in launch("table1", *flags, fails=True).stderr
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_rounding_attacks_and_scores_the_saved_image(launch, tmp_path):
    workdir = tmp_path / "run"
    launch(
        "table1",
        *("--networks=fcn_alex", "--limit=3", "--max_steps=3", "--rounded"),
        *("--image_ids=scene_13_000001", f"--workdir={workdir}", "--noaudit"),
    )
    row = json.loads((workdir / "fcn_alex" / "row.json").read_text())
    assert row["images"] == 1
    assert row["advr"] == row["advr_uint8"]
    record = json.loads((workdir / "fcn_alex" / "records.jsonl").read_text())
    assert record["key"] == "scene_13_000001"
    assert record["largest_change"] == int(record["largest_change"]) > 0


def test_a_folder_of_another_run_is_refused_and_left_alone(run, launch):
    workdir, flags, _ = run
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    process = launch("table1", *flags, "--seed=1", fails=True)
    assert "other settings (settings.seed: now 1, there 0)" in process.stderr
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


@pytest.fixture(scope="module")
def voc(tmp_path_factory, cache):
    """A VOC2012 of three photographs, each of a size of its own."""
    year = tmp_path_factory.mktemp("voc") / "VOC2012"
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (year / folder).mkdir(parents=True)
    source = datasets.open_dataset("scenes", "seg11valid", cache_dir=cache)
    names = []
    for index, (height, width) in enumerate([(100, 120), (120, 90), (96, 110)]):
        example, name = source[index], f"2012_00000{index}"
        Image.fromarray(example["image"][:height, :width]).save(year / f"JPEGImages/{name}.jpg")
        mask = Image.fromarray(example["mask"][:height, :width, 0], "L")
        mask.save(year / f"SegmentationClass/{name}.png")
        objects = example["objects"]
        items = "".join(
            f"<object><name>{datasets.CLASS_NAMES[label]}</name><difficult>0</difficult><bndbox>"
            f"<xmin>{x0 + 1:g}</xmin><ymin>{y0 + 1:g}</ymin><xmax>{x1 + 1:g}</xmax>"
            f"<ymax>{y1 + 1:g}</ymax></bndbox></object>"
            for label, (x0, y0, x1, y1) in zip(objects["label"], objects["boxes"], strict=True)
            if x1 < width and y1 < height
        )
        (year / f"Annotations/{name}.xml").write_text(f"<annotation>{items}</annotation>")
        names.append(name)
    (year / "ImageSets/Segmentation/val.txt").write_text("\n".join(names) + "\n")
    return year.parent


def check_voc_run(workdir, networks_of_run):
    """Assert that a table is whole, and of the three photographs at their own sizes."""
    rows = json.loads((workdir / "table1.json").read_text())["rows"]
    assert [row["network"] for row in rows] == networks_of_run
    assert all(row["images"] == 3 for row in rows)
    for name in networks_of_run:
        stored = rundir.read(workdir / name)
        shapes = {key: stored.perturbation(key).shape for key in stored.keys}
        assert shapes == {
            "2012_000000": (100, 120, 3),
            "2012_000001": (120, 90, 3),
            "2012_000002": (96, 110, 3),
        }
    return rows


def test_photographs_keep_their_sizes(launch, voc, tmp_path):
    workdir, names = tmp_path / "run", ["fcn_vgg", "fr_vgg_07"]
    flags = ("--dataset=voc", f"--data_dir={voc}", "--split=voc2012_seg_val", "--max_steps=4")
    for name, audited in zip(names[::-1], ("--noaudit", "--audit"), strict=True):
        launch("table1", *flags, f"--networks={name}", f"--workdir={workdir}", audited)
    segmenter, detector = check_voc_run(workdir, names)
    assert segmenter["orig"] > 2 * segmenter["advr"] or segmenter["steps_median"] == 4
    assert segmenter["no_targets"] == 0 < segmenter["largest_change_median"] <= 2
    assert detector["no_targets"] < 3
    found = json.loads((workdir / "table1.json").read_text())["audit"]
    assert all(one["passed"] is not None for one in found["fcn_vgg"][:8]), found


def test_a_full_size_network_is_attacked_on_photographs(launch, voc, tmp_path):
    network = networks.load("fcn_alex")
    store.save(tmp_path / "fcn_alex.safetensors", network.parameters, {"network": "fcn_alex"})
    workdir = tmp_path / "run"
    launch(
        "table1",
        *("--nominiature", "--networks=fcn_alex", f"--checkpoints={tmp_path}", "--limit=0"),
        *("--dataset=voc", f"--data_dir={voc}", "--split=voc2012_seg_val", "--max_steps=1"),
        *(f"--workdir={workdir}", "--noaudit"),
    )
    (row,) = check_voc_run(workdir, ["fcn_alex"])
    assert row["orig"] < 20  # random weights
    assert "full-size networks on voc" in (workdir / "table1.md").read_text()
    (tmp_path / "fcn_alex.safetensors").unlink()  # a quarter of a gigabyte


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--models=fcn_google",), "unknown model 'fcn_google'; known are fcn_alex"),
        (("--split=voc99",), "scenes have no split 'voc99'"),
        (("--step_size=-1",), "--step_size=-1.0: must be finite and above 0"),
        (("--image_ids=scene_13_000000,photo",), "no image photo"),
        (("--dataset=voc",), "voc needs data_dir"),
        (("--nominiature",), "--nominiature needs --checkpoints"),
        (("--dataset=voc", "--split=voc2012_seg_val", "--data_dir=/nowhere"), "does not exist"),
        (("--checkpoints={broken}",), "fcn_alex.safetensors is damaged"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(refuse, tmp_path, flags, message):
    broken = tmp_path / "broken"
    broken.mkdir()
    whole = zoo.CHECKPOINTS / "fcn_alex.safetensors"
    shutil.copy(whole, broken)
    with open(broken / whole.name, "r+b") as file:
        file.truncate(whole.stat().st_size // 2)
    flags = [flag.format(broken=broken) for flag in flags]
    workdir = tmp_path / "run"
    flags = ("--models=fcn_alex", "--limit=3", f"--workdir={workdir}", *flags)
    assert message in refuse("table1", *flags)
    assert not workdir.exists()
