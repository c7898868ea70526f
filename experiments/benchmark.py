"""What an iteration of the engine costs, against a bare value-and-gradient of the same loss.

    python -m experiments.benchmark

Both run the same network on the same image. The engine takes all its iterations inside its
compiled loop; the bare function is compiled once and called from Python. They take turns, and the
figure to quote is the median ratio of the pairs. Results go to --workdir: benchmark.json.
"""

import functools
import json
import pathlib
import platform
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import dag_jax
from dag_jax import networks
from experiments import console, evaluation, rundir

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "cases",
    ["fcn_vgg:miniature", "fcn_alex:miniature", "fr_vgg_07:miniature", "fcn_alex:full"],
    "What to measure: <network>:miniature or <network>:full.",
)
flags.DEFINE_integer("size", 128, "Pixels of the image's side.", 32)
flags.DEFINE_integer("iterations", 20, "Iterations of a run.", 1)
flags.DEFINE_integer("pairs", 10, "Pairs of runs.", 1)
flags.DEFINE_integer("proposals", 128, "Boxes of a detector.", 1)
flags.DEFINE_string("workdir", "runs/benchmark", "Where to write.")


def timed(function, *arguments) -> float:
    """Return the seconds of one call, until its results are there."""
    started = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - started


def measure(name, *, miniature, size, iterations, pairs, proposals):
    """Return a row of the benchmark: milliseconds of both, and their ratios."""
    network = networks.load(name, miniature=miniature)
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.uniform(0, 255, (size, size, 3)), jnp.float32)
    shape, boxes = (size, size), None
    if network.detects:
        corners = np.sort(rng.uniform(0, size - 1, (proposals, 2, 2)), axis=1)
        shape, boxes = (proposals,), jnp.asarray(corners.reshape(-1, 4), jnp.float32)
    score_fn = networks.score_fn(network, boxes)
    labels = jnp.asarray(rng.integers(0, evaluation.NUM_CLASSES, shape), jnp.int32)
    targets = dag_jax.make_targets(labels, (labels + 1) % evaluation.NUM_CLASSES)
    # A margin that no label loses by: every target stays active, no run ends early.
    margin = 1e9

    @jax.jit
    def bare(score_fn, image, targets):
        def loss(image):
            scores = score_fn(image)
            active = dag_jax.active_targets(scores, targets, margin)
            return jnp.where(active, dag_jax.margin_loss(scores, targets), 0).sum()

        return jax.value_and_grad(loss)(image)

    def called(*arguments):
        return [bare(*arguments) for _ in range(iterations)][-1]

    # The last of its iterations only scores, as every attack's does.
    engine = jax.jit(functools.partial(dag_jax.attack, max_steps=iterations - 1, margin=margin))
    arguments = score_fn, image, targets
    jax.block_until_ready((called(*arguments), engine(*arguments)))
    times = [(timed(engine, *arguments), timed(called, *arguments)) for _ in range(pairs)]
    inside, outside = (
        1000 * statistics.median(column) / iterations for column in zip(*times, strict=True)
    )
    ratios = sorted(a / b for a, b in times)
    return {
        "case": f"{name} {'miniature' if miniature else 'full size'}, {size} px",
        "engine_ms": round(inside, 2),
        "bare_ms": round(outside, 2),
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_range": [round(ratios[0], 3), round(ratios[-1], 3)],
        "pairs": pairs,
    }


def main(argv):
    """Measure each case and print a table."""
    console.start(argv)
    cases = [case.partition(":") for case in FLAGS.cases]
    for name, _, size in cases:
        if name not in networks.NAMES or size not in ("miniature", "full"):
            raise app.UsageError(f"--cases: {name}:{size} is not <network>:miniature or :full")
    rows = [
        measure(
            name,
            miniature=size == "miniature",
            size=FLAGS.size,
            iterations=FLAGS.iterations,
            pairs=FLAGS.pairs,
            proposals=FLAGS.proposals,
        )
        for name, _, size in console.progress(cases, desc="cases", unit="case")
    ]
    workdir = pathlib.Path(FLAGS.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    content = rundir.environment() | {"machine": platform.machine(), "rows": rows}
    rundir.write(workdir / "benchmark.json", json.dumps(content, indent=2) + "\n")
    print(f"{'case':34} {'engine ms':>10} {'bare ms':>10} {'ratio':>7}  range")
    for row in rows:
        low, high = row["ratio_range"]
        print(
            f"{row['case']:34} {row['engine_ms']:10.2f} {row['bare_ms']:10.2f} "
            f"{row['ratio_median']:7.3f}  {low:.3f} to {high:.3f}"
        )
    print(f"results: {workdir}/")


if __name__ == "__main__":
    app.run(main)
