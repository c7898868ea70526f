"""One perturbation for several models: the attack's arguments for an image, and its record.

    problem = joint.problem_of([Plan(fcn, method), Plan(detector, method)], row=0)
    attack = jax.device_get(dag_jax.attack(*problem))
    saved = rundir.saved_pixels(problem.image, attack.perturbation)
    record = joint.record_of(problem, attack, saved)

The attack stops once no model has an active target. With one model it is that model's own attack.

Shapes: `H W` pixels.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from dag_jax import models
from dag_jax.engine.algorithm import verdict_on
from dag_jax.engine.feed import Failure
from dag_jax.engine.method import Method
from dag_jax.engine.scoring import told_apart
from dag_jax.runs import attacks


class Problem(NamedTuple):
    """The arguments of `dag_jax.attack` for a joint attack on one image."""

    score_fn: Callable  # image -> {name of a model: its scores}, a pytree
    image: np.ndarray  # u8[H, W, 3]
    targets: dict  # {name: Targets}
    method: Method  # with each model's own margin


def problem_of(plans, row: int = 0) -> Problem:
    """Join the attacks of several models on one image.

    Args:
      plans: an `attacks.Plan` for each model, on the same images. Each keeps its own margin; the
        rest of the method is that of the first plan.
      row: index of the example.

    Raises:
      ValueError: for an image that is smaller than a model can see.
    """
    functions, targets = {}, {}
    for plan in plans:
        (item,) = attacks.attack_inputs(plan, [row])
        if isinstance(item, Failure):
            raise item.error
        name = plan.subject.name
        _, image, targets[name], inputs = item
        functions[name] = models.score_fn(plan.subject.model, *inputs)
    margins = {plan.subject.name: plan.method.margin for plan in plans}
    method = plans[0].method.replace(margin=margins)
    score_fn = told_apart(jax.tree_util.Partial(_scores_of_all, functions))
    return Problem(score_fn, image, targets, method)


def _scores_of_all(functions, image):
    return {name: function(image) for name, function in functions.items()}


@jax.jit
def _verdicts(score_fn, image, targets, method):
    scores = score_fn(image)
    return {
        name: verdict_on(
            method.replace(margin=method.margin[name]),
            lambda _, name=name: scores[name],
            image,
            targets[name],
        )
        for name in targets
    }


def record_of(problem: Problem, attack, saved) -> dict:
    """Return the record of a joint attack: `attacks.record_of` with an entry for each model.

    Args:
      problem: from `problem_of`.
      attack: the `Attack`, its arrays NumPy's.
      saved: u8[H, W, 3], the image as it is saved.

    Returns:
      A dict of JSON values. Its entry "models" has for each name the number of targets, how many
      are active on the attacked image and on the saved one, and whether the latter fools the model.
    """
    seen = problem._replace(image=np.asarray(saved, np.float32))
    verdicts = {
        name: (int(number), bool(fools)) for name, (number, fools) in _verdicts(*seen).items()
    }
    total = sum(number for number, _ in verdicts.values())
    record = attacks.record_of(
        problem.image, attack, (total, all(fools for _, fools in verdicts.values()))
    )
    record["models"] = {
        name: {
            "targets": int(problem.targets[name].valid.sum()),
            "active": int(attack.active[name].sum()),
            "active_png": number,
            "fooled_png": fools,
        }
        for name, (number, fools) in verdicts.items()
    }
    return record
