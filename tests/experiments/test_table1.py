"""The main launch on three models of nobody's framework, what it writes, and what it refuses."""

import json
import random
import shutil
import signal
import socket
import time

import jax
import numpy as np
import pytest
from PIL import Image

import dag_jax
from dag_jax import Method, files, methods, metrics
from dag_jax.errors import UserError
from dag_jax.runs import rundir
from tests import toy_models
from tests.experiments import desk, pages, small
from tests.experiments.small import SEGMENTER, SIGMOID, TWO_STAGE, everything, folder, written

KEYS = {
    *("network", "orig", "advr", "perm", "advr_uint8", "steps_median", "perceptibility"),
    *("largest_change_median", "unfinished", "images"),
}


def rows_of(workdir):
    """Return {model: row} of table1.json."""
    rows = json.loads((workdir / "table1.json").read_text())["rows"]
    return {row["network"]: row for row in rows}


def test_any_model_is_attacked_and_the_table_printed_and_written(toys):
    workdir, _, process = toys
    text = (workdir / "table1.md").read_text()
    assert text in process.stdout and f"results: {workdir}" in process.stdout
    rows = rows_of(workdir)
    assert {name: row["title"] for name, row in rows.items()} == small.TITLES
    for row in rows.values():
        assert row.keys() >= KEYS and row["images"] == 2
        assert row["advr"] < min(row["perm"], row["orig"]) and row["title"] in text
    assert rows[TWO_STAGE]["margin"] == 3 and rows[SIGMOID]["margin"] == 1  # its own
    assert rows[TWO_STAGE]["fooled"] == rows[SIGMOID]["fooled"] == 1
    assert rows[SEGMENTER]["advr"] == rows[SEGMENTER]["advr_margin_0"]
    settings = json.loads((workdir / "table1.json").read_text())["settings"]
    assert settings["max_steps"] == 6 and "limit" not in settings and "image_ids" not in settings


def test_the_table_says_which_classes_are_compared(toys):
    workdir, _, process = toys
    rows = rows_of(workdir)
    assert rows[SEGMENTER]["classes"] == ["Person", "background", "motorcycle", "dog", "TV", "cat"]
    assert rows[SEGMENTER]["classes_of_model_alone"] == ["sky"]
    assert rows[SIGMOID]["classes_of_dataset_alone"] == ["train"]
    assert len(rows[TWO_STAGE]["classes"]) == 20 and not rows[TWO_STAGE]["classes_of_model_alone"]
    assert "Streets: compared on 6 classes (Person, background, motorcycle," in process.stdout
    assert "; the model alone has traffic light; the dataset alone has train, left out." in (
        process.stdout
    )


def test_models_of_the_same_classes_share_a_picture(toys):
    pictures = sorted(path.name for path in toys[0].glob("*.png"))
    assert pictures == ["examples.png", "examples_2.png", "examples_3.png"]
    assert all((toys[0] / name).stat().st_size > 10_000 for name in pictures)


def test_the_audit_is_printed_and_kept(toys):
    workdir, _, process = toys
    assert "## Audit\n\n44 checks of 3 rows: " in process.stdout
    audited = json.loads((workdir / "table1.json").read_text())["audit"]
    assert audited.keys() == small.TITLES.keys()
    for name, findings in audited.items():
        stored = files.load_json(workdir / folder(name) / "audit.json", digest=True)
        assert stored["findings"] == findings
        verdicts = {finding["check"]: finding["passed"] for finding in findings}
        # One of a kind has no other to be compared with, and two images are too few.
        assert verdicts.pop("white-box beats transfer") is None
        assert verdicts.pop("permuted noise does worse") is None
        # Six steps are too few for every pixel.
        assert verdicts.pop("twice the steps change little") is (name != SEGMENTER)
        assert all(verdicts.values()), findings
    assert '"twice the steps change little" does not hold**: 2 of 2 images' in process.stdout


def test_stored_perturbations_and_images_give_the_row_again(toys, scenes):
    row, run = rows_of(toys[0])[SEGMENTER], rundir.read(toys[0] / folder(SEGMENTER))
    assert run.manifest["model"] == SEGMENTER and run.manifest["method"]["max_steps"] == 6
    assert run.manifest["provenance"]["versions"]["jax"] and run.manifest["provenance"]["device"]
    model, known = toy_models.segmenter(), toy_models.Streets.classes
    predict = jax.jit(model.predict)
    index = {name: known.index(name) for name in row["classes"]}
    other_names = {"person": "Person", "motorbike": "motorcycle", "tvmonitor": "TV"}
    confusion = {"advr": 0, "advr_uint8": 0, "orig": 0}
    for example in scenes:
        key, clean = example["image_id"], example["image"].astype(np.float32)
        r, record = run.perturbation(key), run.record(key)
        assert 0 < np.abs(r).max() <= 3 * record["num_steps"] + 1e-4
        assert len(record["active_counts"]) == record["num_steps"] + 1
        with Image.open(toys[0] / folder(SEGMENTER) / "images" / f"{key}.png") as file:
            pixels = np.asarray(file)
        np.testing.assert_array_equal(pixels, np.rint(np.clip(clean + r, 0, 255)))
        names = [other_names.get(name, name) for name in scenes.classes]
        table = np.array([index.get(name, 255) for name in names] + [255] * (256 - len(names)))
        truth = table[example["mask"][:, :, 0]]
        seen = {"advr": dag_jax.perturb(clean, r), "advr_uint8": np.float32(pixels), "orig": clean}
        for column, image in seen.items():
            confusion[column] += metrics.confusion_matrix(truth, np.asarray(predict(image)), 7)
    for column, counts in confusion.items():
        score = 100 * np.nanmean(metrics.class_iou(counts)[sorted(index.values())])
        assert row[column] == pytest.approx(score, abs=0.01)


def test_the_same_command_touches_no_image_and_no_row(toys, call, capsys, tmp_path):
    workdir = shutil.copytree(toys[0], tmp_path / "run")
    before = written(workdir)
    (workdir / "table1.json.tmp-0123abcd").write_text("what a killed launch left")
    call("table1", *toys[1][:-1], f"--workdir={workdir}")
    after = written(workdir)
    assert (workdir / "table1.md").read_text() in capsys.readouterr().out
    assert everything(workdir) == everything(toys[0])
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {path.name for path in workdir.iterdir()}, changed


@pytest.fixture(scope="module")
def growing(call, tmp_path_factory):
    """A folder that grew: two images of a model, two more, another model."""
    workdir = tmp_path_factory.mktemp("growing") / "run"
    flags = (*small.STEPS, "--noaudit", f"--workdir={workdir}")
    stages = []
    for more in (
        (f"--models={SEGMENTER}", "--limit=2"),
        (f"--models={SEGMENTER}", "--limit=4"),
        (f"--models={TWO_STAGE}", "--limit=4"),
    ):
        call("table1", *more, *flags)
        stages.append((written(workdir), rows_of(workdir)))
    return workdir, flags, stages


@pytest.mark.slow
def test_a_larger_limit_adds_images_and_touches_no_other(growing):
    workdir, _, stages = growing
    (small_times, small_rows), (times, rows), _ = stages
    assert [small_rows[SEGMENTER]["images"], rows[SEGMENTER]["images"]] == [2, 4]
    anew = {"row.json", "table1.json", "table1.md", "examples.png", "report.html"}
    anew |= {"index.js", "0.js"}  # of the report
    untouched = {name for name in small_times if name.rpartition("/")[2] not in anew}
    assert all(times[name] == small_times[name] for name in untouched)
    assert len([name for name in untouched if not name.startswith("report_files")]) == 2 + 2 * 9
    assert rundir.read(workdir / folder(SEGMENTER)).keys == [f"scene_08_{i:06d}" for i in range(4)]


@pytest.mark.slow
def test_a_launch_with_another_model_adds_its_row(growing):
    _, _, (_, (before, rows), (after, more)) = growing
    assert list(rows) == [SEGMENTER] and list(more) == [SEGMENTER, TWO_STAGE]
    assert more[SEGMENTER] == rows[SEGMENTER] and more[TWO_STAGE]["images"] == 4
    assert all(after[name] == before[name] for name in before if name.startswith(folder(SEGMENTER)))


@pytest.fixture
def copied(growing, tmp_path):
    """The folder that grew, to do with it what one likes; and its flags."""
    workdir, flags, _ = growing
    shutil.copytree(workdir, tmp_path / "run")
    flags = [*flags[:-1], f"--models={SEGMENTER}", "--limit=4", f"--workdir={tmp_path / 'run'}"]
    return tmp_path / "run", flags


def flip_digit(path):
    """Change one digit of a text."""
    text = path.read_text()
    place = max(i for i, letter in enumerate(text) if letter.isdecimal() and letter != "9")
    path.write_text(f"{text[:place]}{int(text[place]) + 1}{text[place + 1 :]}")


def flip_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("manifest.json", flip_digit),
        (f"{folder(TWO_STAGE)}/manifest.json", flip_digit),
        (f"{folder(SEGMENTER)}/row.json", flip_digit),
        (f"{folder(TWO_STAGE)}_margin_0/row.json", flip_digit),
        (f"{folder(SEGMENTER)}/perturbations/scene_08_000001.safetensors", flip_byte),
        (f"{folder(SEGMENTER)}/images/scene_08_000001.png", flip_byte),
        (f"{folder(TWO_STAGE)}/scores/perm_1/scene_08_000003.safetensors", flip_byte),
    ],
)
def test_damage_is_named_before_anything_is_written(copied, refuse, name, damage):
    workdir, flags = copied
    damage(workdir / name)
    # Nor is there a folder of a model that would join.
    text = refuse("table1", *flags, f"--models={SIGMOID}")
    assert text.startswith(f"{workdir / name} is damaged (")
    assert ("Put it back as it was" in text) == ("manifest" in name)


@pytest.mark.parametrize("early", [True, False])
def test_a_process_that_fails_before_it_attacks_is_not_waited_for(copied, call, early):
    """Before its folder is claimed, or because of what is in there."""
    workdir, flags = copied
    perturbations = workdir / folder(SEGMENTER) / "perturbations"
    (perturbations / "scene_08_000003.safetensors").unlink()  # so that process 0 has to wait
    if early:
        more, text = ["--models=json:loads"], "json:loads is called without arguments"
    else:
        flip_byte(perturbations / "scene_08_000001.safetensors")
        more, text = [], "000001.safetensors is damaged"
    with pytest.raises(UserError, match=text):
        call("table1", *flags, *more, "--processes=2", "--process=1")
    with pytest.raises(UserError, match=f"no row of Streets: process 1: .*{text}"):
        call("table1", *flags, "--processes=2", "--process=0")


@pytest.mark.slow
def test_what_is_damaged_may_be_deleted_and_is_made_anew(copied, growing, call):
    workdir, flags = copied
    for name in ("row.json", "perturbations/scene_08_000001.safetensors"):
        (workdir / folder(SEGMENTER) / name).unlink()
    call("table1", *flags)
    assert everything(workdir) == everything(growing[0])


def alter_version(manifest):
    """Make a manifest that of another version of JAX, with its digest."""
    content = files.load_json(manifest, digest=True)
    content["provenance"]["versions"]["jax"] = "0.1"
    files.write_json(manifest, content)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", folder(SEGMENTER)])
def test_another_version_is_refused_or_accepted_and_the_table_says_so(copied, refuse, call, name):
    workdir, flags = copied
    alter_version(workdir / name / "manifest.json")
    assert "results of another version (versions.jax: now " in refuse("table1", *flags)
    assert "(--accept_version)" not in (workdir / "table1.md").read_text()
    call("table1", *flags, "--accept_version")
    text = (workdir / "table1.md").read_text()
    if name:
        assert "made the results of Streets (--accept_version): the rows' accepted_" in text
        (accepted,) = rows_of(workdir)[SEGMENTER]["accepted_versions"]
        assert accepted["then"] == {"versions.jax": "0.1"}
    else:
        assert "began this folder (--accept_version)" in text
    call("table1", *flags)  # it is known now


@pytest.mark.slow
def test_rounding_attacks_and_scores_the_saved_image(call, tmp_path):
    flags = (f"--models={SEGMENTER}", f"--image_ids={small.SCENES[0]}", "--rounded", "--noaudit")
    call("table1", *small.STEPS, *flags, f"--workdir={tmp_path / 'run'}")
    row = rows_of(tmp_path / "run")[SEGMENTER]
    assert row["images"] == 1 and row["advr"] == row["advr_uint8"]
    (record,) = rundir.read(tmp_path / "run" / folder(SEGMENTER)).records
    assert record["largest_change"] == int(record["largest_change"]) > 0
    assert record["active_png"] == record["active_counts"][-1]


def test_another_method_attacks_and_the_tables_say_which(documented):
    attacked, _ = documented(desk.command("table1", "runs/table1_clipped"))
    described = rundir.read(attacked / folder(SEGMENTER)).manifest["method"]
    assert described == methods.clipped_best_other().replace(max_steps=2).describe()
    assert described != Method(max_steps=2).describe()
    transferred, _ = documented(desk.command("transfer", "runs/transfer_clipped"))
    for path in attacked / "table1.md", transferred / "transfer.md":
        assert "Attacked by clipped_best_other, which is not the paper's" in path.read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--models=fcn_vgg16",), "unknown model 'fcn_vgg16'; known are fcn_alex, "),
        (("--models=no_such.module:load",), "there is no module no_such.module here"),
        (("--models=tests.toy_models:nothing",), "has no attribute 'nothing'"),
        (("--models=tests.toy_models:anchors",), "is called without arguments: missing a required"),
        (("--models=os:getcwd",), "returns no model: a str is no model"),
        (("--models=tests.toy_models:STRIDE",), "tests.toy_models:STRIDE is no function"),
        (("--models=a b",), "neither a network's name nor package.module:function"),
        (("--split=voc99",), "scenes have no split 'voc99'"),
        (("--split=seg11valid[5:2]",), "'seg11valid[5:2]' is no part of seg11valid that holds"),
        (("--image_ids=scene_08_000000,photo",), "no image photo"),
        (("--dataset=voc",), "voc needs data_dir"),
        (("--dataset=voc", "--split=voc2012_seg_val", "--data_dir=/nowhere"), "does not exist"),
        (("--data_dir=/nowhere",), "scenes are rendered, they are not read from data_dir"),
        (("--nominiature", "--models=fcn_alex"), "at full size needs --weights_dir"),
        (("--weights_dir=/nowhere", "--models=fcn_alex"), "/nowhere/fcn_alex.safetensors"),
        (("--limits=3",), "Unknown command line flag 'limits'"),
        (("more",), "unexpected argument(s): more"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(refuse, tmp_path, flags, message):
    workdir = tmp_path / "run"
    flags = (f"--models={SEGMENTER}", *small.STEPS, "--limit=2", f"--workdir={workdir}", *flags)
    assert message in refuse("table1", *flags)
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--seed=1",), "other settings (settings.seed: now 1, there 0)"),
        (("--rounded",), "settings.rounded: now true, there false"),
        (("--method=clipped",), 'settings.method: now "clipped", there "dag"'),
        (("--max_steps=7",), "settings.max_steps: now 7, there 6"),
        (("--split=seg11valid",), "settings.split"),
        (("--canvas=64",), "settings.canvas: now 64, there null"),
    ],
)
def test_a_folder_of_other_settings_is_refused(copied, refuse, flags, message):
    text = refuse("table1", *copied[1], *flags)
    assert message in text and "Give another --workdir" in text


@pytest.mark.parametrize("launch_of", ["variants", "shapes", "transfer"])
def test_a_folder_of_another_launch_is_refused(copied, toys, refuse, launch_of):
    workdir, _ = copied
    run = (f"--run={toys[0]}", "--black_boxes=")
    run = run if launch_of == "transfer" else (f"--split={small.SPLIT}", "--limit=2")
    text = refuse(launch_of, f"--models={SEGMENTER}", *run, f"--workdir={workdir}")
    assert f'launch: now "{launch_of}", there "table1"' in text


@pytest.mark.parametrize("kind", ["a file", "below a file", "something else", "read-only"])
def test_a_folder_that_cannot_be_written_is_named(refuse, tmp_path, kind):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    workdir, message = {
        "a file": (tmp_path / "file", "a file lies where a folder should be"),
        "below a file": (tmp_path / "file" / "run", "a file lies where a folder should be"),
        "something else": (tmp_path / "full", "is not empty and holds no run of this launch"),
        "read-only": ("/proc/run", "cannot be written"),
    }[kind]
    flags = (f"--models={SEGMENTER}", *small.STEPS, "--limit=2", f"--workdir={workdir}")
    assert message in refuse("table1", *flags)


# What is killed, interrupted and shared out: a process each, all of one command.
MORE = (f"--models={SEGMENTER}", *small.STEPS, "--limit=4", "--noaudit")


@pytest.fixture(scope="module")
def whole(launch, once):
    """A folder that nothing disturbed."""

    def make(workdir):
        launch("table1", *MORE, f"--workdir={workdir}")
        return workdir

    return once("whole", make)


@pytest.mark.slow
def test_ten_kills_at_random_moments_lose_nothing(whole, start, launch, tmp_path):
    workdir, draw, counts = tmp_path / "run", random.Random(0), [0]
    flags = (*MORE, f"--workdir={workdir}")

    def count():
        return sum(".tmp-" not in name for name in written(workdir))

    for _ in range(10):
        launched, enough = start("table1", *flags, doomed=True), counts[-1] + draw.randint(1, 4)
        while count() < enough and not launched.ended():
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.005))  # in the midst of what comes next
        launched.kill()
        assert launched.wait().returncode in (0, 128 + signal.SIGKILL)
        counts.append(count())
    assert counts == sorted(counts) and len(set(counts)) > 3, counts
    launch("table1", *flags)
    assert everything(workdir) == everything(whole)


@pytest.mark.slow
def test_an_interrupted_launch_says_so_in_a_line_and_goes_on(whole, launch, tmp_path):
    workdir = tmp_path / "run"
    perturbation = workdir / folder(SEGMENTER) / "perturbations" / "scene_08_000001.safetensors"
    flags = (*MORE, f"--workdir={workdir}")
    process = launch("table1", *flags, kill_at=perturbation, kill_by=signal.SIGINT)
    assert process.returncode == 130
    assert "\ninterrupted: what is finished is kept; the same command goes on\n" in process.stderr
    assert "Traceback" not in process.stderr and not (workdir / "table1.json").exists()
    launch("table1", *flags)
    assert everything(workdir) == everything(whole)


@pytest.mark.slow
def test_two_processes_make_the_same_files(whole, start, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    shown = next(each for each in pages.documented() if "coordinator" in each.values)
    command = shown.with_flags(*MORE, f"--coordinator={address}", f"--workdir={tmp_path / 'run'}")
    parts = [command.with_flags(f"--process={number}") for number in (0, 1)]
    both = [start(part.launch, *part.flags) for part in parts]
    finished = [launched.wait() for launched in both]
    assert [process.returncode for process in finished] == [0, 0], finished
    assert everything(tmp_path / "run") == everything(whole)
    assert "process 1 is done" in finished[1].stdout and "| Streets |" in finished[0].stdout
