"""Bad input gets one error that names it, before any work."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import dag_jax
from dag_jax.engine import checks

H, W, N, C = 6, 5, 7, 4


@pytest.fixture
def problem(rng):
    weights = jnp.asarray(rng.standard_normal((N, C, H * W * 3)), jnp.float32)
    image = rng.uniform(0, 255, (H, W, 3)).astype(np.float32)
    labels = jnp.arange(N) % C
    return lambda x: weights @ x.reshape(-1), image, dag_jax.make_targets(labels, (labels + 1) % C)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(image=np.zeros((H, W), np.float32)), r"must be \[H, W, 3\]"),
        (dict(image=np.full((H, W, 3), 0.5, np.float32)), "multiply the image by 255"),
        (dict(image=np.full((H, W, 3), -3.0, np.float32)), "before any mean"),
        (dict(image=np.full((H, W, 3), np.nan, np.float32)), "not finite"),
        (dict(labels=np.zeros(N + 1, np.int32)), r"targets.labels has shape \(8,\)"),
        (dict(labels=np.full(N, C, np.int32)), "has class 4, scores have 4 classes"),
        (dict(adversarial=np.full(N, -1, np.int32)), "targets.adversarial has class -1"),
        (dict(same=True), "their own label"),
        (dict(labels=np.zeros(N, np.float32)), "targets.labels is float32"),
        (dict(valid=np.ones(N, np.int32)), "targets.valid is int32; it must be bool"),
        (dict(max_steps=0), "max_steps is 0"),
        (dict(step_size=0.0), "step_size is 0"),
        (dict(margin=-1.0), "margin is -1"),
        (dict(margin={"fcn": 0.0, "detector": 3.0}), "one number for all"),
        (dict(stop_fraction=1.0), "stop_fraction is 1.0; it is a share of the targets"),
        (dict(stop_fraction=-0.1), "stop_fraction is -0.1"),
        (dict(pytree=True), "same pytree"),
    ],
)
def test_bad_input_is_named(problem, change, message):
    score_fn, image, targets = problem
    change = dict(change)
    image = change.pop("image", image)
    for field in ("labels", "adversarial", "valid"):
        if field in change:
            targets = dataclasses.replace(targets, **{field: change.pop(field)})
    if change.pop("same", False):
        targets = dataclasses.replace(targets, adversarial=targets.labels)
    if change.pop("pytree", False):
        targets = [targets, targets]
    with pytest.raises(ValueError, match=message):
        dag_jax.attack(score_fn, image, targets, **change)
    with pytest.raises(ValueError, match=message):
        checks.check(score_fn, image, targets, **change)


def test_good_input_passes(problem):
    checks.check(*problem)
    checks.check_image(np.zeros((H, W, 3), np.uint8))
    score_fn, image, targets = problem
    checks.check(lambda x: [score_fn(x), score_fn(x)], image, [targets, targets])


def test_values_of_padding_do_not_matter(problem):
    score_fn, image, targets = problem
    labels = targets.labels.at[0].set(255)
    valid = targets.valid.at[0].set(False)
    checks.check(score_fn, image, dataclasses.replace(targets, labels=labels, valid=valid))


def test_the_loop_in_steps_checks_what_it_is_given(problem):
    _, image, targets = problem
    with pytest.raises(ValueError, match="multiply the image by 255"):
        dag_jax.init(image / 255, targets)
    with pytest.raises(ValueError, match="step_size is -3"):
        dag_jax.init(image, targets, step_size=-3)
