"""The launch on the smallest things. How fast anything is, no test asserts."""

import importlib.util
import json

import pytest
from PIL import Image

from experiments.measure import curves, tables

FLAGS = (
    *("--cases=fcn_alex:miniature", "--size=64", "--iterations=2"),
    *("--pairs=2", "--proposals=16", "--images=5", "--few_images=3", "--max_steps=3"),
    *("--turns=2", "--lanes=1", "--batches=1,2", "--fcns=fcn_alex", "--full_images=0"),
    *("--shrink=64", "--sizes=64", "--counts=8", "--repeats=1", "--miniature"),
)
PLOTS = {
    "time_against_batch.png",
    "memory_against_batch.png",
    "cost_against_size.png",
    "cost_against_proposals.png",
    "speed_against_slots.png",
    "busy_over_time.png",
}
ROWS = {
    "engine": 1,
    "work": 2,
    "stream": 1,
    "torch": 1,
    "precision": 2,
    "kernels": 5,
    "scaling": 7,
}


@pytest.fixture(scope="module")
def run(launch, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("benchmark") / "run"
    launch("benchmark", *FLAGS, "--parts=engine,stream", f"--workdir={workdir}")
    return workdir, launch("benchmark", *FLAGS, f"--workdir={workdir}")  # adds the others


def content_of(workdir):
    return json.loads((workdir / "benchmark.json").read_text())


@pytest.mark.slow
def test_every_part_is_measured_or_says_why_not(run):
    workdir, process = run
    parts = content_of(workdir)["parts"]
    assert list(parts) == list(ROWS)
    left_out = {part: content["absent"] for part, content in parts.items() if "absent" in content}
    expected = {}
    if importlib.util.find_spec("torch") is None:
        expected["torch"] = "PyTorch is not installed"
    assert left_out == expected
    for part, content in parts.items():
        if part not in expected:
            assert len(content["rows"]) == ROWS[part], part
            assert f"{part}: {content['minutes']} minutes" in process.stderr
    table = (workdir / "benchmark.md").read_text()
    assert table in process.stdout and f"results: {workdir}" in process.stdout
    assert all(tables.TITLES[part] in table for part in ROWS)
    assert all(f"Left out: {reason}." in table for reason in expected.values())


@pytest.mark.slow
def test_ratios_lie_in_their_ranges_and_controls_hold(run):
    parts = content_of(run[0])["parts"]
    for part in ("engine", "kernels"):
        for row in parts[part]["rows"]:
            assert row["range"][0] <= row["ratio"] <= row["range"][1] and row["pairs"] == 2
    for row in parts["work"]["rows"]:
        assert 0 < row["ratio"] < 1.1 and row["flops"] > 0
        assert row["ratio"] >= 1 or row["iteration"] == "bordered"
    for row in parts["kernels"]["rows"]:
        assert row["difference"] < 1e-4
    (row,) = parts["stream"]["rows"]
    assert row["case"].startswith("FCN-Alex, 5 images, ")
    assert row["same_steps"] == 1 and row["most_apart"] == 0 and row["iterations"] == 4
    assert row["share"] == pytest.approx(row["gain"] / row["best"])
    for row in parts["torch"].get("rows", ()):
        assert row["same_steps"] == 1 and row["steps"] == [3, 3] and row["batch"] in (1, 2)


@pytest.mark.slow
def test_every_plot_is_there(run):
    workdir, _ = run
    assert {path.name for path in workdir.glob("*.png")} == PLOTS
    text = (workdir / "benchmark.md").read_text()
    for name in PLOTS:
        with Image.open(workdir / name) as image:
            assert min(image.size) > 400
        assert f"({name})" in text


@pytest.mark.slow
def test_a_finished_part_is_kept_and_other_settings_are_refused(run, launch):
    workdir, _ = run
    path = workdir / "parts" / "work.json"
    marked = json.loads(path.read_text())
    marked["rows"][0]["case"] = "kept"
    path.write_text(json.dumps(marked))
    launch("benchmark", *FLAGS, "--parts=engine", f"--workdir={workdir}")
    assert list(content_of(workdir)["parts"])[:2] == ["engine", "work"]
    assert "kept" in (workdir / "benchmark.md").read_text()
    process = launch("benchmark", *FLAGS, "--pairs=3", f"--workdir={workdir}", fails=True)
    assert "other settings (pairs: now 3, there 2)" in process.stderr


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--cases=fcn_alex:medium", "fcn_alex:medium is not <network>:miniature"),
        ("--parts=engine,fuel", "unknown fuel"),
        ("--fcns=fr_vgg_07", "known are fcn_vgg and fcn_alex"),
        ("--batches=1,0", "'0' is not a whole number"),
        ("--sizes=47", "'47' is not a whole number from 48 to"),
        ("--sizes=", "--sizes=[]: names no number"),
    ],
)
def test_a_wrong_flag_is_named(launch, tmp_path, flag, message):
    process = launch("benchmark", flag, f"--workdir={tmp_path}/run", fails=True)
    assert message in process.stderr + process.stdout
    assert not (tmp_path / "run").exists()


def test_absent_parts(monkeypatch):
    monkeypatch.setattr(tables.importlib.util, "find_spec", lambda name: None)
    assert tables.absent("torch") == "PyTorch is not installed"
    assert tables.absent("engine") is None


def test_means_in_windows():
    # 3 for 2, 1 for 3; then a rest of half a window
    assert curves._windowed([(2, 3.0), (5, 1.0)], 2) == ([0, 2, 4, 5], [3.0, 1.0, 1.0])
    assert curves._windowed([(4, 2.0), (6, 0.0)], 3) == ([0, 3, 6], [2.0, 2 / 3])


def test_the_report_says_what_was_left_out_and_leaves_no_gap():
    row = {"case": "a", "iteration": "b", "control": "c", "flops": None, "control_flops": 1e9}
    environment = {"device": "cpu", "cores": 2, "versions": {"jax": "1", "python": "3"}}
    found = {"work": {"rows": [row]}, "torch": {"absent": "PyTorch is not installed"}}
    text = tables.report(found, environment, ["one.png"])
    assert "| c | 1 | - |" in " ".join(text.split())
    assert "Left out: PyTorch is not installed." in text and "![one.png](one.png)" in text
