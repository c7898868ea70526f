"""The device's side of a stream: lanes, each with an image of its own.

Three programs, each compiled once for a shape: one puts images into free lanes, one advances all
lanes, one takes results out. None has a collective: each device owns its lanes, and none waits for
another inside a program.

An accelerator advances its lanes together, which fills it. A CPU advances one after the other: what
an image needs stays in its caches, a lane that has stopped costs nothing, and no loop inside a
model runs as long as its longest lane asks.

Shapes: `D` devices, `L` lanes of each, `S = D L` in all; otherwise as in `dag_jax.attack`.
"""

import contextlib
import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dag_jax.engine.algorithm import Attack, Status, init, step


def _on_each(mesh, function, whole, parts):
    """Run a function on each device; it gets all of `whole` and the device's share of `parts`."""
    mine = P(mesh.axis_names)
    specs = (P(),) * len(whole) + (mine,) * len(parts)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=mine, check_vma=False)
    return mapped(*whole, *parts)


def _together(lane_step, chunk, states, arrays):
    """Advance lanes as one batch, until each has made `chunk` steps or stopped; see `_advance`."""

    def goes_on(carry):
        count, _, states = carry
        return (count < chunk) & jnp.any(_is_running(states))

    def body(carry):
        count, busy, states = carry
        running = _is_running(states).sum(dtype=jnp.int32)
        return count + 1, busy + running, jax.vmap(lane_step)(states, *arrays)

    count, busy, states = lax.while_loop(goes_on, body, (jnp.int32(0), jnp.int32(0), states))
    return states, jnp.stack([count, busy])[None]


def _in_turn(lane_step, chunk, states, arrays):
    """Advance lanes one after the other; see `_advance`.

    All together make `chunk` steps: what a lane that stops leaves goes to those that still run, and
    the devices work equally long.
    """

    def goes_on(carry):
        left, _, states = carry
        return (left > 0) & jnp.any(_is_running(states))

    def advance(carry):
        left, counts, states = carry
        running = _is_running(states)
        lane = jnp.argmin(jnp.where(running, counts, jnp.iinfo(jnp.int32).max))
        # All that run are to get equally far, and this one has the longest way.
        total = left + jnp.where(running, counts, 0).sum(dtype=jnp.int32)
        level = -(-total // running.sum(dtype=jnp.int32))
        most = jnp.minimum(left, level - counts[lane])
        state, lane_arrays = jax.tree.map(lambda leaf: leaf[lane], (states, arrays))

        def lane_goes_on(carry):
            count, state = carry
            return (count < most) & _is_running(state)

        def body(carry):
            count, state = carry
            return count + 1, lane_step(state, *lane_arrays)

        count, state = lax.while_loop(lane_goes_on, body, (jnp.int32(0), state))
        states = jax.tree.map(lambda all_, new: all_.at[lane].set(new), states, state)
        return left - count, counts.at[lane].add(count), states

    counts = jnp.zeros_like(states.attack.status, jnp.int32)
    _, counts, states = lax.while_loop(goes_on, advance, (chunk, counts, states))
    return states, jnp.stack([counts.max(), counts.sum(dtype=jnp.int32)])[None]


def _is_running(state):
    return state.attack.status == Status.RUNNING


@functools.partial(jax.jit, static_argnames=("together", "mesh"), donate_argnames="states")
def _advance(score_fn, method, chunk, states, targets, inputs, *, together, mesh):
    """Advance all lanes by up to i32[] `chunk` iterations; a device ends once its own have stopped.

    In turn, `chunk` is the sum over a device's lanes.

    Returns:
      (the states, i32[D, 2]: for each device the iterations of its longest lane, and the sum over
      its lanes).
    """

    def advance(score_fn, method, chunk, states, targets, inputs):
        def lane_step(state, targets, inputs):
            return step(method, lambda image: score_fn(image, *inputs), state, targets)

        advance_lanes = _together if together else _in_turn
        return advance_lanes(lane_step, chunk, states, (targets, inputs))

    return _on_each(mesh, advance, (score_fn, method, chunk), (states, targets, inputs))


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="lanes")
def _insert(method, lanes, slot, example, *, mesh):
    """Put one example on each device into its lane `slot`, i32[D]; past the last lane: nowhere."""

    def insert(method, lanes, slot, example):
        (slot,) = slot
        image, targets, inputs = jax.tree.map(lambda leaf: leaf[0], example)
        lane = init(method, image, targets), targets, inputs
        return jax.tree.map(lambda all_, new: all_.at[slot].set(new, mode="drop"), lanes, lane)

    return _on_each(mesh, insert, (method,), (lanes, slot, example))


@functools.partial(jax.jit, static_argnames="mesh")
def _take(states, slot, *, mesh):
    """Return each device's attack in its lane `slot`, i32[D], along a first axis of D."""

    def take(states, slot):
        return jax.tree.map(lambda leaf: leaf[slot], states.attack)

    return _on_each(mesh, take, (), (states, slot))


def _idle(method, example, *, lanes):
    """Return `lanes` lanes of an example's shapes in which nothing runs."""
    image, targets, inputs = example
    state = init(method, image, targets)
    lanes = jax.tree.map(
        lambda leaf: jnp.zeros((lanes, *leaf.shape), leaf.dtype), (state, targets, inputs)
    )
    # A bare enum member would make the status weakly typed, and the loop compile a second time.
    stopped = jnp.full_like(lanes[0].attack.status, int(Status.NO_TARGETS))
    attack = dataclasses.replace(lanes[0].attack, status=stopped)
    return dataclasses.replace(lanes[0], attack=attack), *lanes[1:]


@functools.cache
def _idle_program(lanes, sharding):
    return jax.jit(functools.partial(_idle, lanes=lanes), out_shardings=sharding)


class Lanes:
    """The lanes of one compiled shape.

    Attributes:
      slots: S.
      shape: pixels of the images, padding included.
      together: whether a device's lanes are one batch.
    """

    def __init__(self, score_fn, example, method, *, slots, mesh, together=None):
        """Make room for examples like this one, and compile what moves them in and out.

        Args:
          score_fn: its leaves on all devices of the mesh.
          example: (image, targets, inputs), NumPy's.
          method: its numbers on all devices, too.
          slots: S.
          mesh: devices.
          together: whether a device's lanes are one batch; None is on all but CPUs.
        """
        self.slots, self.shape = slots, example[0].shape[:2]
        self._score_fn, self._method = score_fn, method
        if together is None:
            together = mesh.devices.flat[0].platform != "cpu"
        self.together = together
        self._options = {"together": together, "mesh": mesh}
        self._mesh, self._devices = mesh, list(mesh.devices.flat)
        self._sharding = NamedSharding(mesh, P(mesh.axis_names))
        self._per_device = slots // mesh.size
        self._nothing = [
            jax.tree.map(lambda leaf, to=device: self._put(np.zeros_like(leaf), to), example)
            for device in self._devices
        ]
        make = _idle_program(mesh.size * self._per_device, self._sharding)
        self._lanes = make(method, example)
        self._used, self._most_held = None, 1
        self._held = set()  # slots that have an attack
        nowhere = [None] * mesh.size
        self._insert_round(nowhere, self._nothing)
        self._take_round(nowhere)

    @staticmethod
    def _put(leaf, device):
        return jax.device_put(np.asarray(leaf)[None], device)

    def _gather(self, parts):
        """Return one array made of the parts that the devices hold."""
        shape = (len(parts), *parts[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, self._sharding, parts)

    def _slot_array(self, lanes):
        lanes = [self._per_device if lane is None else lane for lane in lanes]
        return jax.device_put(np.int32(lanes), self._sharding)

    def _place(self, slot):
        """Return (device, its lane) of a slot. Neighbouring slots are on different devices."""
        return slot % len(self._devices), slot // len(self._devices)

    def _rounds(self, slots):
        """Return the slots in rounds; a round has at most one slot of each device."""
        rounds = []
        for slot in slots:
            device, _ = self._place(slot)
            for taken in rounds:
                if device not in taken:
                    taken[device] = slot
                    break
            else:
                rounds.append({device: slot})
        return rounds

    def insert(self, examples: dict) -> None:
        """Put examples into slots.

        Args:
          examples: by slot, (image, targets, inputs), NumPy's.
        """
        self._held.update(examples)
        for taken in self._rounds(examples):
            lanes, parts = [None] * len(self._devices), list(self._nothing)
            for device, slot in taken.items():
                lanes[device] = self._place(slot)[1]
                put = functools.partial(self._put, device=self._devices[device])
                parts[device] = jax.tree.map(put, examples[slot])
            self._insert_round(lanes, parts)

    def _insert_round(self, lanes, parts):
        example = jax.tree.map(lambda *leaves: self._gather(leaves), *parts)
        slot = self._slot_array(lanes)
        self._lanes = _insert(self._method, self._lanes, slot, example, mesh=self._mesh)

    def moves(self) -> list[tuple[int, int]]:
        """Return which attacks to `move` from devices with more of them to devices with fewer.

        That is for CPUs, whose lanes advance in turn, when nothing waits that could enter: a device
        with two attacks would work on when another has none.

        Returns:
          [(slot to leave, free slot of another device)].
        """
        held, moves = self._by_device(), []
        for slot in set(range(self.slots)) - self._held:
            fullest, here = max(held, key=len), held[self._place(slot)[0]]
            if len(fullest) - len(here) >= 2:
                moves.append((fullest.pop(), slot))
                here.append(slot)
        return moves

    def _by_device(self):
        """Return, for each device, its slots that have an attack."""
        held = [[] for _ in self._devices]
        for slot in self._held:
            held[self._place(slot)[0]].append(slot)
        return held

    def move(self, slot: int, free: int) -> None:
        """Move an attack to a free slot of another device: on the host, without a program."""
        (source, lane), (target, free_lane) = map(self._place, (slot, free))

        def moved(leaf):
            parts = [_part_of(leaf, device) for device in self._devices]
            from_, to = np.array(parts[source]), np.array(parts[target])
            from_[lane], to[free_lane] = to[free_lane].copy(), from_[lane].copy()
            parts[source], parts[target] = from_, to
            parts = list(map(jax.device_put, parts, self._devices))
            return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)

        self._lanes = jax.tree.map(moved, self._lanes)
        self._held = self._held - {slot} | {free}

    def lower(self) -> jax.stages.Lowered:
        """Return the lowered program of a chunk, for measurements of its cost."""
        return _advance.lower(*self._arguments(1), **self._options)

    def _arguments(self, chunk):
        chunk = np.int32(min(chunk, np.iinfo(np.int32).max))
        return self._score_fn, self._method, chunk, *self._lanes

    def advance(self, chunk: int) -> None:
        """Start a chunk of so many iterations at most, for each lane.

        In turn, a device makes as many as that of each attack of the device that has most.
        """
        self._most_held = 1 if self.together else max(1, *map(len, self._by_device()))
        states, self._used = _advance(*self._arguments(chunk * self._most_held), **self._options)
        self._lanes = states, *self._lanes[1:]

    def end(self) -> float:
        """Wait for the chunk, and return when it ended, of `time.perf_counter`."""
        with contextlib.suppress(RuntimeError):  # an error of the chunk is `wait`'s to raise
            self._used.block_until_ready()
        return time.perf_counter()

    def wait(self) -> tuple[int, int, float]:
        """Wait for the chunk.

        Returns:
          (iterations of the longest lane, or in turn those of the device that made most over the
          most attacks that a device had, rounded up; sum of the iterations of all lanes; share of
          the chunk that the devices worked, on average: one whose lanes have stopped waits).
        """
        used = np.asarray(self._used)
        work = used[:, 0] if self.together else used[:, 1]
        most = int(work.max())
        return -(-most // self._most_held), int(used[:, 1].sum()), float(work.mean() / max(most, 1))

    def stopped(self) -> np.ndarray:
        """Return bool[S], whether a slot is empty or its attack has stopped."""
        status = np.asarray(self._lanes[0].attack.status).reshape(len(self._devices), -1)
        places = map(self._place, range(self.slots))
        return np.array([status[place] != Status.RUNNING for place in places])

    def take(self, slots) -> dict[int, Attack]:
        """Return the attacks in these slots, arrays being NumPy's; the slots are free then."""
        self._held.difference_update(slots)
        results = {}
        for taken in self._rounds(slots):
            lanes = [None] * len(self._devices)
            for device, slot in taken.items():
                lanes[device] = self._place(slot)[1]
            attacks = self._take_round(lanes)
            for device, slot in taken.items():
                copied = functools.partial(_copied, device=self._devices[device])
                results[slot] = jax.tree.map(copied, attacks)
        return results

    def _take_round(self, lanes):
        return _take(self._lanes[0], self._slot_array(lanes), mesh=self._mesh)


def _copied(array, device):
    """Return a copy on the host of the one row that a device holds of an array."""
    return np.array(np.asarray(_part_of(array, device))[0])


def _part_of(array, device):
    """Return what a device holds of an array, without asking the others."""
    (part,) = (part.data for part in array.addressable_shards if part.device == device)
    return part


def spread(tree, mesh: Mesh, copies: dict):
    """Return a pytree with each leaf on all devices of a mesh.

    Args:
      tree: pytree of arrays.
      mesh: devices.
      copies: by identity, the leaves that are there already; those of this tree are added. Trees
        that share leaves, such as one network's for several shapes, then share the copies.
    """

    def copy(leaf):
        if id(leaf) not in copies:
            # The leaf itself is kept, too: its identity is only its own while it lives.
            copies[id(leaf)] = leaf, jax.device_put(jnp.asarray(leaf), NamedSharding(mesh, P()))
        return copies[id(leaf)][1]

    return jax.tree.map(copy, tree)
