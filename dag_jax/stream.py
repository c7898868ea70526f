"""Many images through few slots: one that finishes makes room for the next.

One image needs 10 steps, another 200; a batch that waits for its slowest image wastes most of its
work. Here a fixed number of images is advanced together, a chunk of iterations at a time, and
between chunks the finished ones leave and new ones take their slots, without a new compilation.

Shapes: `S` slots; otherwise as in `dag_jax.attack`.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dag_jax.attack import Attack, Status, init, step
from dag_jax.checks import check_image, check_margin, check_numbers, check_targets


@functools.partial(jax.jit, static_argnames=("chunk", "rounded", "optimizer", "mesh"))
def _advance(score_fn, lanes, step_size, margin, *, chunk, rounded, optimizer, mesh):
    """Advance all slots by up to `chunk` iterations; each device its own, until they are done."""
    options = {"chunk": chunk, "rounded": rounded, "optimizer": optimizer}
    advance = functools.partial(_advance_slots, **options)
    if mesh is not None:
        slots = P(mesh.axis_names)
        in_specs = (P(), slots, P(), P())
        advance = jax.shard_map(
            advance, mesh=mesh, in_specs=in_specs, out_specs=slots, check_vma=False
        )
    return advance(score_fn, lanes, step_size, margin)


def _advance_slots(score_fn, lanes, step_size, margin, *, chunk, rounded, optimizer):
    def one(state, targets, inputs):
        return step(
            lambda image: score_fn(image, *inputs),
            state,
            targets,
            step_size=step_size,
            margin=margin,
            rounded=rounded,
            optimizer=optimizer,
        )

    states, targets, inputs = lanes

    def running(carry):
        count, states = carry
        return (count < chunk) & jnp.any(states.attack.status == Status.RUNNING)

    def body(carry):
        count, states = carry
        return count + 1, jax.vmap(one)(states, targets, inputs)

    return lax.while_loop(running, body, (jnp.int32(0), states))[1]


@functools.partial(jax.jit, donate_argnums=0)
def _insert(lanes, slot, lane):
    return jax.tree.map(lambda all_, one: all_.at[slot].set(one), lanes, lane)


@jax.jit
def _take(states, slot):
    return jax.tree.map(lambda leaf: leaf[slot], states.attack)


def _shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), tree)


def attack_stream(
    score_fn,
    examples: Iterable,
    *,
    slots: int = 16,
    max_steps: int = 200,
    step_size: float = 0.5,
    margin: float = 0.0,
    rounded: bool = False,
    optimizer=None,
    chunk: int = 4,
    mesh: Mesh | None = None,
) -> Iterator[tuple[object, Attack]]:
    """Attack a stream of images.

    Args:
      score_fn: image f32[H, W, 3] -> scores, as in `attack`; with further arguments where the
        examples bring them. A `jax.tree_util.Partial` has its parameters traced.
      examples: yields (key, image, targets), or (key, image, targets, inputs) where `inputs` is a
        tuple of arrays that `score_fn` takes after the image (a detector's boxes). All of one
        shape. A key is anything; it comes back with the result.
      slots: S, images under way at a time.
      max_steps: as in `attack`.
      step_size: as in `attack`.
      margin: as in `attack`.
      rounded: as in `attack`.
      optimizer: as in `attack`.
      chunk: iterations between two looks at which images have finished.
      mesh: devices to spread the slots over, each with as many; None is one device. No device
        waits for another within a chunk.

    Yields:
      (key, Attack) in the order in which images finish; arrays are NumPy's.

    Raises:
      ValueError: for what `checks.check` names, for an example of another shape than the first,
        for fewer than 1 slot or iteration, and for slots that the devices cannot share evenly.
    """
    check_numbers(max_steps, step_size, margin)
    for name, value in (("slots", slots), ("chunk", chunk)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if mesh is not None:
        if slots % mesh.size:
            raise ValueError(f"{slots} slots cannot be shared evenly by {mesh.size} devices")
        mesh = Mesh(mesh.devices, mesh.axis_names)  # whatever kind of axes it had
    if jax.tree_util.all_leaves([score_fn]):  # a plain function is no pytree of parameters
        score_fn = jax.tree_util.Partial(score_fn)
    return _stream(
        score_fn,
        iter(examples),
        slots=slots,
        max_steps=max_steps,
        numbers=jax.tree.map(jnp.float32, (step_size, margin)),
        options={"chunk": chunk, "rounded": rounded, "optimizer": optimizer, "mesh": mesh},
    )


def _stream(score_fn, examples, *, slots, max_steps, numbers, options):
    lanes = first = scores = None
    keys: list = [None] * slots
    free = list(range(slots))
    while True:
        while free and (example := next(examples, None)) is not None:
            key, image, targets, inputs = (*example, ())[:4]
            image = np.asarray(image, np.float32)
            check_image(image)
            shapes = _shapes((image, targets, inputs))
            if first is None:
                first = shapes
                scores = jax.eval_shape(
                    score_fn, jax.ShapeDtypeStruct(image.shape, jnp.float32), *inputs
                )
            if shapes != first:
                raise ValueError(f"example {key!r} has shapes {shapes}, the first has {first}")
            check_targets(targets, scores)
            check_margin(numbers[1], targets)
            state = init(image, targets, max_steps=max_steps, optimizer=options["optimizer"])
            lane = jax.tree.map(jnp.asarray, (state, targets, inputs))
            if lanes is None:
                lanes = _idle_lanes(lane, slots)
                if options["mesh"] is not None:
                    spread = NamedSharding(options["mesh"], P(options["mesh"].axis_names))
                    lanes = jax.device_put(lanes, spread)
            slot = free.pop()
            keys[slot] = key
            lanes = _insert(lanes, jnp.int32(slot), lane)
        if len(free) == slots:
            return
        states = _advance(score_fn, lanes, *numbers, **options)
        lanes = (states, *lanes[1:])
        status = np.asarray(states.attack.status)
        for slot in range(slots):
            if slot not in free and status[slot] != Status.RUNNING:
                yield keys[slot], jax.device_get(_take(states, jnp.int32(slot)))
                free.append(slot)


def _idle_lanes(lane, slots):
    """Return S copies of a lane, all stopped."""
    state, targets, inputs = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (slots, *leaf.shape)), lane
    )
    # A bare enum member would make the status weakly typed, and the loop compile a second time.
    stopped = jnp.full(slots, int(Status.NO_TARGETS), jnp.int32)
    attack = dataclasses.replace(state.attack, status=stopped)
    state = dataclasses.replace(state, attack=attack)
    return jax.tree.map(jnp.copy, (state, targets, inputs))
