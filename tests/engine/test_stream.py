"""The stream gives what `attack` gives, whatever runs beside an image."""

import dataclasses
import itertools
import queue
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dag_jax
from dag_jax import Method, Status, Targets
from dag_jax.engine.stream import _longest_chunk, _next_chunk

H, W, N, C = 8, 6, 5, 4
METHOD = Method(max_steps=60)


def score(weights, bias, image, *shift):
    """Linear scores [N, C]; a further argument [N, C] is added to them."""
    scores = weights @ (image.reshape(-1) - 128) + bias
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


def attack_alone(score_fn, image, targets, method=METHOD):
    return dag_jax.attack(score_fn, image, targets, method)


def assert_same(result, alone):
    for name in ("num_steps", "status", "active", "active_counts"):
        ours, theirs = getattr(result, name), getattr(alone, name)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    for name in ("perturbation", "adversarial"):
        np.testing.assert_allclose(getattr(result, name), getattr(alone, name), atol=1e-4)
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(result))


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        METHOD,
        METHOD.replace(margin=1.0, step_size=0.8, rounded=True),
        METHOD.replace(update=dag_jax.methods.Momentum(0.9)),
    ],
)
def test_results_equal_attack_one_by_one(score_fn, examples, method):
    results = dict(dag_jax.attack_stream(score_fn, examples, method, slots=3))
    assert set(results) == {key for key, *_ in examples}
    for key, image, targets in examples:
        assert_same(results[key], attack_alone(score_fn, image, targets, method))
        made = dag_jax.perturb(image, results[key].perturbation, rounded=method.rounded)
        np.testing.assert_array_equal(results[key].adversarial, made)
    if method is METHOD:
        assert {int(result.status) for result in results.values()} == {
            Status.FOOLED,
            Status.MAX_STEPS,
            Status.NO_TARGETS,
        }
        assert len({int(result.num_steps) for result in results.values()}) > 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slots", "chunk", "reverse"), [(1, None, False), (9, 1, True), (3, 100, True)]
)
def test_slots_chunk_and_order_do_not_matter(score_fn, examples, slots, chunk, reverse):
    ordered = examples[::-1] if reverse else examples
    stream = dag_jax.attack_stream(score_fn, ordered, METHOD, slots=slots, chunk=chunk)
    results = list(stream)
    if slots == 1:
        assert [key for key, _ in results] == [key for key, *_ in ordered]
    results = dict(results)
    for key, image, targets in examples:
        assert_same(results[key], attack_alone(score_fn, image, targets))


class Waiting:
    """An input that gives its next example only when it is told to; a failure is no hang."""

    def __init__(self, seconds=60):
        self.seconds, self._queue = seconds, queue.Queue()

    def give(self, example):
        self._queue.put(example)

    def __iter__(self):
        while (example := self._queue.get(timeout=self.seconds)) is not None:
            yield example


@pytest.mark.parametrize("slots", [1, 2])
def test_a_result_is_handed_out_before_the_next_image_is_waited_for(score_fn, examples, slots):
    """Whoever gives an image only after the result of the last one is not kept waiting."""
    waiting = Waiting()
    stream = dag_jax.attack_stream(score_fn, waiting, METHOD, slots=slots)
    for key, image, targets in examples[:4]:
        waiting.give((key, image, targets))
        received, result = next(stream)
        assert received == key
        assert_same(result, attack_alone(score_fn, image, targets))
    waiting.give(None)
    assert list(stream) == []


def test_a_result_is_handed_out_while_another_attack_runs_and_the_input_waits(score_fn, examples):
    """The short attack is given back with the long one under way, and a slot free."""
    steps = {key: int(attack_alone(score_fn, *problem).num_steps) for key, *problem in examples}
    long, short = (chosen(examples, key=lambda example: steps[example[0]]) for chosen in (max, min))
    assert steps[short[0]] < 4 < 40 < steps[long[0]]
    waiting = Waiting()
    for example in (long, short):
        waiting.give(example)
    stream = dag_jax.attack_stream(score_fn, waiting, METHOD, slots=3, chunk=4)
    keys = [next(stream)[0]]
    waiting.give((0, *examples[1][1:]))  # nothing but that result made it come
    waiting.give(None)
    keys += [key for key, _ in stream]
    assert keys[0] == short[0] and set(keys) == {short[0], long[0], 0}


def test_a_stream_whose_input_blocks_is_closed_at_once(score_fn, examples):
    waiting = Waiting()
    waiting.give(examples[0])
    stream = dag_jax.attack_stream(score_fn, waiting, METHOD, slots=1)
    assert next(stream)[0] == examples[0][0]
    started = time.monotonic()
    stream.close()
    assert time.monotonic() - started < 1
    waiting.give(None)


def test_images_come_as_they_finish(score_fn, examples):
    stream = dag_jax.attack_stream(score_fn, examples, METHOD, slots=9, chunk=1)
    steps = [int(result.num_steps) for _, result in stream]
    assert steps == sorted(steps)


def test_an_endless_input_is_taken_as_it_is_needed(score_fn, examples):
    taken = []

    def endless():
        for number, example in enumerate(itertools.cycle(examples)):
            taken.append(number)
            yield (number, *example[1:])

    stream = dag_jax.attack_stream(score_fn, endless(), METHOD, slots=3, read_ahead=5)
    assert not taken  # nothing before somebody asks
    keys = set()
    for received, (key, _) in enumerate(itertools.islice(stream, 20)):
        keys.add(key)
        # Those that have left (which may wait to be handed out), are under way, or wait.
        assert len(taken) <= received + 2 * 3 + 5
    assert len(keys) == 20
    before = threading.active_count()
    stream.close()  # and nobody reads on
    for _ in range(100):
        if threading.active_count() < before:
            break
        time.sleep(0.05)
    number = len(taken)
    time.sleep(0.1)
    assert len(taken) == number


def test_one_compilation_serves_other_numbers_and_other_images(caplog, score_fn, examples):
    def run(score_fn, examples, **numbers):
        return dag_jax.attack_stream(score_fn, examples, Method(max_steps=13, **numbers), slots=3)

    with jax.log_compiles():
        list(run(score_fn, examples))
        assert caplog.text.count("Compiling jit(_advance)") == 1
        caplog.clear()
        half = jax.tree.map(lambda leaf: leaf / 2, score_fn)
        list(run(half, examples[:2], margin=0.7, step_size=0.3))
        list(run(score_fn, examples[::-1]))
    assert "_advance" not in caplog.text and "_insert" not in caplog.text


@pytest.mark.slow
def test_examples_may_bring_inputs_of_their_own(rng, score_fn, examples):
    shifts = 3 * rng.standard_normal((len(examples), N, C)).astype(np.float32)
    with_inputs = []
    for (key, image, _), shift in zip(examples, shifts, strict=True):
        labels = np.asarray(score_fn(image, shift)).argmax(-1)
        targets = dag_jax.make_targets(labels, (labels + 1) % C)
        with_inputs.append((key, image, targets, (jnp.asarray(shift),)))
    results = dict(dag_jax.attack_stream(score_fn, with_inputs, METHOD, slots=3))
    assert len(results) == len(examples)
    for key, image, targets, (shift,) in with_inputs:
        alone = attack_alone(jax.tree_util.Partial(with_shift, score_fn, shift), image, targets)
        assert_same(results[key], alone)


def with_shift(score_fn, shift, image):
    return score_fn(image, shift)


def twice(score_fn, image):
    return {"a": score_fn(image), "b": -score_fn(image)[:3]}


@pytest.mark.slow
def test_a_joint_attack_streams(score_fn, examples):
    both = jax.tree_util.Partial(twice, score_fn)
    joint = []
    for key, image, _ in examples[:3]:
        labels = {name: scores.argmax(-1) for name, scores in both(image).items()}
        targets = {name: dag_jax.make_targets(c, (c + 1) % C) for name, c in labels.items()}
        joint.append((key, image, targets))
    results = dict(dag_jax.attack_stream(both, joint, METHOD, slots=3))
    for key, image, targets in joint:
        assert_same(results[key], attack_alone(both, image, targets))


@pytest.mark.parametrize("slots", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_devices_share_the_slots_and_change_no_bit(score_fn, examples, slots):
    assert len(jax.devices()) == 2
    mesh = jax.make_mesh((2,), ("images",))
    alone = dict(dag_jax.attack_stream(score_fn, examples, METHOD, slots=slots))
    shared = dict(dag_jax.attack_stream(score_fn, examples, METHOD, slots=slots, mesh=mesh))
    assert shared.keys() == alone.keys()
    for key, result in shared.items():
        jax.tree.map(np.testing.assert_array_equal, result, alone[key])


def test_a_single_numpy_parameter_is_a_pytree_too(rng, examples):
    weights = (0.02 * rng.standard_normal((N, C, H * W * 3))).astype(np.float32)
    from_numpy, from_jax = (
        jax.tree_util.Partial(lambda w, x: score(w, jnp.float32(0), x), make(weights))
        for make in (np.asarray, jnp.asarray)
    )
    ours = dict(dag_jax.attack_stream(from_numpy, examples[:2], METHOD, slots=3))
    theirs = dict(dag_jax.attack_stream(from_jax, examples[:2], METHOD, slots=3))
    for key, result in ours.items():
        jax.tree.map(np.testing.assert_array_equal, result, theirs[key])


def test_results_outlive_the_stream(score_fn, examples):
    stream = dag_jax.attack_stream(score_fn, examples, METHOD, slots=3)
    pairs = [(result, result.perturbation.copy()) for _, result in stream]
    for result, copy in pairs:
        np.testing.assert_array_equal(result.perturbation, copy)


def test_whole_grey_levels_are_images_too(score_fn, examples):
    (key, image, targets), *_ = examples
    image = image.astype(np.uint8)
    ((_, result),) = dag_jax.attack_stream(score_fn, [(key, image, targets)], METHOD, slots=3)
    assert_same(result, attack_alone(score_fn, image.astype(np.float32), targets))


def test_no_examples_no_results(score_fn):
    assert list(dag_jax.attack_stream(score_fn, [])) == []


class Model:
    """A plain model, whose parameters are constants of what is compiled."""

    def __init__(self, score_fn):
        self.score_fn = score_fn

    def logits(self, image):
        return self.score_fn(image)


def test_a_plain_function_or_method_streams_too(score_fn, examples):
    for plain in (lambda image: score_fn(image), Model(score_fn).logits):
        results = dict(dag_jax.attack_stream(plain, examples[:3], METHOD, slots=3))
        for key, image, targets in examples[:3]:
            assert_same(results[key], attack_alone(score_fn, image, targets))


def test_what_is_handed_out_says_what_it_is_in_a_few_lines(score_fn, examples):
    for _, result in dag_jax.attack_stream(score_fn, examples, METHOD, slots=3):
        assert repr(result).startswith(f"Attack: {Status(int(result.status)).name} after ")
        assert len(repr(result).splitlines()) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(slots=0), "slots is 0; it must be at least 1"),
        (dict(chunk=0), "chunk is 0"),
        (dict(read_ahead=0), "read_ahead is 0"),
    ],
)
def test_bad_numbers_are_named_at_once(score_fn, examples, change, message):
    with pytest.raises(ValueError, match=message):
        dag_jax.attack_stream(score_fn, examples, **change)


BAD = pytest.mark.parametrize(
    ("image", "targets", "message"),
    [
        (None, dict(valid=np.ones(N - 1, bool)), r"targets.valid has shape \(4,\), scores have"),
        (np.full((H, W, 3), 0.5, np.float32), {}, "multiply the image by 255"),
        (np.full((H, W, 3), 256, np.float32), {}, "before any mean"),
        (np.full((H, W, 3), np.nan, np.float32), {}, "not finite"),
        (np.full((H, W), 9, np.float32), {}, r"must be \[H, W, 3\]"),
        (np.full((H, W, 3), "x"), {}, "image is <U1; it must be numbers"),
        (np.full((H, W + 1, 3), 9, np.float32), {}, "TypeError: dot_general"),
        (None, dict(labels=np.full(N, C, np.int32)), "has class 4, scores have 4 classes"),
        (None, dict(adversarial=np.full(N, -1, np.int32)), "has class -1"),
    ],
)


def with_a_bad_one(examples, image, targets):
    good = examples[1]
    bad = "bad", good[1] if image is None else image, dataclasses.replace(good[2], **targets)
    return [examples[0], bad, *examples[1:]]


@BAD
def test_a_bad_example_is_named_and_costs_no_other(score_fn, examples, image, targets, message):
    inputs = with_a_bad_one(examples, image, targets)
    results = {}
    with pytest.raises(ValueError, match=rf"1 example could not be attacked.*'bad': .*{message}"):
        for key, result in dag_jax.attack_stream(score_fn, inputs, METHOD, slots=3):
            results[key] = result
    assert set(results) == {key for key, *_ in examples}
    for key, image, targets in examples:
        assert_same(results[key], attack_alone(score_fn, image, targets))


@BAD
def test_failures_are_reported_as_they_come(score_fn, examples, image, targets, message):
    inputs, failures = with_a_bad_one(examples, image, targets), []
    options = dict(slots=3, on_failure=lambda *failure: failures.append(failure))
    results = dict(dag_jax.attack_stream(score_fn, inputs, METHOD, **options))
    assert set(results) == {key for key, *_ in examples}
    ((key, error),) = failures
    assert key == "bad" and isinstance(error, ValueError)
    with pytest.raises(ValueError, match=message):
        raise error


def test_an_image_that_the_network_cannot_score_says_so_by_its_status(score_fn, examples):
    key, image, targets = examples[1]
    poisoned = [(*example, (jnp.zeros((N, C)),)) for example in examples]
    poisoned.insert(2, ("nan", image, targets, (jnp.full((N, C), jnp.nan),)))
    results = dict(dag_jax.attack_stream(score_fn, poisoned, METHOD, slots=3))
    assert results.pop("nan").status == Status.NON_FINITE
    for key, image, targets in examples:
        assert_same(results[key], attack_alone(score_fn, image, targets))


def test_an_example_may_have_failed_before_it_came(score_fn, examples):
    failure = dag_jax.Failure("lost", ValueError("no such file"))
    mixed, failures = [examples[0], failure, 7, examples[1]], []
    options = dict(slots=3, on_failure=lambda *failure: failures.append(failure))
    results = dict(dag_jax.attack_stream(score_fn, mixed, METHOD, **options))
    assert set(results) == {"image 0", "image 1"}
    assert failures[0] == failure
    assert failures[1][0] is None and "TypeError" in str(failures[1][1])


def test_a_consumer_that_is_interrupted_can_have_what_is_finished(score_fn, examples):
    stream = dag_jax.attack_stream(score_fn, examples, METHOD, slots=9, chunk=100)
    results = dict([next(stream)])  # all have finished in one chunk, one was handed out
    interruption = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        results |= dict([stream.throw(interruption)])
        for key, result in stream:
            results[key] = result
    assert set(results) == {key for key, *_ in examples}


def test_failures_are_told_beside_another_error(score_fn, examples):
    def input_():
        yield "nan", np.full((H, W, 3), np.nan), examples[0][2]
        raise OSError("gone")

    with pytest.raises(OSError, match="gone") as error:
        list(dag_jax.attack_stream(score_fn, input_(), slots=3))
    assert "'nan': image has values that are not finite" in error.value.__notes__[0]


def shifted(shift, image, extent):
    return image * 0 + shift[None, None] + 0.001 * image.sum()


@pytest.mark.slow
def test_a_bucket_of_its_own_numbers_is_its_own(rng):
    """A score_fn that differs by image, though shapes do not, is never another's."""

    def bucket(score_fn, shape):
        shift = jnp.arange(3, dtype=jnp.float32) * (shape[0] - 5)
        return jax.tree_util.Partial(shifted, shift), (8, 8)

    made = []
    for height in (3, 4, 6, 7):
        labels = np.full((height, 5), 2 if height > 5 else 0)
        targets = dag_jax.make_targets(labels, np.ones_like(labels))
        made.append((height, np.full((height, 5, 3), 99, np.float32), targets))
    results = dict(dag_jax.attack_stream(shifted, made, METHOD, slots=2, bucket=bucket))
    # The label is the argmax of its own image's scores, so every target is active at first.
    assert {key: int(result.active_counts[0]) for key, result in results.items()} == {
        height: 5 * height for height in (3, 4, 6, 7)
    }


@pytest.mark.slow
def test_lanes_of_shapes_that_no_longer_come_are_let_go(monkeypatch):
    monkeypatch.setattr("dag_jax.engine.stream._MOST_BUCKETS", 2)
    score_fn = jax.tree_util.Partial(pixel_score, jnp.ones((3, C)))

    def many():
        for side in range(16, 21):
            labels = np.zeros((side, 4), np.int32)
            image = np.full((side, 4, 3), 9, np.float32)
            yield side, image, dag_jax.make_targets(labels, labels + 1)

    once = Method(max_steps=1)
    before = sum(leaf.nbytes for leaf in jax.live_arrays())
    held = [
        sum(leaf.nbytes for leaf in jax.live_arrays()) - before
        for _ in dag_jax.attack_stream(score_fn, many(), once, slots=1, read_ahead=1)
    ]
    assert len(held) == 5 and max(held) < 3 * 2 * 20 * 4 * 60


def broken(examples, error):
    yield from examples
    raise error


@pytest.mark.parametrize("error", [OSError("the disk is gone"), ValueError("no such image")])
def test_input_that_raises_loses_nothing(score_fn, examples, error):
    results = {}
    with pytest.raises(type(error), match=str(error)):
        stream = dag_jax.attack_stream(score_fn, broken(examples, error), METHOD, slots=3)
        for key, result in stream:
            results[key] = result
    assert set(results) == {key for key, *_ in examples}


@pytest.fixture
def listening():
    """Whoever starts the tests may ignore Ctrl-C, as a shell's background jobs do."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("listening")
def test_an_interruption_returns_what_is_finished(score_fn, examples):
    """Ctrl-C while the devices work: here it is pressed after each chunk in turn."""

    def pressed(after):
        chunks, results = [], {}

        def monitor(chunk):
            chunks.append(chunk)
            if len(chunks) == after:
                signal.raise_signal(signal.SIGINT)

        try:
            for key, result in dag_jax.attack_stream(
                score_fn, examples, METHOD, slots=4, chunk=2, monitor=monitor
            ):
                results[key] = result
        except KeyboardInterrupt:
            return results
        assert len(chunks) < after
        return None

    counts = []
    for after in itertools.count(1):
        results = pressed(after)
        if results is None:
            break
        counts.append(len(results))
        for key, image, targets in examples:
            if key in results:
                assert_same(results[key], attack_alone(score_fn, image, targets))
            else:  # it could not have been done: after so many chunks it has had too few steps
                alone = attack_alone(score_fn, image, targets)
                entered = examples.index((key, image, targets)) >= 4
                assert entered or int(alone.num_steps) + 1 > 2 * after
    assert counts == sorted(counts) and counts[-1] == len(examples) and counts[0] < len(examples)


def pixel_score(weights, image, extent=None):
    """Scores [H, W, C] of each pixel, that see how large the image is."""
    scores = image @ weights
    if extent is None:
        return scores + 0.01 * (image.shape[0] + 2 * image.shape[1])
    return scores + 0.01 * (extent[0] + 2 * extent[1]).astype(jnp.float32)


def to_multiples_of_eight(score_fn, shape):
    return score_fn, tuple(8 * -(-side // 8) for side in shape)


def sized(rng, count):
    """Images of many sizes, whose targets are their pixels."""
    for i in range(count):
        shape = ((5, 6), (13, 6), (7, 3))[i % 3]
        image = rng.uniform(28, 228, (*shape, 3)).astype(np.float32)
        labels = rng.integers(0, C, shape)
        yield i, image, dag_jax.make_targets(labels, (labels + 1 + i % 3) % C)


@pytest.mark.parametrize("mesh_size", [1, 2])
@pytest.mark.slow
def test_images_of_many_sizes_share_few_shapes(caplog, rng, mesh_size):
    weights = jnp.asarray(rng.standard_normal((3, C)), jnp.float32)
    score_fn = jax.tree_util.Partial(pixel_score, weights)
    chunks, examples = [], list(sized(rng, 20))
    options = dict(slots=4, bucket=to_multiples_of_eight)
    mesh = jax.make_mesh((mesh_size,), ("images",))
    with jax.log_compiles():
        stream = dag_jax.attack_stream(
            score_fn, examples, METHOD, mesh=mesh, monitor=chunks.append, **options
        )
        results = dict(stream)
        shapes = {chunk.shape for chunk in chunks}
        assert shapes == {(8, 8), (16, 8)}
        for program in ("_advance", "_insert", "_take"):
            assert caplog.text.count(f"Compiling jit({program})") == 2
    assert len(results) == 20
    for key, image, targets in examples:
        assert results[key].adversarial.shape == image.shape
        assert_same(results[key], attack_alone(score_fn, image, targets))


@pytest.mark.slow
def test_without_buckets_each_shape_is_its_own(rng):
    weights = jnp.asarray(rng.standard_normal((3, C)), jnp.float32)
    score_fn = jax.tree_util.Partial(pixel_score, weights)
    examples = list(sized(rng, 6))
    results = dict(dag_jax.attack_stream(score_fn, examples, METHOD, slots=2))
    for key, image, targets in examples:
        assert_same(results[key], attack_alone(score_fn, image, targets))


@pytest.mark.slow
def test_a_rare_shape_does_not_wait_for_ever(rng):
    weights = jnp.asarray(rng.standard_normal((3, C)), jnp.float32)
    score_fn = jax.tree_util.Partial(pixel_score, weights)
    image = np.full((5, 4, 3), 99, np.float32)
    labels = np.asarray(score_fn(image)).argmax(-1)
    rare = "rare", image, dag_jax.make_targets(labels, (labels + 1) % C)

    def endless():
        yield rare
        image = rng.uniform(28, 228, (8, 8, 3)).astype(np.float32)
        labels = rng.integers(0, C, (8, 8))
        for number in itertools.count():
            yield number, image, dag_jax.make_targets(labels, (labels + 1) % C)

    stream = dag_jax.attack_stream(score_fn, endless(), Method(max_steps=8), slots=2)
    assert "rare" in [key for key, _ in itertools.islice(stream, 100)]


def test_the_monitor_accounts_for_every_iteration(score_fn, examples):
    chunks = []
    options = dict(slots=4, chunk=3, monitor=chunks.append)
    results = dict(dag_jax.attack_stream(score_fn, examples, METHOD, **options))
    needed = sum(int(result.num_steps) + 1 for result in results.values())
    assert sum(chunk.busy for chunk in chunks) == needed
    assert all(chunk.busy <= chunk.slots * chunk.iterations for chunk in chunks)
    assert all(chunk.iterations <= 3 and chunk.slots == 4 for chunk in chunks)
    assert chunks[-1].ended and chunks[0].taken == 4


def test_the_monitor_tells_how_long_devices_worked_and_waited(score_fn, examples):
    chunks, started = [], time.perf_counter()
    for _ in dag_jax.attack_stream(score_fn, examples, METHOD, slots=1, monitor=chunks.append):
        time.sleep(0.1)  # a consumer that is slower than the devices
    whole = time.perf_counter() - started
    worked, waited = (sum(times) for times in zip(*(chunk[-2:] for chunk in chunks), strict=True))
    assert chunks[0].idle == 0 and all(chunk.seconds > 0 for chunk in chunks)
    assert waited >= 0.1 * (len(examples) - 2) and worked + waited <= whole


@pytest.mark.parametrize(
    ("chunk", "made", "seconds", "following"),
    [
        (4, 4, 0.1, 8),
        (4, 3, 0.1, 4),  # it was short because its images had stopped
        (4, 4, 0.5, 4),
        (16, 16, 0.1, 16),
        (8, 8, 3.0, 4),
        (1, 1, 3.0, 1),
    ],
)
def test_a_chunk_of_a_cpu_takes_about_half_a_second(chunk, made, seconds, following):
    assert _next_chunk(chunk, made, seconds) == following


def test_a_chunk_is_a_small_part_of_what_an_image_takes():
    assert _longest_chunk([]) == _longest_chunk([150, 200]) == 16
    assert _longest_chunk([90, 70]) == 10 and _next_chunk(8, 8, 0.1, longest=10) == 10
    assert _longest_chunk([9]) == 4 and _next_chunk(16, 16, 0.3, longest=4) == 4
