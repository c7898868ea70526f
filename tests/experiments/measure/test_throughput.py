from typing import NamedTuple

import numpy as np
import pytest

import dag_jax
from dag_jax import networks
from dag_jax.datasets import ExampleSet
from dag_jax.runs.attacks import Plan, attack_inputs
from dag_jax.runs.subject import subject_of
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


@pytest.mark.parametrize("run", [throughput.stream, throughput.lockstep])
@pytest.mark.parametrize("lanes", [1, 2])
def test_both_give_each_image_the_attack_that_it_has_alone(plan, mesh, run, lanes):
    inputs = list(attack_inputs(plan))
    attacked = dict(run(plan, inputs, lanes=lanes, mesh=mesh))
    assert sorted(attacked) == [0, 1, 2, 3, 4]
    steps = throughput.steps_of(attacked.items(), 5)
    assert len(set(steps.tolist())) > 1
    for index, image, targets, _ in inputs:
        alone = dag_jax.attack(plan.subject.model.scores, image, targets, plan.method)
        assert steps[index] == alone.num_steps
        np.testing.assert_allclose(attacked[index].perturbation, alone.perturbation, atol=1e-5)


def test_idle_inputs_end_at_once(plan, mesh):
    inputs = throughput.idle(list(attack_inputs(plan)))
    for _, attack in throughput.lockstep(plan, inputs, lanes=1, mesh=mesh):
        assert attack.status == dag_jax.Status.NO_TARGETS and attack.num_steps == 0


def test_a_shorter_plan_ends_earlier(plan, mesh):
    inputs, shorter = list(attack_inputs(plan)), throughput.shorter(plan, 3)
    attacked = throughput.stream(shorter, inputs, lanes=1, mesh=mesh)
    np.testing.assert_array_equal(throughput.steps_of(attacked, 5), 3)


def test_a_row_compares_whole_runs_and_says_what_was_possible(plan, mesh):
    inputs = list(attack_inputs(plan))
    row, points = throughput.measure(plan, inputs, lanes=1, mesh=mesh, turns=2)
    assert row["case"] == "Linear, 5 images, 2 slots"
    assert row["same_steps"] == 1 and row["most_apart"] == 0
    assert row["share"] == pytest.approx(row["gain"] / row["best"])
    assert list(points) == ["stream", "lockstep"] and all(points.values())
    (point,) = throughput.by_slots(plan, inputs, lanes=[1], mesh=mesh)
    assert point["slots"] == 2 and point["stream"] > 0 and point["lockstep"] > 0


def test_best_lanes_are_some_of_those_that_were_tried(plan, mesh):
    inputs = list(attack_inputs(plan))
    assert throughput.best_lanes(plan, inputs, [1, 2], mesh=mesh) in (1, 2)


def test_the_stream_says_what_it_takes_of_its_devices(mesh):
    network = networks.load("fcn_alex", miniature=True)
    rng, examples = np.random.default_rng(0), []
    for index in range(3):
        image, mask = rng.integers(0, 256, (48, 48, 3), np.uint8), np.zeros((48, 48), np.uint8)
        examples.append({"image_id": str(index), "image": image, "mask": mask})
    subject = subject_of(network, ExampleSet(examples, network.classes))
    plan = Plan(subject, dag_jax.Method(max_steps=5))
    row = throughput.on_device(plan, lanes=1, mesh=mesh, precision="float32", side=8)
    assert row["case"] == "FCN-Alex, 3 images" and row["slots"] == 2
    assert row["utilisation"] > 0 and row["compile_seconds"] > 0 and 0 < row["slot_mib"] < 1000
    assert 0 <= row["idle"] < 1 and row["host_ms"] >= 0
