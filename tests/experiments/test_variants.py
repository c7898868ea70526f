"""The launch on a segmenter of nobody's framework, a detector that joins, and what it refuses."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import dag_jax
from dag_jax.runs import rundir
from dag_jax.runs.subject import subject_of
from tests import toy_models
from tests.experiments import desk, small
from tests.experiments.small import SEGMENTER, SIGMOID, TWO_STAGE, folder, written

FLAGS = desk.SHORT["variants"]


@pytest.fixture
def run(documented):
    return documented(desk.command("variants", "runs/variants"))


def rows_of(workdir, model=SEGMENTER):
    """Return {variant: row} of a model."""
    rows = json.loads((workdir / "variants.json").read_text())["rows"]
    return {row["variant"]: row for row in rows if row["network"] == model}


def test_each_variant_has_a_row(run):
    workdir, printed = run
    text = (workdir / "variants.md").read_text()
    assert text in printed and "results: runs/variants/" in printed
    assert "adversarial below original" in text and "## Streets" in text
    assert "Streets" in text and "compared on 6 classes" in text
    rows = rows_of(workdir)
    assert list(rows) == ["dag", "release", "pgd"]
    for row in rows.values():
        assert row["images"] == 2 and row["title"] in text and row["seconds"] > 0
        assert 0 <= row["fooled"] <= row["lost"] <= 1 and 0 <= row["right"] < 1
        assert row["orig"] == rows["dag"]["orig"] > row["advr"] < row["perm"]
        value, low, high = row["intervals"]["advr"]
        assert low <= value == row["advr"] <= high
    with Image.open(workdir / "variants.png") as picture:
        assert picture.width > 800
    ratio = np.divide(*(np.median(rows[name]["each"]["num_steps"]) for name in ("pgd", "dag")))
    ratios = text.partition("Streets: what it takes")[2]
    assert f"| {ratio:.2f} [" in ratios and "DAG, authors' release" in ratios


def test_those_without_a_bound_stop_by_themselves_and_others_keep_theirs(run):
    rows = rows_of(run[0])
    assert rows["dag"]["steps_median"] == 6 > rows["release"]["steps_median"]  # 1% is its end
    assert rows["dag"]["largest_change_median"] > 3
    assert rows["pgd"]["steps_median"] == 2 and rows["pgd"]["largest_change_median"] == 3
    key = small.SCENES[0]
    change = rundir.read(run[0] / f"{folder(SEGMENTER)} pgd").perturbation(key)
    assert set(np.abs(change).ravel()) <= {0, 1, 2, 3}


def test_the_release_drives_to_classes_that_the_image_lacks(run):
    dag, release = (
        rundir.read(run[0] / f"{folder(SEGMENTER)} {name}").records for name in ("dag", "release")
    )
    for targeted, absent in zip(dag, release, strict=True):
        # It counts what is wrong, but not as asked, too.
        assert targeted["active_counts"][0] < absent["active_counts"][0]


def test_a_row_is_what_the_model_says_of_the_stored_perturbations(run, scenes):
    subject = subject_of(toy_models.segmenter(), scenes)
    predict = jax.jit(subject.model.predict)
    for name, row in rows_of(run[0]).items():
        stored = rundir.read(run[0] / f"{folder(SEGMENTER)} {name}")
        assert stored.manifest["variant"] == name
        right = total = 0
        for example in subject.examples:
            key, image = example["image_id"], example["image"].astype(np.float32)
            seen = np.asarray(predict(dag_jax.perturb(image, stored.perturbation(key))))
            mask = example["mask"][:, :, 0]
            right, total = right + (seen == mask).sum(), total + (mask != 255).sum()
        assert row["right"] == pytest.approx(right / total, abs=1e-6)


def test_more_variants_and_models_join_and_rows_stay(run, call, tmp_path):
    workdir = shutil.copytree(run[0], tmp_path / "run")
    before, at = rows_of(workdir), written(workdir)
    flags = (*FLAGS, f"--workdir={workdir}", "--noaudit")
    (workdir / f"{folder(SEGMENTER)} pgd" / "row.json").unlink()  # killed before it was written
    call("variants", *flags, f"--models={SEGMENTER}", "--variants=fgsm,pgd")
    call("variants", *flags, f"--models={TWO_STAGE}", "--variants=release")
    after, now = rows_of(workdir), written(workdir)
    assert list(after) == ["dag", "release", "fgsm", "pgd"]
    assert {name: after[name] for name in before} == before
    parts = [name for name in at if "/" in name and not name.endswith("pgd/row.json")]
    assert all(now[name] == at[name] for name in parts)
    (detector,) = rows_of(workdir, TWO_STAGE).values()
    assert detector["orig"] > detector["advr"] and detector["margin"] == 3
    text = (workdir / "variants.md").read_text()
    assert "## Streets" in text and "## TwoStage" in text
    assert (workdir / "variants_2.png").stat().st_size > 10_000


def test_the_audit_leaves_out_what_makes_no_sense(run, call, tmp_path):
    workdir = shutil.copytree(run[0], tmp_path / "run")
    flags = (f"--models={SEGMENTER}", "--variants=dag", f"--workdir={workdir}", "--audit")
    call("variants", *FLAGS, *flags)
    audit = json.loads((workdir / "variants.json").read_text())["audit"]
    checks = {
        name.partition(" ")[2]: [finding["check"] for finding in findings]
        for name, findings in audit.items()
    }
    assert len(checks["dag"]) == 13 and "scores are logits" in checks["dag"]  # once a model
    assert "scores are logits" not in checks["release"]
    assert "success grows with steps" in checks["release"]
    assert "success grows with steps" not in checks["pgd"]
    assert "twice the steps change little" not in checks["pgd"]


def test_other_settings_are_refused(run, refuse):
    flags = (f"--models={SEGMENTER}", f"--workdir={run[0]}", "--bounded_steps=5")
    text = refuse("variants", *FLAGS, *flags)
    assert "other settings (settings.bounded_steps: now 5, there 2)" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--variants=dag,ifgsm",), "--variants: unknown ifgsm; known: dag, release"),
        ((f"--models={TWO_STAGE}", "--variants=pgd,segpgd"), "segpgd weigh the pixels of a segm"),
        ((f"--models={SIGMOID}", "--variants=cospgd"), "and One-Stage detects; leave them out"),
        (("--models=fcn_vgg16",), "unknown model 'fcn_vgg16'"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(refuse, tmp_path, flags, message):
    workdir = tmp_path / "run"
    flags = (f"--models={SEGMENTER}", *FLAGS, f"--workdir={workdir}", *flags)
    assert message in refuse("variants", *flags)
    assert not workdir.exists()
