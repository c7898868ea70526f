"""One call attacks a dataset: models of nobody's framework, and folders that are taken up again."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

from dag_jax import Method, files, models, runs
from dag_jax.datasets import ExampleSet
from dag_jax.runs import scores
from dag_jax.runs.targets import paper_targets

METHOD = Method(max_steps=12, margin=1.0)
SHORT = Method(max_steps=2)
# What everybody may rely on (the project's description of table1.json).
FIELDS = {
    *("network", "orig", "advr", "perm", "advr_uint8", "steps_median", "perceptibility"),
    *("largest_change_median", "unfinished", "images"),
}
COMPARED = {  # in the model's words, which are not the dataset's
    "segmenter": (["Person", "background", "motorcycle", "dog", "TV", "cat"], ["sky"], 15),
    "two_stage": (None, [], 0),
    "sigmoid": (None, ["traffic light"], 1),
}
stops_at = None  # the image at which `stopping` raises


def stopping(subject, group, example, seed):
    """The paper's targets, until a launch is interrupted."""
    if example["image_id"] == stops_at:
        raise RuntimeError("interrupted")
    return paper_targets(subject, group, example, seed)


@pytest.fixture(scope="module")
def attack(mesh):
    return functools.partial(runs.attack_dataset, slots=2, mesh=mesh)


@pytest.fixture(scope="module")
def attacked(attack, toys, scenes, tmp_path_factory):
    """{name: (row, folder)} of each model on two scenes."""
    folder = tmp_path_factory.mktemp("attacked")

    @functools.cache
    def row(name):
        return attack(toys[name], scenes(2), METHOD, folder / name), folder / name

    return row


def contents(folder, *but):
    """{path: bytes} of a folder, without its timings."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        n: path.read_bytes() for n, path in names.items() if not n.startswith(("timings", *but))
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPARED)
def test_the_attack_lowers_the_score_of_any_model(attacked, toys, name):
    row, folder = attacked(name)
    assert row.keys() >= FIELDS
    assert row["orig"] > 20 and row["advr"] < 0.8 * row["orig"] and row["perm"] > row["advr"]
    assert abs(row["advr_uint8"] - row["advr"]) < 10
    assert row["images"] == 2 and row["no_targets"] == 0
    assert 0 < row["perceptibility"] < 0.05 and 0 < row["largest_change_median"] <= 6
    assert row["title"] == row["network"] == models.about(toys[name]).title
    assert row["task"] == models.about(toys[name]).task
    assert (row["margin"], row["max_steps"]) == (1.0, 12)
    assert json.loads((folder / "row.json").read_text()).items() >= row.items()


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPARED)
def test_the_row_says_which_classes_were_compared(attacked, toys, name):
    row, _ = attacked(name)
    compared, alone, lacking = COMPARED[name]
    about = models.about(toys[name])
    expected = compared or [about.classes[index] for index in about.objects][len(alone) :]
    assert row["classes"] == expected
    assert row["classes_of_model_alone"] == alone
    assert len(row["classes_of_dataset_alone"]) == lacking


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPARED)
def test_the_folder_holds_every_image(attacked, toys, scenes, name):
    row, folder = attacked(name)
    run = runs.read(folder)
    assert run.keys == scenes(2).ids
    for example in scenes(2):
        record, image = run.record(example["image_id"]), run.image(example["image_id"])
        exact = np.clip(example["image"] + run.perturbation(example["image_id"]), 0, 255)
        assert np.abs(image - exact).max() < 0.501
        assert record["active_counts"][0] > record["active_counts"][-1]
        assert len(record["active_counts"]) == record["num_steps"] + 1 <= 13
    assert run.manifest["classes"] == list(toys[name].classes)
    assert run.manifest["method"] == METHOD.describe() == row["method"]


def test_more_examples_add_to_the_folder(attacked, attack, toys, scenes, tmp_path):
    before, folder = attacked("segmenter")
    shutil.copytree(folder, tmp_path / "run")
    stored = contents(folder)
    row = attack(toys["segmenter"], scenes(3), METHOD, tmp_path / "run")
    assert row["images"] == 3 and row["intervals"] != before["intervals"]
    now = contents(tmp_path / "run")
    added = {name for name in now if "scene_5" in name}
    assert now.keys() - added == stored.keys() and len(added) == 2 + len(scores.COLUMNS)
    assert all(now[name] == stored[name] for name in stored if name != "row.json")
    # With the first ones alone, the row is theirs again, and no file goes.
    assert attack(toys["segmenter"], scenes(2), METHOD, tmp_path / "run") == before
    assert contents(tmp_path / "run").keys() == now.keys()


def test_a_finished_folder_is_read_and_not_made_again(attacked, attack, toys, scenes):
    row, folder = attacked("two_stage")
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert attack(toys["two_stage"], scenes(2), METHOD, folder) == row
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_bars_are_shown_where_they_are_wanted(attack, toys, scenes, tmp_path, capsys):
    run = functools.partial(attack, toys["segmenter"], scenes(1), SHORT, columns=("orig",))
    run(tmp_path / "loud")
    assert "1/1" in capsys.readouterr().err
    run(tmp_path / "quiet", progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_an_interrupted_call_goes_on_to_the_same_bytes(attack, toys, scenes, tmp_path):
    global stops_at
    run = functools.partial(attack, toys["segmenter"], scenes(3), SHORT, targets_of=stopping)
    whole = run(tmp_path / "whole")
    stops_at = "scene_5"
    try:
        with pytest.raises(RuntimeError, match="interrupted"):
            run(tmp_path / "cut")
    finally:
        stops_at = None
    assert not (tmp_path / "cut" / "row.json").exists()
    done = contents(tmp_path / "cut", "scores")
    assert runs.read(tmp_path / "cut").keys == ["scene_13", "scene_2"]
    assert run(tmp_path / "cut") == whole
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert contents(tmp_path / "cut").items() >= done.items()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": METHOD.replace(max_steps=13)}, "method.max_steps: now 13, there 12"),
        ({"seed": 1}, "seed: now 1, there 0"),
        ({"targets_of": stopping}, "targets: now "),
        ({"model": "half"}, "weights_sha256: now "),
        ({"model": "sigmoid"}, "classes.0: now "),
        ({"examples": "inverted"}, "was made of another image of the name 'scene_13'"),
    ],
)
def test_a_folder_of_anything_else_is_refused(attacked, attack, toys, scenes, change, message):
    _, folder = attacked("two_stage")
    stored = contents(folder)
    inverted = [example | {"image": 255 - example["image"]} for example in scenes(2)]
    replacements = {
        "half": jax.tree.map(lambda leaf: leaf / 2, toys["two_stage"]),
        "sigmoid": toys["sigmoid"],
        "inverted": ExampleSet(inverted, scenes(2).classes),
    }
    options = {"model": toys["two_stage"], "examples": scenes(2), "method": METHOD}
    options |= {
        name: replacements.get(value, value) if isinstance(value, str) else value
        for name, value in change.items()
    }
    with pytest.raises(ValueError, match=message):
        attack(folder=folder, **options)
    assert contents(folder) == stored


def test_only_the_columns_that_are_asked_for_are_scored(attack, toys, scenes, tmp_path):
    row = attack(
        toys["segmenter"], scenes(1), SHORT, tmp_path / "run", columns=("orig", "advr_uint8")
    )
    assert "advr" not in row and "perm" not in row
    folders = {path.name for path in (tmp_path / "run" / "scores").iterdir()}
    assert folders == {"orig", "advr_uint8"}


def test_the_paper_s_method_is_the_model_s(toys):
    method = runs.paper_method(toys["sigmoid"])
    assert (method.margin, method.max_steps, method.step_size) == (1.0, 20, 0.5)


def test_what_cannot_be_attacked_is_refused_before_a_folder_is_made(attack, toys, scenes, tmp_path):
    blank = [{"image_id": "a", "image": scenes(1)[0]["image"]}]
    with pytest.raises(ValueError, match="Streets segments, and no example has a mask"):
        attack(toys["segmenter"], ExampleSet(blank, scenes(1).classes), SHORT, tmp_path / "run")
    with pytest.raises(ValueError, match="shares no class"):
        attack(toys["sigmoid"], ExampleSet(blank, ("tree",)), SHORT, tmp_path / "run")
    with pytest.raises(ValueError, match="is no model"):
        attack(abs, scenes(1), SHORT, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_image_without_targets_stays_as_it_is(attack, toys, scenes, tmp_path):
    grey = {"image_id": "grey", "image": np.full((128, 128, 3), 128, np.uint8)}
    examples = ExampleSet([grey, scenes(1)[0]], scenes(1).classes)
    row = attack(toys["two_stage"], examples, SHORT, tmp_path / "run")
    run = runs.read(tmp_path / "run")
    assert run.record("grey")["status"] == "NO_TARGETS" and not run.perturbation("grey").any()
    np.testing.assert_array_equal(run.image("grey"), grey["image"])
    assert (row["no_targets"], row["images"]) == (1, 2)
    assert files.load_json(files.open_folder(tmp_path / "run" / "row.json"), digest=True)
