"""What --models and the flags of the dataset name."""

import sys

import pytest
from absl import app, flags
from PIL import Image

from dag_jax import files, models
from dag_jax.networks import zoo
from dag_jax.runs.subject import weights_digest
from experiments.common import inputs

MADE_UP = """
import dataclasses
import jax
import dag_jax

@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Half:
    classes = ("sky", "road")
    split = "voc07_test"  # a detector's, by default

    def scores(self, image):
        return image[:, :, :2]

    def predict(self, image):
        return self.scores(image).argmax(-1)

class Zoo:
    load = staticmethod(Half)

number = 3
"""


@pytest.fixture
def of_models(define, tmp_path, monkeypatch, cache):
    """The flags by which models and examples are read, and a module of somebody's."""
    names = ("dataset", "split", "data_dir", "cache_dir", "canvas", "weights_dir", "miniature")
    define(*names, "image_ids", "skip_bad", "limit", "precision")
    (tmp_path / "made_up_models.py").write_text(MADE_UP)
    (tmp_path / "lacking_models.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda *arguments: flags.FLAGS(["made_up", f"--cache_dir={cache}", *arguments])
    for name in ("made_up_models", "lacking_models"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_a_built_in_model_comes_with_the_digest_of_its_weights(of_models):
    of_models()
    model, sha256 = inputs.load_model("fcn_alex")
    assert models.about(model).title == "FCN-Alex" and model.miniature
    assert sha256 == files.sha256_of(zoo.CHECKPOINTS / "fcn_alex.safetensors")


@pytest.mark.parametrize("name", ["made_up_models:Half", "made_up_models:Zoo.load"])
def test_a_model_may_come_from_any_function(of_models, name):
    of_models()
    model, sha256 = inputs.load_model(name)
    assert models.about(model).classes == ("sky", "road") and sha256 == weights_digest(model)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:load", "there is no module no_such_module here"),
        ("made_up_models.deeper:load", "there is no module made_up_models.deeper here"),
        ("made_up_models:load", "made_up_models.* has no attribute 'load'"),
        ("made_up_models:number", "made_up_models:number is no function"),
        ("made_up_models:Zoo", "made_up_models:Zoo returns no model: a Zoo is no model"),
    ],
)
def test_what_is_no_model_is_named(of_models, name, message):
    of_models()
    with pytest.raises(ValueError, match=message):
        inputs.load_model(name)


def test_a_name_that_is_not_known_is_named_with_those_that_are(of_models):
    of_models()
    with pytest.raises(app.UsageError, match="unknown model 'fcn_vgg16'; known are fcn_alex, "):
        inputs.load_model("fcn_vgg16")


def test_what_a_module_itself_lacks_is_its_own_fault(of_models):
    of_models()
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        inputs.load_model("lacking_models:load")


def test_a_full_size_network_needs_weights(of_models):
    of_models("--nominiature")
    with pytest.raises(app.UsageError, match="at full size needs --weights_dir"):
        inputs.load_model("fcn_alex")


@pytest.mark.slow
def test_examples_are_of_the_split_that_the_model_declares(of_models):
    of_models("--limit=2")
    model, _ = inputs.load_model("made_up_models:Half")
    ids = inputs.examples_of(model).ids
    of_models("--split=voc07_test", "--limit=2")
    assert inputs.examples_of(model).ids == ids and len(ids) == 2


@pytest.mark.slow
def test_a_detector_s_examples_are_of_its_task_s_split(of_models):
    of_models("--limit=1", "--canvas=64")
    detector, _ = inputs.load_model("fr_zf_07")
    (example,) = inputs.examples_of(detector)
    assert example["image"].shape == (64, 64, 3)


def test_images_that_cannot_be_read_are_named_or_left_out(of_models, tmp_path, capsys):
    for place in ("images", "masks"):
        (tmp_path / place).mkdir()
        for name in "abc":
            Image.new("L", (40, 40)).save(tmp_path / place / f"{name}.png")
    (tmp_path / "classes.txt").write_text("sky\nroad")
    for name in "ac":
        (tmp_path / f"images/{name}.png").write_bytes(b"<html>")
    model, _ = inputs.load_model("made_up_models:Half")
    arguments = "--dataset=folder", f"--data_dir={tmp_path}", "--split=all"
    of_models(*arguments)
    with pytest.raises(ValueError, match=r"2 images of .*--skip_bad .*\n.*a.png.*\n.*c.png"):
        inputs.examples_of(model)
    of_models(*arguments, "--skip_bad")
    examples = inputs.examples_of(model)
    assert examples.ids == ["b"] and len(examples.skipped) == 2
    err = capsys.readouterr().err
    assert err.count("left out: ") == 2 and "c.png (6 bytes) is no image" in err
