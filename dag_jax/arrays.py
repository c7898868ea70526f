"""Arrays in annotations: NumPy's and JAX's alike, with the shapes that jaxtyping writes.

    def perceptibility(perturbation: Float[Array, "H W 3"]) -> Float32[jax.Array, ""]: ...

An axis's letter is that of the module's docstring; `*T` stands for any number of axes, `{name}` for
the value of that argument. Annotations are for readers and type checkers: nothing is checked by
them when the package is used, and everything when its tests run.
"""

from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Num

Array: TypeAlias = jax.Array | np.ndarray
Scalar: TypeAlias = Array | np.number  # without axes: what a sum of NumPy's gives
Number: TypeAlias = float | Num[Scalar, ""]
