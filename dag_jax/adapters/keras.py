"""Keras models as ours, on Keras's JAX backend; their variables are the leaves.

Shapes: `H W` pixels of the user's image, `h w` cells of a map, `C` classes.
"""

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from dag_jax.adapters import checks, compiled, layers
from dag_jax.adapters.functions import FunctionSegmenter, class_names, from_function
from dag_jax.errors import UserError, optional_import


def from_keras(
    model: Any,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str] | None = None,
    layout: str = "nhwc",
    output: str | int | tuple[str | int, ...] | None = None,
    size: tuple[int, int] | None = None,
    title: str | None = None,
) -> FunctionSegmenter | Callable:
    """Return a Keras model as a segmenter, or as a function of an image.

    The model sees (resize(image) / 255 - mean) / std, runs as for inference, and is tried once on
    noise. Its variables are taken as they are now; they are the leaves of what is returned. A
    UserWarning says where the gradient is no slope of an output (stop_gradient). On a CPU its
    convolutions and max pools are the project's, by `with_fast_layers`.

    Args:
      model: a keras.Model, built, of one image [1, h, w, 3] as its argument.
      mean: of R, G and B, of images in 0..1; zeros and a std of ones where the model's own layers
        normalise such images.
      std: likewise.
      classes: names of the C classes of each pixel; None for what segments no image.
      layout: "nhwc" or "nchw", of the model's images and scores.
      output: which of its outputs are scores, a key of a dict or an index of a list; None where
        there is one. Without classes None is for all, and a tuple of these for several.
      size: pixels (h, w) that the image is resized to, bilinearly; None is the model's own size,
        where it has one, and else leaves the image as it is.
      title: what tables call it; None is the model's name.

    Returns:
      With classes a segmenter, `models.Segmenter`. Else a `jax.tree_util.Partial`, image
      f32[H, W, 3] -> the outputs as float32, less their first axis of 1; a tuple of them where
      `output` is one.

    Raises:
      ValueError: without Keras or on another backend; for a model that is not built; for scores
        that are not there, of another number of classes, of a strange size, not finite,
        probabilities, or without a gradient.
    """
    with optional_import("keras"):
        try:
            keras = importlib.import_module("keras")
        except ModuleNotFoundError as error:
            if error.name != "tensorflow":  # the backend that Keras takes where nothing is said
                raise
            raise UserError(_OTHER_BACKEND.format("tensorflow")) from error
    if (backend := keras.backend.backend()) != "jax":
        raise UserError(_OTHER_BACKEND.format(backend))
    if not isinstance(model, keras.Model):
        raise UserError(f"model is a {type(model).__name__}; it must be a keras.Model")
    title = title or model.name
    if not model.built:
        raise UserError(f"{title} is not built: call it on an image, or load its weights, first")
    checks.check_normalisation(mean, std)
    checks.check_layout(layout)
    checks.check_size(size)
    size = size or _own_size(model, layout)
    if classes is not None and isinstance(output, tuple):
        raise UserError(f"output is {output!r:.80}; of a segmenter it names one")
    names = None if classes is None else class_names(classes)

    parameters = inspect.signature(model.call).parameters.values()
    knows = any(each.name == "training" or each.kind is each.VAR_KEYWORD for each in parameters)
    mode = {"training": False} if knows else {}  # a call without it runs as for inference

    def forward(variables, x):
        outputs, _ = model.stateless_call(*variables, x, **mode)
        if output is None and names is None:
            return outputs
        indices = checks.picks(output, title).values()
        picked = tuple(checks.pick(outputs, index, title) for index in indices)
        return picked if isinstance(output, tuple) else picked[0]

    variables = [
        [jnp.asarray(variable.value) for variable in kind]
        for kind in (model.trainable_variables, model.non_trainable_variables)
    ]
    function = compiled.around(
        layers.with_fast_layers(forward),
        variables,
        mean=mean,
        std=std,
        layout=layout,
        size=size,
        count=None if names is None else len(names),
        title=title,
    )
    image = checks.noise(size)
    trial, run = compiled.try_out(function, image, title, output)
    if names is not None:
        checks.check_scores(trial.outputs[0], title)
    checks.check_slopes(run, image, trial)
    if names is None:
        return function
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
