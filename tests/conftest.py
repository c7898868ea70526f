"""Hostile settings for every test, and what several test files share.

Implicit dtype promotion and implicit rank promotion raise, warnings are errors (pyproject.toml),
and the CPU shows as two devices, so that code which is right only on one device or by luck of
promotion fails here. Set JAX_PLATFORMS to run the tests on an accelerator.
"""

import functools
import os
import pathlib

# Before the first import of NumPy and JAX, which read these once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores already. XLA has no such setting that works with two CPU devices.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import numpy as np
import optax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 2)


def _with_standard_promotion(function):
    """Run one function of a library, and nothing of ours, under JAX's usual promotion."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return wrapper


def _schedule_with_standard_promotion(factory):
    @functools.wraps(factory)
    def wrapper(*args, **kwargs):
        return _with_standard_promotion(factory(*args, **kwargs))

    return wrapper


# These functions of optax combine an int32 step count with floats and fail under strict promotion.
# optax looks each up by this name, so Adam, its relatives and these schedules work, and a loss that
# is differentiated beside them stays strict.
optax.tree.bias_correction = _with_standard_promotion(optax.tree.bias_correction)
optax.cosine_decay_schedule = _schedule_with_standard_promotion(optax.cosine_decay_schedule)
optax.warmup_cosine_decay_schedule = _schedule_with_standard_promotion(
    optax.warmup_cosine_decay_schedule
)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of real photographs beside the project; the test skips where there is none."""
    folder = pathlib.Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no folder named shared beside the project, so no real photographs")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator that starts anew, from the same seed, in every test."""
    return np.random.default_rng(0)
