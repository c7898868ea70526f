"""Keras models as ours, on Keras's JAX backend; their variables are the leaves.

Shapes: `H W` pixels of the user's image, `h w` cells of a map, `C` classes.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dag_jax.adapters import checks
from dag_jax.adapters.functions import FunctionSegmenter, class_names, from_function
from dag_jax.errors import UserError


class _Stateless:
    """What of a Keras model is no array; two of them are the same where they are one object."""

    def __init__(self, model, mean, std, layout, output, size, count, title):
        self._model, self._layout, self._output = model, layout, output
        self._mean, self._std = np.float32(mean), np.float32(std)
        self._size, self._count, self._title = size, count, title

    def __call__(self, variables, image):
        # Keras promotes as NumPy does; whoever calls this may not.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            x = jnp.asarray(image).astype(jnp.float32)
            if self._size is not None and x.shape[:2] != self._size:
                x = jax.image.resize(x, (*self._size, 3), "bilinear", antialias=False)
            seen, x = x.shape[:2], ((x / 255 - self._mean) / self._std)[None]
            x = x.transpose(0, 3, 1, 2) if self._layout == "nchw" else x
            outputs, _ = self._model.stateless_call(*variables, x, training=False)
            if self._output is not None or self._count is not None:
                outputs = checks.pick(outputs, self._output, self._title)
            if self._count is None:
                return jax.tree.map(lambda array: array[0].astype(jnp.float32), outputs)
            checks.check_map(outputs.shape, seen, self._layout, self._count, self._title)
            scores = outputs[0].astype(jnp.float32)
            return scores.transpose(1, 2, 0) if self._layout == "nchw" else scores


def from_keras(
    model: Any,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str] | None = None,
    layout: str = "nhwc",
    output: str | int | None = None,
    size: tuple[int, int] | None = None,
    title: str | None = None,
) -> FunctionSegmenter | Callable:
    """Return a Keras model as a segmenter, or as a function of an image.

    The model sees (resize(image) / 255 - mean) / std, and runs as for inference. Its variables are
    taken as they are now; they are the leaves of what is returned.

    Args:
      model: a keras.Model, built, of one image [1, h, w, 3] as its argument.
      mean: of R, G and B, of images in 0..1; zeros and a std of ones where the model's own layers
        normalise such images.
      std: likewise.
      classes: names of the C classes of each pixel; None for what segments no image.
      layout: "nhwc" or "nchw", of the model's images and scores.
      output: which of its outputs are scores, a key of a dict or an index of a list; None where
        there is one, and without classes for all.
      size: pixels (h, w) that the image is resized to, bilinearly; None is the model's own size,
        where it has one, and else leaves the image as it is.
      title: what tables call it; None is the model's name.

    Returns:
      With classes a segmenter, `models.Segmenter`. Else a `jax.tree_util.Partial`, image
      f32[H, W, 3] -> the outputs as float32, less their first axis of 1.

    Raises:
      ValueError: without Keras or on another backend; for a model that is not built; for scores
        that are not there, of another number of classes, of a strange size, probabilities, or
        without a gradient.
    """
    try:
        keras = importlib.import_module("keras")
    except ModuleNotFoundError as error:
        if error.name not in ("keras", "tensorflow"):
            raise
        if error.name == "tensorflow":  # the backend that Keras takes where nothing is said
            raise UserError(_OTHER_BACKEND.format("tensorflow")) from error
        raise UserError("from_keras needs Keras: pip install 'dag-jax[keras]'") from error
    if (backend := keras.backend.backend()) != "jax":
        raise UserError(_OTHER_BACKEND.format(backend))
    if not isinstance(model, keras.Model):
        raise UserError(f"model is a {type(model).__name__}; it must be a keras.Model")
    title = title or model.name
    if not model.built:
        raise UserError(f"{title} is not built: call it on an image, or load its weights, first")
    checks.check_normalisation(mean, std)
    checks.check_layout(layout)
    size = size or _own_size(model, layout)
    names = None if classes is None else class_names(classes)
    count = None if names is None else len(names)
    stateless = _Stateless(model, mean, std, layout, output, size, count, title)
    variables = [
        [jnp.asarray(variable.value) for variable in kind]
        for kind in (model.trainable_variables, model.non_trainable_variables)
    ]
    function = jax.tree_util.Partial(stateless, variables)
    if names is None:
        return function
    scores, gradient = _try_out(function, checks.noise(size))
    checks.check_scores(scores, title)
    checks.check_gradient(gradient, title)
    return from_function(function, classes=names, title=title)


_OTHER_BACKEND = (
    "Keras runs on {}, and only on JAX can it be attacked: set KERAS_BACKEND=jax in the "
    "environment before Keras is imported"
)


def _own_size(model, layout):
    """Return the (h, w) that a model takes alone, or None."""
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4:
        return None
    size = shape[2:] if layout == "nchw" else shape[1:3]
    return None if None in size else tuple(size)


def _try_out(function, image):
    """Return (scores f32[h, w, C], a gradient f32[H, W, 3]) on an image."""

    @jax.jit
    def both(function, image):
        scores, pull = jax.vjp(function, image)
        return scores, pull(jax.random.normal(jax.random.key(0), scores.shape))[0]

    return jax.tree.map(np.asarray, both(function, image))
