import jax.numpy as jnp
import numpy as np
import pytest

import dag_jax
from dag_jax import models
from experiments.measure import iterations


@pytest.fixture
def problem(plan):
    image = jnp.asarray(plan.subject.examples[0]["image"], jnp.float32)
    labels = jnp.full((4, 4), 2, jnp.int32)
    targets = dag_jax.make_targets(labels, labels - 1)
    model = plan.subject.model
    return iterations.Problem("mine", model, models.score_fn(model), image, targets)


def test_the_engine_and_a_bare_gradient_take_turns(problem):
    row = iterations.engine(problem, iterations=3, pairs=2)
    assert row["case"] == "mine" and row["iterations"] == 3 and row["pairs"] == 2
    assert row["range"][0] <= row["ratio"] <= row["range"][1]
    assert row["engine_ms"] > 0 and row["bare_ms"] > 0


def test_every_target_stays_active(problem):
    method = iterations.EVERY_TARGET.replace(max_steps=300)
    attack = dag_jax.attack(*problem.arguments, method)
    assert attack.status == dag_jax.Status.MAX_STEPS and attack.active.all()


def test_an_iteration_works_more_than_its_gradient(problem):
    (row,) = iterations.work(problem)
    assert row["control"] == "forward and gradient" and row["ratio"] > 1


def test_lanes_multiply_the_work_of_an_iteration(problem):
    single, three = (iterations.cost(problem, lanes=lanes, repeats=1) for lanes in (1, 3))
    assert three["flops"] == pytest.approx(3 * single["flops"], rel=0.1)
    assert (single["lanes"], three["lanes"]) == (1, 3) and single["seconds"] > 0
    assert iterations.cost(problem)["seconds"] is None


def test_a_random_problem_has_a_target_at_each_pixel_or_box():
    segmenter = iterations.problem("fcn_alex", miniature=True, size=64)
    assert segmenter.case == "FCN-Alex miniature, 64 px" and segmenter.targets.valid.all()
    options = {"miniature": False, "size": 64, "proposals": 7, "abstract": True}
    detector = iterations.problem("fr_zf_07", **options)
    assert detector.targets.valid.shape == (7,) and detector.case == "FR-ZF-07 full size, 64 px"
    assert models.about(detector.model).detects
    assert np.shape(detector.score_fn.args[1]) == (7, 4)
