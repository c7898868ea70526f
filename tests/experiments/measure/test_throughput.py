import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dag_jax
from experiments.measure import throughput


class Chunk(NamedTuple):
    slots: int
    iterations: int
    busy: int
    ended: bool


def test_best_gain_by_hand():
    # Batches of 2 run for 5 and 4 iterations on two slots, one of 1 for 3: 24 for 5+1+2+4+3.
    assert throughput.best_gain([5, 1, 2, 4, 3], 2) == 2 * (5 + 4 + 3) / 15
    assert throughput.best_gain([7, 7, 7, 7], 4) == 1
    assert throughput.best_gain([7, 3], 1) == 1


def test_busy_share_leaves_out_what_follows_the_end_of_the_input():
    chunks = [Chunk(4, 4, 16, False), Chunk(4, 2, 4, False), Chunk(4, 4, 1, True)]
    assert throughput.busy_share(chunks) == 20 / 24
    assert throughput.busy_share(chunks[2:]) is None


def test_busy_slots_of_a_stream():
    chunks = [Chunk(4, 4, 16, False), Chunk(4, 0, 0, False), Chunk(4, 2, 3, True)]
    assert throughput.busy_of_stream(chunks) == [(4, 4.0), (6, 1.5)]


def test_busy_slots_of_lockstep_batches():
    # 2 for 1 iteration and 1 for 4 more; 2 for 3; 1 for 2.
    points = throughput.busy_of_lockstep([5, 1, 3, 3, 2], 2)
    assert points == [(1, 2.0), (5, 1.0), (8, 2.0), (10, 1.0)]


def test_best_of_divides_by_the_number():
    assert throughput.best_of([1, 2, 4], {1: 3.0, 2: 4.0, 4: 10.0}.get) == 2


class Inputs:
    """A linear model of three classes on 4 x 4 pixels, and images that take few steps or many."""

    max_steps = 30

    @staticmethod
    @jax.tree_util.Partial
    def score(image):
        return image * jnp.float32([1, 2, 3])[None, None]

    attack = staticmethod(jax.jit(functools.partial(dag_jax.attack, max_steps=max_steps)))

    @classmethod
    def make(cls, count):
        rng = np.random.default_rng(0)
        inputs = []
        for index in range(count):
            image = rng.integers(90, 110, (4, 4, 3)).astype(np.uint8)
            image[..., 2] = 90 + index
            labels = np.full((4, 4), 2, np.int32)
            targets = jax.device_get(dag_jax.make_targets(labels, labels - 1))
            inputs.append((index, image, targets, ()))
        return inputs


@pytest.fixture
def mesh():
    return jax.make_mesh((2,), ("images",), devices=jax.devices()[:2])


@pytest.mark.parametrize("run", [throughput.stream, throughput.lockstep])
@pytest.mark.parametrize("slots", [2, 4])
def test_both_give_each_image_the_attack_that_it_has_alone(mesh, run, slots):
    inputs = Inputs.make(5)
    found = dict(run(Inputs.score, inputs, slots=slots, mesh=mesh, max_steps=Inputs.max_steps))
    assert sorted(found) == [0, 1, 2, 3, 4]
    steps = throughput.steps_of(found.items(), 5)
    for index, image, targets, _ in inputs:
        alone = Inputs.attack(Inputs.score, np.float32(image), targets)
        assert steps[index] == alone.num_steps
        np.testing.assert_allclose(found[index].perturbation, alone.perturbation, atol=1e-5)


def test_idle_inputs_end_at_once(mesh):
    inputs = throughput.idle(Inputs.make(3))
    for _, attack in throughput.lockstep(Inputs.score, inputs, slots=2, mesh=mesh, max_steps=3):
        assert attack.status == dag_jax.Status.NO_TARGETS and attack.num_steps == 0
