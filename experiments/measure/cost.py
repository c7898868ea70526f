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
from dag_jax import models, networks
from dag_jax.engine.algorithm import advance
from dag_jax.errors import UserError
from dag_jax.progress import progress

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
        statistics = device.memory_stats() or {}
        held, peak = (statistics.get(name) for name in ("bytes_in_use", "peak_bytes_in_use"))
        return held and held / GIB, peak and peak / GIB, "device"
    # Not getrusage, which counts for a child what its parent held when it started it.
    status = pathlib.Path("/proc/self/status").read_text()
    held, peak = (
        int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024 / GIB
        for name in ("VmRSS", "VmHWM")
    )
    return held, peak, "process"


def forget_peak():
    """Reset the memory peak of this process to its present size, where the system allows it."""
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
    """Return (result, seconds until it is computed)."""
    started = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return result, time.perf_counter() - started


def permuted(key, labels, num_classes, valid=True):
    """Return targets of these labels; all classes are permuted, background too."""
    adversarial = dag_jax.permute_labels(key, labels, num_classes)
    return dag_jax.make_targets(labels, adversarial, valid, void=None)


@jax.jit
def pixel_targets(model, key, image):
    """Return targets whose labels are the class that a segmenter gives to each pixel."""
    return permuted(key, model.predict(image), len(models.about(model).classes))


@functools.partial(jax.jit, static_argnames="options")
def box_targets(model, key, image, options):
    """Return a detector's candidates as targets.

    Args:
      model: a `models.Detector`.
      key: JAX key of the permutation.
      image: f32[H, W, 3].
      options: pairs (name, value) that its `propose` takes.

    Returns:
      (candidates' handle, targets whose labels are the class of the highest score, targets of which
      only one in EVERY has that label; the others have the class of the lowest score, and so are
      inactive).
    """
    candidates = model.propose(image, **dict(options))
    scores = model.scores(image, candidates.handle)
    valid = candidates.valid.reshape(-1, *[1] * (scores.ndim - 2))
    valid = jnp.broadcast_to(valid, scores.shape[:-1])
    targets = permuted(key, jnp.argmax(scores, axis=-1), scores.shape[-1], valid)
    order = jnp.cumsum(targets.valid).reshape(targets.valid.shape) - 1
    active = targets.valid & (order % EVERY == 0)
    few = dag_jax.make_targets(
        jnp.where(active, targets.labels, jnp.argmin(scores, axis=-1)),
        jnp.where(active, targets.adversarial, targets.labels),
        targets.valid,
        void=None,
    )
    return candidates.handle, targets, few


def measure(model, image, image_id, *, proposals, steps, seed, label):
    """Measure one case, alone in its process.

    Args:
      model: a `models.Segmenter` or `models.Detector`.
      image: u8[H, W, 3].
      image_id: name of the image, by which its classes are permuted.
      proposals: the most proposals of a detector; None: its own number, or it segments.
      steps: iterations.
      seed: of the permutation.
      label: what the progress bar is called.

    Returns:
      List of rows (dicts): all targets active; for a detector also few.
    """
    # 1. What the model says of the clean image, which is what it is to unlearn.
    about = models.about(model)
    image = jnp.asarray(image, jnp.float32)
    arguments = model, dag_jax.image_key(seed, image_id), image
    if about.detects:
        options = () if proposals is None else (("max_proposals", proposals),)
        predict, *_ = compile_timed(box_targets, *arguments, options)
        (handle, targets, few), clean_seconds = run_timed(predict, *arguments)
        score_fn = models.score_fn(model, handle)
    else:
        predict, *_ = compile_timed(pixel_targets, *arguments)
        targets, clean_seconds = run_timed(predict, *arguments)
        score_fn = models.score_fn(model)
    count = int(targets.valid.sum())
    if not count:
        raise UserError(f"{label}: the model proposes no box, so there is nothing to attack")
    held, peak_before, peak_of = memory()
    forget_peak()  # random weights take more to make than an attack on a small image

    # 2. The attack with all targets active. Margin and labels are arguments, so one program does
    # for the other rows and for counting.
    paper = jax.tree.map(jnp.float32, dag_jax.Method(max_steps=steps))
    everything, single_step = paper.replace(margin=jnp.float32(MARGIN)), jnp.int32(1)
    clean = dag_jax.init(paper, image, targets)
    engine, trace_seconds, compile_seconds = compile_timed(
        jax.jit(advance), everything, score_fn, clean, targets, single_step
    )

    def count_active(targets, perturbation):
        perturbation = jnp.asarray(perturbation)
        adversarial = dag_jax.perturb(image, perturbation)
        start = dataclasses.replace(
            clean.attack, perturbation=perturbation, adversarial=adversarial
        )
        start = dataclasses.replace(clean, attack=start)
        return int(engine(paper, score_fn, start, targets, single_step).attack.active.sum())

    # This call is also the program's first, which takes longer than those that are timed.
    active_clean = count_active(targets, clean.attack.perturbation)
    state, seconds = clean, []
    for end in progress(range(1, steps + 1), desc=label, unit="step", position=1, leave=False):
        state, elapsed = run_timed(engine, everything, score_fn, state, targets, jnp.int32(end))
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
        "title": about.title,
        "size": list(image.shape[:2]),
        "canvas": _canvas(model, image.shape),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model)),
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
    if not about.detects:
        return [row]

    # 3. The same with few, over and over from the clean image, where their number is known.
    repeat = range(min(steps, FEW_ITERATIONS))
    seconds = [run_timed(engine, paper, score_fn, clean, few, single_step)[1] for _ in repeat]
    active = count_active(few, clean.attack.perturbation)
    attacked = ("steps", "status", "active_last", "perturbation_finite", "largest")
    return [
        row,
        row | {"active": active, "active_clean": active} | costs(seconds) | dict.fromkeys(attacked),
    ]


def _canvas(model, shape):
    """Return [H, W] that one of our detectors scales an image to; None of other models."""
    is_ours = isinstance(model, networks.DetectionNetwork)
    return list(model.module.canvas(shape)[0]) if is_ours else None
