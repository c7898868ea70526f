"""Launches: `python -m experiments.NAME`.

Files are written whole or not at all, so Ctrl-C may end a launch at any moment, its imports
included: it says in one line that nothing is lost, and leaves.
"""

import signal
import sys


def _without_traceback(kind, error, traceback):
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, traceback)
    print("interrupted: what is finished is kept; the same command goes on", file=sys.stderr)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # pressed again, it ends the launch at once
    if jax := sys.modules.get("jax"):  # XLA's threads crash an interpreter that ends before them
        jax.block_until_ready(jax.live_arrays())
    sys.exit(130)  # 128 + SIGINT, as shells have it


sys.excepthook = _without_traceback
