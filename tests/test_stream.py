"""The stream gives what `attack` gives, whatever runs beside an image."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dag_jax
from dag_jax import Status, Targets

H, W, N, C = 8, 6, 5, 4
MAX_STEPS = 60


def score(weights, bias, image, *shift):
    """Linear scores [N, C]; a further argument [N, C] is added to them."""
    scores = jnp.einsum("nck,k->nc", weights, image.reshape(-1) - 128) + bias
    return sum(shift, scores)


@pytest.fixture
def score_fn(rng):
    weights = 0.02 * rng.standard_normal((N, C, H * W * 3))
    bias = rng.standard_normal((N, C))
    return jax.tree_util.Partial(score, jnp.float32(weights), jnp.float32(bias))


@pytest.fixture
def examples(rng, score_fn):
    """Images that need different numbers of steps, one without targets, one hard to fool."""
    made = []
    for i in range(7):
        image = rng.uniform(28, 228, (H, W, 3)).astype(np.float32)
        labels = np.asarray(score_fn(image)).argmax(-1).astype(np.int32)
        valid = np.ones(N, bool)
        valid[i % N :] = i % 2  # some padding
        made.append((f"image {i}", image, Targets(labels, (labels + 1 + i % 3) % C, valid)))
    return made


MOMENTUM = optax.chain(optax.trace(0.9), dag_jax.dag_update(0.5))


@functools.cache
def attack_alone(**options):
    """Return `attack`, compiled: score_fn, image and targets are left to give."""
    return jax.jit(functools.partial(dag_jax.attack, max_steps=MAX_STEPS, **options))


def assert_same(result, alone):
    for name in ("num_steps", "status", "active", "active_counts", "image"):
        ours, theirs = getattr(result, name), getattr(alone, name)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    np.testing.assert_allclose(result.perturbation, alone.perturbation, atol=1e-4)
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(result))


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(margin=1.0, step_size=0.8, rounded=True),
        dict(optimizer=MOMENTUM),
    ],
)
def test_results_equal_attack_one_by_one(score_fn, examples, options):
    stream = dag_jax.attack_stream(score_fn, examples, slots=3, max_steps=MAX_STEPS, **options)
    results = dict(stream)
    assert set(results) == {key for key, *_ in examples}
    for key, image, targets in examples:
        assert_same(results[key], attack_alone(**options)(score_fn, image, targets))
    if not options:
        assert {int(result.status) for result in results.values()} == {
            Status.FOOLED,
            Status.MAX_STEPS,
            Status.NO_TARGETS,
        }
        assert len({int(result.num_steps) for result in results.values()}) > 3


@pytest.mark.parametrize(
    ("slots", "chunk", "reverse"), [(1, 4, False), (9, 1, True), (3, 100, True)]
)
def test_slots_chunk_and_order_do_not_matter(score_fn, examples, slots, chunk, reverse):
    ordered = examples[::-1] if reverse else examples
    stream = dag_jax.attack_stream(score_fn, ordered, slots=slots, chunk=chunk, max_steps=MAX_STEPS)
    results = list(stream)
    if slots == 1:
        assert [key for key, _ in results] == [key for key, *_ in ordered]
    results = dict(results)
    for key, image, targets in examples:
        assert_same(results[key], attack_alone()(score_fn, image, targets))


def test_images_come_as_they_finish(score_fn, examples):
    stream = dag_jax.attack_stream(score_fn, examples, slots=9, chunk=1, max_steps=MAX_STEPS)
    steps = [int(result.num_steps) for _, result in stream]
    assert steps == sorted(steps)


def test_an_endless_input_is_taken_as_it_is_needed(score_fn, examples):
    taken = []

    def endless():
        for number, example in enumerate(itertools.cycle(examples)):
            taken.append(number)
            yield (number, *example[1:])

    stream = dag_jax.attack_stream(score_fn, endless(), slots=3, max_steps=MAX_STEPS)
    assert not taken  # nothing before somebody asks
    keys = set()
    for received, (key, _) in enumerate(itertools.islice(stream, 20)):
        keys.add(key)
        assert len(taken) <= 3 + received  # those under way, and those that have left
    assert len(keys) == 20


def test_one_compilation_serves_other_numbers_and_other_images(caplog, score_fn, examples):
    run = functools.partial(dag_jax.attack_stream, slots=3, max_steps=13)
    with jax.log_compiles():
        list(run(score_fn, examples))
        assert caplog.text.count("Compiling jit(_advance)") == 1
        caplog.clear()
        half = jax.tree.map(lambda leaf: leaf / 2, score_fn)
        list(run(half, examples[:2], margin=0.7, step_size=0.3))
        list(run(score_fn, examples[::-1]))
    assert "_advance" not in caplog.text and "_insert" not in caplog.text


def test_examples_may_bring_inputs_of_their_own(rng, score_fn, examples):
    shifts = 3 * rng.standard_normal((len(examples), N, C)).astype(np.float32)
    with_inputs = []
    for (key, image, _), shift in zip(examples, shifts, strict=True):
        labels = np.asarray(score_fn(image, shift)).argmax(-1)
        targets = dag_jax.make_targets(labels, (labels + 1) % C)
        with_inputs.append((key, image, targets, (jnp.asarray(shift),)))
    results = dict(dag_jax.attack_stream(score_fn, with_inputs, slots=3, max_steps=MAX_STEPS))
    assert len(results) == len(examples)
    for key, image, targets, (shift,) in with_inputs:
        alone = attack_alone()(jax.tree_util.Partial(with_shift, score_fn, shift), image, targets)
        assert_same(results[key], alone)


def with_shift(score_fn, shift, image):
    return score_fn(image, shift)


def twice(score_fn, image):
    return {"a": score_fn(image), "b": -score_fn(image)[:3]}


def test_a_joint_attack_streams(score_fn, examples):
    both = jax.tree_util.Partial(twice, score_fn)
    joint = []
    for key, image, _ in examples[:3]:
        labels = {name: scores.argmax(-1) for name, scores in both(image).items()}
        targets = {name: dag_jax.make_targets(c, (c + 1) % C) for name, c in labels.items()}
        joint.append((key, image, targets))
    results = dict(dag_jax.attack_stream(both, joint, slots=3, max_steps=MAX_STEPS))
    for key, image, targets in joint:
        assert_same(results[key], attack_alone()(both, image, targets))


@pytest.mark.parametrize("slots", [4, 8])
def test_devices_share_the_slots_and_change_no_bit(score_fn, examples, slots):
    assert len(jax.devices()) == 2
    mesh = jax.make_mesh((2,), ("images",))
    alone = dict(dag_jax.attack_stream(score_fn, examples, slots=slots, max_steps=MAX_STEPS))
    stream = dag_jax.attack_stream(score_fn, examples, slots=slots, max_steps=MAX_STEPS, mesh=mesh)
    shared = dict(stream)
    assert shared.keys() == alone.keys()
    for key, result in shared.items():
        jax.tree.map(np.testing.assert_array_equal, result, alone[key])


def test_a_single_numpy_parameter_is_a_pytree_too(rng, examples):
    weights = (0.02 * rng.standard_normal((N, C, H * W * 3))).astype(np.float32)
    from_numpy, from_jax = (
        jax.tree_util.Partial(lambda w, x: score(w, jnp.float32(0), x), make(weights))
        for make in (np.asarray, jnp.asarray)
    )
    ours = dict(dag_jax.attack_stream(from_numpy, examples[:2], slots=2, max_steps=5))
    theirs = dict(dag_jax.attack_stream(from_jax, examples[:2], slots=2, max_steps=5))
    for key, result in ours.items():
        jax.tree.map(np.testing.assert_array_equal, result, theirs[key])


def test_results_outlive_the_stream(score_fn, examples):
    stream = dag_jax.attack_stream(score_fn, examples, slots=3, max_steps=MAX_STEPS)
    kept = [(result, result.perturbation.copy()) for _, result in stream]
    for result, copy in kept:
        np.testing.assert_array_equal(result.perturbation, copy)


def test_whole_grey_levels_are_images_too(score_fn, examples):
    (key, image, targets), *_ = examples
    image = image.astype(np.uint8)
    ((_, result),) = dag_jax.attack_stream(
        score_fn, [(key, image, targets)], slots=3, max_steps=MAX_STEPS
    )
    assert_same(result, attack_alone()(score_fn, image.astype(np.float32), targets))


def test_no_examples_no_results(score_fn):
    assert list(dag_jax.attack_stream(score_fn, [])) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(slots=0), "slots is 0; it must be at least 1"),
        (dict(chunk=0), "chunk is 0"),
        (dict(max_steps=0), "max_steps is 0"),
        (dict(step_size=-0.5), "step_size is -0.5"),
        (dict(margin=float("nan")), "margin is nan"),
    ],
)
def test_bad_numbers_are_named_at_once(score_fn, examples, change, message):
    with pytest.raises(ValueError, match=message):
        dag_jax.attack_stream(score_fn, examples, **change)


@pytest.mark.parametrize(
    ("image", "targets", "message"),
    [
        (np.full((H, W + 1, 3), 9, np.float32), {}, r"'second' has shapes .*8, 7, 3.*first has"),
        (None, dict(valid=np.ones(N - 1, bool)), "'second' has shapes .*first has"),
        (np.full((H, W, 3), 0.5, np.float32), {}, "multiply the image by 255"),
        (np.full((H, W, 3), 256, np.float32), {}, "before any mean"),
        (np.full((H, W), 9, np.float32), {}, r"must be \[H, W, 3\]"),
        (None, dict(labels=np.full(N, C, np.int32)), "has class 4, scores have 4 classes"),
        (None, dict(adversarial=np.full(N, -1, np.int32)), "has class -1"),
    ],
)
def test_a_bad_example_is_named(score_fn, examples, image, targets, message):
    good = examples[1]
    bad = (
        "second",
        good[1] if image is None else image,
        dataclasses.replace(good[2], **targets),
    )
    with pytest.raises(ValueError, match=message):
        list(dag_jax.attack_stream(score_fn, [good, bad], slots=3, max_steps=MAX_STEPS))
