"""Flags that launches share: what they refuse, what their help says, which of them are recorded."""

import sys

import pytest
from absl import app, flags

from dag_jax import files, models
from dag_jax.networks import zoo
from experiments.common import options

MODULE = "experiments.made_up"


@pytest.fixture
def define():
    """Define shared flags for a launch that does not exist; they go with the test."""

    def remove():
        for name in [name for name in flags.FLAGS if name in options._SHARED]:
            delattr(flags.FLAGS, name)

    remove()  # those of a launch that another test imported
    yield lambda *names, **more: options.define(MODULE, *names, **more)
    remove()


def parse(*given):
    flags.FLAGS(["made_up", *given])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--limit=-1", "--limit=-1: -1 is not an integer in the range [0, 2147483647]"),
        ("--limit=2147483648", "not an integer in the range"),
        ("--limit=many", "--limit=many: invalid literal"),
        ("--seed=-1", "not an integer in the range"),
        (f"--seed={10**23}", "not an integer in the range"),
        ("--max_steps=0", "not an integer in the range"),
        ("--canvas=47", "not an integer in the range [48, 16384]"),
        ("--slots=0", "not an integer in the range"),
        ("--step_size=0", "--step_size=0.0: must be finite and above 0"),
        ("--step_size=nan", "must be finite and above 0"),
        ("--step_size=inf", "must be finite and above 0"),
        ("--margin=-1", "--margin=-1.0: must be finite, 0 or more"),
        ("--margin=nan", "must be finite, 0 or more"),
        ("--split=", "--split=: must not be empty; leave the flag out for its default"),
        ("--workdir=", "must not be empty"),
        ("--cache_dir=", "must not be empty"),
        ("--data_dir=", "must not be empty"),
        ("--checkpoints=", "must not be empty"),
        ("--image_ids=", "must not be empty"),
        ("--image_ids=a,,b", "must not be empty"),
        ("--dataset=coco", "value should be one of <scenes|voc>"),
        ("--models=", "must not be empty"),
        ("--models=fcn_vgg,my.load", "'my.load' is neither a network's name nor package.module:"),
        ("--models=my package:load", "is neither a network's name"),
    ],
)
def test_what_cannot_be_right_is_refused_as_flags_are_parsed(define, flag, message):
    define(*options._SHARED)
    with pytest.raises(flags.Error) as caught:
        parse(flag)
    assert message in str(caught.value)


def test_what_is_right_is_parsed(define):
    define(*options._SHARED)
    parse("--limit=0", f"--seed={options.LARGEST}", "--margin=0", "--models=fcn_vgg,a.b:make.c")
    assert flags.FLAGS.limit == 0 and flags.FLAGS.seed == 2**31 - 1 and flags.FLAGS.margin == 0
    assert flags.FLAGS.models == ["fcn_vgg", "a.b:make.c"]


def test_a_launch_has_defaults_of_its_own(define):
    define("limit", "workdir", "models", limit=10, workdir="runs/x", models=["fcn_vgg"])
    parse()
    assert flags.FLAGS.limit == 10 and flags.FLAGS.workdir == "runs/x"
    assert flags.FLAGS.models == ["fcn_vgg"]


def test_a_default_of_a_flag_that_is_not_defined_is_a_mistake(define):
    with pytest.raises(TypeError, match="not defined: seed"):
        define("limit", seed=1)


def test_settings_are_what_changes_a_result(define):
    define(*options._SHARED)
    parse("--seed=3")
    assert options.settings(MODULE) == {
        "models": None,
        "dataset": "scenes",
        "split": None,
        "canvas": None,
        "miniature": True,
        "max_steps": None,
        "step_size": 0.5,
        "margin": None,
        "rounded": False,
        "precision": "float32",
        "seed": 3,
    }


def test_settings_may_be_chosen_otherwise(define):
    define("limit", "workdir", "seed")
    parse()
    assert options.settings(MODULE, without=("workdir",)) == {"limit": 40, "seed": 0}


def test_help_lists_the_default_of_each_task():
    assert options.help_of("max_steps").endswith(
        "Default: 200 for segmentation, 150 for detection."
    )
    assert options.help_of("canvas").endswith("Default: as they are.")


def test_help_speaks_of_the_tasks_of_a_launch_alone():
    assert options.help_of("max_steps", ("segmentation",)).endswith("Default: 200.")
    assert options.help_of("margin", ("detection",)).endswith("Default: 3.")
    assert options.help_of("split", ("detection",)).endswith("Default: voc07_test.")


def test_help_leaves_a_launch_s_own_default_to_absl():
    assert "Default" not in options.help_of("max_steps", default=200)


def test_whole_numbers_are_read():
    assert options.whole_numbers(["1", "20"]) == [1, 20]


@pytest.mark.parametrize("texts", [[], ["0"], ["-1"], ["x"], [""], ["1.5"], ["٣"], ["9" * 30]])
def test_what_is_no_whole_number_is_named(texts):
    with pytest.raises(ValueError, match="names no number|is not a whole number from 1 to"):
        options.whole_numbers(texts)


MADE_UP = """
import dag_jax

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
    names = ("dataset", "split", "data_dir", "cache_dir", "canvas", "checkpoints", "miniature")
    define(*names, "image_ids", "limit", "precision")
    (tmp_path / "made_up_models.py").write_text(MADE_UP)
    (tmp_path / "lacking_models.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda *given: parse(f"--cache_dir={cache}", *given)
    for name in ("made_up_models", "lacking_models"):
        sys.modules.pop(name, None)


def test_a_built_in_model_comes_with_the_digest_of_its_weights(of_models):
    of_models()
    model, sha256 = options.load_model("fcn_alex")
    assert models.about(model).title == "FCN-Alex" and model.miniature
    assert sha256 == files.sha256_of(zoo.CHECKPOINTS / "fcn_alex.safetensors")


@pytest.mark.parametrize("name", ["made_up_models:Half", "made_up_models:Zoo.load"])
def test_a_model_may_come_from_any_function(of_models, name):
    of_models()
    model, sha256 = options.load_model(name)
    assert models.about(model).classes == ("sky", "road") and sha256 is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fcn_vgg16", "unknown network 'fcn_vgg16'; known: fcn_alex, .*package.module:function"),
        ("no_such_module:load", "Python finds no module no_such_module from here"),
        ("made_up_models.deeper:load", "Python finds no module made_up_models.deeper from here"),
        ("made_up_models:load", "made_up_models has no load"),
        ("made_up_models:number", "made_up_models:number is a int, and no function"),
        ("made_up_models:Zoo", "made_up_models:Zoo returned no model: a Zoo is no model"),
    ],
)
def test_what_is_no_model_is_named(of_models, name, message):
    of_models()
    with pytest.raises(ValueError, match=message):
        options.load_model(name)


def test_what_a_module_itself_lacks_is_its_own_fault(of_models):
    of_models()
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        options.load_model("lacking_models:load")


def test_a_full_size_network_needs_weights(of_models):
    of_models("--nominiature")
    with pytest.raises(app.UsageError, match="--nominiature needs --checkpoints"):
        options.load_model("fcn_alex")


def test_examples_are_of_the_split_that_the_model_declares(of_models):
    of_models("--limit=2")
    model, _ = options.load_model("made_up_models:Half")
    ids = options.load_examples(model).ids
    of_models("--split=voc07_test", "--limit=2")
    assert options.load_examples(model).ids == ids and len(ids) == 2


def test_a_detector_s_examples_are_of_its_task_s_split(of_models):
    of_models("--limit=1", "--canvas=64")
    detector, _ = options.load_model("fr_zf_07")
    (example,) = options.load_examples(detector)
    assert example["image"].shape == (64, 64, 3)
