"""Threads that write results while the devices go on."""

import concurrent.futures
from collections.abc import Callable

from dag_jax.engine.threads import bound

_THREADS = 2
_WAITING = 4  # results under way at a time: each holds images in memory


class Writers:
    """A few threads that call one function with whatever is submitted.

        with Writers(write) as writers:
            writers.submit(row, attack)

    What has been submitted is written even where the block ends by an error or an interruption. An
    error of `write` is raised by the next `submit`, or at the end of the block.
    """

    def __init__(self, write: Callable):
        """Remember what to call; it must not mind two threads."""
        self._write = write
        self._pool = concurrent.futures.ThreadPoolExecutor(_THREADS, "dag_jax writer")
        self._futures: set[concurrent.futures.Future] = set()

    def __enter__(self) -> "Writers":
        """Return itself."""
        return self

    def submit(self, *args) -> None:
        """Have `write(*args)` called; wait first while too many calls are under way."""
        finished = [future for future in self._futures if future.done()]
        if len(self._futures) - len(finished) >= _WAITING:
            finished += concurrent.futures.wait(
                self._futures - set(finished), return_when=concurrent.futures.FIRST_COMPLETED
            ).done
        self._futures.difference_update(finished)
        for future in finished:
            future.result()
        self._futures.add(self._pool.submit(bound(self._write), *args))

    def __exit__(self, kind, error, traceback) -> None:
        """Wait for all calls; raise the error of one, if nothing else is being raised."""
        self._pool.shutdown(wait=True)
        if kind is None:
            for future in self._futures:
                future.result()
