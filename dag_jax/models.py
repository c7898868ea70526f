"""What can be attacked: the protocols of a segmenter and of a detector.

A model is a pytree, its parameters being the leaves, with `classes`, the names of its classes by
index. It takes images f32[H, W, 3], RGB grey levels 0-255, and does its own normalisation, channel
order and resizing, so that a perturbation is in grey levels of the user's image.

A model may also say, where the defaults of its task are not right:

    title        its name in tables; by default the name of its Python class
    background   the index of the class that is no object, -1 for none; by default that of the class
                 named "background"
    margin       logits by which a label must have lost before its target rests
    max_steps    the most steps of an image
    architecture a value that models have in common where they differ in training alone, by which
                 transfer tells cross-training from cross-network; by default the pytree's structure
    bucket       function of (H, W) that returns (model, (H', W')): the model to use on an image of
                 that size, padded to H' x W', so that images of many sizes share few compiled
                 shapes. Its methods then take i32[2], the image's own (H, W), as a last argument

Parameters of another framework are no leaves, as JAX does not see them. The part of the model that
holds them has an attribute `weights_sha256`, a SHA-256 that changes with them; run folders tell
models apart by it.

Shapes: `H W` pixels of the user's image, `h w` cells of a map, `N` candidates, `C` classes, `K`
detections. Boxes are f32 [x0, y0, x1, y1] in pixels of the user's image, 0-based, corners
inclusive.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Integer, PyTree, Shaped

from dag_jax.arrays import Array
from dag_jax.errors import UserError
from dag_jax.metrics import Detections

SEGMENTATION, DETECTION = "segmentation", "detection"
# A detector run again finds what the attack left at a near-tie, so a detector's targets stay active
# until their label has lost by 3 logits. A segmenter is scored on the attacked pixels themselves:
# the paper's rule is enough.
MARGINS = {SEGMENTATION: 0.0, DETECTION: 3.0}
MAX_STEPS = {SEGMENTATION: 200, DETECTION: 150}  # the paper's M_0
_BACKGROUND = "background"
# Names of one class in different datasets, in the form that `_plain` gives.
_SYNONYMS = {
    "airplane": "aeroplane",
    "couch": "sofa",
    "motorcycle": "motorbike",
    "tv": "tvmonitor",
    "television": "tvmonitor",
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Candidates:
    """The places where a detector may find objects; fixed during an attack."""

    boxes: Float[Array, "N 4"]
    handle: PyTree[Shaped[Array, "N ..."]]  # what `scores` takes: boxes, or indices of anchors
    valid: Bool[Array, " N"]  # false for padding


@runtime_checkable
class Segmenter(Protocol):
    """A model that gives each pixel a class."""

    classes: tuple[str, ...]

    def scores(self, image: Float[Array, "H W 3"]) -> Float[Array, "h w C"]:
        """Return pre-softmax scores f32[h, w, C], of each pixel or at a coarser stride."""

    def predict(self, image: Float[Array, "H W 3"]) -> Integer[Array, "H W"]:
        """Return the class of each pixel, i32[H, W]."""


@runtime_checkable
class Detector(Protocol):
    """A model that finds objects."""

    classes: tuple[str, ...]

    def propose(self, image: Float[Array, "H W 3"]) -> Candidates:
        """Return the candidates of a clean image, which an attack then keeps."""

    def scores(self, image: Float[Array, "H W 3"], handle: PyTree) -> Float[Array, " N *C"]:
        """Return the scores of candidates.

        A softmax head gives pre-softmax scores f32[N, C]. A sigmoid head decides about each class
        by itself: f32[N, C, 2], (logit, logit of the threshold of a detection).
        """

    def detect(self, image: Float[Array, "H W 3"]) -> Detections:
        """Run the whole, untouched pipeline: `Detections` of K rows with `valid`."""


class About(NamedTuple):
    """The facts about a model that the library uses: its own, or its task's defaults."""

    title: str
    task: str  # SEGMENTATION or DETECTION
    classes: tuple[str, ...]
    background: int | None
    margin: float
    max_steps: int

    @property
    def detects(self) -> bool:
        """Whether it is a detector."""
        return self.task == DETECTION

    @property
    def objects(self) -> tuple[int, ...]:
        """The indices of the classes of objects: all classes, without a detector's background."""
        left_out = self.background if self.detects else None
        return tuple(index for index in range(len(self.classes)) if index != left_out)


def about(model: Any) -> About:
    """Return the facts about a model.

    Raises:
      ValueError: where it is neither a `Segmenter` nor a `Detector`, naming what it lacks; where
        its classes are no names or repeat; where its background is none of them.
    """
    if isinstance(model, type):
        raise UserError(f"{model.__name__} is a class: give a model, which is one of its instances")
    if isinstance(model, Detector):
        task = DETECTION
    elif isinstance(model, Segmenter):
        task = SEGMENTATION
    else:
        lacks = [
            f"a {protocol.__name__} has {', '.join(names)}: it lacks "
            + ", ".join(name for name in names if getattr(model, name, None) is None)
            for protocol, names in (
                (Segmenter, ("classes", "scores", "predict")),
                (Detector, ("classes", "propose", "scores", "detect")),
            )
        ]
        raise UserError(f"a {type(model).__name__} is no model: {'; '.join(lacks)}")
    classes = model.classes
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"classes are {classes!r:.100}; they are names, a tuple of str")
    classes = tuple(classes)
    if len(set(classes)) < len(classes) or not classes:
        raise UserError(f"classes repeat, or are none: {', '.join(classes)!r:.200}")
    plain = [_plain(name) for name in classes]
    named = plain.index(_BACKGROUND) if _BACKGROUND in plain else None
    background = getattr(model, "background", named)
    if background is not None and background not in range(-1, len(classes)):
        raise UserError(
            f"background is {background!r:.50}; it is the index of one of {len(classes)} classes, "
            "or -1 where none is"
        )
    return About(
        getattr(model, "title", type(model).__name__),
        task,
        classes,
        None if background == -1 else background,
        float(getattr(model, "margin", MARGINS[task])),
        int(getattr(model, "max_steps", MAX_STEPS[task])),
    )


class SharedClasses(NamedTuple):
    """The classes that a model and a dataset have in common.

    Attributes:
      of_model: their indices in the model's classes, ascending.
      to_model: for each class of the dataset its index in the model's, -1 where the model lacks it.
      only_model: names of the model's other classes.
      only_dataset: names of the dataset's other classes.
    """

    of_model: tuple[int, ...]
    to_model: tuple[int, ...]
    only_model: tuple[str, ...]
    only_dataset: tuple[str, ...]


def share_classes(model_about: About, classes: tuple[str, ...]) -> SharedClasses:
    """Find the classes that a model shares with a dataset, by name.

    Case, spaces, hyphens and underscores do not matter. "airplane" is VOC's "aeroplane", unless the
    model has both. A detector's background is never shared.

    Args:
      model_about: from `about`.
      classes: names of the dataset's classes.

    Raises:
      ValueError: where they share no class.
    """
    names = [(index, model_about.classes[index]) for index in model_about.objects]
    wanted = {_plain(name): index for index, name in names}
    same = {_letters(name): index for index, name in names}
    to_model = tuple(same.get(_letters(name), wanted.get(_plain(name), -1)) for name in classes)
    of_model = tuple(sorted(set(to_model) - {-1}))
    if not of_model:
        raise UserError(
            f"{model_about.title} shares no class with the dataset: it has "
            f"{', '.join(model_about.classes[:30])}; the dataset has {', '.join(classes[:30])}"
        )
    unshared = (index for index in model_about.objects if index not in of_model)
    without = zip(classes, to_model, strict=True)
    only_dataset = tuple(name for name, index in without if index == -1)
    if model_about.detects:
        only_dataset = tuple(name for name in only_dataset if _plain(name) != _BACKGROUND)
    only_model = tuple(model_about.classes[index] for index in unshared)
    return SharedClasses(of_model, to_model, only_model, only_dataset)


def _letters(name):
    return "".join(letter for letter in name.lower() if letter.isalnum()) or name


def _plain(name):
    return _SYNONYMS.get(_letters(name), _letters(name))


def parameters_of(model: Any) -> dict[str, Any]:
    """Return {path in the model: array} of a model's leaves.

    Raises:
      ValueError: where it is no pytree, or has a leaf that is no array.
    """
    leaves = jax.tree_util.tree_flatten_with_path(model)[0]
    arrays = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    for path, leaf in arrays.items():
        if not hasattr(leaf, "dtype") and not isinstance(leaf, bool | int | float):
            raise UserError(
                f"a model is a pytree of arrays, and model{path} is a {type(leaf).__name__}: "
                "register its class, by jax.tree_util.register_dataclass for one, with all that "
                "is no array among the meta_fields"
            )
    return arrays


def _check_scores(model, scores, rows=None):
    """Raise a UserError where the shape of scores does not fit the model's classes."""
    count = len(model.classes)
    if rows is None:
        right, wanted = scores.ndim == 3 and scores.shape[-1] == count, f"[h, w, {count}]"
    else:
        right = scores.shape in ((rows, count), (rows, count, 2))
        wanted = f"[{rows}, {count}], or [{rows}, {count}, 2] of a sigmoid head"
    if not right:
        raise UserError(
            f"scores of {type(model).__name__} are {scores.dtype}{list(scores.shape)}; of "
            f"{count} classes they must be {wanted}"
        )


def _pixel_scores(model, image, *extent):
    scores = model.scores(image, *extent)
    _check_scores(model, scores)
    if scores.shape[:2] != image.shape[:2]:
        shape = (*image.shape[:2], scores.shape[-1])
        scores = jax.image.resize(scores, shape, "bilinear", antialias=False)
    return scores


def _candidate_scores(model, image, handle, *extent):
    scores = model.scores(image, handle, *extent)
    _check_scores(model, scores, len(jax.tree.leaves(handle)[0]))
    return scores


def _scores_of_these(model, handle, image, *extent):
    return _candidate_scores(model, image, handle, *extent)


def score_fn(model: Segmenter | Detector, handle: PyTree = None) -> Callable:
    """Return a model's score function, as `attack` takes it.

    It is a pytree: the model's parameters are traced and no constants of the program.

    Args:
      model: a `Segmenter` or a `Detector`.
      handle: of a detector's candidates; None makes it an argument of the score function.

    Returns:
      For a segmenter: image -> f32[H, W, C], coarser scores resized bilinearly. For a detector:
      image -> f32[N, C] or f32[N, C, 2], or (image, handle) -> the same where `handle` is None.

    Raises:
      ValueError: where it is neither, or a segmenter is given a handle.
    """
    if about(model).detects:
        if handle is None:
            return jax.tree_util.Partial(_candidate_scores, model)
        return jax.tree_util.Partial(_scores_of_these, model, handle)
    if handle is not None:
        raise UserError(f"{about(model).title} segments: it has no candidates")
    return jax.tree_util.Partial(_pixel_scores, model)


def bucket_score_fn(
    function: jax.tree_util.Partial, shape: tuple[int, ...]
) -> tuple[Callable, tuple[int, int]]:
    """Return the score function and padded shape of an image's bucket.

    Images of one bucket share a compiled program. Give this function to `dag_jax.attack_stream` as
    `bucket` for images of many sizes.

    Args:
      function: from `score_fn`.
      shape: (H, W, ...) of an image.

    Returns:
      (score function that takes the image's i32[2] (H, W) as a last argument, (H', W')).

    Raises:
      ValueError: as the model's `bucket` says.
    """
    model, *inputs = function.args
    model, padded = model.bucket(shape)
    return jax.tree_util.Partial(function.func, model, *inputs), padded


def is_sigmoid(scores: Float[Array, " N *C"]) -> bool:
    """Return whether a detector's scores are those of a sigmoid head, f32[N, C, 2]."""
    return jnp.ndim(scores) == 3
