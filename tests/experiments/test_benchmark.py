"""One part as a launch, the others in this process. How fast anything is, no test asserts."""

import importlib.util

import pytest
from PIL import Image

from dag_jax import files
from experiments.measure import curves, tables
from tests.experiments import desk


@pytest.fixture
def run(documented):
    return documented(desk.command("benchmark"))


def test_a_part_is_measured_or_says_why_not(run):
    workdir, printed = run
    content = files.load_json(workdir / "benchmark.json", digest=True)
    parts = content["parts"]
    assert list(parts) == ["stream", "torch"] and content["settings"]["size"] == 64
    table = (workdir / "benchmark.md").read_text()
    assert table in printed and "results: runs/benchmark/" in printed
    assert f"stream: {parts['stream']['minutes']} minutes" in printed
    if importlib.util.find_spec("torch") is None:
        assert "Left out: PyTorch is not installed (pip install -e '.[torch]')." in table
    else:
        for row in parts["torch"]["rows"]:
            assert row["same_steps"] == 1 and row["steps"] == [3, 3] and row["batch"] == 1


def test_the_stream_and_lockstep_batches_take_the_same_steps(run):
    part = files.load_json(run[0] / "benchmark.json")["parts"]["stream"]
    (row,) = part["rows"]
    assert row["case"].startswith("FCN-Alex, 3 images, ")
    assert row["same_steps"] == 1 and row["most_apart"] == 0 and row["iterations"] == 4
    assert list(part["points"]["busy"]["FCN-Alex"]) == ["stream", "lockstep"]
    assert len(part["points"]["slots"]["FCN-Alex"]) == 1
    plots = {path.name for path in run[0].glob("*.png")}
    assert plots == {"speed_against_slots.png", "busy_over_time.png"}


@pytest.mark.slow
def test_every_curve_has_its_plot(tmp_path):
    point = {"network": "A", "seconds": 0.1, "flops": 1e9, "temporaries_mib": 3.0}
    busy = {"A": {"stream": [(4, 2.0), (8, 1.0)], "lockstep": [(5, 2.0), (9, 1.0)]}}
    points = {
        "lanes": [{**point, "lanes": lanes} for lanes in (1, 2)],
        "sizes": [{**point, "size": size} for size in (64, 128)],
        "proposals": [{**point, "proposals": count, "size": 64} for count in (75, 150)],
        "slots": {"A": [{"slots": 2, "stream": 1.0, "lockstep": 0.5}]},
        "busy": busy,
    }
    drawn = curves.draw(points, tmp_path)
    assert len(set(drawn)) == len(drawn) == 6
    for name in drawn:
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 400
    assert curves.draw({}, tmp_path) == []


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--cases=fcn_alex:medium", "fcn_alex:medium is not <network>:miniature"),
        ("--parts=engine,fuel", "unknown fuel"),
        ("--fcns=fr_vgg_07", "unknown fr_vgg_07; known: fcn_vgg, fcn_alex"),
        ("--batches=1,0", "'0' is not a whole number"),
        ("--size=1", "--size=1: 1 is not an integer in the range [48, 16384]"),
        ("--case=fuel", "--case=fuel: value should be one of <engine|"),
        ("--sizes=47", "'47' is not a whole number from 48 to"),
    ],
)
def test_a_wrong_flag_is_named(refuse, tmp_path, flag, message):
    assert message in refuse("benchmark", flag, f"--workdir={tmp_path}/run")
    assert not (tmp_path / "run").exists()


def test_absent_parts(monkeypatch):
    monkeypatch.setattr(tables.importlib.util, "find_spec", lambda name: None)
    assert tables.absent("torch") == "PyTorch is not installed (pip install -e '.[torch]')"
    assert tables.absent("peers").endswith("is not installed (pip install -e '.[peers]')")
    assert tables.absent("engine") is None


def test_means_in_windows():
    # 3 for 2, 1 for 3; then a rest of half a window
    assert curves._windowed([(2, 3.0), (5, 1.0)], 2) == ([0, 2, 4, 5], [3.0, 1.0, 1.0])
    assert curves._windowed([(4, 2.0), (6, 0.0)], 3) == ([0, 3, 6], [2.0, 2 / 3])


def test_the_report_says_what_was_left_out_and_leaves_no_gap():
    row = {"case": "a", "iteration": "b", "control": "c", "flops": None, "control_flops": 1e9}
    environment = {"device": "cpu", "cores": 2, "versions": {"jax": "1", "python": "3"}}
    contents = {"work": {"rows": [row]}, "torch": {"absent": "PyTorch is not installed"}}
    text = tables.report(contents, environment, ["one.png"])
    assert "| c | 1 | - |" in " ".join(text.split())
    assert "Left out: PyTorch is not installed." in text and "![one.png](one.png)" in text
