"""Launches: `python -m experiments.NAME`.

Files are written whole or not at all, so Ctrl-C may end a launch at any moment, its imports
included: it says in one line that nothing is lost, and leaves.
"""

import contextlib
import signal
import sys


def _without_traceback(kind, error, traceback):
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, traceback)
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


sys.excepthook = _without_traceback
