"""Models whose framework computes in JAX: Keras, and PyTorch by torchax. Variables are leaves.

Shapes: `H W` pixels of the user's image, `h w` cells of a map, `C` classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dag_jax.adapters import checks
from dag_jax.arrays import Array


class _Around:
    """The parts of a model that are no arrays, compared by identity."""

    def __init__(self, forward, layout, size, count, title):
        self._forward, self._layout, self._size = forward, layout, size
        self._count, self._title = count, title

    def __call__(self, variables, normalisation, image):
        # Frameworks promote dtypes as NumPy does; the caller's JAX may be set to refuse that.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            x = jnp.asarray(image).astype(jnp.float32)
            if self._size is not None and x.shape[:2] != self._size:
                x = jax.image.resize(x, (*self._size, 3), "bilinear", antialias=False)
            mean, std = normalisation
            size, x = x.shape[:2], ((x / 255 - mean) / std)[None]
            x = x.transpose(0, 3, 1, 2) if self._layout == "nchw" else x
            outputs = self._forward(variables, x)
            if self._count is None:
                return jax.tree.map(_without_batch, outputs)
            checks.check_map(outputs.shape, size, self._layout, self._count, self._title)
            scores = outputs[0].astype(jnp.float32)
            return scores.transpose(1, 2, 0) if self._layout == "nchw" else scores


def _without_batch(array):
    return (array[0] if array.ndim and len(array) == 1 else array).astype(jnp.float32)


def around(
    forward: Callable,
    variables: Any,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    layout: str,
    size: tuple[int, int] | None,
    count: int | None,
    title: str,
) -> jax.tree_util.Partial:
    """Return a function of an image, which it resizes and normalises for a model.

    Args:
      forward: (variables, image f32[1, h, w, 3] or f32[1, 3, h, w]) -> outputs, arrays; where
        `count` is given, scores of each pixel, [1, h, w, C] or [1, C, h, w].
      variables: pytree of arrays.
      mean: of R, G and B, of images in 0..1.
      std: likewise.
      layout: "nhwc" or "nchw", of the model's images and scores.
      size: pixels (h, w) that the image is resized to, bilinearly; None leaves it as it is.
      count: C; None for what segments no image.
      title: of the model.

    Returns:
      A pytree, image f32[H, W, 3], RGB grey levels -> f32[h, w, C]; without a count the outputs as
      float32, less their first axis of 1.
    """
    normalisation = tuple(jnp.asarray(values, jnp.float32) for values in (mean, std))
    function = _Around(forward, layout, size, count, title)
    return jax.tree_util.Partial(function, variables, normalisation)


def try_out(
    function: Callable, image: Float[Array, "H W 3"], title: str, output: Any = None
) -> tuple[checks.Trial, Callable[[Float[Array, "H W 3"]], list[np.ndarray]]]:
    """Run a function of an image forward and backward once.

    Args:
      function: a pytree.
      image: f32[H, W, 3], grey levels.
      title: of the model.
      output: which of the model's outputs the function returns, as of `checks.picks`; None for all.

    Returns:
      (trial, function of an image that gives the outputs).

    Raises:
      ValueError: for an output without a gradient at the image, or that is not finite.
    """

    @jax.jit
    def look(function, image):
        outputs, pull = jax.vjp(function, image)
        leaves, structure = jax.tree.flatten(outputs)
        weights, gradients = [], []
        for index, leaf in enumerate(leaves):
            weights.append(jax.random.normal(jax.random.key(index), leaf.shape, leaf.dtype))
            cotangents = [jnp.zeros_like(each) for each in leaves]
            cotangents[index] = weights[-1]
            gradients.append(pull(jax.tree.unflatten(structure, cotangents))[0])
        return outputs, weights, gradients

    def run(image):
        # A GPU and a TPU round factors unless they are told not to, and slopes show that.
        with jax.default_matmul_precision("highest"):
            return jax.device_get(look(function, image))

    outputs, weights, gradients = run(image)
    leaves, _ = jax.tree_util.tree_flatten_with_path(outputs)
    titles = [*checks.picks(output, title)]
    if output is None and len(leaves) > 1:
        names = tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves)
        titles = [*checks.picks(names, title)]
    trial = checks.Trial(titles, [leaf for _, leaf in leaves], weights, gradients)
    checks.check_trial(trial)
    # With its gradients, too: no program is compiled for the outputs alone.
    return trial, lambda image: jax.tree.leaves(run(image)[0])
