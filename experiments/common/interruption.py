"""Ctrl-C in a launch: heard wherever it is pressed, and answered with an exit, never with a crash.

Python runs a signal's handler between any two steps of the main thread, and JAX has many at which
an exception goes nowhere, or turns into another: in what is called back by the garbage collector,
by weak references, and by C++ that compares two static arguments. A Ctrl-C there is lost
(https://github.com/jax-ml/jax/issues/18246). Here it waits until the launch's own code goes on.

And where an interpreter ends while XLA's threads still hold its objects, they now and then abort
the process. So an interrupted launch says what it has to say, and leaves without that end; files
are written whole or not at all.
"""

import contextlib
import os
import signal
import sys

_OURS = ("__main__", "dag_jax", "experiments")
_THEIRS = ("flax", "jax", "jaxlib")  # whose C++ calls Python back


def listen() -> None:
    """Let Ctrl-C raise KeyboardInterrupt where it is heard; pressed again, at once.

    To be called in the main thread. A process that ignores Ctrl-C goes on to do so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _unraisable


def leave(code: int) -> None:
    """End the process, with what is printed and nothing else."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


def _interrupt(number, frame):
    again = sys.getprofile() is not None
    if again or _is_heard(frame):
        raise KeyboardInterrupt
    sys.setprofile(_later)


def _unraisable(unraisable):
    """Keep an interruption that was lost in a function that C called back."""
    if unraisable.exc_type is KeyboardInterrupt:
        sys.setprofile(_later)
    else:
        sys.__unraisablehook__(unraisable)


def _later(frame, event, argument):
    """Raise the interruption that waits, at the next call or return in the launch's own code."""
    if _is_ours(frame):
        sys.setprofile(None)
        raise KeyboardInterrupt


def _is_heard(frame):
    """Return whether an exception in a frame gets to the launch's own code as it is."""
    while frame is not None and not _is_ours(frame):
        if _package(frame) in _THEIRS or _is_made_up(frame):
            return False
        frame = frame.f_back
    return True


def _is_ours(frame):
    if frame.f_globals is globals():  # what waits must not be raised in its own handler
        return False
    return _package(frame) in _OURS and not _is_made_up(frame)


def _is_made_up(frame):
    """Return whether no file has the code, as that of a dataclass's comparison and hash."""
    return frame.f_code.co_filename.startswith("<")


def _package(frame):
    return frame.f_globals.get("__name__", "").partition(".")[0]
