"""The models and examples of a launch, from its flags."""

import functools
import importlib
import inspect

from absl import app, flags

from dag_jax import datasets, files, models, networks
from dag_jax.datasets import ExampleSet
from dag_jax.errors import UserError
from dag_jax.models import DETECTION, SEGMENTATION
from dag_jax.networks import fetching, zoo
from dag_jax.runs.subject import Subject, subject_of, weights_digest
from experiments.common import console

FLAGS = flags.FLAGS
# The paper's test split of each task; scenes have the same names.
SPLITS = {SEGMENTATION: "seg11valid", DETECTION: "voc07_test"}


def load_model(name: str, *, miniature=None, weights_dir=None, precision=None):
    """Load a model.

    Args:
      name: of a built-in network, or "package.module:function", a function of no argument that
        returns a model.
      miniature: of a built-in network that has one; None is --miniature.
      weights_dir: as of `fetching.weights_in`; None is --weights_dir.
      precision: of a built-in network; None is --precision.

    Returns:
      (model, SHA-256 of its weights).

    Raises:
      UsageError: for a name that is none of these, or a full-size network without weights.
      UserError: where the function returns no model, or a checkpoint is missing, damaged or
        another network's.
    """
    if ":" in name:
        model = _from_function(name)
        try:
            models.about(model)
        except UserError as error:
            raise UserError(f"{name} returns no model: {error}") from error
        return model, weights_digest(model)
    if name not in networks.TASKS:
        raise app.UsageError(
            f"unknown model {name!r}; known are {', '.join(networks.TASKS)}, and "
            "package.module:function"
        )
    miniature = FLAGS.miniature if miniature is None else miniature
    miniature = miniature and name in networks.MINIATURES
    folder = weights_dir or FLAGS.weights_dir or (zoo.CHECKPOINTS if miniature else None)
    if folder is None:
        raise app.UsageError(
            f"{name} at full size needs --weights_dir: no full-size weights are shipped. `python "
            f"-m experiments.fetch_weights --networks={name}` gets them"
        )
    paths = fetching.weights_in(folder, name)
    model = networks.load(
        name,
        miniature=miniature,
        checkpoint=paths[0] if len(paths) == 1 else paths,
        precision=precision or FLAGS.precision,
    )
    return model, files.sha256_of(paths[0]) if len(paths) == 1 else weights_digest(model)


def _from_function(name):
    path, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name and not f"{path}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks something itself
        raise UserError(f"{name}: there is no module {path} here") from error
    try:
        function = functools.reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        raise UserError(f"{name}: {error}") from error
    if not callable(function):
        raise UserError(f"{name} is no function; it returns a model when it is called")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise UserError(f"{name} is called without arguments: {error}") from error
    except ValueError:  # of functions that are not Python's nobody knows
        pass
    return function()


def split_of(model) -> str:
    """Return the split that a model is attacked on: --split, the model's own, or its task's."""
    return FLAGS.split or getattr(model, "split", None) or SPLITS[models.about(model).task]


@functools.lru_cache(maxsize=8)
def _read(
    dataset, split, data_dir, cache_dir, limit, canvas, image_ids, with_mask, skip_bad
) -> ExampleSet:
    examples = datasets.load_examples(
        dataset,
        split,
        data_dir=data_dir,
        cache_dir=cache_dir,
        limit=limit,
        canvas=canvas,
        image_ids=image_ids,
        with_mask=with_mask,
        skip_bad=skip_bad,
    )
    for text in examples.skipped:
        console.say(f"left out: {text}")
    return examples


def examples_of(model) -> ExampleSet:
    """Read the examples that a model is attacked on, by the flags of the dataset.

    Raises:
      UserError: as `datasets.load_examples` says.
    """
    image_ids = tuple(FLAGS.image_ids) if FLAGS.image_ids else None
    with_mask = not models.about(model).detects
    return _read(
        FLAGS.dataset,
        split_of(model),
        FLAGS.data_dir,
        FLAGS.cache_dir,
        FLAGS.limit or None,
        FLAGS.canvas,
        image_ids,
        with_mask,
        FLAGS.skip_bad,
    )


def subject(name: str) -> Subject:
    """Load a model by its name, with the examples that it is attacked on."""
    model, weights_sha256 = load_model(name)
    return subject_of(model, examples_of(model), name=name, weights_sha256=weights_sha256)
