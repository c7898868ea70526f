"""Hostile settings for every test, and what several test files share.

Implicit dtype promotion and implicit rank promotion raise, warnings are errors (pyproject.toml),
and the CPU shows as two devices, so that code which is right only on one device or by luck of
promotion fails here. Set JAX_PLATFORMS to run the tests on an accelerator.

What public functions are given and return is compared with their annotations, shapes included.
"""

import atexit
import functools
import gc
import importlib.metadata
import os
import pathlib
import shutil
import sys
import tempfile
import types

# Before the first import of NumPy, JAX and Keras, which read these once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_BACKEND", "jax")
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores already. XLA has no such setting that works with two CPU devices.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Compiling takes most of a test's time. HLO's optimisation stays as users have it; LLVM's is the
# cheapest and, where XLA still has older emitters (an unknown flag ends the process), loops come
# from these, which halves it. XLA_FLAGS= JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests what users have.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
# What is compiled once is there for all workers, and for the
# launches that tests start. A folder that is named from outside is kept for the next session.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _COMPILED = tempfile.mkdtemp(prefix="dag_jax_compiled_")
    atexit.register(shutil.rmtree, _COMPILED, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", "4000000000")  # with a limit, JAX locks it
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import beartype
import jax
import jaxtyping
import numpy as np
import optax
import pytest
from jax._src import lru_cache

import dag_jax

# For each program that it keeps, JAX would read the age of all others: 35 ms when they are 1000.
lru_cache.LRUCache._evict_if_needed = lambda *args, **options: None

gc.set_threshold(50_000, 50, 100)  # programs fill memory with objects that stay
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


# Where public functions are checked; an int will do for a float, as for type checkers.
_CHECKED = ("adapters", "datasets", "detection", "engine", "methods", "metrics", "models", "runs")
_TYPES = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
_seen = {"dag_jax.engine.feed", "dag_jax.engine.lanes"}  # a stream's own, tested with stand-ins


def _with_checks(plain):
    """Return a function that does what another does, and raises where its annotations are wrong.

    What the other refuses by itself it refuses in its own words: those are a user's.
    """
    checked = functools.cache(lambda: jaxtyping.jaxtyped(plain, typechecker=_TYPES))

    def wrapper(*args, **kwargs):
        try:
            return checked()(*args, **kwargs)
        except jaxtyping.TypeCheckError as violation:
            try:
                plain(*args, **kwargs)
            except dag_jax.UserError:
                raise
            except Exception:  # of some library: no answer to a user's mistake
                pass
            raise violation

    return wrapper


def _call(*args, _wrapper, **kwargs):
    return _wrapper(*args, **kwargs)


def _check(function):
    """Check a function from now on.

    It stays the object that other modules have imported, that `dag_jax.DAG` holds and that is
    compiled: its code is what changes.
    """
    code, name = function.__code__, function.__name__
    plain = types.FunctionType(code, function.__globals__, name, function.__defaults__)
    functools.update_wrapper(plain, function)
    del plain.__wrapped__
    plain.__kwdefaults__ = function.__kwdefaults__
    function.__code__, function.__defaults__ = _call.__code__, None
    function.__kwdefaults__ = {"_wrapper": _with_checks(plain)}
    function.__wrapped__ = plain  # whose signature is shown


def _functions(scope, path):
    """Yield the public functions of a module, and its classes' methods; no generated ones."""
    for name, value in list(vars(scope).items()):
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        if isinstance(value, type) and value.__module__ == getattr(scope, "__name__", None):
            yield from _functions(value, path)
        while hasattr(value, "__wrapped__"):  # compiled, cached
            value = value.__wrapped__
        if isinstance(value, types.FunctionType) and value.__code__.co_filename == path:
            yield value


def pytest_configure():
    """Hide pytest's own arguments, which flags of launches would read as theirs."""
    sys.argv[1:] = []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Check the functions of modules that were imported since the last test."""
    for name in [name for name in sys.modules if name.startswith("dag_jax.")]:
        if name not in _seen and name.split(".")[1] in _CHECKED:
            path = sys.modules[name].__file__
            for function in _functions(sys.modules[name], path):
                if function.__annotations__ and not function.__code__.co_freevars:
                    _check(function)
        _seen.add(name)


@pytest.fixture(scope="module", autouse=True)
def few_mappings():
    """Forget compiled programs before Linux refuses the process more memory, and it crashes.

    Each program takes some 40 mappings of memory, of which a process has 65530. Programs come back
    from the folder of those that are compiled.
    """
    yield
    mappings = pathlib.Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > 25_000:
        jax.clear_caches()
        gc.collect()


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


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window: the system's, or the one that Playwright has installed."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    system = shutil.which("chromium") or shutil.which("chromium-browser")
    with api.sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=system, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no Chromium starts here: {str(error).splitlines()[0]}")
        yield chromium
        chromium.close()


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
