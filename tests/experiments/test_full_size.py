"""The launch on two models of nobody's framework.

How fast anything is, no test asserts.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import dag_jax
from dag_jax import models, networks
from dag_jax.models import Candidates
from experiments.measure import cost
from tests import toy_models
from tests.experiments import desk

SIZE = 64, 80  # of the image once it is scaled
STEPS = 4
MODELS = {
    "tests.toy_models:segmenter": toy_models.segmenter,
    "tests.toy_models:two_stage": toy_models.two_stage,
}


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    """The image that the documentation's command is given, too."""
    path = tmp_path_factory.mktemp("photographs") / "one.jpg"
    desk.save_blocks(path)
    return path


def scaled(photograph):
    with Image.open(photograph) as file:
        return np.asarray(file.resize(SIZE[::-1], Image.Resampling.BILINEAR))


@pytest.fixture
def run(documented):
    return documented(desk.command("full_size"))


def content_of(workdir):
    return json.loads((workdir / "full_size.json").read_text())


@pytest.mark.slow
def test_every_case_is_measured(run):
    workdir, printed = run
    content = content_of(workdir)
    environment = content["settings"]["environment"]
    assert environment["platform"] == "cpu" and environment["cores"] > 0
    assert environment["versions"]["jax"] == jax.__version__
    names = [f"{name.replace(':', '%3A')}_image1.json" for name in MODELS]
    assert sorted(path.name for path in (workdir / "cases").iterdir()) == names
    rows = content["rows"]
    assert [row["title"] for row in rows] == ["Streets", "TwoStage", "TwoStage"]
    for row in rows:
        seconds, few = row["iteration_seconds"], row["active"] < row["targets"]
        assert len(seconds) == row["iterations"] == STEPS and min(seconds) > 0
        assert min(seconds) <= row["iteration_seconds_median"] <= max(seconds)
        assert row["trace_seconds"] > 0 and row["compile_seconds"] > 0
        assert row["image"] == "one.jpg" and row["size"] == list(SIZE)
        assert row["outputs_gib"] > 0 and row["temporaries_gib"] > 0
        assert row["peak_gib"] >= row["held_gib"] > row["arguments_gib"]
        assert row["peak_before_gib"] >= row["held_gib"] and row["peak_of"] == "process"
        if not few:
            assert (row["steps"], row["status"]) == (STEPS, "RUNNING")
    table = (workdir / "full_size.md").read_text()
    assert table in printed and "results: runs/full_size/" in printed
    assert table.count("Streets |") == 1 and table.count("TwoStage |") == 2


@pytest.mark.slow
def test_a_detector_has_a_second_row_with_few_active(run):
    _, every, few = content_of(run[0])["rows"]
    assert every["active"] == every["targets"] == few["targets"] == 64
    assert few["active"] == -(-64 // cost.EVERY) and few["largest"] is None


def counted_by_hand(score_fn, image, valid):
    """Return (targets, active before and after, largest |r|): STEPS steps with all active."""
    scores = np.asarray(score_fn(image))
    labels = scores.argmax(-1).astype(np.int32)
    key = dag_jax.image_key(0, "blocks")
    adversarial = dag_jax.permute_labels(key, labels, scores.shape[-1])
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


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_counts_are_those_of_the_attack(run, photograph, name):
    model, image = MODELS[name](), scaled(photograph).astype(np.float32)
    handle, valid = None, True
    if models.about(model).detects:
        candidates = jax.jit(type(model).propose)(model, image)
        handle, valid = candidates.handle, candidates.valid
    score_fn = jax.jit(models.score_fn(model, handle))
    count, before, after, largest = counted_by_hand(score_fn, image, valid)
    row = next(row for row in content_of(run[0])["rows"] if row["network"] == name)
    assert row["targets"] == row["active"] == count
    assert row["active_clean"] == pytest.approx(before, abs=3)  # another compilation, another tie
    assert row["active_last"] == pytest.approx(after, abs=10)
    assert row["perturbation_finite"] and row["largest"] == pytest.approx(largest, rel=0.02)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dots(toy_models.TwoStage):
    """A detector of two classes whose boxes are pixels, as many as are asked for."""

    classes = ("background", "bright")

    def propose(self, image, *, max_proposals=30):
        corners = jnp.arange(max_proposals, dtype=jnp.float32)
        boxes = jnp.stack([corners] * 4, axis=-1)
        return Candidates(boxes, jnp.arange(max_proposals), jnp.ones(max_proposals, bool))

    def scores(self, image, handle):
        grey = image[handle, handle].mean(-1) * self.gains[0]
        return jnp.stack([jnp.full_like(grey, 255.0), grey], axis=-1)


@pytest.mark.slow
def test_a_detector_has_as_many_proposals_as_are_asked_for(photograph):
    options = {"steps": 1, "seed": 0, "label": "case"}
    model = Dots(jnp.float32([2, 2]))
    rows = cost.measure(model, scaled(photograph), "blocks", proposals=25, **options)
    assert [row["targets"] for row in rows] == [25, 25]
    assert [row["active"] for row in rows] == [25, 2]  # the 1st and the 21st
    assert rows[0]["parameters"] == 2 and rows[0]["canvas"] is None
    whole, _ = cost.measure(model, scaled(photograph), "blocks", proposals=None, **options)
    assert whole["targets"] == 30 and whole["status"] == "RUNNING"


def test_a_full_size_network_without_checkpoints_has_random_weights(load_launch):
    with load_launch("full_size") as module:
        arguments = ["full_size", "--images=a.png", "--models=fr_zf_07,fcn_alex"]
        module.FLAGS(arguments)
        assert module.is_random("fr_zf_07") and not module.is_random("mine:load")
        assert module.facts_of("fr_zf_07") == {
            "detects": True,
            "chosen_proposals": True,
            "weights_sha256": None,
        }
        assert not module.facts_of("fcn_alex")["detects"]
        module.FLAGS([*arguments, "--miniature"])
        assert not module.is_random("fr_zf_07") and module.facts_of("fcn_alex")["weights_sha256"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--segmenter_size=64",), "--segmenter_size=64: must be HxW in pixels, such as 375x500"),
        (("--detector_size=64x31",), "--detector_size=64x31: a network takes 32 to 16384 pixels"),
        (("--images={tmp}/none.png",), "none.png: no such image file"),
        (("--case=fcn_alex",), "--case=fcn_alex: is for the launch's own use"),
        (("--case=fcn_alex_image2",), "--case=fcn_alex_image2 of 1 of --images"),
        (("--proposals=300,many",), "'many' is not a whole number from 1"),
    ],
)
def test_bad_input_is_named_before_any_work(refuse, photograph, tmp_path, flags, message):
    workdir = tmp_path / "run"
    flags = [flag.format(tmp=tmp_path) for flag in flags]
    arguments = (f"--images={photograph}", "--models=fcn_alex", "--miniature")
    assert message in refuse("full_size", *arguments, *flags, f"--workdir={workdir}")
    assert not workdir.exists()


@pytest.mark.slow
def test_a_child_finds_a_checkpoint_of_another_network(launch, photograph, tmp_path):
    shipped = networks.zoo.CHECKPOINTS / "fcn_vgg.safetensors"
    (tmp_path / "fcn_alex.safetensors").symlink_to(shipped)
    flags = (f"--weights_dir={tmp_path}", "--models=fcn_alex", "--miniature")
    workdir = tmp_path / "run"
    arguments = (f"--images={photograph}", f"--workdir={workdir}")
    process = launch("full_size", *arguments, *flags, fails=True)
    assert "fcn_alex.safetensors holds fcn_vgg, not fcn_alex" in process.stderr
    assert process.stderr.count("\n") == 1
    assert not workdir.exists()
