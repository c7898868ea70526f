"""Seconds of calls that take turns, and the compiler's account of a program.

The machine is shared and its speed varies. So two functions are compared only if they ran in turns,
and the figure is the median of the pairs' ratios, with their range.
"""

import statistics
import time

import jax

MIB = 2**20


def timed(function, *arguments) -> float:
    """Return the seconds of one call, until its results are there."""
    started = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - started


def alternate(functions, pairs: int, *, warm: bool = True) -> list[tuple[float, ...]]:
    """Time functions of no arguments in turns.

    Args:
      functions: what to call.
      pairs: rounds.
      warm: whether to call each once before, so that it is compiled.

    Returns:
      For each round the seconds of each function.
    """
    for function in functions if warm else ():
        timed(function)
    return [tuple(timed(function) for function in functions) for _ in range(pairs)]


def compare(times) -> dict:
    """Return the medians and the ratio of pairs of seconds.

    Args:
      times: pairs (a, b).

    Returns:
      "seconds": medians of a and of b; "ratio": median of a / b; "range": its least and largest.
    """
    ratios = [a / b for a, b in times]
    return {
        "seconds": [statistics.median(column) for column in zip(*times, strict=True)],
        "ratio": statistics.median(ratios),
        "range": [min(ratios), max(ratios)],
    }


def split(count: int, parts: int, multiple: int = 1) -> list[int]:
    """Divide `count` into at most `parts` equal sizes, multiples of `multiple` but for the last.

    Args:
      count: the number to divide.
      parts: the most parts.
      multiple: the divisor of all sizes but the last.
    """
    ends = [multiple * round(count * part / parts / multiple) for part in range(1, parts)]
    ends = sorted({0, count, *(end for end in ends if 0 < end < count)})
    return [end - start for start, end in zip(ends, ends[1:], strict=False)]


def pull_in_turns(iterators, sizes, clock=time.perf_counter):
    """Take items of generators in turns, one part of each after the other, and close them.

    A generator computes only while its next item is awaited, so several long runs alternate. A
    stream's devices finish their chunk even while another generator runs. So parts should be long
    compared with a chunk, or be whole runs.

    Args:
      iterators: generators of as many items as `sizes` have in all, or of more.
      sizes: items of each part.
      clock: function of no arguments that returns seconds.

    Returns:
      (times, items): for each part the seconds of each iterator, and for each iterator its items.
    """
    times, items = [], [[] for _ in iterators]
    for size in sizes:
        row = []
        for iterator, pulled in zip(iterators, items, strict=True):
            started = clock()
            pulled.extend(next(iterator) for _ in range(size))
            row.append(clock() - started)
        times.append(tuple(row))
    for iterator in iterators:
        iterator.close()
    return times, items


def account(compiled) -> dict:
    """Return the compiler's own account of a program: flops, and MiB of temporaries.

    Either is None where this platform's compiler does not say.
    """
    cost = compiled.cost_analysis() or {}
    cost = cost[0] if isinstance(cost, list) else cost
    memory = compiled.memory_analysis()
    return {
        "flops": cost.get("flops"),
        "temporaries_mib": memory and memory.temp_size_in_bytes / MIB,
    }
