"""Flags that several launches share, such as those of networks, examples and slots.

Each launch defines those it takes as its own, so that its --help lists them and `settings` records
them:

    options.define(__name__, "models", "limit", "workdir", models=["fcn_vgg"], workdir="runs/mine")

A launch defines its own further flags by `integer`, `number`, `string` and `strings`, which are
absl's with bounds. A wrong value is refused while flags are parsed, before any work.
"""

import re
import sys
from collections.abc import Callable
from typing import NamedTuple

from absl import flags

from dag_jax import datasets, methods, networks
from dag_jax.datasets import rendering
from dag_jax.errors import UserError
from dag_jax.networks import zoo
from dag_jax.runs import levels

# What a launch takes of a model's task where neither a flag nor the model says otherwise.
DEFAULTS = {
    zoo.TASKS[name]: {
        "split": zoo.facts(name).split,
        "max_steps": zoo.facts(name).max_steps,
        "margin": zoo.facts(name).margin,
    }
    for name in networks.NAMES
}
LARGEST = 2**31 - 1  # of a seed or a count: both go into int32
FLOATS = 1e-30, 1e30  # of a number that is not 0: it goes into float32, which holds a bit more
WHITE = 255  # grey levels
SIDES = 48, 2**14  # pixels: the FCN-VGG miniature sees no less, and more fits no memory
_MODEL = re.compile(r"\w+|\w+(\.\w+)*:\w+(\.\w+)*")

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # a flag that is defined here is the launch's


def positive(number) -> None:
    """Raise UserError for a number that is not above 0, or no float32."""
    if not FLOATS[0] <= number <= FLOATS[1]:  # NaN is on no side
        raise UserError(f"must be above 0: {FLOATS[0]:g} to {FLOATS[1]:g}")


def not_negative(number) -> None:
    """Raise UserError for a number below 0, or that is no float32."""
    if number != 0 and not FLOATS[0] <= number <= FLOATS[1]:
        raise UserError(f"must be 0, or {FLOATS[0]:g} to {FLOATS[1]:g}")


def grey_levels(number) -> None:
    """Raise UserError for a number of grey levels that is not above 0, or above 255."""
    if not FLOATS[0] <= number <= WHITE:
        raise UserError(f"must be above 0, at most {WHITE} grey levels")


def share(number) -> None:
    """Raise UserError for a number below 0, or not below 1."""
    if not 0 <= number < 1:
        raise UserError("must be 0 or more, and below 1")


def not_empty(texts) -> None:
    """Raise UserError for a blank text, or a list that is empty or holds one."""
    texts = texts if isinstance(texts, list) else [texts]
    if not all(map(str.strip, texts)) or not texts:
        raise UserError("must not be empty; leave the flag out for its default")


def whole_numbers(texts, *, least=1, most=LARGEST) -> list[int]:
    """Return texts as whole numbers from `least` to `most`. UserError for others, or for none."""
    if not texts:
        raise UserError("names no number")
    for text in texts:
        if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
            raise UserError(f"{text!r} is not a whole number from {least} to {most}")
    return [int(text) for text in texts]


def check(function, *names) -> None:
    """Refuse, while flags are parsed, values for which a function raises UserError.

    Args:
      function: of a flag's value, which is not None.
      *names: of the flags, which are defined.
    """

    def is_right(value):
        try:
            if value is not None:
                function(value)
        except UserError as error:
            raise flags.ValidationError(str(error)) from error
        return True

    for name in names:
        flags.register_validator(name, is_right)


def integer(name, default, text, least=1, most=LARGEST) -> None:
    """Define a launch's flag of a whole number."""
    flags.DEFINE_integer(name, default, text, least, most)


def number(name, default, text, right=not_negative) -> None:
    """Define a launch's flag of a number for which `right` raises no UserError."""
    flags.DEFINE_float(name, default, text)
    check(right, name)


def string(name, default, text, *rights) -> None:
    """Define a launch's flag of a text, not empty, for which none of `rights` raises UserError."""
    flags.DEFINE_string(name, default, text)
    for right in (not_empty, *rights):
        check(right, name)


def strings(name, default, text, *rights) -> None:
    """Define a launch's flag of a list, not empty, for which none of `rights` raises UserError."""
    flags.DEFINE_list(name, default, text)
    for right in (not_empty, *rights):
        check(right, name)


def _models(names):
    not_empty(names)
    for name in names:
        if not _MODEL.fullmatch(name):
            raise UserError(f"{name!r} is neither a network's name nor package.module:function")


class _Shared(NamedTuple):
    """A flag that several launches have."""

    define: Callable  # of absl
    default: object
    text: str
    otherwise: str = ""  # what holds where it is None; {name} is each task's own of `DEFAULTS`
    check: Callable | None = None
    more: dict = {}  # what `define` takes besides


_SHARED = {
    "models": _Shared(
        flags.DEFINE_list,
        None,
        "Models, by name, or as package.module:function that returns one.",
        check=_models,
    ),
    "dataset": _Shared(
        flags.DEFINE_enum,
        "scenes",
        "Where images come from: rendered scenes, photographs of PASCAL VOC or COCO, a folder of "
        "images with masks or boxes.",
        more={"enum_values": datasets.DATASETS},
    ),
    "split": _Shared(
        flags.DEFINE_string,
        None,
        f"Split to take: of scenes, one of {', '.join(rendering.SPLITS)}; of voc, a list that its "
        "folder has, such as voc2012_seg_val; of coco, such as val2017; of a folder, a list or "
        "subfolder, or all.",
        "{split}",
        not_empty,
    ),
    "data_dir": _Shared(
        flags.DEFINE_string,
        None,
        "Folder of VOC and SBD, extracted or not; of COCO; or of images, masks and classes.txt.",
        check=not_empty,
    ),
    "cache_dir": _Shared(
        flags.DEFINE_string,
        None,
        "Where prepared datasets lie.",
        "~/.cache/dag_jax",
        not_empty,
    ),
    "canvas": _Shared(
        flags.DEFINE_integer,
        None,
        "Scale images to a square of this many pixels a side.",
        "as they are",
        more={"lower_bound": SIDES[0], "upper_bound": SIDES[1]},
    ),
    "skip_bad": _Shared(
        flags.DEFINE_bool,
        False,
        "Go on without images whose files cannot be read, and name them in the table.",
    ),
    "weights_dir": _Shared(
        flags.DEFINE_string,
        None,
        "Folder of the networks' weights, instead of those that come along: <network>.safetensors, "
        "or the published files by their published names.",
        check=not_empty,
    ),
    "miniature": _Shared(
        flags.DEFINE_bool,
        True,
        "The small networks, of those that have one, or the full-size ones.",
    ),
    "image_ids": _Shared(
        flags.DEFINE_list,
        None,
        "Names of the images to use.",
        "all of the split",
        not_empty,
    ),
    "limit": _Shared(
        flags.DEFINE_integer,
        40,
        "How many images to use, the first of the split; 0 is all.",
        more={"lower_bound": 0, "upper_bound": LARGEST},
    ),
    "method": _Shared(
        flags.DEFINE_enum,
        "dag",
        "dag: the paper's. What the others are says experiments.variants --help.",
        more={"enum_values": list(methods.UNBOUNDED)},
    ),
    "max_steps": _Shared(
        flags.DEFINE_integer,
        None,
        "Most steps of an image (the paper's M_0).",
        "{max_steps}",
        more={"lower_bound": 1, "upper_bound": LARGEST},
    ),
    "step_size": _Shared(
        flags.DEFINE_float,
        0.5,
        "Length of a step: its largest change of a channel, gamma, in grey levels.",
        check=grey_levels,
    ),
    "margin": _Shared(
        flags.DEFINE_float,
        None,
        "A target is attacked until its label scores this many logits less than the best other "
        "class; 0 is the paper's rule.",
        "{margin}",
        not_negative,
    ),
    "rounded": _Shared(
        flags.DEFINE_bool, False, "Attack the image as it will be saved, in whole grey levels."
    ),
    "store": _Shared(
        flags.DEFINE_enum,
        levels.FLOAT32,
        "How perturbations are kept: as they are, or in whole 256ths of a grey level, a third of "
        "the bytes.",
        more={"enum_values": list(levels.STORES)},
    ),
    "precision": _Shared(
        flags.DEFINE_enum,
        "float32",
        "Numbers that networks multiply in; scores and perturbation are float32. tf32: on NVIDIA "
        "GPUs; a TPU multiplies three times in bfloat16, a CPU in float32.",
        more={"enum_values": networks.PRECISIONS},
    ),
    "seed": _Shared(
        flags.DEFINE_integer,
        0,
        "Seed of all that is drawn at random.",
        more={"lower_bound": 0, "upper_bound": LARGEST},
    ),
    "slots": _Shared(
        flags.DEFINE_integer,
        None,
        "Images that are attacked at the same time on each device, a CPU core being one.",
        "4 on a CPU core, 16 on others",
        more={"lower_bound": 1, "upper_bound": LARGEST},
    ),
    "audit": _Shared(
        flags.DEFINE_bool,
        True,
        "Check the networks and the attack, and say under the table what is found.",
    ),
    "accept_version": _Shared(
        flags.DEFINE_bool,
        False,
        "Go on in a folder whose results another version or device made, and say so in the table.",
    ),
    "workdir": _Shared(flags.DEFINE_string, None, "Where to write.", check=not_empty),
}
# Flags that change no result of an image. Whose weights a result is of, it says itself.
UNRECORDED = (
    *("weights_dir", "cache_dir", "data_dir", "slots", "audit", "workdir"),
    *("limit", "image_ids", "skip_bad", "accept_version"),  # which images, and on whose word
)


def help_of(name, tasks=tuple(DEFAULTS), default=None) -> str:
    """Return the help of a shared flag.

    Args:
      name: of the flag.
      tasks: of the models that the launch takes: some of `DEFAULTS`.
      default: the launch's; None is what the help then says in words.
    """
    shared = _SHARED[name]
    if default is not None or not shared.otherwise:
        return shared.text
    values = {
        entry: [str(DEFAULTS[task][entry]).removesuffix(".0") for task in tasks]
        for entry in DEFAULTS[tasks[0]]
    }
    texts = {
        entry: ", ".join(
            f"{value} for {task}" if len(tasks) > 1 else value
            for value, task in zip(each, tasks, strict=True)
        )
        for entry, each in values.items()
    }
    return f"{shared.text} Default: {shared.otherwise.format(**texts)}."


def define(module, *names, tasks=tuple(DEFAULTS), **defaults) -> None:
    """Define shared flags as a launch's own.

    Args:
      module: the launch's __name__.
      *names: of the flags.
      tasks: as in `help_of`.
      **defaults: by name, where it is not the usual one.
    """
    for name in names:
        shared = _SHARED[name]
        default = defaults.pop(name, shared.default)
        text = help_of(name, tasks, default)
        shared.define(name, default, help=text, module_name=_named(module), **shared.more)
        if shared.check:
            check(shared.check, name)
    if defaults:
        raise TypeError(f"defaults of flags that are not defined: {', '.join(defaults)}")


def settings(module, without=UNRECORDED) -> dict:
    """Return {name: value} of a launch's flags, without those that change no result.

    Args:
      module: the launch's __name__.
      without: names of flags to leave out.
    """
    defined = FLAGS.flags_by_module_dict()[_named(module)]
    return {flag.name: flag.value for flag in defined if flag.name not in without}


def _named(module):
    """Return absl's name of a module: of the launch that runs, its path."""
    return sys.argv[0] if module == "__main__" else module
