"""The same networks in two precisions: what an attack does to each, beside each other."""

import time

import numpy as np

import dag_jax
from dag_jax import metrics, networks
from dag_jax.progress import progress
from dag_jax.runs import attacks, evaluation
from experiments.measure import throughput


def measure(networks_by_precision, examples, *, slots, mesh, max_steps, seed):
    """Return a row for each precision: ORIG, ADVR, steps and perceptibility.

    Labels and targets are the same for all; each precision attacks, and is scored on, its own
    network.

    Args:
      networks_by_precision: {"float32": Network, ...}, an FCN with the same weights.
      examples: from `evaluation.load_examples`.
      slots: images at a time on each device.
      mesh: from `console.open_mesh`.
      max_steps: M_0.
      seed: of adversarial labels.
    """
    rows, first = [], None
    for precision, network in networks_by_precision.items():
        title = f"{evaluation.TITLES[network.name]} {precision}"
        inputs = list(attacks.attack_inputs(network, examples, seed))
        clean = evaluation.predict(network, evaluation.clean_images(examples))
        options = {"slots": slots * mesh.size, "mesh": mesh, "max_steps": max_steps}
        score_fn = networks.score_fn(network)
        list(throughput.stream(score_fn, throughput.idle(inputs[:1]), **options))  # compiles
        started = time.perf_counter()
        stream = throughput.stream(score_fn, inputs, **options)
        found = dict(progress(stream, total=len(inputs), desc=title, leave=False))
        seconds = time.perf_counter() - started
        found = [found[index] for index in range(len(inputs))]
        adversarial = evaluation.predict(network, [attacks.perturbed(one) for one in found])
        steps = np.array([attack.num_steps for attack in found])
        first = steps if first is None else first
        changes = [attacks.change(attack) for attack in found]
        fooled = [attack.status == dag_jax.Status.FOOLED for attack in found]
        rows.append(
            {
                "case": f"{title}, {len(examples)} images",
                "orig": evaluation.score(examples, clean),
                "advr": evaluation.score(examples, adversarial),
                "steps": float(np.median(steps)),
                "steps_apart": float(np.median(np.abs(steps - first))),
                "perceptibility": float(np.mean([metrics.perceptibility(c) for c in changes])),
                "fooled": float(np.mean(fooled)),
                "images_per_second": len(examples) / seconds,
            }
        )
    return rows
