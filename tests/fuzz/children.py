"""Inputs read in forked processes, which may crash, hang or take all of the memory."""

import contextlib
import dataclasses
import json
import mmap
import os
import pathlib
import random
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence

from dag_jax.errors import UserError
from tests.fuzz.mutations import mutated

_LONGEST_MESSAGE = 2000  # characters
_ADDRESS_SPACE = 4 << 30  # bytes beyond what a process has when it begins
_PATIENCE = 20  # times a reader's seconds, on the wall's clock: others use the machine, too


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader with what it is tried on, and its bounds.

    Attributes:
      name: for messages.
      seeds: contents of small files that it reads.
      read: function of (folder of the process, contents), which raises one of `errors` or returns.
      wrap: function of mutated contents that returns those of the file, with right checksums; what
        it cannot wrap it raises an exception for, and goes as it is.
      seconds: of the processor, the most for one input.
      mebibytes: the most that one input may add to what a process has.
      lines: the most of an error's message.
      errors: what it may raise.
    """

    name: str
    seeds: Sequence[bytes]
    read: Callable
    wrap: Callable = bytes
    seconds: float = 2.0
    mebibytes: int = 96
    lines: int = 1
    errors: tuple = (UserError,)


class _TooLong(BaseException):
    """No reader catches this."""


def make(reader: Reader, seed: int, number: int) -> bytes:
    """Return an input, the same for the same numbers."""
    generator = random.Random(f"{seed} {reader.name} {number}")
    data = mutated(reader.seeds, generator)
    with contextlib.suppress(Exception):  # the mutation took from it what wrapping needs
        return reader.wrap(data)
    return data


def check(reader: Reader, folder, data: bytes) -> tuple[str, str]:
    """Read an input; returns ("read" | "refused" | a fault, what there is to say of it)."""
    start, before = time.process_time(), _peak()
    try:
        reader.read(folder, data)
        outcome = "read", ""
    except reader.errors as error:
        outcome = "refused", str(error)
        lines = len(outcome[1].splitlines())
        if not 0 < lines <= reader.lines or len(outcome[1]) > _LONGEST_MESSAGE * reader.lines:
            outcome = f"a message of {lines} lines and {len(outcome[1])} characters", outcome[1]
        if getattr(error, "errno", None) == 12:
            outcome = "out of memory", traceback.format_exc()
    except (Exception, _TooLong) as error:
        outcome = type(error).__name__, traceback.format_exc()
    seconds, grown = time.process_time() - start, (_peak() - before) / 2**20
    if seconds > reader.seconds:
        outcome = "too long", f"{seconds:.1f} s. {outcome[1]}"
    elif grown > reader.mebibytes:
        outcome = "too much memory", f"{grown:.0f} MiB. {outcome[1]}"
    return outcome


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _alarm(*_):
    raise _TooLong


def batch(reader: Reader, seed: int, first: int, count: int) -> tuple[dict, list, int]:
    """Read inputs in a process of their own, until one ends it.

    Returns:
      ({"read", "refused": their numbers}, [(number, fault, what there is to say)], the number of
      the next input).
    """
    at = mmap.mmap(-1, 8)  # the number of the input that is being read
    receive, send = os.pipe()
    folder = tempfile.mkdtemp(prefix="dag_jax_fuzz_")
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.close(receive)
        _run(reader, seed, first, count, pathlib.Path(folder), at, send)
    os.close(send)
    pieces, moved, then = [], time.monotonic(), -1
    died = ""
    while True:
        if select.select([receive], [], [], 1)[0]:
            if not (piece := os.read(receive, 1 << 16)):
                break
            pieces.append(piece)
            continue
        now = struct.unpack("q", at[:])[0]
        if now != then:
            moved, then = time.monotonic(), now
        elif time.monotonic() - moved > _PATIENCE * reader.seconds:
            died = "hangs"
            os.kill(child, signal.SIGKILL)
    os.close(receive)
    _, status = os.waitpid(child, 0)
    shutil.rmtree(folder, ignore_errors=True)
    counts, faults = {"read": 0, "refused": 0}, []
    for line in b"".join(pieces).splitlines():
        content = json.loads(line)
        if isinstance(content, dict):
            counts = content
        else:
            faults.append(tuple(content))
    following = first + count
    if status:
        number = struct.unpack("q", at[:])[0]
        died = died or f"ends with status {status}, signal {status & 127}"
        faults.append((number, died, ""))
        following = number + 1
        counts["read"] += max(number - first, 0)  # or refused
    at.close()
    return counts, faults, following


def _run(reader, seed, first, count, folder, at, send):
    """Read inputs, say what became of them, and end the process."""
    code = 1
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1), os.dup2(silent, 2)
        size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
        resource.setrlimit(resource.RLIMIT_AS, (size + _ADDRESS_SPACE,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGPROF, _alarm)
        counts = {"read": 0, "refused": 0}
        for number in range(first, first + count):
            at[:] = struct.pack("q", number)
            data = make(reader, seed, number)
            try:
                signal.setitimer(signal.ITIMER_PROF, 3 * reader.seconds)
                fault, text = check(reader, folder, data)
                signal.setitimer(signal.ITIMER_PROF, 0)
            except _TooLong:
                fault, text = "too long", traceback.format_exc()
            if fault in counts:
                counts[fault] += 1
            else:
                _write(send, (number, fault, text[-5000:]))
        _write(send, counts)
        code = 0
    finally:
        os._exit(code)


def _write(send, content):
    line = json.dumps(content).encode() + b"\n"
    while line:
        line = line[os.write(send, line) :]
