"""Devices share nothing: results to the last bit, no collective, work that falls as 1 / n."""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dag_jax
from dag_jax import Method, networks
from dag_jax.engine import lanes
from dag_jax.engine.scoring import as_callable_pytree
from dag_jax.models import DETECTION
from tests import toy_models

SIZE = 48
COLLECTIVES = r"all-(reduce|gather|to-all)|collective-permute|reduce-scatter|send|recv"


def in_child(function, *arguments, devices=8):
    """Call a function of this file in a process whose CPU shows as so many devices."""
    code = (
        f"import importlib.util, json, jax; jax.config.update('jax_num_cpu_devices', {devices})\n"
        f"spec = importlib.util.spec_from_file_location('child', {__file__!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        f"print(json.dumps(module.{function.__name__}(*{arguments!r})))\n"
    )
    root = pathlib.Path(dag_jax.__file__).parents[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


def examples(name, count, seed=0):
    """Yield what is attacked: noise, random targets and, of a detector, random boxes."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        image = rng.uniform(0, 255, (SIZE, SIZE, 3)).astype(np.float32)
        if networks.TASKS[name] == DETECTION:
            corners = np.sort(rng.uniform(0, SIZE - 1, (20, 2, 2)), axis=1).reshape(-1, 4)
            labels = rng.integers(1, 21, 20)
            targets = dag_jax.make_targets(labels, labels % 20 + 1)
            yield i, image, targets, (corners.astype(np.float32),)
        else:
            labels = rng.integers(0, 21, (SIZE, SIZE))
            yield i, image, dag_jax.make_targets(labels, (labels + 1) % 21)


def mesh_of(count):
    return jax.make_mesh((count,), ("images",), devices=jax.devices()[:count])


def bytes_of(results):
    leaves = jax.tree.leaves([results[key] for key in sorted(results)])
    return [np.asarray(leaf).tobytes().hex() for leaf in leaves]


def differing(name):
    """Return the (devices, slots) whose results are not those of one device and 8 slots."""
    network = networks.load(name, miniature=True)
    made = list(examples(name, 8))
    score_fn, twice = network.scores, Method(max_steps=2)

    def run(made, **options):
        return bytes_of(dict(dag_jax.attack_stream(score_fn, made, twice, **options)))

    expected = run(made, slots=8)
    cases = [(8, 8), (1, 3)]
    return [
        (devices, slots)
        for devices, slots in cases
        if run(made[::-1], slots=slots, mesh=mesh_of(devices)) != expected
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fr_zf_07"])
def test_devices_slots_and_order_change_no_bit(name):
    assert in_child(differing, name) == []


def lanes_of(model, arrays, devices, **options):
    mesh = mesh_of(devices)
    score_fn = lanes.spread(as_callable_pytree(model.scores), mesh, {})
    method = lanes.spread(Method(max_steps=9), mesh, {})
    return lanes.Lanes(score_fn, arrays, method, slots=16, mesh=mesh, **options)


def programs():
    """Return [flops of a device, collectives] of a detector's compiled loop on 1 and 8 devices."""
    ((_, *arrays),) = examples("fr_zf_07", 1)
    arrays = jax.tree.map(np.asarray, tuple(arrays))
    costs = []
    for devices in (1, 8):
        made = lanes_of(toy_models.two_stage(), arrays, devices, together=True)
        compiled = made.lower().compile()
        collectives = re.findall(rf"= \S+ ({COLLECTIVES})\S*\(", compiled.as_text())
        costs.append([compiled.cost_analysis()["flops"], collectives])
    return costs


@pytest.mark.slow
def test_no_collective_and_a_share_of_the_work():
    (whole, _), *_ = costs = in_child(programs)
    assert all(not collectives for _, collectives in costs)
    for count, (flops, _) in zip((1, 8), costs, strict=True):
        assert flops == pytest.approx(whole / count, rel=0.01)


@pytest.mark.slow
def test_lanes_together_and_in_turn_attack_alike():
    made = {key: tuple(arrays) for key, *arrays in examples("fr_zf_07", 3)}
    made = jax.tree.map(np.asarray, made)
    results = []
    for together in (True, False):
        under_way = lanes_of(toy_models.two_stage(), made[0], 1, together=together)
        under_way.insert(made)
        counts = []
        while not under_way.stopped().all():
            under_way.advance(4)
            counts.append(under_way.wait()[1])
        results.append((under_way.take(made), sum(counts)))
    (batched, batched_count), (single, single_count) = results
    assert batched_count == single_count
    for key in made:
        for batched_leaf, single_leaf in zip(
            *map(jax.tree.leaves, (batched[key], single[key])), strict=True
        ):
            np.testing.assert_allclose(batched_leaf, single_leaf, rtol=0, atol=1e-3)


def pixels(count):
    """Return (score_fn, [example]) of noise that is attacked toward the second best class."""
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.standard_normal((3, 5)), jnp.float32)
    made = []
    for _ in range(count):
        image = rng.uniform(80, 180, (2, 2, 3)).astype(np.float32)
        order = np.asarray(image @ weights).argsort(-1).astype(np.int32)
        targets = dag_jax.make_targets(order[..., -1], order[..., -2])
        made.append(jax.tree.map(np.asarray, (image, targets, ())))
    return jax.tree_util.Partial(score_pixels, weights), made


def nearly_fooled(score_fn, method, image, *rest):
    """Return an example whose image is three steps from the one that fools."""
    steps = int(dag_jax.attack(score_fn, image, rest[0], method).num_steps)
    attack = dag_jax.attack(score_fn, image, rest[0], method.replace(max_steps=steps - 3))
    return np.asarray(attack.adversarial), *rest


def two_devices_in_turn():
    """Attack four images on two devices of two lanes, then two of them again.

    Returns:
      [steps of each, iterations of a first chunk and of one of a step, moves, [equal to alone]].
    """
    score_fn, made = pixels(4)
    method = Method(max_steps=90, step_size=3.0)

    def alone(example):
        (_, attack), *_ = dag_jax.attack_stream(score_fn, [(0, *example[:2])], method, slots=1)
        return attack

    made = [brief, *others] = nearly_fooled(score_fn, method, *made[0]), *made[1:]
    mesh = mesh_of(2)
    spread = lanes.spread((as_callable_pytree(score_fn), method), mesh, {})
    under_way = lanes.Lanes(spread[0], brief, spread[1], slots=4, mesh=mesh)
    under_way.insert({0: brief, 1: others[0], 2: others[1]})  # 0 and 2 on the first device
    under_way.advance(int(alone(brief).num_steps) + 2)
    first_chunk = under_way.wait()
    finish(under_way)
    results = under_way.take([0, 1, 2])
    under_way.insert({0: others[2], 2: others[0]})
    under_way.advance(1)
    made_then = under_way.wait()[1]
    moves = dict(under_way.moves())
    for slot, free in moves.items():
        under_way.move(slot, free)
    finish(under_way)
    slots = {slot: moves.get(slot, slot) for slot in (0, 2)}
    moved = under_way.take(slots.values())
    pairs = [(results[slot], made[slot]) for slot in (0, 1, 2)]
    pairs += [(moved[slots[0]], others[2]), (moved[slots[2]], others[0])]
    equal = [bytes_of({0: result}) == bytes_of({0: alone(example)}) for result, example in pairs]
    return [int(alone(example).num_steps) for example in made], first_chunk, made_then, moves, equal


def finish(under_way):
    while not under_way.stopped().all():
        under_way.advance(3)
        under_way.wait()


@pytest.mark.slow
def test_a_lane_that_stops_leaves_its_steps_to_its_neighbour_and_attacks_change_devices():
    steps, (longest, made, share), made_then, moves, equal = in_child(
        two_devices_in_turn, devices=2
    )
    assert steps[0] < 6 and min(steps[1:]) > 30
    # Iterations: one more than steps, as the last one only scores.
    assert (longest, made, share) == (steps[0] + 2, 4 * (steps[0] + 2), 1.0)
    assert made_then == 2
    ((left, entered),) = moves.items()
    assert int(left) in (0, 2) and entered in (1, 3)
    assert equal == [True] * 5


def interrupted_moves():
    """Interrupt a stream before it moves an attack, and after; then not at all.

    Returns:
      [(moves, keys of the results, whether each is what its image alone gives)].
    """
    score_fn, made = pixels(4)
    method, move, outcomes = Method(max_steps=90, step_size=3.0), lanes.Lanes.move, []
    for place in 1, 3:  # of the second device, which then has none
        made[place] = nearly_fooled(score_fn, method, *made[place])
    examples = [(key, *example[:2]) for key, example in enumerate(made)]
    for raises in ["before"], ["after"], []:
        moves, results = [], {}

        def interrupted(self, *slots, raises=raises, moves=moves):
            moves.append(slots)
            if "before" not in raises:
                move(self, *slots)
            if raises:
                raise KeyboardInterrupt

        lanes.Lanes.move = interrupted
        with contextlib.suppress(KeyboardInterrupt):
            stream = dag_jax.attack_stream(score_fn, examples, method, slots=4, mesh=mesh_of(2))
            results.update(stream)
        alone = {
            key: dict(dag_jax.attack_stream(score_fn, [examples[key]], method, slots=1))
            for key in results
        }
        equal = [bytes_of({0: results[key]}) == bytes_of({0: alone[key][key]}) for key in results]
        outcomes.append((len(moves), sorted(results), all(equal)))
    return outcomes


@pytest.mark.slow
def test_no_result_is_another_images_if_a_move_is_interrupted():
    assert in_child(interrupted_moves, devices=2) == [
        [1, [1, 3], True],
        [1, [1, 3], True],
        [1, [0, 1, 2, 3], True],
    ]


@pytest.mark.slow
def test_a_lane_may_be_alone():
    network = networks.load("fcn_alex", miniature=True)
    made = list(examples("fcn_alex", 3))
    score_fn, thrice = network.scores, Method(max_steps=3)
    alone, paired = (
        dict(dag_jax.attack_stream(score_fn, made, thrice, slots=slots)) for slots in (1, 2)
    )
    assert bytes_of(alone) == bytes_of(paired)


def held():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])


def score_pixels(weights, image):
    return image @ weights


def stream_many(count):
    """Return the memory (kB) after each hundred of many images of two sizes, and the compiles."""
    import logging

    compiled = []
    handler = logging.Handler()
    handler.emit = lambda record: compiled.append(record.getMessage())
    logging.getLogger("jax._src.interpreters.pxla").addHandler(handler)
    jax.config.update("jax_log_compiles", True)
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.standard_normal((3, 5)), jnp.float32)
    score_fn = jax.tree_util.Partial(score_pixels, weights)

    def many():
        for key in range(count):
            size = (12, 16)[key % 2]
            labels = rng.integers(0, 5, (size, size)).astype(np.int32)
            image = rng.uniform(0, 255, (size, size, 3)).astype(np.float32)
            yield key, image, dag_jax.make_targets(labels, (labels + 1) % 5)

    memory, after, first = [], [], set()
    stream = dag_jax.attack_stream(score_fn, many(), Method(max_steps=8), slots=32)
    for number, (_, result) in enumerate(stream):
        first.add(result.adversarial.shape)
        if len(first) == 2 and not after:
            after.append(len(compiled))
        if number % 100 == 99:
            memory.append(held())
    assert number == count - 1
    return memory, len(compiled) - after[0]


@pytest.mark.slow
def test_thousands_of_images_leave_memory_flat_and_compile_nothing():
    memory, compiled = in_child(stream_many, 1500)
    assert len(memory) == 15
    assert max(memory[1:]) <= 1.05 * memory[0]
    assert compiled == 0
