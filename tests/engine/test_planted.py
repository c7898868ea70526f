"""The models' adversarial examples are known, and anything else is judged wrong."""

import dataclasses

import jax
import numpy as np
import pytest

from dag_jax import attack
from dag_jax.engine import planted


@pytest.mark.parametrize("seed", [0, 2])
def test_scores_equal_a_loop(seed, rng):
    model = planted.plant(seed)
    seen = (model.image + rng.normal(0, 3, model.image.shape)).astype(np.float32)
    scores = np.asarray(planted.score(seen, model))
    for place in np.ndindex(model.steps.shape):
        moved = float(model.pattern[place] @ (seen - model.image)[place])
        expected = np.full(3, -1e3)
        expected[model.labels[place]] = model.steps[place] - 0.5 - moved / (3 * planted.STEP_SIZE)
        expected[(model.labels[place] + 1) % 3] = 0
        np.testing.assert_allclose(scores[place], expected, atol=1e-4)


@pytest.mark.parametrize("steps", [0, 7, 20])
def test_a_target_falls_after_its_steps_and_not_before(steps):
    model = planted.plant(0)
    seen = model.image + np.float32(planted.STEP_SIZE * steps) * model.pattern
    right = np.asarray(planted.score(seen, model)).argmax(axis=-1) == model.labels
    np.testing.assert_array_equal(right, model.steps > steps)


def test_another_result_is_judged_wrong():
    model = planted.plant(1)
    result = jax.device_get(planted.attack_by(model, engine=attack))
    right, detail = planted.judge(model, result)
    assert right and "fall after 15 steps: FOOLED after 15, 0 left" in detail
    for name, wrong in (
        ("perturbation", result.perturbation * 1.1),
        ("num_steps", result.num_steps - 1),
        ("status", result.status + 1),
        ("active_counts", result.active_counts + 1),
    ):
        assert not planted.judge(model, dataclasses.replace(result, **{name: wrong}))[0], name
    assert not planted.judge(planted.plant(2), result)[0]
