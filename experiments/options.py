"""Flags that several launches have, and what is read by them: networks, examples, slots.

Each launch defines those it takes as its own, so that its --help lists them and
`rundir.settings_of` records them:

    options.define(__name__, "dataset", "limit", "workdir", limit=10, workdir="runs/mine")
"""

import pathlib
import sys

import jax
from absl import app, flags

from dag_jax import networks
from dag_jax.networks import zoo
from experiments import evaluation
from experiments.runs import files

_SLOTS = {"cpu": 2}, 16  # a core gains nothing from more lanes, and the last images waste fewer

FLAGS = flags.FLAGS
# By name: what defines it, the default, the help, and what else it takes.
_SHARED = {
    "dataset": (
        flags.DEFINE_enum,
        "scenes",
        "What to attack them on.",
        {"enum_values": ["scenes", "voc"]},
    ),
    "split": (
        flags.DEFINE_string,
        None,
        "Split to attack. Default: each network's own, "
        f"{evaluation.TEST_SPLITS[False]} of an FCN, {evaluation.TEST_SPLITS[True]} of a detector.",
        {},
    ),
    "data_dir": (
        flags.DEFINE_string,
        None,
        "Folder of VOC and SBD, extracted or not, for --dataset=voc.",
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
        "Scale images to this square. Default: as they are.",
        {"lower_bound": evaluation.MIN_CANVAS},
    ),
    "checkpoints": (
        flags.DEFINE_string,
        None,
        "Folder of <network>.safetensors to use instead.",
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
        "Images a network, the first of the split; 0 is all.",
        {"lower_bound": 0},
    ),
    "max_steps": (
        flags.DEFINE_integer,
        None,
        "M_0. Default: 200 for FCN, 150 for detectors.",
        {"lower_bound": 1},
    ),
    "step_size": (flags.DEFINE_float, 0.5, "gamma, grey levels.", {}),
    "margin": (
        flags.DEFINE_float,
        None,
        "Logits a label must lose by. Default: 0 FCN, 3 detectors.",
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
        "In which networks multiply; scores and perturbation are float32.",
        {"enum_values": networks.PRECISIONS},
    ),
    "seed": (flags.DEFINE_integer, 0, "Seed of adversarial labels and permutations.", {}),
    "slots": (
        flags.DEFINE_integer,
        None,
        f"Images at a time on each device. Default: {_SLOTS[0]['cpu']} CPU, {_SLOTS[1]} others.",
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


def define(module, *names, **defaults) -> None:
    """Define shared flags as a launch's own.

    Args:
      module: the launch's __name__.
      *names: of the flags.
      **defaults: by name, where it is not the usual one.
    """
    # absl's name of the launch that runs.
    module = sys.argv[0] if module == "__main__" else module
    for name in names:
        function, default, text, more = _SHARED[name]
        function(name, defaults.pop(name, default), help=text, module_name=module, **more)
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
