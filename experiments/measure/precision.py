"""The same networks in several precisions: what an attack does to each, beside each other."""

import tempfile

import jax
import numpy as np

from dag_jax import networks
from dag_jax.runs import rundir, scores
from dag_jax.runs.attacks import Plan
from dag_jax.runs.dataset import attack_and_score, join_row
from dag_jax.runs.subject import subject_of

COLUMNS = ("orig", scores.ADVR)


def worth_measuring() -> list[str]:
    """Return those of `networks.PRECISIONS` that differ on this platform."""
    is_cpu = jax.default_backend() == "cpu"
    return [kind for kind in networks.PRECISIONS if not (is_cpu and kind == "tf32")]


def measure(networks_by_precision, examples, method, *, slots, mesh, seed):
    """Return a row for each precision: ORIG, ADVR, steps and perceptibility.

    Labels and targets are the same for all; each precision attacks, and is scored on, its own
    network.

    Args:
      networks_by_precision: {"float32": Network, ...}, with the same weights.
      examples: a `datasets.ExampleSet`.
      method: of the attack.
      slots: images at a time on each device.
      mesh: from `console.open_mesh`.
      seed: of adversarial labels.
    """
    rows, first = [], None
    for precision, network in networks_by_precision.items():
        plan = Plan(subject_of(network, examples), method, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            results = rundir.Results(folder, plan.manifest(), list(map(str, plan.subject.ids)))
            attack_and_score(plan, results, slots=slots, mesh=mesh, columns=COLUMNS)
            row = join_row(plan, results, columns=COLUMNS)
            steps = np.array([record["num_steps"] for record in results.records()])
            seconds = scores.seconds_of(results)
        first = steps if first is None else first
        rows.append(
            {
                "case": f"{row['title']} {precision}, {row['images']} images",
                **{name: row[name] for name in (*COLUMNS, "perceptibility", "fooled_float")},
                "steps": row["steps_median"],
                "steps_apart": float(np.median(np.abs(steps - first))),
                "seconds": seconds,
            }
        )
    return rows
