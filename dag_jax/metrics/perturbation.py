"""How large a perturbation is, and its permuted control.

Shapes: H W pixels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Num, PRNGKeyArray

from dag_jax.arrays import Array
from dag_jax.errors import UserError


def perceptibility(perturbation: Float[Array, "H W 3"]) -> Float32[jax.Array, ""]:
    """Return p, the root mean square length of the pixels' changes on a scale of 0 to 1.

    p = sqrt( (1 / K) sum_k ||r_k / 255||_2^2 ), K pixels, r_k the 3-vector of pixel k

    Args:
      perturbation: float [H, W, 3] in grey levels of a 0-255 image.

    Returns:
      float32 []; 1/255 is a change of one grey level in one channel of every pixel.

    Raises:
      ValueError: for another shape.

    Reference: Xie et al., Adversarial Examples for Semantic Segmentation and Object Detection,
      ICCV 2017.
    """
    _check_shape(perturbation)
    change = jnp.asarray(perturbation).astype(jnp.float32) / jnp.float32(255)
    return jnp.sqrt(jnp.mean(jnp.sum(change * change, axis=-1)))


def permute(
    key: PRNGKeyArray,
    perturbation: Num[Array, "H W 3"],
    *,
    rows: bool = True,
    columns: bool = True,
) -> Num[jax.Array, "H W 3"]:
    """Shuffle the rows and the columns of a perturbation.

    The values stay, their spatial structure is lost. This control tells whether a perturbation
    fools a network by its structure or by its size. The three channels of a pixel move together.
    With the same key the rows are shuffled alike, with or without the columns.

    Args:
      key: a JAX random key.
      perturbation: [H, W, 3], grey levels.
      rows: shuffle the rows (first axis).
      columns: shuffle the columns (second axis).

    Returns:
      The shuffled [H, W, 3], dtype kept.

    Raises:
      ValueError: for another shape, or if neither rows nor columns are to be shuffled.
    """
    _check_shape(perturbation)
    if not rows and not columns:
        raise UserError("nothing to shuffle: rows=False and columns=False")
    key_rows, key_columns = jax.random.split(key)
    permuted = jnp.asarray(perturbation)
    if rows:
        permuted = jax.random.permutation(key_rows, permuted, axis=0)
    if columns:
        permuted = jax.random.permutation(key_columns, permuted, axis=1)
    return permuted


def _check_shape(perturbation):
    shape = jnp.shape(perturbation)
    if len(shape) != 3 or shape[-1] != 3:
        raise UserError(f"perturbation must be [H, W, 3], got shape {shape}")
