"""The attack of many images, and what an image took: what has to be compiled is compiled before.

Seconds are of finding the targets, of the attack and of writing what it found (the PNG, the
perturbation and its shard), on the wall's clock: they depend on what else the machine does. They
are added up in the folder of results, launch by launch; a launch that was cut short leaves none of
its own behind.
"""

import json
import time

import jax
import numpy as np

import dag_jax
from dag_jax import files
from dag_jax.progress import progress
from dag_jax.runs import attacks
from experiments.measure import throughput

_SECONDS = "seconds.json"


def attack_all(network, examples, results, *, seed, label, targets_of, **of_stream):
    """Do what `attacks.attack_all` does.

    Args:
      network: a `Network`.
      examples: one for each of the results' keys.
      results: `rundir.Results`.
      seed: of the adversarial labels.
      label: what the progress bar is called.
      targets_of: as in `attacks.attack_inputs`.
      **of_stream: what `attacks.open_stream` takes: slots, mesh, rounded and options of the attack.

    Returns:
      The seconds that an image took, over all launches that ended; None if none did.

    Raises:
      As `attacks.attack_all` does.
    """
    todo = results.todo()
    if todo:
        rows = rows_of_shapes(network, examples, todo)
        inputs = attacks.attack_inputs(network, examples, seed, rows, targets_of=targets_of)
        inputs = progress(inputs, total=len(rows), desc=f"{label}: shapes", unit="image")
        for _ in attacks.open_stream(network, examples, results, _one_of_each(inputs), **of_stream):
            pass
    started = time.perf_counter()
    attacks.attack_all(
        network, examples, results, seed=seed, label=label, targets_of=targets_of, **of_stream
    )
    return _an_image(results.folder / _SECONDS, time.perf_counter() - started, len(todo))


def rows_of_shapes(network, examples, todo) -> list[int]:
    """Return which examples have all shapes that an attack of `todo` needs compiled.

    How many targets a detector has depends on the image, an FCN's on nothing but its size.

    Args:
      network: a `Network`.
      examples: all of them.
      todo: indices into these.
    """
    if network.detects:
        return todo
    first = {examples[row]["image"].shape: row for row in reversed(todo)}
    return sorted(first.values())


def _one_of_each(inputs):
    """Yield an attack without a target for each of the shapes that inputs have."""
    seen = set()
    for one in inputs:
        shapes = None if isinstance(one, dag_jax.Failure) else str(jax.tree.map(np.shape, one[1:]))
        if shapes not in seen | {None}:
            seen.add(shapes)
            yield from throughput.idle([one])


def _an_image(path, seconds, images):
    """Add the seconds of a launch to those of others; return what an image took, or None."""
    before = files.load_json(path) if path.exists() else {"seconds": 0.0, "images": 0}
    if not images:
        return before["seconds"] / before["images"] if before["images"] else None
    now = {"seconds": before["seconds"] + seconds, "images": before["images"] + images}
    files.write(path, json.dumps(now) + "\n")
    return now["seconds"] / now["images"]
