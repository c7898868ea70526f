"""adversarial-library's own `dag` beside ours: images per second to the same stop.

Both attack the same images of the same weights (`torch_fcn`) from the same labels, by theirs' loss:
the label against the best other class. An image stops once 99% of its pixels are wrong. Iterates
are the same; what differs: in theirs a pixel that is clipped, at 0 or 255, has no gradient, and an
image that never gets there comes back clean.

Reference: github.com/jeromerony/adversarial-library, adv_lib/attacks/segmentation; on PyPI it is
  `adv-lib`.

Shapes: `B` images, `H W` pixels.
"""

import statistics
import time

import numpy as np
import torch
from adv_lib.attacks.segmentation import dag

from dag_jax import methods, networks
from dag_jax.progress import progress
from dag_jax.runs.attacks import Plan
from dag_jax.runs.subject import subject_of
from experiments.common import console
from experiments.measure import iterations, timing, torch_comparison

WHITE = 255  # grey levels of 1 in their images
STOP = 0.01  # of the pixels still right
METHODS = {  # ours, by what a table calls their steps
    "the paper's": methods.best_other(),
    "clipped": methods.clipped_best_other(),
}


def attack(fcn, images, labels, adversarial, valid, *, max_steps=200, step_size=0.5):
    """Attack a batch by adversarial-library, which gives no steps: they follow from its calls.

    Args:
      fcn: a `torch_fcn.Fcn`.
      images: f32[B, H, W, 3], RGB grey levels.
      labels: i64[B, H, W], classes; any where there is no target.
      adversarial: as `torch_fcn.attack` takes them; not used.
      valid: bool[B, H, W], whether a pixel is a target.
      max_steps: M_0.
      step_size: gamma in grey levels.

    Returns:
      (changes f32[B, H, W, 3] in grey levels, 0 of an image that is not fooled; steps i64[B] that
      images took, in rising order and not theirs).
    """
    del adversarial
    sizes = []

    def scores(seen):
        sizes.append(len(seen))
        return fcn.scores(WHITE * seen.permute(0, 2, 3, 1))

    unit, options = images.permute(0, 3, 1, 2) / WHITE, {"masks": valid, "adv_threshold": 1 - STOP}
    # It counts what it scores, the clean image included.
    fooling = dag(scores, unit, labels, max_iter=max_steps + 1, γ=step_size / WHITE, **options)
    ended = -np.diff([*sizes, 0])
    steps = torch.tensor(np.repeat(np.arange(len(sizes)), ended))
    return WHITE * (fooling - unit).permute(0, 2, 3, 1), steps


def compare(network, scenes, *, max_steps, seed, **options):
    """Return a row for each of `METHODS`: images per second to completion, ours and theirs.

    Args:
      network: an FCN.
      scenes: an `ExampleSet`.
      max_steps: M_0.
      seed: of adversarial labels, which no method here reads.
      **options: of `torch_comparison.race`; each of its `runs` is a pair.
    """
    numbers = {"stop_fraction": STOP, "max_steps": max_steps}
    subject = subject_of(network, scenes)
    plans = [Plan(subject, method.replace(**numbers), seed=seed) for method in METHODS.values()]
    result = torch_comparison.race(plans, attack, turns=1, **options)
    *ours, theirs = zip(*result.times, strict=True)
    *steps, their_steps = result.steps
    count, rows = len(scenes), []
    for kind, slots, seconds, own in zip(METHODS, result.slots, ours, steps, strict=True):
        both = own, their_steps
        rows.append(
            {
                "case": f"{iterations.title(network.name, network.miniature)}, {count} images",
                "cores": console.cores(),
                "method": kind,
                "ours": count / statistics.median(seconds),
                "peer": count / statistics.median(theirs),
                **timing.compare(list(zip(theirs, seconds, strict=True))),
                "slots": slots,
                "batch": result.batch,
                "steps": [float(np.median(taken)) for taken in both],
                "finished": [float(np.mean(taken < max_steps)) for taken in both],
                "pairs": len(seconds),
            }
        )
    return rows


def measure(names, scenes, *, mesh, max_steps, seed, **options):
    """Return the rows of the comparison on the cores that this process has.

    Args:
      names: of FCNs, which PyTorch has: `torch_fcn.FCNS`.
      scenes: an `ExampleSet`.
      mesh: from `console.open_mesh`.
      max_steps: as in `compare`.
      seed: as in `compare`.
      **options: `lanes`, `batch_sizes` and `runs` of `torch_comparison.race`.
    """
    options |= {"mesh": mesh, "device": torch_comparison.open_device(console.cores())}
    options |= {"search_steps": torch_comparison.SEARCH_STEPS, "seed": seed}
    if console.cores() == 1:  # CPU seconds, which nothing else on the core makes longer
        options["clock"] = time.process_time
    rows = []
    for name in progress(names, desc="peers", position=1, leave=False):
        network = networks.load(name, miniature=True)
        rows += compare(network, scenes, max_steps=max_steps, **options)
    return rows
