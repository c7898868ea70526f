"""The engine against Algorithm 1 written out in NumPy, and every way it can stop."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dag_jax
from dag_jax import Status, Targets

H, W, N, C = 12, 10, 7, 4


def linear_model(rng, shape=(N,), scale=0.02):
    """Scores are weights . image + bias: their gradient is the weights themselves."""
    weights = scale * rng.standard_normal((*shape, C, H * W * 3))
    bias = rng.standard_normal((*shape, C))
    return weights, bias


def linear_scores(weights, bias, image):
    return jnp.einsum("...k,k->...", weights, image.reshape(-1)) + bias


def as_score_fn(weights, bias):
    return jax.tree_util.Partial(
        linear_scores, jnp.asarray(weights, jnp.float32), jnp.asarray(bias, jnp.float32)
    )


def twin(weights, bias, image, labels, adversarial, valid, max_steps, step_size, margin, rounded):
    """Algorithm 1 in float64, symbol by symbol, with closed-form gradients."""
    image = image.astype(np.float64)
    r = np.zeros_like(image)
    counts, iterates = [], []
    for m in range(max_steps + 1):
        seen = np.clip(image + r, 0, 255)
        seen = np.round(seen) if rounded else seen
        scores = weights @ seen.reshape(-1) + bias
        active = []
        for n in range(len(labels)):
            others = np.delete(scores[n], labels[n]).max()
            active.append(valid[n] and scores[n, labels[n]] - others > -margin)
        counts.append(sum(active))
        iterates.append(r.copy())
        if counts[-1] == 0:
            return r, m, counts, Status.FOOLED if m else Status.NO_TARGETS, iterates
        if m == max_steps:
            return r, m, counts, Status.MAX_STEPS, iterates
        r_m = np.zeros(image.size)
        for n in range(len(labels)):
            if active[n]:
                r_m += weights[n, adversarial[n]] - weights[n, labels[n]]
        r = r + step_size / np.abs(r_m).max() * r_m.reshape(image.shape)
    raise AssertionError("unreachable")


@pytest.fixture
def problem(rng):
    weights, bias = linear_model(rng)
    image = rng.uniform(0, 255, (H, W, 3)).astype(np.float32)
    labels = (weights @ image.reshape(-1).astype(np.float64) + bias).argmax(-1).astype(np.int32)
    adversarial = ((labels + rng.integers(1, C, N)) % C).astype(np.int32)
    valid = np.ones(N, bool)
    valid[2] = False
    return weights, bias, image, labels, adversarial, valid


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("margin", [0.0, 2.0])
@pytest.mark.parametrize("max_steps", [4, 200])
def test_equals_algorithm_1_in_numpy(problem, max_steps, margin, rounded):
    weights, bias, image, labels, adversarial, valid = problem
    r, steps, counts, status, iterates = twin(
        *problem, max_steps=max_steps, step_size=0.5, margin=margin, rounded=rounded
    )
    targets = Targets(*map(jnp.asarray, (labels, adversarial, valid)))
    score_fn = as_score_fn(weights, bias)
    options = dict(margin=margin, rounded=rounded)
    result = dag_jax.attack(score_fn, image, targets, max_steps=max_steps, **options)
    np.testing.assert_allclose(result.perturbation, r, atol=1e-2)
    assert int(result.num_steps) == steps
    assert int(result.status) == status
    np.testing.assert_array_equal(result.active_counts[: steps + 1], counts)
    np.testing.assert_array_equal(result.active_counts[steps + 1 :], -1)
    assert int(result.active.sum()) == counts[-1]
    np.testing.assert_array_equal(result.image, image)

    state = dag_jax.init(image, targets, max_steps=max_steps)
    advance = jax.jit(functools.partial(dag_jax.step, **options))
    for iterate in iterates:
        np.testing.assert_allclose(state.attack.perturbation, iterate, atol=1e-2)
        state = advance(score_fn, state, targets)
    assert int(state.attack.status) == status


def test_binary_linear_model_needs_the_closed_form_number_of_steps():
    # One target, margin w.x + b with all |w| equal: every step lowers it by step_size sum|w|.
    weights = np.zeros((1, C, H * W * 3))
    weights[0, 0], weights[0, 1] = 0.001, -0.001
    bias = np.array([[-20.0, 0.0, -99.0, -99.0]])
    image = np.full((H, W, 3), 120, np.float32)
    margin = 0.002 * 120 * H * W * 3 - 20
    per_step = 0.5 * 0.002 * H * W * 3
    targets = Targets(jnp.array([0]), jnp.array([1]), jnp.array([True]))
    result = dag_jax.attack(as_score_fn(weights, bias), image, targets, max_steps=400)
    assert int(result.num_steps) == int(np.ceil(margin / per_step))
    np.testing.assert_allclose(result.perturbation, -0.5 * float(result.num_steps), rtol=1e-5)


@pytest.fixture
def attacked(problem):
    weights, bias, image, labels, adversarial, valid = problem
    targets = Targets(*map(jnp.asarray, (labels, adversarial, valid)))
    return as_score_fn(weights, bias), image, targets


def test_status_fooled_and_max_steps(attacked):
    assert int(dag_jax.attack(*attacked).status) == Status.FOOLED
    stopped = dag_jax.attack(*attacked, max_steps=2)
    assert int(stopped.status) == Status.MAX_STEPS
    assert np.abs(stopped.perturbation).max() > 0  # the last iterate, not the clean image


def test_status_no_targets(attacked):
    score_fn, image, targets = attacked
    wrong = dataclasses.replace(targets, labels=targets.adversarial, adversarial=targets.labels)
    for nothing in (wrong, dataclasses.replace(targets, valid=jnp.zeros(N, bool))):
        result = dag_jax.attack(score_fn, image, nothing)
        assert int(result.status) == Status.NO_TARGETS
        assert int(result.num_steps) == 0
        assert not np.any(result.perturbation)


def test_status_zero_gradient(attacked):
    score_fn, image, targets = attacked
    flat = lambda x: jax.lax.stop_gradient(score_fn(x))  # noqa: E731
    result = dag_jax.attack(flat, image, targets)
    assert int(result.status) == Status.ZERO_GRADIENT
    assert np.isfinite(result.perturbation).all()


def test_status_non_finite_scores_and_gradient(attacked):
    score_fn, image, targets = attacked
    result = dag_jax.attack(lambda x: score_fn(x).at[0, 0].set(jnp.nan), image, targets)
    assert int(result.status) == Status.NON_FINITE

    def infinite_slope(x):  # finite scores, gradient of sqrt at 0
        return score_fn(x) + jnp.sqrt(x.sum() * 0)

    result = dag_jax.attack(infinite_slope, image, targets)
    assert int(result.status) == Status.NON_FINITE
    assert np.isfinite(result.perturbation).all()


def test_padding_may_be_not_finite(attacked):
    score_fn, image, targets = attacked
    padded = lambda x: score_fn(x).at[2].set(jnp.nan)  # noqa: E731  row 2 is not valid
    result = dag_jax.attack(padded, image, targets)
    assert int(result.status) == Status.FOOLED


def test_result_is_true_of_the_returned_image(attacked):
    score_fn, image, targets = attacked
    image = np.where(image > 128, 254.9, 0.2).astype(np.float32)  # at the ends of the range
    labels = jnp.argmax(score_fn(jnp.asarray(image)), -1)
    targets = dag_jax.make_targets(labels, (labels + 1) % C)
    for rounded in (False, True):
        result = dag_jax.attack(score_fn, image, targets, rounded=rounded)
        returned = dag_jax.perturb(result.image, result.perturbation, rounded=rounded)
        assert float(returned.min()) >= 0 and float(returned.max()) <= 255
        active = dag_jax.active_targets(score_fn(returned), targets)
        np.testing.assert_array_equal(active, result.active)
        assert int(active.sum()) == int(result.active_counts[result.num_steps])
        if rounded:
            saved = np.asarray(returned).astype(np.uint8)
            np.testing.assert_array_equal(saved, returned)


def test_batch_equals_single_images(rng, attacked):
    score_fn, _, _ = attacked
    images = rng.uniform(0, 255, (3, H, W, 3)).astype(np.float32)
    labels = jax.vmap(lambda x: jnp.argmax(score_fn(x), -1))(jnp.asarray(images))
    targets = jax.vmap(dag_jax.make_targets)(labels, (labels + 1) % C)
    attack = jax.jit(dag_jax.attack)
    batch = jax.jit(jax.vmap(dag_jax.attack, (None, 0, 0)))(score_fn, jnp.asarray(images), targets)
    assert len(set(batch.num_steps.tolist())) > 1  # lanes that stop at different times
    for i, image in enumerate(images):
        alone = attack(score_fn, image, jax.tree.map(lambda leaf, i=i: leaf[i], targets))
        assert int(alone.num_steps) == int(batch.num_steps[i])
        np.testing.assert_array_equal(alone.active_counts, batch.active_counts[i])
        np.testing.assert_allclose(alone.perturbation, batch.perturbation[i], atol=1e-4)


@pytest.mark.slow
def test_one_step_can_be_differentiated(rng):
    weights, bias = linear_model(rng, scale=3e-4)
    image = rng.uniform(50, 200, (H, W, 3)).astype(np.float32)
    score_fn = lambda x: jnp.tanh(linear_scores(*map(jnp.float32, (weights, bias)), x))  # noqa: E731
    labels = np.argmax(score_fn(image), -1)
    targets = dag_jax.make_targets(jnp.asarray(labels), jnp.asarray((labels + 1) % C))
    toward, seen = rng.standard_normal((2, H * W * 3))

    def by_hand(x):
        """Return what `seen` sees of the first step from x, in float64."""
        slope = 1 - np.tanh(weights @ x + bias) ** 2
        rows = np.arange(N)
        gradient = sum(
            sign * (slope[rows, classes][:, None] * weights[rows, classes]).sum(0)
            for sign, classes in ((1, labels), (-1, (labels + 1) % C))
        )
        return seen @ (-0.5 * gradient / np.abs(gradient).max())

    flat = image.astype(np.float64).reshape(-1)
    expected = (by_hand(flat + 1e-4 * toward) - by_hand(flat - 1e-4 * toward)) / 2e-4
    direction = jnp.asarray(toward, jnp.float32).reshape(image.shape)
    start = dag_jax.init(image, targets, max_steps=3)

    def stepped(image):
        state = dataclasses.replace(start, attack=dataclasses.replace(start.attack, image=image))
        r = dag_jax.step(score_fn, state, targets).attack.perturbation
        return jnp.vdot(r.reshape(-1), jnp.asarray(seen, jnp.float32))

    def attacked(image):
        r = dag_jax.attack(score_fn, image, targets, max_steps=1).perturbation
        return jnp.vdot(r.reshape(-1), jnp.asarray(seen, jnp.float32))

    image = jnp.asarray(image)
    assert abs(expected) > 1e-4
    np.testing.assert_allclose(stepped(image), by_hand(flat), rtol=1e-3)
    np.testing.assert_allclose(jnp.vdot(jax.grad(stepped)(image), direction), expected, rtol=1e-2)
    np.testing.assert_allclose(jax.jvp(attacked, (image,), (direction,))[1], expected, rtol=1e-2)


@pytest.mark.parametrize("field", ["labels", "adversarial"])
@pytest.mark.parametrize("missing", [-1, C, 255])
def test_a_class_without_a_score_is_no_success_under_jit(attacked, field, missing):
    score_fn, image, targets = attacked
    changed = dataclasses.replace(targets, **{field: getattr(targets, field).at[1].set(missing)})
    assert int(jax.jit(dag_jax.attack)(score_fn, image, changed).status) == Status.NON_FINITE
    valid = targets.valid.at[1].set(False)
    padded = dataclasses.replace(changed, valid=valid)
    assert int(jax.jit(dag_jax.attack)(score_fn, image, padded).status) == Status.FOOLED


def test_step_size_and_margin_may_be_traced(attacked):
    score_fn, image, targets = attacked

    def run(step_size, margin):
        return dag_jax.attack(score_fn, image, targets, step_size=step_size, margin=margin)

    sizes = jnp.float32([0.5, 2.0])
    many = jax.vmap(run, (0, None))(sizes, jnp.float32(1.0))
    for index, size in enumerate((0.5, 2.0)):
        alone = run(size, 1.0)
        assert int(many.num_steps[index]) == int(alone.num_steps)
        np.testing.assert_allclose(many.perturbation[index], alone.perturbation, atol=1e-4)


def test_shard_map_equals_vmap(rng, attacked):
    score_fn, _, _ = attacked
    images = jnp.asarray(rng.uniform(0, 255, (4, H, W, 3)), jnp.float32)
    labels = jax.vmap(lambda x: jnp.argmax(score_fn(x), -1))(images)
    targets = jax.vmap(dag_jax.make_targets)(labels, (labels + 1) % C)
    batched = jax.vmap(dag_jax.attack, (None, 0, 0))
    mesh = jax.make_mesh((2,), ("images",), axis_types=(jax.sharding.AxisType.Auto,))
    P = jax.sharding.PartitionSpec
    sharded = jax.shard_map(
        batched,
        mesh=mesh,
        in_specs=(P(), P("images"), P("images")),
        out_specs=P("images"),
        check_vma=False,
    )
    here, there = (
        jax.jit(batched)(score_fn, images, targets),
        jax.jit(sharded)(score_fn, images, targets),
    )
    for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        np.testing.assert_array_equal(a, b)


def test_joint_attack_fools_both_and_counts_both(rng, attacked):
    first, image, targets = attacked
    weights, bias = linear_model(rng, (3, 2))
    second = as_score_fn(weights, bias)
    score_fn = lambda x: {"a": first(x), "b": second(x)}  # noqa: E731
    labels = jnp.argmax(second(jnp.asarray(image)), -1)
    joint = {"a": targets, "b": dag_jax.make_targets(labels, (labels + 1) % C)}
    result = dag_jax.attack(score_fn, image, joint, max_steps=1000)
    assert int(result.active_counts[0]) == 6 + 6
    assert int(result.status) == Status.FOOLED
    scores = score_fn(dag_jax.perturb(result.image, result.perturbation))
    for name in joint:
        assert not dag_jax.active_targets(scores[name], joint[name]).any()
    assert result.active["b"].shape == (3, 2)


def test_each_network_of_a_joint_attack_has_its_own_margin(rng, attacked):
    first, image, targets = attacked
    second = as_score_fn(*linear_model(rng, (3, 2)))
    score_fn = lambda x: {"a": first(x), "b": second(x)}  # noqa: E731
    labels = jnp.argmax(second(jnp.asarray(image)), -1)
    joint = {"a": targets, "b": dag_jax.make_targets(labels, (labels + 1) % C)}

    def run(margin):
        return dag_jax.attack(score_fn, image, joint, max_steps=1000, margin=margin)

    result = run({"a": 0.0, "b": 5.0})
    assert int(result.status) == Status.FOOLED
    scores = score_fn(dag_jax.perturb(result.image, result.perturbation))
    assert not dag_jax.active_targets(scores["b"], joint["b"], 5.0).any()
    assert dag_jax.active_targets(scores["a"], joint["a"], 5.0).any()
    np.testing.assert_array_equal(run({"a": 2.0, "b": 2.0}).perturbation, run(2.0).perturbation)


def test_momentum_is_an_optimizer_away(attacked):
    score_fn, image, targets = attacked
    momentum = optax.chain(optax.trace(0.9), dag_jax.dag_update(0.5))
    first = dag_jax.attack(score_fn, image, targets, max_steps=1, optimizer=momentum)
    plain = dag_jax.attack(score_fn, image, targets, max_steps=1)
    np.testing.assert_array_equal(first.perturbation, plain.perturbation)
    result = dag_jax.attack(score_fn, image, targets, optimizer=momentum)
    assert int(result.status) == Status.FOOLED


def test_one_compilation_serves_every_image(rng, attacked):
    score_fn, image, targets = attacked
    traces = []

    def counted(parameters, x):
        traces.append(1)
        return score_fn.func(*parameters, x)

    foreign = jax.tree_util.Partial(counted, score_fn.args)
    attack = jax.jit(functools.partial(dag_jax.attack, max_steps=200, step_size=0.5))
    attack(foreign, image, targets)
    before = len(traces)
    numpy_targets = jax.tree.map(np.asarray, targets)
    for _ in range(3):
        other = rng.uniform(0, 255, (H, W, 3)).astype(np.float32)
        assert int(attack(foreign, other, numpy_targets).num_steps) >= 0
        attack(foreign, jnp.asarray(other), targets)
    assert len(traces) == before


def test_integer_images_and_black_ones_are_images(attacked):
    score_fn, image, targets = attacked
    as_uint8 = dag_jax.attack(score_fn, image.astype(np.uint8), targets)
    as_float = dag_jax.attack(score_fn, image.astype(np.uint8).astype(np.float32), targets)
    np.testing.assert_array_equal(as_uint8.perturbation, as_float.perturbation)
    black = np.zeros((H, W, 3), np.float32)
    labels = jnp.argmax(score_fn(jnp.asarray(black)), -1)
    targets = dag_jax.make_targets(labels, (labels + 1) % C)
    assert int(dag_jax.attack(score_fn, black, targets).status) == Status.FOOLED
