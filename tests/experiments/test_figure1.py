"""Figure 1 of two models of nobody's framework, which need no training and compile fast."""

import json

import numpy as np
import pytest
from PIL import Image

from dag_jax import datasets
from dag_jax.runs import evaluation
from dag_jax.runs.subject import subject_of
from tests import toy_models
from tests.experiments import desk
from tests.experiments.small import SEGMENTER, TWO_STAGE


@pytest.fixture
def run(documented):
    return documented(desk.command("figure1"))


def content_of(workdir):
    return json.loads((workdir / "figure1.json").read_text())


def test_the_figure_has_a_row_of_each_model(run):
    workdir, printed = run
    with Image.open(workdir / "figure1.png") as image:
        assert image.width > 1000
    content = content_of(workdir)
    assert {facts["title"] for facts in content["models"].values()} == {"Streets", "TwoStage"}
    assert (
        content["models"].keys()
        == content["settings"]["weights_sha256"].keys()
        == {SEGMENTER, TWO_STAGE}
    )
    assert "results: runs/figure1/" in printed
    assert "no image of 2 has everything" in printed and content["lacks"]


def test_the_json_says_what_holds_of_the_saved_image(run):
    workdir, _ = run
    content = content_of(workdir)
    with Image.open(workdir / "adversarial.png") as image:
        saved = np.asarray(image)
    assert saved.shape == (128, 128, 3) and saved.dtype == np.uint8
    assert content["status"] == "MAX_STEPS" and not content["fooled"] and not content["fooled_png"]
    parts = content["models"].values()
    # The attack sees whole grey levels, so the attacked image is the saved one.
    assert [part["active"] for part in parts] == [part["active_png"] for part in parts]
    assert content["active_png"] == content["active_counts"][-1]
    assert content["active_png"] == sum(part["active"] for part in parts) > 0
    assert content["largest_change"] == int(content["largest_change"]) > 0


def test_scores_are_those_of_the_saved_image(run, cache):
    workdir, _ = run
    content = content_of(workdir)
    examples = datasets.load_examples("scenes", "seg11valid", cache_dir=cache, limit=2)
    with Image.open(workdir / "adversarial.png") as image:
        saved = np.asarray(image)
    subject = subject_of(toy_models.segmenter(), examples)
    example = subject.examples[subject.ids.index(content["image_id"])]
    predictions = evaluation.predict(subject.model, [example["image"], saved])
    expected = [evaluation.score(subject, [example], [each]) for each in predictions]
    scores = content["models"]["tests.toy_models:segmenter"]["score"]
    np.testing.assert_allclose(scores, expected, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("names", ["fr_zf_07,fr_vgg_07", "fcn_alex,fcn_vgg", "fcn_alex"])
def test_the_figure_is_of_one_that_segments_and_one_that_detects(refuse, tmp_path, names):
    workdir = tmp_path / "run"
    message = refuse("figure1", f"--models={names}", f"--workdir={workdir}")
    assert "the figure is of one that segments and one that detects" in message
    assert not workdir.exists()
