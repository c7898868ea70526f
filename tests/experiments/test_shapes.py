"""The launch on a segmenter of nobody's framework, and what it refuses."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from dag_jax.datasets import drawings
from dag_jax.runs import rundir
from tests import toy_models
from tests.experiments import desk
from tests.experiments.small import SEGMENTER, TWO_STAGE, folder, written

CAT, BACKGROUND = (toy_models.Streets.classes.index(name) for name in ("cat", "background"))
FLAGS = [flag for flag in desk.SHORT["shapes"] if not flag.startswith(("--shape", "--word"))]


@pytest.fixture
def run(documented):
    return documented(desk.command("shapes"))


def rows_of(workdir):
    rows = json.loads((workdir / "shapes.json").read_text())["rows"]
    return {row["title"]: row for row in rows}


def test_the_model_sees_the_shape_in_the_png(run, scenes):
    workdir, printed = run
    text = (workdir / "shapes.md").read_text()
    assert text in printed and "results: runs/shapes/" in printed
    rows, predict = rows_of(workdir), jax.jit(toy_models.segmenter().predict)
    assert list(rows) == ["square (cat)", "“I” (cat)"]
    for row, name, shape in (
        (rows["square (cat)"], "square", drawings.square((128, 128))),
        (rows["“I” (cat)"], "word_I", drawings.word((128, 128), "I")),
    ):
        stored, drawn = rundir.read(workdir / f"{folder(SEGMENTER)} {name}"), {}
        drawing = np.where(shape, CAT, BACKGROUND)
        for when in ("before", "after"):
            shares, overlaps = [], []
            for example in scenes:
                image = example["image"]
                image = stored.image(example["image_id"]) if when == "after" else image
                seen = np.asarray(predict(image.astype(np.float32)))
                shares.append((seen == drawing).mean())
                overlaps.append(((seen == CAT) & shape).sum() / ((seen == CAT) | shape).sum())
            drawn[when] = shares
            assert row[f"as_drawn_{when}"][0] == pytest.approx(100 * np.mean(shares), abs=0.01)
            assert row[f"iou_{when}"][0] == pytest.approx(100 * np.mean(overlaps), abs=0.01)
        for record, share in zip(stored.records, drawn["after"], strict=True):
            # What stopped as FOOLED has at most 1% of the pixels left, and so has its PNG.
            assert (record["status"] == "FOOLED") == (share >= 0.99)
            assert record["active_counts"][-1] == round((1 - share) * shape.size)
            assert record["largest_change"] == int(record["largest_change"]) > 0
        assert row["iou_after"][0] > row["iou_before"][0] + 20
        gain = row["as_drawn_before"][0] - row["as_drawn_after"][0]
        assert row["as_drawn_lost"][0] == pytest.approx(gain, abs=0.02) and gain < 0
    assert text.count("not shown (fewer than 10 images)") == 2
    with Image.open(workdir / "shapes.png") as picture:
        assert picture.width > 1000


def test_more_shapes_join_and_rows_stay(run, call, tmp_path):
    workdir = shutil.copytree(run[0], tmp_path / "run")
    before, at = rows_of(workdir), written(workdir)
    drawn = np.zeros((32, 32), np.uint8)
    drawn[:16], drawn[16:18] = CAT, 255
    drawn[18:] = BACKGROUND
    Image.fromarray(drawn).save(tmp_path / "half.png")
    (workdir / f"{folder(SEGMENTER)} word_I" / "row.json").unlink()
    flags = (*FLAGS, f"--workdir={workdir}")
    call("shapes", *flags, "--shape=file", f"--mask={tmp_path / 'half.png'}", "--noaudit")
    assert list(rows_of(workdir)) == ["square (cat)", "half.png"]
    # A mask need not be there any more.
    call("shapes", *flags, "--shape=word", "--word=I", "--audit")
    after, now = rows_of(workdir), written(workdir)
    assert {title: after[title] for title in before} == before and len(after) == 3
    assert after["half.png"]["class_name"] is None
    assert after["half.png"]["as_drawn_after"] > after["half.png"]["as_drawn_before"]
    anew = {f"{folder(SEGMENTER)} word_I/row.json"}
    assert all(now[name] == at[name] for name in at if "/" in name and name not in anew)
    audit = json.loads((workdir / "shapes.json").read_text())["audit"]
    counts = {name.partition(" ")[2]: len(findings) for name, findings in audit.items()}
    assert counts == {"square": 11, "word_I": 5}  # the model itself is looked at once
    wrong = [each for findings in audit.values() for each in findings if not each["passed"]]
    assert {each["check"] for each in wrong} <= {"twice the steps change little"}
    assert "Not audited: half.png" in (workdir / "shapes.md").read_text()


def test_other_settings_are_refused(run, refuse):
    text = refuse("shapes", *FLAGS, "--class_name=dog", f"--workdir={run[0]}")
    assert "settings.class_name" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--shape=star",), "unknown star; known: circle"),
        (("--shape=word", "--word=字"), "letters that the font lacks"),
        (("--shape=file",), "--shape=file and --mask go together"),
        (("--mask=/nowhere.png",), "no such image file"),
        (("--mask={empty}",), "no pixel of a class"),
        (("--class_name=background",), "--class_name=background: Streets has Person, sky, moto"),
        (("--class_name=sofa",), "--class_name=sofa: Streets has Person"),
        (("--stop_fraction=1",), "--stop_fraction=1.0: must be 0 or more, and below 1"),
        ((f"--models={TWO_STAGE}",), "two_stage detects, and has no pixels to draw with"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(refuse, tmp_path, flags, message):
    Image.fromarray(np.full((40, 40), BACKGROUND, np.uint8)).save(tmp_path / "empty.png")
    flags = [flag.format(empty=tmp_path / "empty.png") for flag in flags]
    workdir = tmp_path / "run"
    assert message in refuse("shapes", *FLAGS, f"--workdir={workdir}", *flags)
    assert not workdir.exists()
