"""The launch on two images and few proposals."""

import json

import numpy as np
import pytest
from PIL import Image

from dag_jax import datasets, networks
from dag_jax.runs import evaluation, rundir

pytestmark = pytest.mark.slow  # it compiles whole networks


@pytest.fixture(scope="module")
def run(launch, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("proposals") / "run"
    flags = ("--network=fr_zf_07", "--limit=2", "--max_steps=3")
    flags = (*flags, f"--workdir={workdir}", "--proposals=20,300")
    return workdir, flags, launch("proposals", *flags, "--thresholds=0.7,0.9", "--noaudit")


def rows_of(workdir):
    rows = json.loads((workdir / "proposals.json").read_text())["rows"]
    return {(row["nms_threshold"], row["max_proposals"]): row for row in rows}


def test_a_denser_suppression_keeps_more(run):
    workdir, _, process = run
    text = (workdir / "proposals.md").read_text()
    assert text in process.stdout and f"results: {workdir}" in process.stdout
    rows = rows_of(workdir)
    assert set(rows) == {(0.7, 20), (0.7, 300), (0.9, 20), (0.9, 300)}
    assert rows[0.7, 300]["proposals"] < rows[0.9, 300]["proposals"] <= 300
    assert rows[0.9, 20]["proposals"] == 20
    for row in rows.values():
        assert 0 < row["targets"] <= row["proposals"] and row["images"] == 2
        assert row["evaluation_proposals"] == 100
        assert 0 <= row["steps_median"] <= 3 and row["seconds"] > 0
    differences = json.loads((workdir / "proposals.json").read_text())["differences"]
    for one in differences:
        value, low, high = one["difference"]
        most = one["max_proposals"]
        assert value == pytest.approx(
            rows[0.9, most]["advr"][0] - rows[0.7, most]["advr"][0], abs=0.02
        )
        assert low <= value <= high and f"At most {most} kept, ADVR at 0.9 is below" in text
    assert [one["max_proposals"] for one in differences] == [20, 300]
    with Image.open(workdir / "proposals.png") as picture:
        assert picture.width > 1000


def test_a_row_is_what_the_whole_detector_says_of_the_pngs(run, cache):
    workdir, _, _ = run
    examples = list(datasets.open_dataset("scenes", "voc07_test[:2]", cache_dir=cache))
    network = networks.load("fr_zf_07", miniature=True)
    stored = rundir.read(workdir / "nms_0.9_kept_300")
    assert stored.manifest["nms_threshold"] == 0.9 and stored.manifest["max_proposals"] == 300
    saved = [stored.image(example["image_id"]) for example in examples]
    clean = [example["image"] for example in examples]
    row, content = rows_of(workdir)[0.9, 300], json.loads((workdir / "proposals.json").read_text())
    for images, score in ((saved, row["advr_uint8"][0]), (clean, content["orig"])):
        found = evaluation.predict(network, images)
        assert evaluation.score(examples, found) == pytest.approx(score, abs=0.01)
    for image, example in zip(saved, examples, strict=True):
        assert 0 < np.abs(image.astype(int) - example["image"]).max() <= 2  # 1.5, rounded


def test_the_same_folder_takes_more_settings_and_keeps_what_it_has(run, launch):
    workdir, flags, _ = run
    before = rows_of(workdir)
    untouched = workdir / "nms_0.7_kept_20" / "row.json"
    written = untouched.stat().st_mtime_ns
    (workdir / "nms_0.9_kept_20" / "row.json").unlink()  # killed before it was written
    launch("proposals", *flags, "--thresholds=0.8,0.9", "--proposals=20")
    after = rows_of(workdir)
    assert untouched.stat().st_mtime_ns == written
    assert set(after) == set(before) | {(0.8, 20)}
    # Seconds too: nothing was attacked again.
    assert {setting: after[setting] for setting in before} == before
    # The detector itself is looked at once.
    found = json.loads((workdir / "proposals.json").read_text())["audit"]
    assert [len(one) for one in found.values()] == [12, 6, 6, 6, 6]
    verdicts = {one["check"]: one["passed"] for one in found["nms_0.9_kept_300"]}
    assert verdicts.pop("twice the steps change little") is False  # after three
    assert verdicts.pop("success grows with steps") is False and False not in verdicts.values()
    refused = launch("proposals", *flags, "--seed=1", fails=True)
    assert "other settings (settings.seed: now 1, there 0)" in refused.stderr


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--thresholds=0.7,1.5", "numbers above 0, up to 1"),
        ("--thresholds=dense", "--thresholds=dense: numbers above 0"),
        ("--proposals=100,0", "whole numbers, 1 or more"),
        ("--network=fcn_vgg", "value should be one of <fr_zf_07|"),
        ("--nominiature", "--nominiature needs --checkpoints"),
        ("--step_size=-1", "--step_size=-1.0: must be finite and above 0"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(launch, tmp_path, flag, message):
    workdir = tmp_path / "run"
    process = launch("proposals", f"--workdir={workdir}", flag, fails=True)
    assert message in process.stderr + process.stdout
    assert "--workdir:" not in process.stderr + process.stdout  # the whole help hides the message
    assert not workdir.exists()


def test_help_lists_the_flags_that_launches_share(launch):
    text = launch("proposals", "--help").stdout
    for name in ("--thresholds", "--dataset", "--limit", "--workdir", "--slots"):
        assert name in text
    assert "(default: 'runs/proposals')" in text
    assert "--limit=100 --margin=0 --workdir=runs/proposals_margin_0\n" in text
    assert "--dataset=voc \\\n        --data_dir" in text  # can be pasted into a shell
    assert "FCN" not in text  # it attacks detectors alone
