"""Launches: `python -m experiments.NAME`.

Files are written whole or not at all, so Ctrl-C may end a launch at any moment, even while it
imports. The launch then says in one line that nothing is lost, and ends.
"""

import contextlib
import signal
import sys


def _leave():
    after_bar = "\n" if sys.stderr.isatty() else ""  # or after ^C
    print(
        f"{after_bar}interrupted: what is finished is kept; the same command goes on",
        file=sys.stderr,
    )
    with contextlib.suppress(OSError):  # nobody reads it any more
        sys.stdout.flush()
    # By the signal itself, which shells call exit code 130: an interpreter that ends while XLA
    # still computes now and then crashes.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)


def _uncaught(kind, error, traceback, otherwise=sys.excepthook):
    if issubclass(kind, KeyboardInterrupt):
        _leave()
    errors = sys.modules.get("dag_jax.errors")
    if errors and issubclass(kind, errors.MissingPackageError):  # while a launch is imported
        install = "pip install --editable '.[experiments]'"
        print(f"error: launches need {error.name}, too: {install}", file=sys.stderr)
    else:
        otherwise(kind, error, traceback)


def _unraisable(unraisable, otherwise=sys.unraisablehook):
    """End the launch even where Python ignores Ctrl-C: in the garbage collector's callbacks."""
    if unraisable.exc_type is KeyboardInterrupt:
        _leave()
    otherwise(unraisable)


sys.excepthook, sys.unraisablehook = _uncaught, _unraisable
