"""Launches: `python -m experiments.NAME`.

Files are written whole or not at all, so Ctrl-C may end a launch at any moment, its imports
included: it says in one line that nothing is lost, and leaves.
"""

import sys


def _without_traceback(kind, error, traceback):
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, traceback)
    print("interrupted: what is finished is kept; the same command goes on", file=sys.stderr)
    sys.exit(130)  # 128 + SIGINT, as shells have it


sys.excepthook = _without_traceback
