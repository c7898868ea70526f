"""Flags that launches share: what they refuse, what their help says, which of them are recorded."""

import pytest
from absl import flags

from experiments.common import options

MODULE = "experiments.made_up"  # of the fixture `define`


def parse(*arguments):
    flags.FLAGS(["made_up", *arguments])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--limit=-1", "--limit=-1: -1 is not an integer in the range [0, 2147483647]"),
        ("--limit=2147483648", "not an integer in the range"),
        ("--max_steps=0", "not an integer in the range"),
        ("--canvas=47", "not an integer in the range [48, 16384]"),
        ("--slots=0", "not an integer in the range"),
        ("--step_size=0", "--step_size=0.0: must be above 0, at most 255 grey levels"),
        ("--step_size=256", "must be above 0, at most 255 grey levels"),
        ("--step_size=1e-46", "must be above 0, at most 255 grey levels"),  # 0 as a float32
        ("--margin=-1", "--margin=-1.0: must be 0, or 1e-30 to 1e+30"),
        ("--margin=1e39", "must be 0, or 1e-30 to 1e+30"),  # infinite as a float32
        ("--split=", "--split=: must not be empty; leave the flag out for its default"),
        ("--workdir= ", "must not be empty"),
        ("--image_ids=a,,b", "must not be empty"),
        ("--dataset=ade", "value should be one of <scenes|voc|coco|folder>"),
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
        "method": "dag",
        "max_steps": None,
        "step_size": 0.5,
        "margin": None,
        "rounded": False,
        "precision": "float32",
        "seed": 3,
        "store": "float32",
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
