"""The launch on two images."""

import json
import signal

import jax
import numpy as np
import pytest
from PIL import Image

from dag_jax import datasets, networks
from dag_jax.datasets import drawings
from dag_jax.runs import rundir

pytestmark = pytest.mark.slow  # it compiles whole networks

CAT = datasets.CLASS_NAMES.index("cat")


@pytest.fixture(scope="module")
def run(launch, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("shapes") / "run"
    flags = ("--network=fcn_vgg", "--limit=2", "--max_steps=60", "--class_name=cat", "--slots=1")
    flags = (*flags, f"--workdir={workdir}")
    return workdir, flags, launch("shapes", *flags, "--shape=square,word", "--word=I", "--noaudit")


def rows_of(workdir):
    rows = json.loads((workdir / "shapes.json").read_text())["rows"]
    return {row["title"]: row for row in rows}


def test_the_network_sees_the_shape_in_the_png(run, cache):
    workdir, _, process = run
    text = (workdir / "shapes.md").read_text()
    assert text in process.stdout and f"results: {workdir}" in process.stdout
    rows = rows_of(workdir)
    assert list(rows) == ["square (cat)", "“I” (cat)"]
    examples = list(datasets.open_dataset("scenes", "seg11valid[:2]", cache_dir=cache))
    network, predict = networks.load("fcn_vgg", miniature=True), jax.jit(networks.predict)
    for row, folder, shape in (
        (rows["square (cat)"], "square", drawings.square((128, 128))),
        (rows["“I” (cat)"], "word_I", drawings.word((128, 128), "I")),
    ):
        stored, drawn = rundir.read(workdir / folder), np.where(shape, CAT, 0)
        found = {}
        for when in ("before", "after"):
            shares, overlaps = [], []
            for example in examples:
                image = example["image"]
                image = stored.image(example["image_id"]) if when == "after" else image
                seen = np.asarray(predict(network, image.astype(np.float32)))
                shares.append((seen == drawn).mean())
                both, either = (seen == CAT) & shape, (seen == CAT) | shape
                overlaps.append(both.sum() / either.sum())
            found[when] = shares, overlaps
            assert row[f"as_drawn_{when}"][0] == pytest.approx(100 * np.mean(shares), abs=0.01)
            assert row[f"iou_{when}"][0] == pytest.approx(100 * np.mean(overlaps), abs=0.01)
        for record, share in zip(stored.records, found["after"][0], strict=True):
            # What stopped as FOOLED has at most 1% of the pixels left, and so has its PNG.
            assert (record["status"] == "FOOLED") == (share >= 0.99)
            assert record["active_counts"][-1] == round((1 - share) * drawn.size)
            assert record["largest_change"] == int(record["largest_change"]) > 0
        assert row["iou_after"][0] > row["iou_before"][0] + 20
        gain = row["as_drawn_before"][0] - row["as_drawn_after"][0]
        assert row["as_drawn_lost"][0] == pytest.approx(gain, abs=0.02) and gain < 0
    assert text.count("not shown (fewer than 10 images)") == 2
    with Image.open(workdir / "shapes.png") as picture:
        assert picture.width > 1000


def test_the_same_folder_takes_more_shapes_and_keeps_what_it_has(run, launch, tmp_path):
    workdir, flags, _ = run
    before = rows_of(workdir)
    drawn = np.zeros((32, 32), np.uint8)
    drawn[:16], drawn[16:18] = 9, 255
    Image.fromarray(drawn).save(tmp_path / "half.png")
    untouched = workdir / "square" / "row.json"
    written = untouched.stat().st_mtime_ns
    (workdir / "word_I" / "row.json").unlink()  # killed before it was written
    more = "--shape=word,file", "--word=I", f"--mask={tmp_path / 'half.png'}"
    # Ctrl-C in the audit loses no table, and what is audited is kept.
    kill_at = workdir / "word_I" / "audit.json"
    stopped = launch("shapes", *flags, *more, kill_at=kill_at, kill_by=signal.SIGINT)
    assert stopped.returncode == 130, stopped.stderr
    assert "the same command goes on" in stopped.stderr and len(rows_of(workdir)) == 3
    assert json.loads((workdir / "shapes.json").read_text())["audit"] == {}
    launch("shapes", *flags, *more)
    after = rows_of(workdir)
    assert untouched.stat().st_mtime_ns == written
    assert {title: after[title] for title in before} == before
    found = json.loads((workdir / "shapes.json").read_text())["audit"]
    assert len(found["word_I"]) == 11 and "square" not in found  # of those that were asked for
    wrong = [one["check"] for rows in found.values() for one in rows if not one["passed"]]
    assert wrong == ["twice the steps change little"] * 2  # sixty are too few
    text = (workdir / "shapes.md").read_text()
    assert "Not audited: square (cat); the command that has these shapes" in text
    mask = after["half.png"]
    assert mask["class_name"] is None and mask["as_drawn_after"] > mask["as_drawn_before"]
    refused = launch("shapes", *flags, "--class_name=dog", fails=True)
    assert "settings.class_name" in refused.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--shape=star",), "unknown star; known: circle"),
        (("--shape=word", "--word=字"), "letters that the font lacks"),
        (("--shape=file",), "--shape=file and --mask go together"),
        (("--mask=/nowhere.png",), "no such image file"),
        (("--mask={empty}",), "no pixel of a class"),
        (("--class_name=background",), "value should be one of <aeroplane|"),
        (("--stop_fraction=2",), "--stop_fraction=2: 2.0 is not a number in the range"),
        (("--network=fr_zf_07",), "value should be one of <fcn_alex|"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(launch, tmp_path, flags, message):
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "empty.png")
    flags = [flag.format(empty=tmp_path / "empty.png") for flag in flags]
    workdir = tmp_path / "run"
    process = launch("shapes", "--limit=2", f"--workdir={workdir}", *flags, fails=True)
    assert message in process.stderr + process.stdout
    assert not workdir.exists()
