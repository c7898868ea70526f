"""Updates of a method besides the paper's: what makes a step of a gradient.

Each is called with the step size and returns an optax transformation of the gradient of the loss
with respect to r, f32[H, W, 3]. They are frozen, so that equal ones compile once.
"""

import dataclasses
import math

import jax.numpy as jnp
import optax

from dag_jax.arrays import Number
from dag_jax.engine.checks import WHITE
from dag_jax.engine.method import dag_update, scale_by_max_norm
from dag_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SignStep:
    """An `update`: signed steps down a loss, within an L-infinity ball and the image's range.

        r = clip(r - alpha sign(gradient), max(-epsilon, -X), min(epsilon, 255 - X))

    Attributes:
      epsilon: largest change of a channel, in grey levels.
    """

    epsilon: float

    def __call__(self, step_size: Number) -> optax.GradientTransformationExtraArgs:
        """Return the transformation; its `update` takes the clean image f32[H, W, 3] as `image`."""

        def update(gradient, state, params, *, image, **unused):
            del unused
            lowest = jnp.maximum(-image, -self.epsilon)
            highest = jnp.minimum(WHITE - image, self.epsilon)
            stepped = jnp.clip(params - step_size * jnp.sign(gradient), lowest, highest)
            return stepped - params, state

        return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


@dataclasses.dataclass(frozen=True)
class ClippedStep:
    """An `update`: the gradient in units of its root mean square, clipped; see `methods.clipped`.

    Attributes:
      factor: where the gradient is clipped, in units of its root mean square.
    """

    factor: float

    def __post_init__(self):
        if not 0 < self.factor < math.inf:
            raise UserError(f"factor is {self.factor}; it is a positive number")

    def __call__(self, step_size: Number) -> optax.GradientTransformation:
        """Return the transformation; a zero gradient stays zero."""

        def update(gradient, state, params=None):
            del params
            largest = jnp.max(jnp.abs(gradient))
            scaled = gradient / jnp.where(largest > 0, largest, 1)  # whose squares are no overflow
            unit = self.factor * jnp.sqrt(jnp.mean(scaled**2))
            return -step_size * jnp.clip(scaled / jnp.where(unit > 0, unit, 1), -1, 1), state

        return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


@dataclasses.dataclass(frozen=True)
class Momentum:
    """An `update`: a step along a decaying sum of gradients; see `methods.momentum`.

    Attributes:
      decay: what is left of a gradient one step later, 0 or more and less than 1.
      factor: as of `ClippedStep`, which then makes a step of the sum; None is the paper's step.
    """

    decay: float
    factor: float | None = None

    def __post_init__(self):
        if not 0 <= self.decay < 1:
            raise UserError(f"decay is {self.decay}; it is 0 or more and less than 1")
        self._step()

    def _step(self):
        return dag_update if self.factor is None else ClippedStep(self.factor)

    def __call__(self, step_size: Number) -> optax.GradientTransformation:
        """Return the transformation."""
        return optax.chain(scale_by_max_norm(), optax.trace(self.decay), self._step()(step_size))
