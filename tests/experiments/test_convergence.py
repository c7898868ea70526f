"""Records whose figures are known, in the folders that Table 1 writes. A real run: test_table1."""

import json

import numpy as np
import pytest
from PIL import Image

from dag_jax import files, networks
from dag_jax.runs import audit, rundir

SETTINGS = {"dataset": "scenes", "miniature": True, "step_size": 0.5}


def record(status, counts, perceptibility=0.01):
    return {
        "status": status,
        "num_steps": len(counts) - 1,
        "active_counts": counts,
        "perceptibility": perceptibility,
        "largest_change": 1.0,
    }


# Of four images with 100 targets each: one is done after 1 step, one after 2, one is left with 50
# after all 12, one stops after 3 with 10.
FCN = [
    record("FOOLED", [100, 0], 0.001),
    record("FOOLED", [100, 40, 0], 0.002),
    record("MAX_STEPS", [100] + [50] * 12, 0.003),
    record("ZERO_GRADIENT", [100, 60, 20, 10], 0.004),
]
DETECTOR = [record("NO_TARGETS", [0]), record("FOOLED", [4, 5, 0], 0.002)]


def write(folder, network, margin, records, planned, weights="a1"):
    facts = networks.facts(network)
    manifest = {
        "model": network,
        "title": facts.title,
        "task": networks.TASKS[network],
        "weights_sha256": weights,
        "method": {"margin": margin, "max_steps": 12},
        "settings": SETTINGS,
    }
    results = rundir.Results(folder, manifest, [f"image {i}" for i in range(planned)])
    image = np.zeros((2, 2, 3), np.uint8)
    change = np.zeros((2, 2, 3), np.float32)
    for index, record_of_image in enumerate(records):
        results.add(index, image, change, record_of_image, 1.0)


@pytest.fixture(scope="module")
def run(launch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("convergence")
    source, workdir = folder / "table1", folder / "convergence"
    rundir.claim(source, {"launch": "table1", "settings": SETTINGS})
    write(source / "fcn_vgg", "fcn_vgg", 0.0, FCN, planned=5)
    write(source / "fr_zf_07", "fr_zf_07", 3.0, DETECTOR, planned=2)
    write(source / "fr_zf_07_margin_0", "fr_zf_07", 0.0, DETECTOR[:1], planned=2)
    flags = f"--run={source}", f"--workdir={workdir}"
    return source, workdir, launch("convergence", *flags)


def test_the_rows_are_those_of_the_records(run):
    _, workdir, process = run
    content = json.loads((workdir / "convergence.json").read_text())
    fcn, detector, by_paper = content["rows"]
    assert content["settings"] == SETTINGS
    assert (fcn["network"], fcn["images"], fcn["with_targets"]) == ("fcn_vgg", 4, 4)
    assert fcn["targets"] == [100, 100, 100]
    assert fcn["finished"] == [50, 0, 100]  # of four images, no more can be said
    assert fcn["half_minus_finished"] == [0, -50, 50] and by_paper["half_minus_finished"] is None
    assert fcn["steps"] == np.percentile([1, 2, 12, 3], (25, 50, 75)).tolist()
    # After 10 iterations two are done, one has half of its targets, the other a tenth.
    assert fcn["left"] == {"10": pytest.approx(0.15), "12": pytest.approx(0.15)}
    assert fcn["perceptibility"] == pytest.approx([0.00175, 0.0025, 0.00325])
    assert fcn["statuses"] == {"FOOLED": 2, "MAX_STEPS": 1, "ZERO_GRADIENT": 1}
    assert (detector["with_targets"], detector["margin"], detector["steps"]) == (1, 3, [2, 2, 2])
    assert detector["statuses"] == {"FOOLED": 1, "NO_TARGETS": 1}
    assert by_paper["with_targets"] == 0 and by_paper["steps"] is None and not by_paper["left"]
    text = (workdir / "convergence.md").read_text()
    assert text in process.stdout and f"results: {workdir}" in process.stdout
    assert "2.5 [1.75, 5.25]" in text and "15%" in text
    shown = text.partition("## What holds")[2].partition("## Audit")[0]
    verdicts = [
        line.split(" | ")[-1].strip() for line in shown.splitlines() if line.startswith("|")
    ]
    assert verdicts[0] == "most images finish within M_0 |"
    few = "not shown (fewer than 10 images) |"
    assert verdicts[2:] == [few, few, "- |"]


def test_the_audit_of_table_1_is_shown(run, launch):
    source, workdir, process = run
    assert "Not audited: FCN-VGG, FR-ZF-07; `python -m experiments.table1" in process.stdout
    about = {"row": {"advr": 1}, "checks": audit.checks_sha256()}
    finding = {"check": "a", "passed": False, "said": "1 of 2", "remedy": "do this"}
    content = about | {"rivals": {}, "findings": [finding]}
    files.write_json(source / "fcn_vgg" / "row.json", about["row"])
    files.write_json(source / "fcn_vgg" / "audit.json", content)
    text = launch("convergence", f"--run={source}", f"--workdir={workdir}").stdout
    assert '- **FCN-VGG: "a" does not hold**: 1 of 2. *Remedy:* do this.' in text
    assert "Not audited: FR-ZF-07; " in text
    content = json.loads((workdir / "convergence.json").read_text())
    assert content["audit"] == {"fcn_vgg": [finding]}


def test_an_image_that_finished_is_0_and_one_that_stopped_stays(run):
    _, workdir, _ = run
    fcn, detector, by_paper = json.loads((workdir / "convergence.json").read_text())["rows"]
    curves = fcn["curves"]
    assert curves["median"][:4] == pytest.approx([1, 0.45, 0.1, 0.05])
    assert curves["mean"][:4] == pytest.approx([1, 0.375, 0.175, 0.15])
    assert curves["high"][3:] == pytest.approx([np.percentile([0, 0, 0.5, 0.1], 75)] * 10)
    assert detector["curves"]["median"] == [1, 1.25] + [0] * 11  # a target that became active
    assert by_paper["curves"] == {}


def test_the_pictures_are_there_and_the_same_command_makes_them_anew(run, launch):
    source, workdir, _ = run
    for name in ("convergence", "distributions"):
        with Image.open(workdir / f"{name}.png") as picture:
            assert picture.width > 800 and len(np.unique(np.asarray(picture.convert("L")))) > 20
    (workdir / "distributions.png").unlink()
    write(source / "fcn_vgg", "fcn_vgg", 0.0, [*FCN, FCN[0]], planned=5)  # the run went on
    write(source / "fr_zf_0712", "fr_zf_0712", 3.0, DETECTOR, planned=2)  # and took a network
    launch("convergence", f"--run={source}", f"--workdir={workdir}")
    row, *more = json.loads((workdir / "convergence.json").read_text())["rows"]
    assert [row["network"] for row in more] == ["fr_zf_07", "fr_zf_07", "fr_zf_0712"]
    assert row["images"] == 5 and row["statuses"]["FOOLED"] == 3
    assert (workdir / "distributions.png").exists()


@pytest.mark.slow
def test_what_is_no_run_is_named_and_another_run_is_refused(run, launch, tmp_path):
    _, workdir, _ = run
    before = (workdir / "convergence.json").read_bytes()
    nothing = launch("convergence", f"--run={tmp_path}", f"--workdir={tmp_path / 'a'}", fails=True)
    assert f"the folder {tmp_path} is empty" in nothing.stderr and "records:" not in nothing.stderr
    assert not (tmp_path / "a").exists()
    other_run = tmp_path / "table1"
    rundir.claim(other_run, {"launch": "table1", "settings": SETTINGS | {"seed": 1}})
    write(other_run / "fcn_vgg", "fcn_vgg", 0.0, FCN, planned=4)
    refused = launch("convergence", f"--run={other_run}", f"--workdir={workdir}", fails=True)
    assert "other settings (run.settings.seed: now 1, there nothing)" in refused.stderr
    trained = tmp_path / "trained"
    rundir.claim(trained, {"launch": "table1", "settings": SETTINGS})
    write(trained / "fcn_vgg", "fcn_vgg", 0.0, FCN, planned=5, weights="b2")
    refused = launch("convergence", f"--run={trained}", f"--workdir={workdir}", fails=True)
    assert "is of other weights of FCN-VGG than --run has" in refused.stderr
    assert (workdir / "convergence.json").read_bytes() == before
