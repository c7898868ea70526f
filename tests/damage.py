"""What may have happened to a file, as strategies of hypothesis, which finds the least that fails.

They are drawn from a seed that is the same every time.
"""

import functools

import hypothesis
from hypothesis import strategies

PIECE = 100  # bytes, the most that is cut out or put in


def given(count, **drawn):
    """Run a test on so many examples, the same every time.

    Fixtures are shared by them: each example writes its file anew.
    """
    settings = hypothesis.settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    return lambda test: settings(hypothesis.given(**drawn)(test))


@strategies.composite
def damaged(draw, whole: bytes):
    """Draw a copy with a flipped bit, other bytes, a piece cut out, put in, or no end."""
    at = draw(strategies.integers(0, len(whole) - 1))
    piece = functools.partial(strategies.binary, min_size=1)
    cut = draw(strategies.sampled_from(["flip", "flip", "replace", "largest", "cut", "put", "end"]))
    tail = whole[at:]
    if cut == "flip":
        tail = bytes([tail[0] ^ 1 << draw(strategies.integers(0, 7))]) + tail[1:]
    elif cut == "end":
        tail = b""
    elif cut == "put":
        tail = draw(piece(max_size=PIECE)) + tail
    elif cut == "cut":
        tail = tail[draw(strategies.integers(1, PIECE)) :]
    else:
        new = draw(piece(max_size=8))
        new = b"\xff" * len(new) if cut == "largest" else new  # lengths and counts
        tail = new + tail[len(new) :]
    return whole[:at] + tail
