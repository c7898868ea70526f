"""Many images through few slots: a finished image makes room for the next.

One image needs 10 steps, another 200; a batch that waits for its slowest image wastes most of its
work. Here a fixed number of images is advanced together, a chunk of iterations at a time, and
between chunks the finished ones leave and new ones take their slots, without a new compilation.
The host reads, checks and pads the next images meanwhile, and hands out those that are done.

The result of an image depends on the image alone: not on its neighbours, their order, or the number
of slots and devices. On a CPU, where a device's images advance one after the other, this holds to
the last bit.

Shapes: `S` slots; otherwise as in `dag_jax.attack`.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dag_jax.engine.algorithm import Attack
from dag_jax.engine.checks import check_method, check_score_fn
from dag_jax.engine.feed import Example, Failure, Feed, Prepare
from dag_jax.engine.lanes import Lanes, spread
from dag_jax.engine.method import Method
from dag_jax.engine.scoring import as_callable_pytree, told_apart
from dag_jax.errors import UserError

_AHEAD = 4  # examples read ahead for each slot: with several shapes, enough to fill one's slots
_CHUNK = 4  # iterations between two looks, where nothing says another number
_LONGEST_CHUNK = 16  # iterations, where nothing says another number
_LOOKS = 8  # looks at an image while it is attacked that a CPU aims at
_REMEMBERED = 64  # results whose steps say how long a chunk may be
_LOOK = 0.5  # seconds between two looks that a CPU is to have
_FIRST_WAIT = 1.0  # seconds that the first chunk waits for its slots to fill
_WAIT = (
    0.05  # of a chunk's time, what the next one waits: an empty slot costs as much as a full one
)
_LONGEST_WAIT = 0.25  # seconds
_MOST_BUCKETS = 16  # shapes whose lanes are kept when none of their images is there
_PATIENCE = 16  # chunks that images of a rare shape wait for, when others have more
_SHOWN = 5  # failures that the last error spells out


class Chunk(NamedTuple):
    """What a stream did between two looks at its slots, for measurements."""

    shape: tuple[int, int]  # pixels H W of the images that advanced, padding included
    slots: int  # S
    taken: int  # slots with an image in them
    # Of the slot that made most; on a CPU those of the device that made most, over the most images
    # that a device had.
    iterations: int
    busy: int  # iterations of all slots
    ended: bool  # whether the input had ended before
    seconds: float  # that the devices worked, on average
    idle: float  # seconds that they waited: for each other, and before, since the last chunk


def attack_stream(
    score_fn: Callable,
    examples: Iterable,
    method: Method = Method(),  # noqa: B008
    *,
    slots: int = 16,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    bucket: Callable | None = None,
    read_ahead: int | None = None,
    on_failure: Callable | None = None,
    monitor: Callable[[Chunk], None] | None = None,
) -> Iterator[tuple[object, Attack]]:
    """Attack a stream of images.

    An example that cannot be attacked does not stop the others: it is handed to `on_failure`, or
    named by an error after the last result. If the input raises, or Ctrl-C is pressed while the
    stream works, finished results are yielded first, and then the error is raised. A consumer
    that is interrupted in its own code gets the finished results by `stream.throw(error)`.

    Args:
      score_fn: image f32[H, W, 3] -> scores, as in `attack`; with further arguments where the
        examples bring them. A pytree, or a method of one, has its parameters traced.
      examples: yields (key, image, targets), or (key, image, targets, inputs) where `inputs` is a
        tuple of arrays that `score_fn` takes after the image (a detector's boxes). A key may be
        any value; it comes back with the result. The iterable may be endless. It is read in
        another thread, under the settings (`jax.default_matmul_precision`, ...) of the thread that
        asks for the first result. A `Failure(key, error)` is an example that failed already.
      method: what the attack is, as in `attack`.
      slots: S, images under way at a time. Images of each shape have slots of their own, and one
        shape advances at a time: the one with most to do.
      chunk: iterations between two looks at which images have finished. None: 4, and on a CPU,
        where a stopped image costs nothing, as many as take about half a second, up to 16 and to
        an eighth of what images took so far. There it is a mean over a device's images: those that
        still run also make the iterations of those that have stopped. The results' order depends
        on it, and nothing else.
      mesh: devices to spread the slots over, each with as many; None is one device. No device
        waits for another within a chunk.
      bucket: (score_fn, (H, W)) -> (score_fn, (H', W')), by which images of many sizes share few
        compiled shapes. It returns the function that scores an image of H x W pixels, and the
        shape to pad the image to, below and on the right. That function takes i32[2], H and W, as
        its last argument. Targets of shape [H, W] are padded too; results are cropped to the
        image. `dag_jax.models.bucket_score_fn` is one, for functions of
        `dag_jax.models.score_fn`. None: each shape is compiled.
      read_ahead: examples read before there is a slot for them; None is four for each slot.
      on_failure: called with (key, ValueError) for an example that cannot be attacked. None: one
        ValueError that names them, after all results.
      monitor: called after each chunk.

    Yields:
      (key, Attack) in the order in which images finish; arrays are NumPy's.

    Raises:
      ValueError: at once for a wrong `method` or `score_fn`, for fewer than 1 slot, iteration or
        example ahead, and for slots that the devices cannot share evenly. After the last result
        for examples that failed, if there is no `on_failure`.
    """
    check_method(method)
    check_score_fn(score_fn)
    read_ahead = _AHEAD * slots if read_ahead is None else read_ahead
    for name, value in (("slots", slots), ("chunk", chunk), ("read_ahead", read_ahead)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    if mesh is None:
        (device,) = jnp.zeros(()).devices()  # the one that is used where none is named
        mesh = Mesh([device], ("images",))
    elif slots % mesh.size:
        raise UserError(f"{slots} slots cannot be shared evenly by {mesh.size} devices")
    mesh = Mesh(mesh.devices, mesh.axis_names)  # whatever kind of axes it had
    options = {"slots": slots, "mesh": mesh}
    prepare = Prepare(as_callable_pytree(score_fn), bucket, method.margin)
    method = jax.tree.map(np.float32, method)

    def stream():
        # The thread starts when somebody asks for a result, and ends when nobody does any more.
        feed = Feed(prepare, iter(examples), ahead=read_ahead)
        under_way = _Stream(feed, method, options, chunk, on_failure, monitor)
        try:
            yield from under_way.run()
        except GeneratorExit:
            raise
        except BaseException as error:
            yield from under_way.finished()
            under_way.explain(error)
            raise
        finally:
            feed.close()
            under_way.close()

    return stream()


@dataclasses.dataclass
class _Bucket:
    """The examples of one compiled shape."""

    lanes: Lanes
    score_fn: Callable
    slots: list  # the Example in each slot, or None
    chunk: int  # iterations until the next look
    queue: collections.deque = dataclasses.field(default_factory=collections.deque)
    steps: collections.deque = dataclasses.field(  # of the last results
        default_factory=functools.partial(collections.deque, maxlen=_REMEMBERED)
    )
    passed_over: int = 0  # chunks that went to others since its last

    def taken(self):
        return sum(example is not None for example in self.slots)

    def load(self):
        """Return how many slots the next chunk would use."""
        return min(self.taken() + len(self.queue), len(self.slots))


class _Stream:
    """A stream under way."""

    def __init__(self, feed, method, options, chunk, on_failure, monitor):
        self._feed, self._method, self._options = feed, method, options
        self._chunk = chunk
        self._on_failure, self._monitor = on_failure, monitor
        self._buckets: dict = {}
        self._copies: dict = {}
        self._failures: list[Failure] = []
        self._clock = concurrent.futures.ThreadPoolExecutor(1, "dag_jax clock")
        # (example, attack) by the example's identity, so that no result is made twice.
        self._results: dict[int, tuple[Example, Attack]] = {}

    def run(self):
        """Yield (key, attack) until the input has ended and all are done."""
        wait, free_since = _FIRST_WAIT, None
        while True:
            bucket = self._choose()
            free = self._options["slots"] - (bucket.load() if bucket else 0)
            if self._feed.must_wait(free):  # the input may be waiting for these
                yield from self._hand_out()
            if bucket is None:
                self._feed.wait(1)
            if free:
                self._feed.wait(free, wait)
            ended = self._feed.ended  # before the last look at what is ready
            self._receive()
            bucket = self._choose()
            if bucket is None:
                if ended:
                    break
                continue
            self._refill(bucket)
            started = time.perf_counter()
            taken = bucket.taken()
            bucket.lanes.advance(bucket.chunk)
            end = self._clock.submit(bucket.lanes.end)  # the host may be busy for longer
            yield from self._hand_out()  # while the devices work
            iterations, busy, share = bucket.lanes.wait()
            ready = end.result()
            wait = min(_WAIT * (ready - started), _LONGEST_WAIT)
            self._harvest(bucket)
            if self._chunk is None and not bucket.lanes.together:
                longest = _longest_chunk(bucket.steps)
                bucket.chunk = _next_chunk(bucket.chunk, iterations, ready - started, longest)
            if self._monitor is not None:
                size, slots = bucket.lanes.shape, self._options["slots"]
                worked, waited = share * (ready - started), (1 - share) * (ready - started)
                if free_since is not None:
                    waited += started - free_since
                counts = taken, iterations, busy, ended
                self._monitor(Chunk(size, slots, *counts, worked, waited))
            free_since = ready
        yield from self._hand_out()
        if self._feed.error is not None:
            raise self._feed.error
        if self._failures:
            raise UserError(_account(self._failures))

    def finished(self):
        """Yield results that are finished but not yet handed out, after an interruption."""
        for bucket in self._buckets.values():
            try:
                self._harvest(bucket)
            except RuntimeError:  # its lanes went with the chunk that was interrupted
                continue
        yield from self._hand_out()

    def close(self):
        """Let go of the thread that looks at the clock."""
        self._clock.shutdown(wait=False)

    def explain(self, error):
        """Add a note about the examples that failed to another error."""
        if self._failures and str(error) != _account(self._failures):
            error.add_note(_account(self._failures))

    def _hand_out(self):
        while self._results:
            example, attack = self._results.pop(next(iter(self._results)))
            yield example.key, attack

    def _receive(self):
        """Sort the examples that have been read into buckets."""
        for ready in self._feed.pop():
            if isinstance(ready, Failure):
                self._feed.taken(1)
                if self._on_failure is None:
                    self._failures.append(ready)
                else:
                    self._on_failure(ready.key, ready.error)
                continue
            name = ready.bucket()
            bucket = self._buckets.pop(name, None)
            if bucket is None:
                self._forget()
                slots = [None] * self._options["slots"]
                bucket = _Bucket(self._lanes(ready), ready.score_fn, slots, self._chunk or _CHUNK)
            bucket.queue.append(ready)
            self._buckets[name] = bucket  # the last one now

    def _forget(self):
        """Drop the lanes of the shapes used longest ago, if there are too many."""
        for name in [name for name, bucket in self._buckets.items() if not bucket.load()]:
            if len(self._buckets) >= _MOST_BUCKETS:
                del self._buckets[name]
        in_use = [self._method, *(bucket.score_fn for bucket in self._buckets.values())]
        in_use = {id(leaf) for leaf in jax.tree.leaves(in_use)}
        self._copies = {name: copy for name, copy in self._copies.items() if name in in_use}

    def _lanes(self, example: Example):
        mesh = self._options["mesh"]
        score_fn = spread(told_apart(example.score_fn), mesh, self._copies)
        method = spread(self._method, mesh, self._copies)
        return Lanes(score_fn, example.arrays, method, **self._options)

    def _choose(self):
        """Return a bucket that has waited too long, else the one with most to do, else None."""
        candidates = [bucket for bucket in self._buckets.values() if bucket.load()]

        def urgency(bucket):
            return bucket.passed_over > _PATIENCE, bucket.load()

        return max(candidates, key=urgency, default=None)

    def _refill(self, bucket):
        entering = {}
        for slot, example in enumerate(bucket.slots):
            if example is None and bucket.queue:
                entering[slot] = bucket.queue.popleft()
        bucket.lanes.insert({slot: example.arrays for slot, example in entering.items()})
        for slot, example in entering.items():
            bucket.slots[slot] = example
        self._feed.taken(len(entering))
        if not bucket.lanes.together:
            for left, slot in bucket.lanes.moves():
                # Interrupted at any line, no slot has an example whose attack is elsewhere.
                example, bucket.slots[left] = bucket.slots[left], None
                bucket.lanes.move(left, slot)
                bucket.slots[slot] = example
        for queued in self._buckets.values():
            queued.passed_over = 0 if queued is bucket else queued.passed_over + bool(queued.load())

    def _harvest(self, bucket):
        """Take out the results of a bucket's stopped slots."""
        stopped = bucket.lanes.stopped()
        slots = enumerate(bucket.slots)
        done = [slot for slot, example in slots if example is not None and stopped[slot]]
        for slot, attack in bucket.lanes.take(done).items():
            example = bucket.slots[slot]
            bucket.steps.append(int(attack.num_steps))
            self._results[id(example)] = example, example.crop(attack)
        for slot in done:
            bucket.slots[slot] = None


def _longest_chunk(steps):
    """Return the most iterations of a chunk, for results that took so many steps.

    Devices end a chunk together, and one whose images have stopped waits for the others: a chunk
    is a small part of what an image takes.
    """
    longest = int(np.mean(steps)) // _LOOKS if steps else _LONGEST_CHUNK
    return min(max(longest, _CHUNK), _LONGEST_CHUNK)


def _next_chunk(chunk, made, seconds, longest=_LONGEST_CHUNK):
    """Return the iterations of the next chunk; the last one made `made` of `chunk` in `seconds`."""
    if seconds > 2 * _LOOK:
        return max(chunk // 2, 1)
    if made >= chunk and seconds < _LOOK / 2:
        chunk *= 2
    return min(chunk, longest)


def _account(failures):
    """Return one message that names the examples that failed."""
    shown = [f"{failure.key!r}: {failure.error}" for failure in failures[:_SHOWN]]
    ending = [f"and {len(failures) - _SHOWN} more"] if len(failures) > _SHOWN else []
    count = f"{len(failures)} example{'s' if len(failures) > 1 else ''}"
    return f"{count} could not be attacked (all others were): {'; '.join(shown + ending)}"
