"""Checks of a foreign model, so that a fault is named before anything is attacked.

Each framework's adapter runs its model once, on noise, and checks the result by these.

Shapes: `H W` pixels that the model sees, `h w` cells of its scores, `C` classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from dag_jax.errors import UserError

TRIED = (224, 288)  # pixels of the noise: multiples of 32, and not square, which shows swapped axes
LAYOUTS = ("nchw", "nhwc")
_NORMALISED = 1e-3  # by which sums of probabilities may miss 1


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise a UserError for a mean and std that are not of RGB images in 0..1."""
    for name, values in (("mean", mean), ("std", std)):
        array = np.asarray(values, np.float64)
        if array.shape != (3,) or not np.isfinite(array).all():
            raise UserError(f"{name} is {values!r:.80}; it must be three numbers, of R, G and B")
        if np.abs(array).max() > 1 and name == "mean":
            raise UserError(
                f"mean is {values!r:.80}; it is of images in 0..1: divide a mean of grey levels "
                "(and its std) by 255"
            )
        if name == "std" and array.min() <= 0:
            raise UserError(f"std is {values!r:.80}; it must be above 0")


def check_layout(layout: str) -> None:
    """Raise a UserError for a layout that is none."""
    if layout not in LAYOUTS:
        raise UserError(f"layout is {layout!r:.50}; it must be one of {', '.join(LAYOUTS)}")


def check_mode(module: Any, title: str) -> None:
    """Raise a UserError for a PyTorch module in training mode, or with a part that is."""
    for name, part in module.named_modules():
        if part.training:
            subject = f"its {name} is" if name else "it is"
            raise UserError(
                f"{title} is to be attacked as it predicts, and {subject} in training mode: "
                "call module.eval() first"
            )


def check_floating(floating: bool, dtype: Any, title: str) -> None:
    """Raise a UserError for an output that holds no floats."""
    if not floating:
        raise UserError(f"{title} is {dtype}, such as the classes that win; it must be scores")


def noise(size: tuple[int, int] | None) -> Float[np.ndarray, "H W 3"]:
    """Return the image that a model is tried on: f32[H, W, 3], grey levels."""
    rng = np.random.default_rng(0)
    return rng.uniform(0, 255, (*(size or TRIED), 3)).astype(np.float32)


def picks(output: Any, title: str) -> dict[str, str | int | None]:
    """Return {title of an output: what `pick` takes for it}, of the outputs that are asked for.

    Args:
      output: a key or an index, None, or a tuple of those.
      title: of the model.
    """
    if isinstance(output, tuple):
        return {f"output {index!r} of {title}": index for index in output}
    return {title: output}


def pick(outputs: Any, output: str | int | None, title: str) -> Any:
    """Return the array that `output` names among what a model returns.

    Args:
      outputs: an array, a mapping (a dict, an output of transformers) or a sequence of arrays.
      output: a key or an index; None where the model returns one array.
      title: of the model.

    Raises:
      ValueError: where that is not there, naming what is.
    """
    if _is_array(outputs):
        if output is not None:
            raise UserError(f"{title} returns one array: output={output!r} names nothing in it")
        return outputs
    if isinstance(outputs, Mapping):
        entries = dict(outputs)
    elif isinstance(outputs, Sequence):
        entries = dict(enumerate(outputs))
    else:
        raise UserError(
            f"{title} returns a {type(outputs).__name__}; it must return an array, or a dict or "
            "tuple with one that output= names"
        )
    entries = {key: value for key, value in entries.items() if _is_array(value)}
    if output not in entries:
        has = ", ".join(f"{key!r} {list(value.shape)}" for key, value in entries.items())
        lacks = "output= names one" if output is None else f"none of them is output={output!r}"
        raise UserError(
            f"{title} returns a {type(outputs).__name__} of {has or 'no array'}; {lacks}"
        )
    return entries[output]


def _is_array(value):
    return hasattr(value, "shape") and hasattr(value, "dtype")


def check_map(shape: Sequence[int], size: Sequence[int], layout: str, count: int, title: str):
    """Raise a UserError for an output that cannot be scores of each pixel.

    Args:
      shape: of the output.
      size: pixels (H, W) of the image that the model saw.
      layout: one of `LAYOUTS`.
      count: C.
      title: of the model.
    """
    shape, axes = tuple(shape), {"nchw": "1, C, h, w", "nhwc": "1, h, w, C"}[layout]
    if len(shape) != 4 or shape[0] != 1:
        raise UserError(
            f"{title} returns {list(shape)}; scores of each pixel are [{axes}] (layout {layout!r})"
        )
    channels, cells = (shape[1], shape[2:]) if layout == "nchw" else (shape[3], shape[1:3])
    if channels != count:
        hint = ""
        if shape[3 if layout == "nchw" else 1] == count:
            hint = f"; layout={LAYOUTS[layout == 'nchw']!r} would fit"
        raise UserError(
            f"{title} returns {list(shape)}: scores of {channels} classes, and classes= names "
            f"{count}{hint}"
        )
    strides = [pixels / count for pixels, count in zip(size, cells, strict=True)]
    if min(cells) < 2 or min(strides) < 1 or max(strides) > 2 * min(strides):
        raise UserError(
            f"{title} returns {list(shape)} of an image of {size[0]} x {size[1]} pixels; scores "
            "are at the image's size, or at one stride of rows and columns"
        )


def check_scores(scores: Float[np.ndarray, "h w C"], title: str) -> None:
    """Raise a UserError for scores that are probabilities, or not finite."""
    if not np.isfinite(scores).all():
        raise UserError(f"{title} gives scores that are not finite numbers, on an image of noise")
    low, high = float(scores.min()), float(scores.max())
    if 0 <= low and high <= 1:
        sums = scores.astype(np.float64).sum(axis=-1)
        of_softmax = scores.shape[-1] > 1 and np.abs(sums - 1).max() < _NORMALISED
        kind = "those of a pixel sum to 1" if of_softmax else "none is outside of 0..1"
        raise UserError(
            f"{title} gives probabilities: scores run from {low:.3g} to {high:.3g}, and {kind}; "
            "give what it has before softmax or sigmoid"
        )


def check_gradient(gradient: Float[np.ndarray, "H W 3"] | None, title: str) -> None:
    """Raise a UserError for a gradient at the image that is none, zero or not finite."""
    if gradient is None or not np.any(gradient):
        lacks = "no gradient" if gradient is None else "a gradient of zero"
        raise UserError(
            f"{title} has {lacks} at the image: somewhere inside it is detached (no_grad, detach, "
            "stop_gradient, rounding, argmax); an attack follows gradients"
        )
    if not np.isfinite(gradient).all():
        raise UserError(f"{title} has a gradient at the image that is not finite, on noise")
