"""What may have happened to a file: bits, pieces, lengths, names and numbers that are others."""

import random
import re
from collections.abc import Sequence

_LONGEST = 1 << 16  # bytes of what a mutation may grow to
_WORDS = re.compile(rb"[A-Za-z_][A-Za-z_0-9]+")
_NUMBERS = re.compile(rb"-?[0-9]+(?:\.[0-9]+)?")
# Texts where a number was.
_TEXTS = (
    b"0 -1 1 255 256 65536 2147483648 9999999999999999999 1e999 -1e999 nan inf 1.5 null".split()
)
_TEXTS += [b"", b"[]", b"{}", b'""', b"true", b"null", b"9" * 5000, b"\xff", b"\xc3\xa9"]
_INTEGERS = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63)


def mutated(seeds: Sequence[bytes], random: random.Random) -> bytes:
    """Return a copy of one of several files of a kind, one to four times damaged."""
    data = random.choice(seeds)
    for _ in range(random.choice((1, 1, 1, 2, 3, 4))):
        data = random.choice(_MUTATIONS)(data, seeds, random)[:_LONGEST]
    return data


def _flip(data, seeds, random):
    copy = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        if copy:
            copy[random.randrange(len(copy))] ^= 1 << random.randrange(8)
    return bytes(copy)


def _place(data, random, most=64):
    """Return where a piece begins and ends."""
    start = random.randrange(len(data) + 1)
    return start, min(start + random.randrange(1, most), len(data))


def _end(data, seeds, random):
    return data[: random.randrange(len(data) + 1)]


def _cut(data, seeds, random):
    start, end = _place(data, random)
    return data[:start] + data[end:]


def _put(data, seeds, random):
    start, _ = _place(data, random)
    return data[:start] + random.randbytes(random.randrange(1, 16)) + data[start:]


def _splice(data, seeds, random):
    """Put a piece of a file in the place of one, as long or not."""
    donor = random.choice(seeds)
    begin, end = _place(donor, random, most=256)
    start = random.randrange(len(data) + 1)
    stop = random.choice((start, start + end - begin, *_place(data, random)[1:]))
    return data[:start] + donor[begin:end] + data[max(start, stop) :]


def _repeat(data, seeds, random):
    start, end = _place(data, random)
    times = random.choice((2, 3, 10, 100, 2000))
    return data[:start] + (data[start:end] * times)[:_LONGEST] + data[end:]


def _integer(data, seeds, random):
    """Blow up what may be a length, of one to eight bytes, or of protobuf's."""
    start, width = random.randrange(len(data) + 1), random.choice((1, 2, 4, 4, 8))
    number = random.choice((*_INTEGERS, len(data), random.randrange(256)))
    order = random.choice(("little", "big"))
    new = (number % 2 ** (8 * width)).to_bytes(width, order)
    if random.randrange(4) == 0:
        new, width = random.choice((b"\xff\xff\xff\xff\x07", b"\xff" * 9 + b"\x01", b"\x80\x80")), 1
    return data[:start] + new + data[start + width :]


def _swap(pattern, data, new, random):
    """Put something in the place of one of the texts that a pattern finds."""
    places = list(pattern.finditer(data))
    if not places:
        return data
    place = random.choice(places)
    return data[: place.start()] + new + data[place.end() :]


def _word(data, seeds, random):
    words = _WORDS.findall(random.choice(seeds))
    return _swap(_WORDS, data, random.choice(words) if words else b"", random)


def _number(data, seeds, random):
    return _swap(_NUMBERS, data, random.choice(_TEXTS), random)


_MUTATIONS = (_flip, _flip, _end, _cut, _put, _splice, _repeat, _integer, _integer, _word, _number)
