"""One perturbation for several models: what is attacked in an image, and what comes of it.

    problem = joint.problem_of([Plan(fcn, method), Plan(detector, method)], row=0)
    attack = jax.device_get(dag_jax.attack(*problem))
    saved = rundir.saved_pixels(problem.image, attack.perturbation)
    record = joint.record_of(problem, attack, saved)

The attack stops once no model has a target left; of a single model it is that model's own attack.

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
    """What `dag_jax.attack` takes: an image as all models are attacked on it."""

    score_fn: Callable  # image -> {name of a model: its scores}, a pytree
    image: np.ndarray  # u8[H, W, 3]
    targets: dict  # {name: Targets}
    method: Method  # with each model's own margin


def problem_of(plans, row: int = 0) -> Problem:
    """Put the attacks on one image together.

    Args:
      plans: an `attacks.Plan` for each model, on the same images. Margins may differ; the rest of
        the method is the first one's.
      row: which of the examples.

    Raises:
      ValueError: for an image that is smaller than a model can see.
    """
    functions, targets = {}, {}
    for plan in plans:
        (found,) = attacks.attack_inputs(plan, [row])
        if isinstance(found, Failure):
            raise found.error
        name = plan.subject.name
        _, image, targets[name], inputs = found
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
    """Return what is kept of a joint attack: `attacks.record_of`, and each model's part in it.

    Args:
      problem: what was attacked.
      attack: the `Attack`, its arrays NumPy's.
      saved: u8[H, W, 3], the image as it is saved.

    Returns:
      What JSON can hold; its entry "models" has for each name the number of targets, how many are
      active on the image that was attacked and on the saved one, and whether that fools the model.
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
