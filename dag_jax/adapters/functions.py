"""A segmenter from a function of JAX: the form that models of every framework take here.

Shapes: `H W` pixels of the user's image, `h w` cells of a map, `C` classes.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int32

from dag_jax import models
from dag_jax.arrays import Array
from dag_jax.engine.scoring import as_callable_pytree
from dag_jax.errors import UserError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FunctionSegmenter:
    """A `models.Segmenter` of a function that is a pytree."""

    function: Callable
    classes: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    title: str = dataclasses.field(metadata={"static": True})

    def scores(self, image: Float[Array, "H W 3"]) -> Float[Array, "h w C"]:
        """Return pre-softmax scores f32[h, w, C] of an image f32[H, W, 3], RGB grey levels."""
        return self.function(image)

    def predict(self, image: Float[Array, "H W 3"]) -> Int32[Array, "H W"]:
        """Return the class of each pixel, i32[H, W]; coarser scores are resized bilinearly."""
        at_pixels = models.score_fn(self)  # type: ignore[arg-type]  # frozen, which a protocol can't say
        return jnp.argmax(at_pixels(image), axis=-1).astype(jnp.int32)


def from_function(
    function: Callable, *, classes: Sequence[str], title: str = "Function"
) -> FunctionSegmenter:
    """Return the segmenter of a function of JAX.

    Args:
      function: image f32[H, W, 3], RGB grey levels 0-255 -> pre-softmax scores f32[h, w, C], at the
        image's size or coarser. With `jax.tree_util.Partial(forward, parameters)` the parameters
        are traced; what is no array among them, such as the activations and names in an Equinox
        module, is a part of the structure. The arrays of a plain function are constants of what is
        compiled, and no run folder can tell them from others.
      classes: names of the C classes by index.
      title: what tables call it.

    Raises:
      ValueError: for classes that are no names or repeat.
    """
    model = FunctionSegmenter(as_callable_pytree(function), class_names(classes), title)
    models.about(model)
    return model


def class_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Return names of classes as a tuple.

    Raises:
      ValueError: for a text, which is one name and not several, and for what has no entries.
    """
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise UserError(f"classes are {classes!r:.100}; they are names, a tuple of str")
    return tuple(classes)
