"""The launch on a detector of nobody's framework whose proposals can be chosen."""

import json
import shutil

import pytest
from PIL import Image

from dag_jax.runs import evaluation, rundir
from dag_jax.runs.subject import subject_of
from tests import toy_models
from tests.experiments import desk, small
from tests.experiments.desk import DENSE
from tests.experiments.small import SEGMENTER, TWO_STAGE, folder, written

FLAGS = desk.SHORT["proposals"]


@pytest.fixture
def run(documented):
    return documented(desk.command("proposals", "runs/proposals"))


def rows_of(workdir):
    rows = json.loads((workdir / "proposals.json").read_text())["rows"]
    return {(row["max_proposals"], row["nms_threshold"]): row for row in rows}


def test_a_denser_suppression_keeps_more(run):
    workdir, printed = run
    text = (workdir / "proposals.md").read_text()
    assert text in printed and "results: runs/proposals/" in printed
    rows = rows_of(workdir)
    assert list(rows) == [(10, 0.5), (10, 0.7), (64, 0.5), (64, 0.7)]
    assert rows[64, 0.5]["proposals"] <= rows[64, 0.7]["proposals"] <= 64
    assert rows[10, 0.7]["proposals"] == 10
    for row in rows.values():
        assert 0 < row["targets"] <= row["proposals"] and row["images"] == 2
        assert row["orig"] == rows[10, 0.5]["orig"] > row["advr"] and row["seconds"] > 0
    with Image.open(workdir / "proposals.png") as picture:
        assert picture.width > 1000


def test_a_row_is_what_the_whole_detector_says_of_the_pngs(run, scenes):
    workdir, _ = run
    stored = rundir.read(workdir / f"{folder(DENSE)} nms_0.7_kept_64")
    assert stored.manifest["nms_threshold"] == 0.7 and stored.manifest["max_proposals"] == 64
    subject, row = subject_of(toy_models.dense(), scenes), rows_of(workdir)[64, 0.7]
    saved = [stored.image(key) for key in small.SCENES]
    clean = evaluation.clean_images(subject.examples)
    for images, score in ((saved, row["advr_uint8"]), (clean, row["orig"])):
        predictions = evaluation.predict(subject.model, images)
        expected = evaluation.score(subject, subject.examples, predictions)
        assert score == pytest.approx(expected, abs=0.01)


def test_more_settings_join_and_are_compared(run, call, tmp_path):
    workdir = shutil.copytree(run[0], tmp_path / "run")
    before, at = rows_of(workdir), written(workdir)
    (workdir / f"{folder(DENSE)} nms_0.7_kept_10" / "row.json").unlink()
    call(
        *("proposals", *FLAGS, "--thresholds=0.9,0.7", "--proposals=10"),
        *("--audit", f"--workdir={workdir}"),
    )
    after, now = rows_of(workdir), written(workdir)
    assert list(after) == [(10, 0.5), (10, 0.7), (10, 0.9), (64, 0.5), (64, 0.7)]
    # Seconds too: nothing was attacked again.
    assert {setting: after[setting] for setting in before} == before
    anew = {f"{folder(DENSE)} nms_0.7_kept_10/row.json"}
    assert all(now[name] == at[name] for name in at if "/" in name and name not in anew)
    content = json.loads((workdir / "proposals.json").read_text())
    (difference,) = content["differences"]
    value, low, high = difference["difference"]
    assert difference["max_proposals"] == 10 and low <= value <= high
    assert value == pytest.approx(after[10, 0.9]["advr"] - after[10, 0.7]["advr"], abs=0.02)
    assert "At most 10 kept, ADVR at 0.9 is below ADVR at 0.7: " in (
        (workdir / "proposals.md").read_text()
    )
    # The detector itself is looked at once.
    assert [len(findings) for findings in content["audit"].values()] == [13, 7, 7, 7, 7]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--thresholds=0.7,1.5",), ": numbers above 0, up to 1, are such as 0.7,0.9"),
        (("--thresholds=dense",), "numbers above 0"),
        (("--proposals=100,0",), "'0' is not a whole number from 1"),
        ((f"--models={SEGMENTER}",), "segments, and has no proposals"),
        (
            (f"--models={TWO_STAGE}",),
            "its propose takes no max_proposals and no nms_threshold",
        ),
        (("--nominiature", "--models=fr_zf_07"), "at full size needs --weights_dir"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(refuse, tmp_path, flags, message):
    workdir = tmp_path / "run"
    assert message in refuse("proposals", *FLAGS, f"--workdir={workdir}", *flags)
    assert not workdir.exists()


def test_other_settings_are_refused(run, refuse):
    text = refuse("proposals", *FLAGS, "--seed=1", f"--workdir={run[0]}")
    assert "other settings (settings.seed: now 1, there 0)" in text


def test_help_lists_the_flags_that_launches_share(launch):
    text = launch("proposals", "--help").stdout
    for name in ("--thresholds", "--dataset", "--limit", "--workdir", "--slots"):
        assert name in text
    assert "(default: 'runs/proposals')" in text
    assert "--limit=100 --margin=0 --workdir=runs/proposals_margin_0\n" in text
    assert "--dataset=voc \\\n        --data_dir" in text  # can be pasted into a shell
    assert "FCN" not in text  # it attacks detectors alone
