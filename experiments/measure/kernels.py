"""The five places where XLA's plain form is slow on a CPU, against the form that is used.

Shapes are those that FCN-8s and FCN-32s of AlexNet have at 128 x 128 pixels; `shrink` divides
channels, for tests.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dag_jax.networks import layers, operations
from dag_jax.progress import progress
from experiments.measure import naive, timing

ITERATIONS = 4  # of the loop


class Kernel(NamedTuple):
    """One slow spot: two functions of (x, *weights) that should be equal."""

    name: str
    plain: Callable
    ours: Callable
    x: tuple[int, ...]  # shape, rectified where it is a map
    weights: tuple[tuple[int, ...], ...]  # shapes
    looped: bool = False  # whether the point is that it runs in a loop


def _module(module):
    return lambda x, kernel, bias: module.apply({"params": {"kernel": kernel, "bias": bias}}, x)


def _stack(convolve):
    """Return two layers, between which a compiler may choose how arrays lie."""

    def run(x, first, second):
        x = jax.nn.relu(convolve(x, first, padding=1))
        return convolve(x, second, padding=1)

    return run


def kernels(shrink: int = 1) -> list[Kernel]:
    """Return the five, with channels divided by `shrink`."""

    def few(channels):
        return max(2, channels // shrink)

    wide, fc, half = few(512), few(4096), few(192)
    pool = {"size": 2, "stride": 2}
    rise = {"shape": (128, 128), "stride": 32, "kernel_size": 63, "offset": 18}
    return [
        Kernel(
            "fc6 as a 7x7 convolution",
            naive.layer,
            _module(layers.PatchDense(fc, 7)),
            (1, 11, 11, wide),
            ((7, 7, wide, fc), (fc,)),
        ),
        Kernel(
            "2x2 max pool",
            lambda x: naive.max_pool(x, **pool),
            lambda x: operations.max_pool(x, **pool),
            (1, 326, 326, few(64)),
            (),
        ),
        Kernel(
            "convolution in 2 groups",
            lambda x, kernel, bias: naive.layer(x, kernel, bias, padding=1, groups=2),
            _module(layers.Conv(2 * half, 3, padding=1, groups=2)),
            (1, 20, 20, 2 * half),
            ((3, 3, half, 2 * half), (2 * half,)),
        ),
        Kernel(
            "63x63 upsampling by 32",
            lambda x: naive.upsample(x, **rise),
            lambda x: operations.upsample(x, **rise),
            (1, 5, 5, few(21)),
            (),
        ),
        Kernel(
            f"3x3 convolutions, {ITERATIONS} times in a loop",
            _stack(naive.convolve),
            _stack(operations.convolve),
            (1, 82, 82, few(256)),
            ((3, 3, few(256), few(256)),) * 2,
            looped=True,
        ),
    ]


def arrays(kernel: Kernel):
    """Return random x and weights; activations stay of the order of 1."""
    rng = np.random.default_rng(0)
    x = np.maximum(rng.standard_normal(kernel.x), 0)
    weights = [rng.standard_normal(shape) for shape in kernel.weights]
    weights = [w * np.sqrt(2 / max(np.prod(w.shape[:-1]), 1)) for w in weights]
    return tuple(jnp.asarray(array, jnp.float32) for array in (x, *weights))


def value_and_gradient(function, looped: bool):
    """Return a compiled function of (x, *weights): values, and the gradient of half their squares.

    Where looped, the gradient is that after ITERATIONS steps of descent inside a compiled loop.
    """

    def loss(x, weights):
        y = function(x, *weights)
        return 0.5 * jnp.sum(y * y), y

    @jax.jit
    def run(x, *weights):
        def body(carry):
            count, x, _, _ = carry
            (_, y), gradient = jax.value_and_grad(loss, has_aux=True)(x, weights)
            return count + 1, x - 0.01 * gradient, y, gradient

        if not looped:
            return body((0, x, None, None))[2:]
        y = jax.eval_shape(function, x, *weights)
        start = jnp.int32(0), x, jnp.zeros(y.shape, y.dtype), x
        return lax.while_loop(lambda carry: carry[0] < ITERATIONS, body, start)[2:]

    return run


def difference(result, expected) -> float:
    """Return the largest difference of arrays, relative to the largest value expected."""
    return max(
        float(jnp.abs(a - b).max() / jnp.abs(b).max())
        for a, b in zip(result, expected, strict=True)
    )


def measure(*, pairs, shrink):
    """Return a row for each of the five: milliseconds of both forms and their difference."""
    rows = []
    for kernel in progress(kernels(shrink), desc="kernels", position=1, leave=False):
        inputs = arrays(kernel)
        plain, ours = (
            value_and_gradient(function, kernel.looped) for function in (kernel.plain, kernel.ours)
        )
        control = difference(ours(*inputs), plain(*inputs))
        calls = [functools.partial(form, *inputs) for form in (plain, ours)]
        # The control was the first call of both, in which they were compiled.
        comparison = timing.compare(timing.alternate(calls, pairs, warm=False))
        plain_ms, ours_ms = (1000 * seconds for seconds in comparison["seconds"])
        rows.append(
            {
                "case": kernel.name,
                "plain_ms": plain_ms,
                "ours_ms": ours_ms,
                "ratio": comparison["ratio"],
                "range": comparison["range"],
                "difference": control,
                "pairs": pairs,
            }
        )
    return rows
