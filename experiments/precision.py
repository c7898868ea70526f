"""The same networks in two precisions: what an attack does to each, beside each other."""

import time

import numpy as np

import dag_jax
from dag_jax import metrics
from experiments import evaluation, throughput


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
        inputs = evaluation.attack_inputs(network, examples, seed)
        clean = evaluation.predict(network, evaluation.clean_images(examples))
        options = {"slots": slots, "mesh": mesh, "max_steps": max_steps}
        few = throughput.idle(inputs[: slots * mesh.size])
        evaluation.attack_examples(network, few, label=f"{title} compiles", **options)
        started = time.perf_counter()
        attacks = evaluation.attack_examples(network, inputs, label=title, **options)
        seconds = time.perf_counter() - started
        adversarial = evaluation.predict(network, evaluation.perturbed_images(attacks))
        steps = np.array([attack.num_steps for attack in attacks])
        first = steps if first is None else first
        changes = [evaluation.change(attack) for attack in attacks]
        fooled = [attack.status == dag_jax.Status.FOOLED for attack in attacks]
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
