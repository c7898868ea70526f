"""The host's side of a stream: examples read, checked and padded while the devices work.

Shapes: `H W` pixels of an image, `H' W'` pixels of its bucket; otherwise as in `dag_jax.attack`.
"""

import atexit
import collections
import dataclasses
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dag_jax.engine.algorithm import Attack
from dag_jax.engine.checks import check_are_targets, check_image, check_margin, check_targets
from dag_jax.engine.targets import Targets, map_targets
from dag_jax.engine.threads import bound
from dag_jax.errors import UserError

_END = object()
_MOST_BUCKETS = 256  # whose scores' shapes are remembered
_JOIN = 5.0  # seconds that the interpreter's end waits for the examples in hand


class Example(NamedTuple):
    """An example that is ready for a lane."""

    key: object
    score_fn: Callable  # the one of its bucket
    arrays: tuple  # image f32[H', W', 3], targets, inputs; NumPy's
    shape: tuple[int, int]  # H W

    def bucket(self):
        """Return a key: examples with equal keys share a compiled program and parameters."""
        leaves, structure = jax.tree.flatten(self.arrays)
        shapes = tuple((leaf.shape, leaf.dtype.name) for leaf in leaves)
        numbers, function = jax.tree.flatten(self.score_fn)
        return function, tuple(map(id, numbers)), structure, shapes

    def crop(self, attack: Attack) -> Attack:
        """Return an attack on the padded image, cropped to the image."""
        padded = self.arrays[0].shape[:2]
        if padded == self.shape:
            return attack

        def cut(leaf):
            # A copy: a view would keep the padding in memory.
            return leaf[: self.shape[0], : self.shape[1]].copy()

        return dataclasses.replace(
            attack,
            adversarial=cut(attack.adversarial),
            perturbation=cut(attack.perturbation),
            active=jax.tree.map(
                lambda leaf: cut(leaf) if leaf.shape[:2] == padded else leaf, attack.active
            ),
        )


class Failure(NamedTuple):
    """An example that cannot be attacked. The examples of a stream may contain some."""

    key: object
    error: ValueError


class Prepare:
    """Makes an `Example` of a user's (key, image, targets) or (key, image, targets, inputs)."""

    def __init__(self, score_fn, bucket, margin):
        """Remember what all examples share; arguments as of `dag_jax.attack_stream`."""
        self._score_fn, self._bucket, self._margin = score_fn, bucket, margin
        # By bucket, those used last; with the score_fn, whose identity is its own while it lives.
        self._scores: dict = {}

    def __call__(self, example) -> Example | Failure:
        """Check and pad an example."""
        if isinstance(example, Failure):
            return example
        key = None
        try:
            key, *parts = example
            return self._prepare(key, *_complete(parts))
        except ValueError as error:
            return Failure(key, error)
        except Exception as error:  # what a network raises for a shape that it cannot take
            named = UserError(f"{type(error).__name__}: {error}")
            named.__cause__ = error
            return Failure(key, named)

    def _prepare(self, key, image, targets, inputs):
        image = np.asarray(image)
        check_image(image)
        check_are_targets(targets)
        image = image.astype(np.float32)
        shape = image.shape[:2]
        targets, inputs = jax.tree.map(_canonical, (targets, inputs))
        score_fn = self._score_fn
        if self._bucket is not None:
            score_fn, padded = self._bucket(score_fn, shape)
            if padded[0] < shape[0] or padded[1] < shape[1]:
                raise UserError(f"its bucket {padded} is smaller than the image, {shape}")
            targets = map_targets(lambda part: _pad_pixels(part, shape, padded), targets)
            image = _pad(image, shape, padded)
            inputs = (*inputs, np.int32(shape))
        ready = Example(key, score_fn, (image, targets, inputs), shape)
        bucket = ready.bucket()
        if bucket not in self._scores:
            seen = jax.ShapeDtypeStruct(image.shape, jnp.float32)
            self._scores[bucket] = score_fn, jax.eval_shape(score_fn, seen, *inputs)
            if len(self._scores) > _MOST_BUCKETS:
                self._scores.pop(next(iter(self._scores)))
        check_targets(targets, self._scores[bucket][1])
        check_margin(self._margin, targets)
        return ready


def _complete(parts):
    """Return (image, targets, inputs) of an example's parts without its key."""
    if len(parts) not in (2, 3):
        raise UserError(
            f"an example is (key, image, targets) or (key, image, targets, inputs); this one has "
            f"{len(parts) + 1} item{'s' * (len(parts) > 0)}"
        )
    image, targets, inputs = (*parts, ())[:3]
    if not isinstance(inputs, tuple | list):  # an array would be taken apart by its rows
        raise UserError(f"inputs are a {type(inputs).__name__}; they must be a tuple of arrays")
    return image, targets, tuple(inputs)


def _canonical(leaf):
    """Return an array as NumPy's, in the dtype that JAX would give it (f32 for f64)."""
    leaf = np.asarray(leaf)
    return leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype), copy=False)


def _pad(array, shape, padded):
    grow = [(0, after - now) for now, after in zip(shape, padded, strict=True)]
    return np.pad(array, grow + [(0, 0)] * (array.ndim - 2))


def _pad_pixels(targets: Targets, shape, padded):
    """Pad targets of shape [H, W]; padded pixels are no targets. Other shapes stay."""
    if targets.valid.shape[:2] != shape:
        return targets
    return jax.tree.map(lambda leaf: _pad(leaf, shape, padded), targets)


class Feed:
    """A thread that reads and prepares examples; at most `ahead` of them wait for a slot.

    It works under the settings of the thread that made it; see `threads.bound`.
    """

    def __init__(self, prepare, examples: Iterator, *, ahead: int):
        """Start to read.

        Args:
          prepare: example -> `Example` or `Failure`.
          examples: what to read; nothing else may read it.
          ahead: the most examples that wait.
        """
        self._prepare, self._examples, self._ahead = prepare, examples, ahead
        self._ready: collections.deque = collections.deque()
        self._change = threading.Condition()
        self._waiting = 0  # read, and not yet in a lane
        self._reading = False  # whether it is the examples' turn
        self._closed = False
        self.ended = False  # whether all examples have been read
        self.error: BaseException | None = None  # what the examples raised
        # A daemon: examples that never come must not keep the interpreter from ending.
        self._thread = threading.Thread(
            target=bound(self._run),
            name="dag_jax examples",
            daemon=True,
        )
        self._thread.start()
        _feeds.add(self)

    def _run(self):
        error = None
        try:
            while self._room() and (example := self._next()) is not _END:
                ready = self._prepare(example)
                with self._change:
                    self._waiting += 1
                    self._ready.append(ready)
                    self._change.notify_all()
        except BaseException as raised:  # whatever it is, it is the consumer's to see
            error = raised
        with self._change:
            self.error, self.ended = error, True
            self._change.notify_all()

    def _room(self):
        with self._change:
            self._change.wait_for(lambda: self._closed or self._waiting < self._ahead)
            self._reading = not self._closed
            return self._reading

    def _next(self):
        """Return the next example, or `_END` after the last or once the feed is closed."""
        example = next(self._examples, _END)
        with self._change:
            self._reading = False
            return _END if self._closed else example

    def must_wait(self, number: int) -> bool:
        """Return whether `wait(number)` would block."""
        with self._change:
            return not self._enough(number)

    def _enough(self, number):
        return len(self._ready) >= number or self.ended or self._waiting >= self._ahead

    def wait(self, number: int, seconds: float | None = None) -> None:
        """Wait until `number` examples are ready, no more can come, or the time is over."""
        with self._change:
            self._change.wait_for(lambda: self._enough(number), seconds)

    def pop(self) -> list[Example | Failure]:
        """Return the examples that are ready. They count as waiting until `taken`."""
        with self._change:
            ready = list(self._ready)
            self._ready.clear()
            return ready

    def taken(self, number: int) -> None:
        """Note that `number` examples have left the queue, so that others may be read."""
        with self._change:
            self._waiting -= number
            self._change.notify_all()

    def close(self) -> None:
        """Read no more. Wait for an example that is being prepared, not for the next to come."""
        if not self._stop() and self._thread is not threading.current_thread():
            self._thread.join(_JOIN)

    def _stop(self):
        """Read no more; return whether the thread waits for an example."""
        with self._change:
            self._closed = True
            self._change.notify_all()
            return self._reading

    def join(self, seconds: float) -> None:
        """Read no more, and wait up to `seconds` for the example in hand."""
        self._stop()
        self._thread.join(seconds)


_feeds: weakref.WeakSet = weakref.WeakSet()


@atexit.register
def _join_all():
    """Wait for the examples in hand: what computes on a device must not outlive the interpreter."""
    deadline = time.monotonic() + _JOIN
    for feed in list(_feeds):
        feed.join(max(0.0, deadline - time.monotonic()))
