"""The launch on two images and few steps."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import dag_jax
from dag_jax import datasets, metrics, networks
from dag_jax.runs import rundir

pytestmark = pytest.mark.slow  # it compiles whole networks


@pytest.fixture(scope="module")
def run(launch, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("variants") / "run"
    flags = ("--network=fcn_alex", "--limit=2", "--max_steps=3", "--bounded_steps=2")
    flags = (*flags, "--epsilon=3", f"--workdir={workdir}")
    return workdir, flags, launch("variants", *flags, "--variants=pgd,release,dag", "--noaudit")


def rows_of(workdir):
    rows = json.loads((workdir / "variants.json").read_text())["rows"]
    return {row["variant"]: row for row in rows}


def test_prints_and_writes_a_row_of_each_variant(run):
    workdir, _, process = run
    text = (workdir / "variants.md").read_text()
    assert text in process.stdout and f"results: {workdir}" in process.stdout
    assert "adversarial below original" in text and "permuted equal to original" in text
    rows = rows_of(workdir)
    assert list(rows) == ["dag", "release", "pgd"]
    for row in rows.values():
        assert row["images"] == 2 and row["title"] in text and row["seconds"] > 0
        assert 0 <= row["success"] <= row["lost"] <= 1 and 0 <= row["right"] <= 1
        assert row["orig"] == rows["dag"]["orig"] > 0
        value, low, high = row["intervals"]["advr"]
        assert low <= value == row["advr"] <= high
    assert rows["dag"]["steps_median"] == rows["release"]["steps_median"] == 3
    assert rows["pgd"]["steps_median"] == 2 and rows["pgd"]["largest_change_median"] == 3
    with Image.open(workdir / "variants.png") as picture:
        assert picture.width > 800


def test_a_row_is_what_the_network_says_of_the_stored_perturbations(run, cache):
    workdir, _, _ = run
    examples = list(datasets.open_dataset("scenes", "seg11valid[:2]", cache_dir=cache))
    network, predict = networks.load("fcn_alex", miniature=True), jax.jit(networks.predict)
    for name, row in rows_of(workdir).items():
        stored = rundir.read(workdir / name)
        assert stored.manifest["variant"] == name
        confusion = 0
        for example in examples:
            change = stored.perturbation(example["image_id"])
            image = dag_jax.perturb(example["image"].astype(np.float32), change)
            seen = np.asarray(predict(network, image))
            confusion = confusion + metrics.confusion_matrix(example["mask"][:, :, 0], seen, 21)
        assert row["advr"] == pytest.approx(100 * metrics.mean_iou(confusion), abs=0.01)
        assert row["right"] == pytest.approx(np.trace(confusion) / confusion.sum(), abs=1e-6)
    change = rundir.read(workdir / "pgd").perturbation(examples[0]["image_id"])
    assert np.abs(change).max() == 3 and set(np.abs(change).ravel()) <= {0, 1, 2, 3}
    counts = {
        name: [record["active_counts"] for record in rundir.read(workdir / name).records]
        for name in ("dag", "release")
    }
    for dag, release in zip(counts["dag"], counts["release"], strict=True):
        assert dag[0] < release[0]  # the release also counts what is wrong, but not as asked


def test_more_variants_join_and_rows_stay(run, launch):
    workdir, flags, _ = run
    before = rows_of(workdir)
    untouched = (workdir / "dag" / "row.json").stat().st_mtime_ns
    (workdir / "pgd" / "row.json").unlink()  # killed before it was written
    launch("variants", *flags, "--variants=segpgd,pgd", "--noaudit")
    after = rows_of(workdir)
    assert list(after) == ["dag", "release", "pgd", "segpgd"]
    assert all(after[name] == row for name, row in before.items())
    assert (workdir / "dag" / "row.json").stat().st_mtime_ns == untouched
    refused = launch("variants", *flags, "--bounded_steps=5", fails=True)
    assert "other settings (settings.bounded_steps: now 5, there 2)" in refused.stderr


def test_a_detector_takes_those_that_are_not_of_pixels(launch, tmp_path):
    workdir = tmp_path / "run"
    flags = ("--network=fr_zf_07", "--limit=2", "--max_steps=3")
    launch("variants", *flags, f"--workdir={workdir}", "--variants=release")
    rows = rows_of(workdir)
    assert list(rows) == ["release"]
    row = rows["release"]
    assert row["orig"] > 0 and row["images"] == 2 and row["steps_median"] == 3
    text = (workdir / "variants.md").read_text()
    assert "11-point VOC mAP" in text and "margin of 3 logits" in text
    found = json.loads((workdir / "variants.json").read_text())["audit"]["release"]
    checks = {one["check"]: one["passed"] for one in found}
    assert len(checks) == 13 and checks["saved PNGs score as the table says"]
    assert checks["stored perturbations do what their records say"]
    assert checks["gradients are the slopes of the scores"] and "## Audit" in text


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--variants=dag,ifgsm", "--variants: unknown ifgsm; known: dag, release"),
        ("--variants=", "must not be empty; leave the flag out"),
        ("--network=fr_zf_07,--variants=pgd,segpgd", "segpgd weigh the pixels of a segmentation"),
        ("--epsilon=0", "--epsilon=0.0: must be finite and above 0"),
        ("--bounded_step_size=-1", "--bounded_step_size=-1.0: must be finite and above 0"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(launch, tmp_path, flag, message):
    workdir = tmp_path / "run"
    flags = flag.replace(",--", " --").split(" ")
    process = launch("variants", f"--workdir={workdir}", *flags, fails=True)
    assert message in process.stderr + process.stdout
    assert not workdir.exists()
