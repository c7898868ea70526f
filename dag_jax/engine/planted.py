"""Linear models whose adversarial examples provably exist: what any engine of DAG must find.

Each target falls after a number of steps that is planted with it, and not before, so that the
status, the number of steps, the active targets of every iterate and the perturbation are known.

Shapes: `H W` pixels, one target each.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int32

from dag_jax.arrays import Array
from dag_jax.engine.algorithm import Attack, Status
from dag_jax.engine.checks import WHITE
from dag_jax.engine.method import Method
from dag_jax.engine.targets import Targets, make_targets

LONGEST = 20  # steps
STEP_SIZE = 0.5  # grey levels
METHOD = Method(max_steps=2 * LONGEST, step_size=STEP_SIZE)


class Planted(NamedTuple):
    """A linear model whose target [i, j] is lost after steps[i, j] steps, and not before."""

    image: Float32[Array, "H W 3"]
    pattern: Float32[Array, "H W 3"]  # of -1 and 1
    steps: Int32[Array, "H W"]
    labels: Int32[Array, "H W"]


def plant(seed: int) -> Planted:
    """Draw a model of 8 x 8 targets, the last of which falls after 20 - 5 seed steps.

    Args:
      seed: 0 to 3.
    """
    rng, shape = np.random.default_rng(seed), (8, 8)
    image = rng.uniform(64, WHITE - 64, (*shape, 3)).astype(np.float32)
    pattern = rng.choice(np.array([-1, 1], np.float32), image.shape)
    longest = LONGEST - 5 * seed
    steps = rng.integers(1, longest + 1, shape).astype(np.int32)
    steps[0, 0] = longest
    return Planted(image, pattern, steps, rng.integers(0, 3, shape).astype(np.int32))


def score(seen: Float[Array, "H W 3"], planted: Planted) -> Float[jax.Array, "H W 3"]:
    """Score an image by a planted model.

    A label's score is steps - 1/2 - <pattern, X - X_0> / (3 gamma) at its pixel, the adversarial
    label's 0. Slopes are equal, so every step moves an active pixel by gamma times its pattern,
    and lowers its margin by 1.
    """
    moved = (planted.pattern * (seen - planted.image)).sum(axis=-1) / (3 * STEP_SIZE)
    margin = planted.steps.astype(jnp.float32) - 0.5 - moved
    classes, labels = jnp.arange(3, dtype=jnp.int32)[None, None, :], planted.labels[..., None]
    offset_scores = jnp.where(classes == (labels + 2) % 3, -1e3, 0.0)
    return jnp.where(classes == labels, margin[..., None], offset_scores)


def targets_of(planted: Planted) -> Targets:
    """Return the `Targets` of a planted model."""
    return make_targets(planted.labels, (planted.labels + 1) % 3)


@functools.partial(jax.jit, static_argnames="engine")
def attack_by(planted: Planted, *, engine: Callable) -> Attack:
    """Return the `Attack` that an engine finds on a planted model."""
    score_fn = lambda seen: score(seen, planted)  # noqa: E731
    return engine(score_fn, planted.image, targets_of(planted), METHOD)


def judge(planted: Planted, result: Attack) -> tuple[bool, str]:
    """Return (whether an `Attack` is the known one of a planted model, the numbers as text)."""
    longest = int(planted.steps.max())
    status, made = Status(int(result.status)).name, int(result.num_steps)
    counts = (planted.steps > np.arange(longest + 1)[:, None, None]).sum(axis=(1, 2))
    right = STEP_SIZE * planted.steps[..., None] * planted.pattern
    off = np.abs(result.perturbation - right).max()
    return (
        status == Status.FOOLED.name
        and made == longest
        and np.array_equal(result.active_counts[: made + 1], counts)
        and bool(off < STEP_SIZE / 100)
    ), (
        f"{planted.steps.size} targets of a linear model fall after {longest} steps: {status} "
        f"after {made}, {int(result.active.sum())} left, perturbation off by {off:.2g} grey levels"
    )
