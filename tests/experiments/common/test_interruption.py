"""Ctrl-C, pressed where an exception would be lost.

`console.wait_until` is the launch's own code here: it calls what the test presses Ctrl-C in.
"""

import dataclasses
import gc
import os
import signal
import subprocess
import sys
import weakref

import jax
import pytest

from experiments.common import console, interruption


def press():
    signal.raise_signal(signal.SIGINT)


class Pressing:
    """Something in whose first comparison Ctrl-C is pressed."""

    pressed = False

    def __hash__(self):
        return 1

    def __eq__(self, other):
        if not (self.pressed or other.pressed):
            self.pressed = other.pressed = True
            press()
        return False


@dataclasses.dataclass(frozen=True)
class Settings:
    """What JAX's C++ compares: by code that dataclasses make up, which is in no file."""

    value: Pressing


def in_a_weak_reference():
    watched = Pressing()
    watching = weakref.ref(watched, lambda _: press())
    del watched
    return watching


def in_the_garbage_collector():
    def callback(phase, info):
        gc.callbacks.remove(callback)
        press()

    gc.callbacks.append(callback)
    gc.collect()


def in_a_comparison():
    compiled = jax.jit(lambda one, settings: one, static_argnums=1)
    return [compiled(1.0, Settings(Pressing())) for _ in range(2)]


def in_a_map_of_jax():
    return jax.tree.map(lambda one: press() or one, 1)


PLACES = (in_a_weak_reference, in_the_garbage_collector, in_a_comparison, in_a_map_of_jax)


@pytest.fixture
def by_python(monkeypatch):
    """Python's own handler, and a list of the exceptions that it loses."""
    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lambda one: lost.append(one.exc_type))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lost
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def listening(by_python):
    """What a launch does first."""
    interruption.listen()
    yield
    sys.setprofile(None)


def pressed_in(place, ended):
    """Wait for something that never is, and press Ctrl-C meanwhile."""

    def ready():
        if not ended:
            place()
            ended.append(place)
        return len(ended) > 3

    console.wait_until(ready, "nothing", lambda: ended.append("went on") or [])


@pytest.mark.parametrize("place", PLACES)
def test_it_is_heard_once_the_place_is_left(listening, place):
    ended = []
    with pytest.raises(KeyboardInterrupt):
        pressed_in(place, ended)
    assert ended in ([place], [place, "went on"]) and sys.getprofile() is None


@pytest.mark.parametrize("place", [in_a_weak_reference, in_the_garbage_collector])
def test_python_alone_loses_it_there(by_python, place):
    ended = []
    pressed_in(place, ended)
    assert ended == [place, *["went on"] * 3] and by_python == [KeyboardInterrupt]


def test_in_a_comparison_it_turns_into_another_error(by_python):
    with pytest.raises(ValueError, match="__eq__|equality"):
        pressed_in(in_a_comparison, [])


def test_pressed_again_it_does_not_wait(listening):
    passed = []

    def twice(one):
        press()
        passed.append(one)
        press()
        passed.append(one)

    with pytest.raises(KeyboardInterrupt):
        jax.tree.map(twice, 1)
    assert passed == [1]


def test_elsewhere_it_is_heard_at_once(listening):
    passed, ended = [], []

    def in_a_sort():
        sorted([1, 2], key=lambda one: passed.append(one) or press())

    with pytest.raises(KeyboardInterrupt):
        pressed_in(in_a_sort, ended)
    assert passed == [1] and not ended


def test_who_ignores_it_goes_on_to(listening):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interruption.listen()
    press()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_other_lost_errors_are_told(listening, capfd):
    watched = Pressing()
    watching = weakref.ref(watched, lambda _: 1 / 0)
    del watched
    assert watching() is None and "ZeroDivisionError" in capfd.readouterr().err
    assert sys.getprofile() is None


def test_leaving_prints_what_was_said_and_skips_the_rest():
    said = (
        "import atexit; from experiments import interruption; atexit.register(print, 'the end'); "
        "print('kept'); interruption.leave(130)"
    )
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "kept\n", "")


def test_leaving_does_not_mind_that_nobody_reads():
    said = "from experiments import interruption; print('lost'); interruption.leave(130)"
    reader, writer = os.pipe()
    os.close(reader)
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}
    done = subprocess.run([sys.executable, "-c", said], stdout=writer, env=buffered)
    os.close(writer)
    assert done.returncode == 130
