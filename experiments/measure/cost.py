"""What an attack on one image costs: seconds and memory, measured in a process of its own.

Shapes: `H W` pixels, `N` boxes.
"""

import contextlib
import dataclasses
import functools
import pathlib
import re
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import dag_jax
from dag_jax import networks
from dag_jax.errors import UserError
from dag_jax.progress import progress
from dag_jax.runs import evaluation

MARGIN = 1e9  # logits; no label loses by so many, so every target stays active
EVERY = 20  # of a detector's second row, one target in so many is active: 5%
FEW_ITERATIONS = 5  # of the second row; all of them do the same
GIB = 2**30


def memory():
    """Return (GiB held now, most GiB held so far, by what): the process on a CPU, or the device.

    GiB are None where a device does not say.
    """
    device = jax.devices()[0]
    if device.platform != "cpu":
        said = device.memory_stats() or {}
        held, peak = (said.get(name) for name in ("bytes_in_use", "peak_bytes_in_use"))
        return held and held / GIB, peak and peak / GIB, "device"
    # Not getrusage, which counts for a child what its parent held when it started it.
    status = pathlib.Path("/proc/self/status").read_text()
    held, peak = (
        int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024 / GIB
        for name in ("VmRSS", "VmHWM")
    )
    return held, peak, "process"


def forget_peak():
    """Let the peak of this process start anew at what it holds, where the system allows it."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # 5: man proc_pid_clear_refs


def compile_timed(jitted, *arguments):
    """Return (compiled function, seconds of tracing and lowering, seconds of compiling)."""
    started = time.perf_counter()
    lowered = jitted.lower(*arguments)
    between = time.perf_counter()
    compiled = lowered.compile()
    return compiled, between - started, time.perf_counter() - between


def run_timed(function, *arguments):
    """Return (result, seconds until it is there)."""
    started = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return result, time.perf_counter() - started


def permuted(key, labels, valid=True):
    """Return targets of these labels; all 21 classes are permuted, background too."""
    adversarial = dag_jax.permute_labels(key, labels, evaluation.NUM_CLASSES)
    return dag_jax.make_targets(labels, adversarial, valid)


@jax.jit
def pixel_targets(network, key, image):
    """Return as targets the class that an FCN gives to each pixel."""
    return permuted(key, networks.predict(network, image))


@functools.partial(jax.jit, static_argnames="max_proposals")
def box_targets(network, key, image, max_proposals):
    """Return a detector's proposals as targets.

    Returns:
      (boxes f32[N, 4], targets with the class of the highest score for label, targets of which one
      in EVERY has that label; the others have that of the lowest score, and so are not active).
    """
    boxes, _, valid = networks.propose(
        network, image, nms_threshold=evaluation.ATTACK_NMS, max_proposals=max_proposals
    )
    scores = networks.score_fn(network, boxes)(image)
    targets = permuted(key, jnp.argmax(scores, axis=1), valid)
    active = targets.valid & ((jnp.cumsum(targets.valid) - 1) % EVERY == 0)
    few = dag_jax.make_targets(
        jnp.where(active, targets.labels, jnp.argmin(scores, axis=1)),
        jnp.where(active, targets.adversarial, targets.labels),
        targets.valid,
    )
    return boxes, targets, few


@jax.jit
def advance(score_fn, state, targets, margin, end):
    """Advance an attack until it has made `end` steps or has stopped."""

    def goes_on(state):
        attack = state.attack
        return (attack.status == dag_jax.Status.RUNNING) & (attack.num_steps < end)

    def one(state):
        return dag_jax.step(score_fn, state, targets, margin=margin)

    return jax.lax.while_loop(goes_on, one, state)


def measure(network, image, image_id, *, proposals, steps, seed, label):
    """Measure one case, alone in its process.

    Args:
      network: a `Network`.
      image: u8[H, W, 3].
      image_id: name of the image, by which its classes are permuted.
      proposals: the most proposals of a detector; else None.
      steps: iterations.
      seed: of the permutation.
      label: what the progress bar is called.

    Returns:
      List of rows (dicts): all targets active; for a detector also few.
    """
    # 1. What the network says of the clean image, which is what it is to unlearn.
    image = jnp.asarray(image, jnp.float32)
    arguments = networks.unnamed(network), dag_jax.image_key(seed, image_id), image
    if network.detects:
        predict, *_ = compile_timed(box_targets, *arguments, proposals)
        (boxes, targets, few), clean_seconds = run_timed(predict, *arguments)
        score_fn = networks.score_fn(network, boxes)
    else:
        predict, *_ = compile_timed(pixel_targets, *arguments)
        targets, clean_seconds = run_timed(predict, *arguments)
        score_fn = networks.score_fn(network)
    count = int(targets.valid.sum())
    if not count:
        raise UserError(f"{label}: the network proposes no box, so there is nothing to attack")
    held, peak_before, peak_of = memory()
    forget_peak()  # random weights take more to make than an attack on a small image

    # 2. The attack with all targets active. Margin and labels are arguments, so one program does
    # for the other rows and for counting.
    everything, paper, one = jnp.float32(MARGIN), jnp.float32(0), jnp.int32(1)
    clean = dag_jax.init(image, targets, max_steps=steps)
    engine, trace_seconds, compile_seconds = compile_timed(
        advance, score_fn, clean, targets, everything, one
    )

    def count_active(targets, perturbation):
        start = dataclasses.replace(clean.attack, perturbation=jnp.asarray(perturbation))
        start = dataclasses.replace(clean, attack=start)
        return int(engine(score_fn, start, targets, paper, one).attack.active.sum())

    # This call is also the program's first, which takes longer than those that are timed.
    active_clean = count_active(targets, clean.attack.perturbation)
    state, seconds = clean, []
    for end in progress(range(1, steps + 1), desc=label, unit="step", position=1, leave=False):
        state, elapsed = run_timed(engine, score_fn, state, targets, everything, jnp.int32(end))
        if int(state.attack.num_steps) < end:  # it has stopped; what it did is no iteration
            break
        seconds.append(elapsed)
    attack = jax.device_get(state.attack)

    def costs(seconds):
        return {
            "iterations": len(seconds),
            "iteration_seconds_median": statistics.median(seconds) if seconds else None,
            "iteration_seconds": seconds,
            "peak_gib": memory()[1],
        }

    account = engine.memory_analysis()
    row = {
        "network": network.name,
        "size": list(image.shape[:2]),
        "canvas": list(network.module.canvas(image.shape)[0]) if network.detects else None,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(network.parameters)),
        "proposals": proposals,
        "targets": count,
        "active": count,
        "clean_seconds": clean_seconds,
        "trace_seconds": trace_seconds,
        "compile_seconds": compile_seconds,
        **costs(seconds),
        "peak_before_gib": peak_before,
        "held_gib": held,
        "peak_of": peak_of,
        "arguments_gib": account and account.argument_size_in_bytes / GIB,
        "outputs_gib": account and account.output_size_in_bytes / GIB,
        "temporaries_gib": account and account.temp_size_in_bytes / GIB,
        "steps": int(attack.num_steps),
        "status": dag_jax.Status(int(attack.status)).name,  # RUNNING: it could go on
        "active_clean": active_clean,
        "active_last": count_active(targets, attack.perturbation),
        "perturbation_finite": bool(np.isfinite(attack.perturbation).all()),
        "largest": float(np.abs(attack.perturbation).max()),
    }
    if not network.detects:
        return [row]

    # 3. The same with few, over and over from the clean image, where their number is known.
    iterations = min(steps, FEW_ITERATIONS)
    seconds = [run_timed(engine, score_fn, clean, few, paper, one)[1] for _ in range(iterations)]
    active = count_active(few, clean.attack.perturbation)
    attacked = ("steps", "status", "active_last", "perturbation_finite", "largest")
    return [
        row,
        row | {"active": active, "active_clean": active} | costs(seconds) | dict.fromkeys(attacked),
    ]
