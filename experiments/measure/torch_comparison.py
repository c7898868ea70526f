"""Attacks in PyTorch's eager mode beside ours: images per second, and seconds of an iteration.

Both have the same weights, images, labels and step, all of the cores (or the same accelerator), and
the number of images at a time that suits them best on the first few. The attack in PyTorch is that
of `torch_fcn` here; `peers` races others.

Shapes: `M` images, `H W` pixels.
"""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

import dag_jax
from dag_jax import models
from dag_jax.progress import progress
from dag_jax.runs.attacks import Plan, attack_inputs
from dag_jax.runs.subject import subject_of
from dag_jax.runs.unlabelled import as_seen
from experiments.common import console
from experiments.measure import iterations, throughput, timing, torch_fcn

SEARCH_STEPS = 20  # of the miniatures' attacks by which the numbers at a time are chosen
FULL_RUNS = 2  # of each side over the full-size networks' images


def open_device(cores: int) -> torch.device:
    """Let PyTorch use as many cores as JAX, or its accelerator; float32 throughout.

    Raises:
      RuntimeError: where JAX has an accelerator and this PyTorch has none.
    """
    torch.set_num_threads(cores)
    torch.set_flush_denormal(True)  # as XLA does; threads to come inherit it
    if jax.devices()[0].platform == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError("JAX has an accelerator that this PyTorch does not see")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")


def arrays(inputs, device):
    """Return the four tensors that `torch_fcn.attack` takes, from `attack_inputs`."""
    images = np.stack([np.float32(image) for _, image, *_ in inputs])
    labels, adversarial, valid = (
        np.stack([getattr(targets, name) for _, _, targets, *_ in inputs])
        for name in ("labels", "adversarial", "valid")
    )
    classes = (np.int64(np.where(valid, array, 0)) for array in (labels, adversarial))
    return [torch.tensor(array, device=device) for array in (images, *classes, valid)]


def batches(attack, fcn, inputs, *, batch, max_steps):
    """Attack images in PyTorch, a batch after the other; yield (index, steps) of each image."""
    for start in range(0, len(inputs), batch):
        chunk = inputs[start : start + batch]
        device = fcn.mean_bgr.device
        _, steps = attack(fcn, *arrays(chunk, device), max_steps=max_steps)
        for (index, *_), count in zip(chunk, steps.tolist(), strict=True):
            yield index, count


def best_batch(attack, fcn, inputs, candidates, *, max_steps, clock) -> int:
    """Return the batch size with which a few images are finished fastest."""

    def run(count):
        few = (inputs * -(-count // len(inputs)))[:count]
        list(batches(attack, fcn, few, batch=count, max_steps=0))  # memory is taken once
        started = clock()
        list(batches(attack, fcn, few, batch=count, max_steps=max_steps))
        return clock() - started

    return throughput.best_of(candidates, run)


class Race(NamedTuple):
    """What plans of ours and an attack in PyTorch took for the same images.

    Attributes:
      times: for each turn the seconds of each of our plans, and those of PyTorch.
      slots: of each of our plans.
      batch: PyTorch's.
      steps: i64[M] of each plan, and of PyTorch, by image.
    """

    times: list[tuple[float, ...]]
    slots: list[int]
    batch: int
    steps: list[np.ndarray]


def race(
    plans,
    attack,
    *,
    lanes,
    batch_sizes,
    mesh,
    device,
    search_steps,
    turns,
    runs=1,
    clock=time.perf_counter,
) -> Race:
    """Attack the same images by plans of ours and in PyTorch, part by part in turns.

    Args:
      plans: one FCN's `Plan`s, which differ in their methods.
      attack: as `torch_fcn.attack`.
      lanes: numbers of slots of a device to choose from.
      batch_sizes: PyTorch's batches to choose from.
      mesh: from `console.open_mesh`.
      device: from `open_device`.
      search_steps: M_0 of the attacks that choose these.
      turns: parts of a run after which the next one has its turn.
      runs: how often all images are attacked.
      clock: as in `timing.pull_in_turns`.
    """
    inputs, network = list(attack_inputs(plans[0])), plans[0].subject.model
    count, max_steps = len(inputs), plans[0].method.max_steps
    fcn = torch_fcn.Fcn(network.name, network.module, network.parameters, device)
    search = min(search_steps, max_steps)
    batch_sizes = [size for size in batch_sizes if size <= count] or [count]
    batch = best_batch(attack, fcn, inputs, batch_sizes, max_steps=search, clock=clock)
    best = []
    for plan in plans:
        shorter = throughput.shorter(plan, search)
        best.append(throughput.best_lanes(shorter, inputs, lanes, mesh=mesh, clock=clock))
        ready = throughput.idle(inputs[: best[-1] * mesh.size])
        list(throughput.stream(plan, ready, lanes=best[-1], mesh=mesh))
    times, sizes = [], timing.split(count, turns, batch)
    for _ in range(runs):
        of_run, (*ours, theirs) = timing.pull_in_turns(
            [
                *(
                    throughput.stream(plan, inputs, lanes=number, mesh=mesh)
                    for plan, number in zip(plans, best, strict=True)
                ),
                batches(attack, fcn, inputs, batch=batch, max_steps=max_steps),
            ],
            sizes,
            clock,
        )
        times += of_run
    steps = [throughput.steps_of(attacked, count) for attacked in ours]
    control = np.array([steps_by_torch for _, steps_by_torch in sorted(theirs)])
    return Race(times, [number * mesh.size for number in best], batch, [*steps, control])


def compare(plan, **options):
    """Return a row: images per second to completion, ours and PyTorch's; options as of `race`."""
    result, network = race([plan], torch_fcn.attack, **options), plan.subject.model
    images, (steps, control) = plan.subject.examples, result.steps
    seconds, attacked = np.sum(result.times, axis=0), options.get("runs", 1) * len(steps)
    size = "x".join(map(str, images[0]["image"].shape[:2]))
    case = iterations.title(network.name, network.miniature)
    return {
        "case": f"{case}, {len(steps)} images of {size}",
        "unit": "images/s",
        "max_steps": plan.method.max_steps,
        "slots": result.slots[0],
        "batch": result.batch,
        "ours": attacked / float(seconds[0]),
        "torch": attacked / float(seconds[1]),
        "ratio": float(seconds[1] / seconds[0]),
        "range": timing.compare([pair[::-1] for pair in result.times])["range"],
        "steps": [float(np.median(steps)), float(np.median(control))],
        "same_steps": float(np.mean(steps == control)),
        "most_apart": int(np.abs(steps - control).max()),
    }


def one_iteration(network, *, size, pairs, device):
    """Return a row: milliseconds of an iteration on one image, ours and PyTorch's."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (size, size, 3), np.uint8)
    inputs = list(attack_inputs(Plan(as_seen(network, {"0": image}), dag_jax.Method())))
    targets = jax.tree.map(jnp.asarray, inputs[0][2])
    state = dag_jax.init(iterations.EVERY_TARGET, image, targets)
    score_fn = models.score_fn(network)
    fcn = torch_fcn.Fcn(network.name, network.module, network.parameters, device)
    seen, *classes = arrays(inputs, device)

    def ours():
        return iterations.advance(score_fn, state, targets).attack

    gradients = []

    def theirs():
        is_active, slope = torch_fcn.gradient(fcn, seen, *classes)
        gradients[:] = [slope.cpu().numpy()[0]]  # on an accelerator this waits for it
        return is_active.any().item()

    turns = timing.compare([pair[::-1] for pair in timing.alternate([ours, theirs], pairs)])
    change = np.asarray(ours().perturbation)
    expected = -0.5 * gradients[0] / np.abs(gradients[0]).max()
    torch_seconds, own_seconds = turns["seconds"]
    return {
        "case": f"{iterations.title(network.name, network.miniature)}, an iteration at {size} px",
        "unit": "ms",
        "ours": 1000 * own_seconds,
        "torch": 1000 * torch_seconds,
        "ratio": turns["ratio"],
        "range": turns["range"],
        "difference": float(np.abs(change - expected).max()),
    }


def measure(
    names,
    scenes,
    *,
    lanes,
    batch_sizes,
    mesh,
    max_steps,
    full_images,
    full_steps,
    full_size,
    iteration_size,
    turns,
    pairs,
    seed,
):
    """Return the rows of the comparison.

    Args:
      names: of FCNs, which PyTorch has: `torch_fcn.FCNS`.
      scenes: an `ExampleSet` for the miniatures.
      lanes: as in `race`.
      batch_sizes: as in `race`.
      mesh: as in `race`.
      max_steps: M_0 of the miniatures.
      full_images: images for the full-size networks; 0 leaves those out.
      full_steps: their M_0.
      full_size: pixels of a side of these images.
      iteration_size: pixels of the side for an iteration alone.
      turns: as in `race`.
      pairs: pairs of single iterations.
      seed: of adversarial labels and images.
    """
    device = open_device(console.cores())
    options = {"batch_sizes": batch_sizes, "mesh": mesh, "device": device, "lanes": lanes}
    rows = []
    cases = [
        (name, small) for name in names for small in ((True, False) if full_images else (True,))
    ]
    for name, small in progress(cases, desc="torch", position=1, leave=False):
        network = iterations.load(name, small)
        if small:
            method = dag_jax.Method(max_steps=max_steps)
            plan = Plan(subject_of(network, scenes), method, seed=seed)
            rows.append(compare(plan, search_steps=SEARCH_STEPS, turns=turns, **options))
            continue
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 256, (full_images, full_size, full_size, 3), np.uint8)
        seen = as_seen(network, {str(index): image for index, image in enumerate(images)})
        plan = Plan(seen, dag_jax.Method(max_steps=full_steps), seed=seed)
        # A run is too short to be parted.
        rows.append(compare(plan, search_steps=1, turns=1, runs=FULL_RUNS, **options))
        rows.append(one_iteration(network, size=iteration_size, pairs=pairs, device=device))
    return rows
