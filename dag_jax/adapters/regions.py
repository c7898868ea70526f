"""torchvision's pools of regions in JAX, for modules that torchax compiles.

Shapes: `B` images, `R` regions, `C` channels, `H W` cells of a map, `P Q` bins of a region. Regions
are f32 (x0, y0, x1, y1) in pixels, edges: a width is x1 - x0.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dag_jax import detection
from dag_jax.arrays import Array
from dag_jax.errors import UserError


def roi_align(
    x: Float[Array, "B C H W"],
    regions: Float[Array, "R 5"],
    scale: float,
    rows: int,
    columns: int,
    samples: int,
    aligned: bool,
) -> Float[jax.Array, "R C {rows} {columns}"]:
    """Return torchvision::roi_align by `detection.roi_align`.

    Args:
      x: a map of each image.
      regions: the image's index, and edges. No gradient passes to them.
      scale: cells per pixel.
      rows: P.
      columns: Q.
      samples: points along a bin's side.
      aligned: whether cell j lies at j + 1/2, and not at j where a region is at least a cell wide.

    Raises:
      ValueError: where the number of samples is to depend on the size of each region.
    """
    if samples <= 0:
        raise UserError(
            f"roi_align with sampling_ratio={samples} takes as many samples as a region is large, "
            "which cannot be compiled: give sampling_ratio (torchvision's detectors have 2), or "
            "take via='callback'"
        )
    pooled = detection.roi_align(
        [image.transpose(1, 2, 0) for image in x],
        detection.boxes_from_edges(regions[:, 1:]),
        regions[:, 0].astype(jnp.int32),
        size=(rows, columns),
        scales=[scale] * len(x),
        samples=samples,
        aligned=aligned,
    )
    return pooled.transpose(0, 3, 1, 2)


def pools_levels(pooler) -> bool:
    """Return whether a torchvision MultiScaleRoIAlign does what `pool_levels` does."""
    return (
        (pooler.canonical_scale, pooler.canonical_level) == (224, 4)
        and len(set(pooler.output_size)) == 1
        and pooler.sampling_ratio > 0
    )


def pool_levels(
    maps: Sequence[Float[Array, "B C _ _"]],
    regions: Sequence[Float[Array, "_ 4"]],
    shape: tuple[int, int],
    *,
    size: int,
    samples: int,
) -> Float[jax.Array, "R C {size} {size}"]:
    """Return torchvision's MultiScaleRoIAlign, whose own picks regions by arrays of no fixed size.

    Args:
      maps: of each level, finest first.
      regions: of each image.
      shape: pixels (H, W) of the images together.
      size: P and Q.
      samples: as of `roi_align`.
    """
    # As torchvision infers them: powers of two.
    octaves = [round(np.log2(each.shape[2] / shape[0])) for each in maps]
    boxes = detection.boxes_from_edges(jnp.concatenate([*regions]))
    images = np.repeat(np.arange(len(regions)), [len(each) for each in regions])
    levels = detection.pyramid_levels(boxes, len(maps), first=-octaves[0])
    pooled = detection.roi_align(
        [image.transpose(1, 2, 0) for each in maps for image in each],
        boxes,
        levels * len(regions) + jnp.asarray(images, jnp.int32),
        size=size,
        scales=[2.0**octave for octave in octaves for _ in regions],
        samples=samples,
    )
    return pooled.transpose(0, 3, 1, 2)
