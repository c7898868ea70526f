"""Checks of a foreign model, so that a fault is named before anything is attacked.

Each framework's adapter runs its model once, on noise, and checks the result by these.

Shapes: `H W` pixels that the model sees, `h w` cells of its scores, `C` classes.
"""

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from dag_jax.errors import UserError

TRIED = (224, 288)  # pixels of the noise: multiples of 32, and not square, which shows swapped axes
LAYOUTS = ("nchw", "nhwc")
_NORMALISED = 1e-3  # by which sums of probabilities may miss 1
# Grey levels (standard deviation) to both sides between which a slope is measured: networks of
# ReLUs without training bend within a thousandth of one.
_DISTANCES = (1e-2, 1e-3, 1e-4)
_DIRECTIONS = 2
# Of its length, by which a gradient may miss slopes: right networks miss 0.06 over their best
# distance, parts that are detached make 0.3 and more.
_OFF = 0.2
_AGREE = 0.3  # of their length, by which slopes over two distances may differ and be measured
_ROUNDINGS = 10  # of single precision, that a difference of outputs must be above to be one


class Trial(NamedTuple):
    """A run of a model, forward and backward, on noise; an entry is of an output."""

    titles: Sequence[str]
    outputs: Sequence[np.ndarray]
    weights: Sequence[np.ndarray]  # random, of the outputs' shapes
    gradients: Sequence[np.ndarray | None]  # f32[H, W, 3], of the sums of outputs times weights


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise a UserError for a mean and std that are not of RGB images in 0..1."""
    for name, values in (("mean", mean), ("std", std)):
        array = np.asarray(values)
        numbers = array.dtype.kind in "fiu" and array.shape == (3,)
        if not numbers or not np.isfinite(array).all():
            raise UserError(f"{name} is {values!r:.80}; it must be three numbers, of R, G and B")
        if np.abs(array).max() > 1:
            raise UserError(
                f"{name} is {values!r:.80}; it is of images in 0..1: divide mean and std of grey "
                "levels by 255"
            )
        if name == "std" and array.min() <= 0:
            raise UserError(f"std is {values!r:.80}; it must be above 0")


def check_layout(layout: str) -> None:
    """Raise a UserError for a layout that is none."""
    if layout not in LAYOUTS:
        raise UserError(f"layout is {layout!r:.50}; it must be one of {', '.join(LAYOUTS)}")


def check_size(size: tuple[int, int] | None) -> None:
    """Raise a UserError for a size that is no number of rows and of columns."""
    array = np.asarray(() if size is None else size)
    whole = array.shape == (2,) and array.dtype.kind in "iu" and array.min() > 0
    if size is not None and not whole:
        raise UserError(f"size is {size!r:.50}; it must be pixels (h, w), two ints above 0")


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

    Raises:
      ValueError: for a tuple without any.
    """
    if output == ():
        raise UserError("output is an empty tuple; it names at least one output")
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
    """Raise a UserError for scores that are probabilities."""
    low, high = float(scores.min()), float(scores.max())
    if 0 <= low and high <= 1:
        sums = scores.astype(np.float64).sum(axis=-1)
        of_softmax = scores.shape[-1] > 1 and np.abs(sums - 1).max() < _NORMALISED
        kind = "those of a pixel sum to 1" if of_softmax else "none is outside of 0..1"
        raise UserError(
            f"{title} gives probabilities: scores run from {low:.3g} to {high:.3g}, and {kind}; "
            "give what it has before softmax or sigmoid"
        )


def check_trial(trial: Trial) -> None:
    """Raise a UserError for an output that is not finite, or without a gradient that is one."""
    for title, output, _, gradient in zip(*trial, strict=True):
        if gradient is None or not np.any(gradient):
            lacks = "no gradient" if gradient is None else "a gradient of zero"
            raise UserError(
                f"{title} has {lacks} at the image: somewhere inside it is detached (no_grad, "
                "detach, stop_gradient, rounding, argmax); an attack follows gradients"
            )
        for quantity, array in (("scores", output), ("a gradient at the image", gradient)):
            if not np.isfinite(array).all():
                raise UserError(f"{title} has {quantity} not finite, on an image of noise")


def check_slopes(
    run: Callable[[Float[np.ndarray, "H W 3"]], Sequence[np.ndarray]],
    image: Float[np.ndarray, "H W 3"],
    trial: Trial,
) -> None:
    """Warn where a gradient is not the slope of its output: a part of it is detached.

    Compares <g, d> with L(X + d) - L(X - d), over distances that fall until they agree. A direction
    d is random, but that it has as much of g as directions have in the mean. Nothing is said where
    the slopes of two distances do not agree with each other, or come from rounding. It costs 4
    calls of `run`, 12 at most.

    Args:
      run: image -> the outputs.
      image: that of the trial.
      trial: of the model.
    """
    rng = np.random.default_rng(1)
    directions = rng.standard_normal((_DIRECTIONS, *image.shape))
    for gradient in trial.gradients:
        unit = np.float64(gradient) / np.linalg.norm(np.float64(gradient))
        directions += np.multiply.outer(1 - np.tensordot(directions, unit, image.ndim), unit)
    slopes: dict[str, list] = {title: [] for title in trial.titles}  # of what is not right so far
    for distance in _DISTANCES:
        steps = (distance * directions).astype(np.float32)
        ends = [(image + step, image - step) for step in steps]
        results = [(run(ahead), run(behind)) for ahead, behind in ends]
        for index, (title, output, weights, gradient) in enumerate(zip(*trial, strict=True)):
            pairs = [(ahead[index], behind[index]) for ahead, behind in results]
            if any(each.shape != output.shape for pair in pairs for each in pair):
                return  # a row for each detection, say, has no slope
            if title not in slopes:
                continue
            expected, measured = (
                _changes(factor, both) / (2 * distance)
                for factor, both in ((gradient, ends), (weights, pairs))
            )
            off = _apart(measured, expected)
            rounding = np.finfo(np.float32).eps * np.linalg.norm(output * weights) / distance
            if np.linalg.norm(measured) <= _ROUNDINGS * rounding:
                measured = np.full(_DIRECTIONS, np.nan)  # agrees with nothing
            slopes[title].append((off, expected, measured))
            if off <= _OFF:
                del slopes[title]
        if not slopes:
            return
    for title, rows in slopes.items():
        for (off, expected, measured), (_, _, again) in itertools.pairwise(rows):
            if _apart(measured, again) <= _AGREE:
                ratio = np.vdot(measured, expected) / np.vdot(expected, expected)
                warnings.warn(
                    f"{title} has a gradient at the image that is off by {off:.0%} of its length: "
                    f"slopes, measured on noise, are {ratio:.2g} times what it says. A part of it "
                    "is detached inside (detach, no_grad, stop_gradient), or a layer has a "
                    "gradient that is not its own. An attack follows what there is; dag_jax.audit "
                    "says more, on an image of yours",
                    stacklevel=3,
                )
                break


def _changes(factor, pairs):
    """Return f64[directions], the differences of pairs of arrays, weighted and summed."""
    factor = np.asarray(factor, np.float64)
    return np.array([np.vdot(factor, np.subtract(*pair, dtype=np.float64)) for pair in pairs])


def _apart(first, second):
    """Return the distance of two arrays, as a share of the longer one's length."""
    return np.linalg.norm(first - second) / max(map(np.linalg.norm, (first, second)))
