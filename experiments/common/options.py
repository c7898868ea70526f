"""Flags that several launches have, and what is read by them: networks, examples, slots.

Each launch defines those it takes as its own, so that its --help lists them and
`rundir.settings_of` records them:

    options.define(__name__, "dataset", "limit", "workdir", limit=10, workdir="runs/mine")

A launch that attacks one kind of network alone says so, and its --help speaks of no other.
"""

import pathlib
import sys

import jax
from absl import app, flags

from dag_jax import files, networks
from dag_jax.datasets import scenes
from dag_jax.networks import zoo
from dag_jax.runs import evaluation

_SLOTS = {"cpu": 2}, 16  # a core gains nothing from more lanes, and the last images waste fewer

FLAGS = flags.FLAGS
# By name: what defines it, the default, the help, and what else it takes. In the help, {...} is a
# number or name that each kind of network has its own of.
_SHARED = {
    "dataset": (
        flags.DEFINE_enum,
        "scenes",
        "Images to attack: rendered scenes, or photographs of PASCAL VOC.",
        {"enum_values": ["scenes", "voc"]},
    ),
    "split": (
        flags.DEFINE_string,
        None,
        f"Split to attack: of scenes, one of {', '.join(scenes.SPLITS)}; of voc, a list that its "
        "folder has, such as voc2012_seg_val. Default: {TEST_SPLITS}.",
        {},
    ),
    "data_dir": (
        flags.DEFINE_string,
        None,
        "Folder of VOC and SBD, extracted or not; photographs (voc) need it.",
        {},
    ),
    "cache_dir": (
        flags.DEFINE_string,
        None,
        "Where prepared datasets lie. Default: ~/.cache/dag_jax.",
        {},
    ),
    "canvas": (
        flags.DEFINE_integer,
        None,
        "Scale images to a square of this many pixels a side. Default: as they are.",
        {"lower_bound": evaluation.MIN_CANVAS},
    ),
    "checkpoints": (
        flags.DEFINE_string,
        None,
        "Folder of <network>.safetensors to use instead of those that come along.",
        {},
    ),
    "miniature": (flags.DEFINE_bool, True, "The small networks, or the full-size ones.", {}),
    "image_ids": (
        flags.DEFINE_list,
        None,
        "Names of the images to use. Default: all of the split.",
        {},
    ),
    "limit": (
        flags.DEFINE_integer,
        40,
        "How many images to attack, the first of the split; 0 is all.",
        {"lower_bound": 0},
    ),
    "max_steps": (
        flags.DEFINE_integer,
        None,
        "Most steps of an image (the paper's M_0). Default: {MAX_STEPS}.",
        {"lower_bound": 1},
    ),
    "step_size": (
        flags.DEFINE_float,
        0.5,
        "Length of a step: its largest change of a channel, gamma, in grey levels.",
        {},
    ),
    "margin": (
        flags.DEFINE_float,
        None,
        "A target is attacked until its label scores this many logits less than the best other "
        "class; 0 is the paper's rule. Default: {MARGINS}.",
        {},
    ),
    "rounded": (
        flags.DEFINE_bool,
        False,
        "Attack the image as it will be saved, in whole grey levels.",
        {},
    ),
    "precision": (
        flags.DEFINE_enum,
        "float32",
        "Numbers that networks multiply in; scores and perturbation are float32.",
        {"enum_values": networks.PRECISIONS},
    ),
    "seed": (flags.DEFINE_integer, 0, "Seed of adversarial labels and permutations.", {}),
    "slots": (
        flags.DEFINE_integer,
        None,
        "Images that are attacked at the same time on each device, a CPU core being one. Default: "
        f"{_SLOTS[0]['cpu']} on a CPU core, {_SLOTS[1]} on others.",
        {"lower_bound": 1},
    ),
    "audit": (
        flags.DEFINE_bool,
        True,
        "Check the networks and the attack, and say under the table what is found.",
        {},
    ),
    "workdir": (flags.DEFINE_string, None, "Where to write.", {}),
}
# Flags that change no result; whose weights a result is of, it says itself.
UNRECORDED = ("checkpoints", "cache_dir", "slots", "audit", "workdir", "data_dir")


def help_of(name, kinds=(False, True)) -> str:
    """Return the help of a shared flag.

    Args:
      name: of the flag.
      kinds: whether the networks that the launch attacks detect: one or both.
    """
    said = {}
    for table in ("TEST_SPLITS", "MAX_STEPS", "MARGINS"):
        own = getattr(evaluation, table)
        texts = [own[kind] if isinstance(own[kind], str) else f"{own[kind]:g}" for kind in kinds]
        of = [(" for FCNs", " for detectors")[kind] if len(kinds) > 1 else "" for kind in kinds]
        said[table] = ", ".join(map("".join, zip(texts, of, strict=True)))
    return _SHARED[name][2].format(**said)


def define(module, *names, kinds=(False, True), **defaults) -> None:
    """Define shared flags as a launch's own.

    Args:
      module: the launch's __name__.
      *names: of the flags.
      kinds: as in `help_of`.
      **defaults: by name, where it is not the usual one.
    """
    # absl's name of the launch that runs.
    module = sys.argv[0] if module == "__main__" else module
    for name in names:
        function, default, _, more = _SHARED[name]
        text, default = help_of(name, kinds), defaults.pop(name, default)
        function(name, default, help=text, module_name=module, **more)
    if defaults:
        raise TypeError(f"defaults of flags that are not defined: {', '.join(defaults)}")


def slots() -> int:
    """Return how many images each device has at a time, by --slots or the platform."""
    known, others = _SLOTS
    return FLAGS.slots or known.get(jax.default_backend(), others)


def load_network(name):
    """Load a network by --miniature, --checkpoints and --precision.

    Returns:
      (Network, SHA-256 of its checkpoint).

    Raises:
      app.UsageError: for a full-size network without a checkpoint.
      ValueError: for a checkpoint that is missing, damaged or another network's.
    """
    if not (FLAGS.miniature or FLAGS.checkpoints):
        raise app.UsageError("--nominiature needs --checkpoints: no full-size weights are shipped")
    path = pathlib.Path(FLAGS.checkpoints or zoo.CHECKPOINTS) / f"{name}.safetensors"
    network = networks.load(
        name, miniature=FLAGS.miniature, checkpoint=path, precision=FLAGS.precision
    )
    return network, files.sha256_of(path)


def load_examples(network) -> list[dict]:
    """Read the examples that a network is attacked on, by the flags of the dataset.

    Args:
      network: a `Network`; its kind has a split of its own, and an FCN takes images with masks.

    Raises:
      ValueError: as `evaluation.load_examples` says.
    """
    return evaluation.load_examples(
        FLAGS.dataset,
        [FLAGS.split or evaluation.TEST_SPLITS[network.detects]],
        data_dir=FLAGS.data_dir,
        cache_dir=FLAGS.cache_dir,
        limit=FLAGS.limit or None,
        image_ids=FLAGS.image_ids,
        canvas=FLAGS.canvas,
        network=network,
        one_size=False,
    )
