"""Hostile settings for every test, and what several test files share.

Implicit dtype promotion and implicit rank promotion raise, warnings are errors (pyproject.toml),
and the CPU shows as two devices, so that code which is right only on one device or by luck of
promotion fails here. Set JAX_PLATFORMS to run the tests on an accelerator.
"""

import atexit
import functools
import os
import pathlib
import shutil
import tempfile

# Before the first import of NumPy and JAX, which read these once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores already. XLA has no such setting that works with two CPU devices.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Compiling takes most of a test's time, and much of that LLVM's optimisation: HLO's stays as users
# have it. JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests with both.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# What is compiled once is there for all workers, and for the
# launches that tests start. A folder that is named from outside is kept for the next session.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _COMPILED = tempfile.mkdtemp(prefix="dag_jax_compiled_")
    atexit.register(shutil.rmtree, _COMPILED, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", "4000000000")  # with a limit, JAX locks it
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import numpy as np
import optax
import pytest
from jax._src import lru_cache

# For each program that it keeps, JAX would read the age of all others: 35 ms when they are 1000.
lru_cache.LRUCache._evict_if_needed = lambda *args, **options: None

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


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Folder of prepared datasets, shared by the tests of a worker."""
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator that starts anew, from the same seed, in every test."""
    return np.random.default_rng(0)


def _varint(number: int) -> bytes:
    run = bytearray()
    while number > 127:
        run.append(number & 127 | 128)
        number >>= 7
    return bytes([*run, number])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


@pytest.fixture(scope="session")
def write_caffemodel():
    """Write {layer: [blob, ...]} as a .caffemodel, byte by byte, in the form of today's Caffe.

    NetParameter: name 1, layer 100; LayerParameter: name 1, type 2, blobs 7; BlobProto: data 5,
    shape 7; BlobShape: dim 1. Types are left to the prototxt.
    """

    def write(path, layers):
        with open(path, "wb") as file:
            file.write(_field(1, b"net"))
            for name, blobs in layers.items():
                layer = _field(1, name.encode()) + _field(2, b"Convolution")
                for blob in blobs:
                    dims = b"".join(map(_varint, blob.shape))
                    data = np.ascontiguousarray(blob, "<f4").tobytes()
                    layer += _field(7, _field(7, _field(1, dims)) + _field(5, data))
                file.write(_field(100, layer))
        return path

    return write


@pytest.fixture(scope="session")
def caffe_blobs():
    """Return parameters of a network as Caffe would store them: {layer: [weights, bias]}.

    Layers keep our names; `renamed` gives others.
    """

    def store(parameters, renamed=()):
        renamed, blobs = dict(renamed), {}
        flat = parameters | parameters.get("backbone", {})
        for name, leaves in flat.items():
            if name != "backbone":
                kernel = np.asarray(leaves["kernel"])
                axes = (kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2))
                blobs[renamed.get(name, name)] = [
                    kernel.transpose(axes),
                    np.asarray(leaves["bias"]),
                ]
        return blobs

    return store
