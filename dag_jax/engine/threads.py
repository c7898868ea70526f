"""Work in other threads, under the settings of the thread that asks for it."""

import contextlib
import contextvars
from collections.abc import Callable

import jax


def bound(function: Callable) -> Callable:
    """Return a function for another thread, which runs there as it would run here and now.

    It has JAX's settings of this thread (`jax.default_matmul_precision`, ...) and its context
    variables (`numpy.errstate`). Call it once.
    """
    context, settings = contextvars.copy_context(), _settings()

    def run(*args):
        with _under(settings):
            return function(*args)

    return lambda *args: context.run(run, *args)


def _settings():
    """Return {name: value} of this thread's JAX settings that a context manager can change."""
    values = jax.config.values
    return {name: values[name] for name in values if name.removeprefix("jax_") in vars(jax)}


@contextlib.contextmanager
def _under(settings):
    """Give this thread other settings, from `_settings`, inside a `with` block."""
    with contextlib.ExitStack() as stack:
        for name, value in settings.items():
            if jax.config.values[name] != value:
                stack.enter_context(vars(jax)[name.removeprefix("jax_")](value))
        yield
