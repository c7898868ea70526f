"""Images attacked to completion in a second: the stream against lockstep batches.

A lockstep batch runs until its longest image is done, and every lane with it. A stream refills the
slots that fall free. What that can give at best follows from the iterations of the images alone.

Shapes: `S` slots of all devices together, `M` images.
"""

import dataclasses
import functools
import itertools
import statistics
import time

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import dag_jax
from dag_jax import models
from dag_jax.engine.lanes import Lanes, spread
from dag_jax.engine.scoring import as_callable_pytree, told_apart
from dag_jax.runs import attacks
from experiments.measure import peak, timing

PRODUCTS = 5  # of matrices, before a run and after it


def best_gain(iterations, slots: int) -> float:
    """Return the most that refilling can gain over lockstep batches.

        S sum over batches of their longest image's iterations / sum of all iterations

    Args:
      iterations: of each image, in the order of the batches.
      slots: S, images of a batch; the last may have fewer.
    """
    starts = range(0, len(iterations), slots)
    longest = sum(max(iterations[start : start + slots]) for start in starts)
    return slots * longest / sum(iterations)


def busy_share(chunks) -> float | None:
    """Return the share of slot-iterations that had an image running, until the input ended.

    Args:
      chunks: what `attack_stream` tells its monitor. None is returned if no chunk has input left.
    """
    chunks = [chunk for chunk in chunks if not chunk.ended]
    offered = sum(chunk.slots * chunk.iterations for chunk in chunks)
    return sum(chunk.busy for chunk in chunks) / offered if offered else None


def busy_of_stream(chunks) -> list[tuple[int, float]]:
    """Return (iterations since the start, busy slots from the last such point to this one)."""
    points, now = [], 0
    for chunk in chunks:
        if chunk.iterations:
            now += chunk.iterations
            points.append((now, chunk.busy / chunk.iterations))
    return points


def busy_of_lockstep(iterations, slots: int) -> list[tuple[int, float]]:
    """Return the same as `busy_of_stream` of lockstep batches, by the iterations of the images."""
    points, now = [], 0
    for start in range(0, len(iterations), slots):
        batch = sorted(iterations[start : start + slots])
        ended = 0
        for done, end in enumerate(batch):
            if end > ended:
                points.append((now + end, float(len(batch) - done)))
                ended = end
        now += ended
    return points


@functools.partial(jax.jit, static_argnames="mesh")
def _attack_batch(score_fn, images, targets, method, *, mesh):
    spread = P(mesh.axis_names)
    return jax.shard_map(
        dag_jax.attack_batch,
        mesh=mesh,
        in_specs=(P(), spread, spread, P()),
        out_specs=spread,
        check_vma=False,
    )(score_fn, images, targets, method)


def lockstep(plan, inputs, *, lanes, mesh):
    """Attack images in batches that wait for their longest, as many at a time as a stream.

    Args:
      plan: a segmenter's `attacks.Plan`.
      inputs: list, from `attacks.attack_inputs`; images of one size.
      lanes: images of each device.
      mesh: from `console.open_mesh`.

    Yields:
      (index, Attack) in the order of `inputs`; arrays are NumPy's.
    """
    mesh = Mesh(mesh.devices, mesh.axis_names)  # whatever kind of axes it had
    score_fn, slots = models.score_fn(plan.subject.model), lanes * mesh.size
    for start in range(0, len(inputs), slots):
        batch = inputs[start : start + slots]
        padded = batch + batch[-1:] * (slots - len(batch))
        images = np.stack([np.float32(image) for _, image, *_ in padded])
        targets = jax.tree.map(lambda *leaves: np.stack(leaves), *(item[2] for item in padded))
        batched = _attack_batch(score_fn, images, targets, plan.method, mesh=mesh)
        batched = jax.device_get(batched)
        for place, (index, *_) in enumerate(batch):
            yield index, jax.tree.map(lambda leaf, place=place: leaf[place], batched)


def stream(plan, inputs, *, lanes, mesh, chunks=None):
    """Attack images by `attack_stream`; its `Chunk`s are appended to the list `chunks`."""
    count = lanes * mesh.size  # no fewer lanes for fewer images: a warm-up compiles the same
    monitor = None if chunks is None else chunks.append
    return attacks.open_stream(plan, inputs, count=count, slots=lanes, mesh=mesh, monitor=monitor)


def shorter(plan, max_steps):
    """Return a plan whose attacks end after `max_steps` steps at the latest."""
    return plan._replace(method=plan.method.replace(max_steps=max_steps))


def idle(inputs):
    """Return inputs without a target: attacks that compile the same programs and end at once."""
    return [
        (index, image, dataclasses.replace(targets, valid=np.zeros_like(targets.valid)), extra)
        for index, image, targets, extra in inputs
    ]


def steps_of(attacked, count) -> np.ndarray:
    """Return i64[M], the steps of (index, Attack) pairs by index."""
    steps = np.full(count, -1)
    for index, attack in attacked:
        steps[index] = int(attack.num_steps)
    return steps


def measure(plan, inputs, *, lanes, mesh, turns):
    """Run the stream and lockstep batches over the same images, part by part in turns.

    Args:
      plan: a segmenter's `attacks.Plan`.
      inputs: list, from `attacks.attack_inputs`.
      lanes: images of each device at a time.
      mesh: from `console.open_mesh`.
      turns: parts of a run after which the other has its turn.

    Returns:
      (row of the table, {"stream": points, "lockstep": points} of busy slots over iterations).
    """
    options, slots, count = {"lanes": lanes, "mesh": mesh}, lanes * mesh.size, len(inputs)
    for run in (stream, lockstep):
        list(run(plan, idle(inputs[:slots]), **options))
    chunks = []
    times, (streamed, batched) = timing.pull_in_turns(
        [stream(plan, inputs, chunks=chunks, **options), lockstep(plan, inputs, **options)],
        timing.split(count, turns, slots),
    )
    steps, control = steps_of(streamed, count), steps_of(batched, count)
    iterations = (control + 1).tolist()  # the last one only scores
    seconds = np.sum(times, axis=0)
    gain, best = float(seconds[1] / seconds[0]), best_gain(iterations, slots)
    row = {
        "case": f"{plan.subject.about.title}, {count} images, {slots} slots",
        "stream": count / float(seconds[0]),
        "lockstep": count / float(seconds[1]),
        "gain": gain,
        "range": timing.compare([pair[::-1] for pair in times])["range"],
        "best": best,
        "share": gain / best,
        "busy": busy_share(chunks),
        "iterations": float(np.median(iterations)),
        "same_steps": float(np.mean(steps == control)),
        "most_apart": int(np.abs(steps - control).max()),
    }
    return row, {"stream": busy_of_stream(chunks), "lockstep": busy_of_lockstep(iterations, slots)}


def open_lanes(plan, example, *, lanes, mesh) -> Lanes:
    """Return the lanes in which `stream` attacks images of one size, such as an example's."""
    mesh = Mesh(mesh.devices, mesh.axis_names)
    _, image, targets, inputs = example
    score_fn = told_apart(as_callable_pytree(models.score_fn(plan.subject.model)))
    score_fn, method = (
        spread(tree, mesh, {}) for tree in (score_fn, jax.tree.map(np.float32, plan.method))
    )
    example = np.float32(image), jax.tree.map(np.asarray, targets), inputs
    return Lanes(score_fn, example, method, slots=lanes * mesh.size, mesh=mesh)


def on_device(plan, *, lanes, mesh, precision, side=None):
    """Return a row: what of its devices' peak the stream takes, and how long they wait for it.

    Args:
      plan: a segmenter's `attacks.Plan`; images of one size.
      lanes: images of each device at a time.
      mesh: from `console.open_mesh`.
      precision: that the model multiplies in, as in `peak.product`.
      side: as there.
    """
    inputs, slots, chunks = list(attacks.attack_inputs(plan)), lanes * mesh.size, []
    opened = open_lanes(plan, inputs[0], lanes=lanes, mesh=mesh)
    started = time.perf_counter()
    account = opened.lower().compile().memory_analysis()
    compile_seconds = time.perf_counter() - started
    list(stream(plan, idle(inputs[:slots]), lanes=lanes, mesh=mesh))
    multiply, flops = peak.product(mesh, precision, side)
    multiply()
    of_products = [timing.timed(multiply) for _ in range(PRODUCTS)]
    # Targets are computed while it runs, as a launch has them.
    ready = attacks.attack_inputs(plan, devices=mesh.local_devices)
    list(stream(plan, ready, lanes=lanes, mesh=mesh, chunks=chunks))
    of_products += [timing.timed(multiply) for _ in range(PRODUCTS)]
    worked, waited = (sum(getattr(c, name) for c in chunks) for name in ("seconds", "idle"))
    of_layers = peak.layers_of(plan.subject.model, np.float32(inputs[0][1]))
    work = sum(chunk.busy for chunk in chunks) * sum(layer.flops() for layer in of_layers)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(plan.subject.model))
    bytes_used = account and account.argument_size_in_bytes + account.temp_size_in_bytes - weights
    return {
        "case": f"{plan.subject.about.title}, {len(inputs)} images",
        "precision": precision,
        "slots": slots,
        "rate": len(inputs) / (worked + waited),
        "utilisation": work / worked * statistics.median(of_products) / (flops * mesh.size),
        "peak": flops * mesh.size / statistics.median(of_products),
        "idle": waited / (worked + waited),
        "host_ms": 1000 * waited / len(inputs),
        "slot_mib": account and bytes_used / lanes / timing.MIB,
        "compile_seconds": compile_seconds,
    }


def by_slots(plan, inputs, *, lanes, mesh):
    """Return {"slots", "stream", "lockstep"} for each number of lanes: images per second."""
    points = []
    for count in lanes:
        row, _ = measure(plan, inputs, lanes=count, mesh=mesh, turns=1)
        points.append({"slots": count * mesh.size, **{k: row[k] for k in ("stream", "lockstep")}})
    return points


def best_of(candidates, run) -> int:
    """Return the candidate whose run takes least time for each of its images.

    Args:
      candidates: numbers of images at a time.
      run: attacks that many images once, compiled before; returns seconds.
    """
    return min(candidates, key=lambda count: run(count) / count)


def best_lanes(plan, inputs, candidates, *, mesh, clock=time.perf_counter) -> int:
    """Return the number of lanes of each device with which a few images are finished fastest."""

    def run(count):
        few = list(itertools.islice(itertools.cycle(inputs), count * mesh.size))
        list(stream(plan, idle(few), lanes=count, mesh=mesh))
        started = clock()
        list(stream(plan, few, lanes=count, mesh=mesh))
        return clock() - started

    return best_of(candidates, run)
