"""The launch on miniatures and two small images. How fast anything is, no test asserts."""

import functools
import json

import jax
import numpy as np
import pytest
from PIL import Image

import dag_jax
from dag_jax import networks

pytestmark = pytest.mark.slow  # it compiles whole networks, each in a process of its own

SIZE = 64, 80  # of both images once they are scaled
STEPS = 10  # by then a few of the detector's targets are fooled
CASES = ["fcn_vgg_image1", "fcn_vgg_image2", "fr_vgg_07_image1_40", "fr_vgg_07_image2_40"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two images of coloured blocks; the second has the size that the first is scaled to."""
    folder, rng, paths = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0), []
    for name, (height, width) in (("one", (96, 96)), ("two", SIZE)):
        blocks = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        Image.fromarray(blocks).resize((width, height)).save(folder / f"{name}.png")
        paths.append(folder / f"{name}.png")
    return paths


@pytest.fixture(scope="module")
def run(launch, photographs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("full_size") / "run"
    flags = (
        f"--images={','.join(map(str, photographs))}",
        *("--models=fcn_vgg,fr_vgg_07", "--miniature", "--proposals=40", f"--steps={STEPS}"),
        *("--fcn_size=64x80", "--detector_size=64x80", f"--workdir={workdir}"),
    )
    return workdir, flags, launch("full_size", *flags)


def content_of(workdir):
    return json.loads((workdir / "full_size.json").read_text())


def test_every_case_is_measured(run):
    workdir, _, process = run
    content = content_of(workdir)
    found = content["settings"]["environment"]
    assert found["platform"] == "cpu" and found["cores"] > 0
    assert found["versions"]["jax"] == jax.__version__
    assert sorted(path.stem for path in (workdir / "cases").iterdir()) == CASES
    assert [(row["network"], row["image"]) for row in content["rows"]] == [
        *(("fcn_vgg", "one.png"), ("fcn_vgg", "two.png")),
        *[("fr_vgg_07", "one.png")] * 2,
        *[("fr_vgg_07", "two.png")] * 2,
    ]
    for row in content["rows"]:
        seconds = row["iteration_seconds"]
        few = row["active"] < row["targets"]
        assert len(seconds) == row["iterations"] == (5 if few else STEPS) and min(seconds) > 0
        assert min(seconds) <= row["iteration_seconds_median"] <= max(seconds)
        assert row["trace_seconds"] > 0 and row["compile_seconds"] > 0
        assert row["size"] == list(SIZE)
        # The compiler counts the weights among the arguments, 4 bytes a number, less those that no
        # score depends on: a detector's proposal network and box offsets.
        used = 0.5 if row["proposals"] else 1
        assert used < row["arguments_gib"] * 2**30 / (4 * row["parameters"]) < 2
        assert row["outputs_gib"] > 0 and row["temporaries_gib"] > 0
        assert row["peak_gib"] >= row["held_gib"] > row["arguments_gib"]
        assert row["peak_before_gib"] >= row["held_gib"] and row["peak_of"] == "process"
        if not few:
            assert (row["steps"], row["status"]) == (STEPS, "RUNNING")
    table = (workdir / "full_size.md").read_text()
    assert table in process.stdout and f"results: {workdir}" in process.stdout
    assert table.count("FCN-VGG |") == 2 and table.count("FR-VGG-07 |") == 4
    assert all(f"{case}: seconds an iteration" in process.stderr for case in CASES)


def counted_by_hand(score_fn, image, valid):
    """Return (targets, active before and after, largest |r|): STEPS steps with all active."""
    labels = np.asarray(score_fn(image)).argmax(-1).astype(np.int32)
    adversarial = dag_jax.permute_labels(dag_jax.image_key(0, "two"), labels, 21)
    targets = dag_jax.make_targets(labels, adversarial, valid)

    @jax.jit
    def gradient(image):
        return jax.grad(lambda x: dag_jax.margin_loss(score_fn(x), targets).sum())(image)

    def active(image):
        return int(dag_jax.active_targets(score_fn(image), targets).sum())

    perturbation = np.zeros_like(image)
    for _ in range(STEPS):
        r = -np.asarray(gradient(np.clip(image + perturbation, 0, 255)))
        perturbation += np.float32(0.5) * r / np.abs(r).max()
    after = active(np.clip(image + perturbation, 0, 255))
    return int(targets.valid.sum()), active(image), after, np.abs(perturbation).max()


@pytest.mark.parametrize("name", ["fcn_vgg", "fr_vgg_07"])
def test_counts_are_those_of_the_attack(run, photographs, name):
    network = networks.load(name, miniature=True)
    with Image.open(photographs[1]) as file:
        image = np.asarray(file).astype(np.float32)
    boxes, valid = None, True
    if network.detects:
        propose = functools.partial(networks.propose, nms_threshold=0.9, max_proposals=40)
        boxes, _, valid = jax.jit(propose)(network, image)
    score_fn = networks.score_fn(network, boxes)
    count, before, after, largest = counted_by_hand(jax.jit(score_fn), image, valid)
    rows = [row for row in content_of(run[0])["rows"] if row["network"] == name]
    row = next(row for row in rows if row["image"] == "two.png")
    near = 1 if network.detects else 10  # another compilation may judge a tie otherwise
    assert row["targets"] == row["active"] == count
    assert row["active_clean"] == pytest.approx(before, abs=near)
    assert row["active_last"] == pytest.approx(after, abs=near)
    assert row["active_last"] < row["active_clean"]
    assert row["perturbation_finite"] and row["largest"] == pytest.approx(largest, rel=0.02)
    if network.detects:
        few = rows[-1]
        assert few["targets"] == count and few["active"] == -(-count // 20)
        assert few["largest"] is None


def test_what_is_finished_is_kept(run, launch):
    workdir, flags, _ = run
    before = content_of(workdir)
    (workdir / "cases" / f"{CASES[0]}.json").unlink()
    (workdir / "full_size.json").unlink()
    launch("full_size", *flags)
    again = content_of(workdir)
    assert again["settings"] == before["settings"]
    assert again["rows"][1:] == before["rows"][1:]
    assert again["rows"][0]["iteration_seconds"] != before["rows"][0]["iteration_seconds"]
    assert again["rows"][0]["active_last"] == before["rows"][0]["active_last"]
    process = launch("full_size", *flags, "--seed=1", fails=True)
    assert "other settings (seed: now 1, there 0)" in process.stderr
    assert content_of(workdir) == again


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--fcn_size=64",), "--fcn_size=64: must be HxW in pixels, such as 375x500"),
        (("--detector_size=64x31",), "--detector_size=64x31: a network takes 32 to 16384 pixels"),
        (("--images={tmp}/none.png",), "none.png: no such image file"),
        (("--models=fcn_vgg,fcn_resnet",), "--models: unknown fcn_resnet; known: fcn_alex"),
        (("--proposals=300,many",), "'many' is not a whole number from 1 to"),
        (("--checkpoints={tmp}",), "fcn_alex.safetensors: no such checkpoint file"),
        # A child finds this one, before the first case.
        (("--checkpoints={tmp}/wrong",), "fcn_alex.safetensors holds fcn_vgg, not fcn_alex"),
    ],
)
def test_bad_input_is_named_before_any_work(launch, photographs, tmp_path, flags, message):
    (tmp_path / "wrong").mkdir()
    shipped = networks.zoo.CHECKPOINTS / "fcn_vgg.safetensors"
    (tmp_path / "wrong" / "fcn_alex.safetensors").symlink_to(shipped)
    workdir = tmp_path / "run"
    given = (f"--images={photographs[0]}", "--models=fcn_alex", "--miniature")
    flags = [flag.format(tmp=tmp_path) for flag in flags]
    process = launch("full_size", *given, *flags, f"--workdir={workdir}", fails=True)
    assert message in process.stderr + process.stdout
    assert not workdir.exists()
