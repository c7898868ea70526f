"""The engine against Algorithm 1 written out in NumPy, and every way it can stop."""

import dataclasses
import fractions
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dag_jax
from dag_jax import Method, Status, Targets
from dag_jax.engine import algorithm
from dag_jax.engine.algorithm import at_most

H, W, N, C = 12, 10, 7, 4
MANY = Method(max_steps=1000)

advance = jax.jit(dag_jax.step)


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


def changed_by(change, score_fn):
    """Return a score_fn whose scores, and the image, go through a function of this file."""
    return jax.tree_util.Partial(changed_scores, jax.tree_util.Partial(change), score_fn)


def changed_scores(change, score_fn, image):
    return change(score_fn(image), image)


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
            rival = np.delete(scores[n], labels[n]).max()
            active.append(valid[n] and scores[n, labels[n]] - rival > -margin)
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


@pytest.fixture
def attacked(problem):
    weights, bias, image, *targets = problem
    return as_score_fn(weights, bias), image, Targets(*map(jnp.asarray, targets))


def targets_of(score_fn, image):
    """Return what a network sees as the labels, each with the next class as the adversarial one."""
    labels = np.asarray(score_fn(jnp.asarray(image))).argmax(-1)
    return dag_jax.make_targets(labels, (labels + 1) % C)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("margin", [0.0, 2.0])
@pytest.mark.parametrize("max_steps", [4, 200])
def test_equals_algorithm_1_in_numpy(problem, attacked, max_steps, margin, rounded):
    r, steps, counts, status, iterates = twin(
        *problem, max_steps=max_steps, step_size=0.5, margin=margin, rounded=rounded
    )
    method = dag_jax.methods.dag(margin=margin, max_steps=max_steps, rounded=rounded)
    score_fn, image, targets = attacked
    result = dag_jax.attack(*attacked, method)
    np.testing.assert_allclose(result.perturbation, r, atol=1e-2)
    assert int(result.num_steps) == steps
    assert int(result.status) == status
    np.testing.assert_array_equal(result.active_counts[: steps + 1], counts)
    np.testing.assert_array_equal(result.active_counts[steps + 1 :], -1)
    assert int(result.active.sum()) == counts[-1]

    state = dag_jax.init(method, image, targets)
    np.testing.assert_array_equal(state.image, image)
    for iterate in iterates:
        np.testing.assert_allclose(state.attack.perturbation, iterate, atol=1e-2)
        state = advance(method, score_fn, state, targets)
    assert int(state.attack.status) == status
    jax.tree.map(np.testing.assert_array_equal, state.attack, result)
    again = advance(method, score_fn, state, targets)  # what has stopped stays as it is
    jax.tree.map(np.testing.assert_array_equal, state, again)


def test_binary_linear_model_needs_the_closed_form_number_of_steps():
    # One target, margin w.x + b with all |w| equal: every step lowers it by step_size sum|w|.
    weights, bias = np.zeros((N, C, H * W * 3)), np.zeros((N, C))
    weights[0, 0], weights[0, 1] = 0.001, -0.001
    bias[0] = -20.0, 0.0, -99.0, -99.0
    image = np.full((H, W, 3), 120, np.float32)
    margin = 0.002 * 120 * H * W * 3 - 20
    per_step = 0.5 * 0.002 * H * W * 3
    first = jnp.arange(N) == 0
    targets = Targets(jnp.zeros(N, jnp.int32), jnp.ones(N, jnp.int32), first)
    result = dag_jax.attack(as_score_fn(weights, bias), image, targets)
    assert int(result.num_steps) == int(np.ceil(margin / per_step)) < 200
    np.testing.assert_allclose(result.perturbation, -0.5 * float(result.num_steps), rtol=1e-5)


def test_status_fooled_and_max_steps(attacked):
    assert int(dag_jax.attack(*attacked).status) == Status.FOOLED
    stopped = dag_jax.attack(*attacked, Method(max_steps=4))
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
        np.testing.assert_array_equal(result.adversarial, image)


def detached(scores, image):
    return jax.lax.stop_gradient(scores)


def first_is_nan(scores, image):
    return scores.at[0, 0].set(jnp.nan)


def third_is_nan(scores, image):  # the one that is not valid
    return scores.at[2].set(jnp.nan)


def infinite_slope(scores, image):  # finite scores, gradient of sqrt at 0
    return scores + jnp.sqrt(image.sum() * 0)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (detached, Status.ZERO_GRADIENT),
        (first_is_nan, Status.NON_FINITE),
        (infinite_slope, Status.NON_FINITE),
        (third_is_nan, Status.FOOLED),  # padding may be anything
    ],
)
def test_status_of_scores_and_gradients_that_end_an_attack(attacked, change, status):
    score_fn, image, targets = attacked
    result = dag_jax.attack(changed_by(change, score_fn), image, targets)
    assert int(result.status) == status
    assert np.isfinite(result.perturbation).all()
    assert (int(result.num_steps) == 0) == (status != Status.FOOLED)


@pytest.mark.parametrize("rounded", [False, True])
def test_result_is_true_of_the_returned_image(attacked, rounded):
    score_fn, image, _ = attacked
    image = np.where(image > 128, 254.9, 0.2).astype(np.float32)  # at the ends of the range
    targets = targets_of(score_fn, image)
    result = dag_jax.attack(score_fn, image, targets, Method(rounded=rounded))
    returned = np.asarray(result.adversarial)
    assert returned.min() == 0 and returned.max() == 255
    active = dag_jax.active_targets(score_fn(returned), targets)
    np.testing.assert_array_equal(active, result.active)
    assert int(active.sum()) == int(result.active_counts[result.num_steps])
    if rounded:
        np.testing.assert_array_equal(returned.astype(np.uint8), returned)


def test_an_attack_that_is_looked_at_on_its_way_is_the_attack(attacked):
    score_fn, image, targets = attacked
    method, look = Method(max_steps=9), jax.jit(algorithm.advance)
    state = dag_jax.init(method, image, targets)
    for end, steps in ((4, 4), (4, 4), (20, 9)):
        state = look(method, score_fn, state, targets, end)
        assert int(state.attack.num_steps) == steps
    jax.tree.map(np.testing.assert_array_equal, state.attack, dag_jax.attack(*attacked, method))


@pytest.mark.parametrize("rounded", [False, True])
def test_the_adversarial_image_is_what_perturb_makes(attacked, rounded):
    _, image, _ = attacked
    for max_steps in (4, 200):
        result = dag_jax.attack(*attacked, Method(max_steps=max_steps, rounded=rounded))
        made = dag_jax.perturb(image, result.perturbation, rounded=rounded)
        np.testing.assert_array_equal(result.adversarial, made)
        assert result.adversarial.dtype == jnp.float32


def test_perturb_by_hand():
    image = jnp.float32([[[0, 100, 255]]])
    change = jnp.float32([[[-3, 0.6, 2]]])
    np.testing.assert_array_equal(dag_jax.perturb(image, change), np.float32([[[0, 100.6, 255]]]))
    np.testing.assert_array_equal(dag_jax.perturb(image, change, rounded=True), [[[0, 101, 255]]])
    image, change = np.uint8([[[250, 1, 9]]]), np.uint8([[[10, 1, 0]]])  # no sum of bytes wraps
    made = dag_jax.perturb(image, change)
    assert made.dtype == np.float32 and made.tolist() == [[[255, 2, 9]]]
    assert dag_jax.perturb(image, np.int8([[[-1, -2, 0]]])).tolist() == [[[249, 0, 9]]]


def float32_scores(weights, image):
    return (image - 128) @ weights


def float16_scores(weights, image):
    return (image - 128).astype(jnp.float16) @ weights.astype(jnp.float16)


def bfloat16_scores(weights, image):
    return (image - 128).astype(jnp.bfloat16) @ weights.astype(jnp.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "whole"),
    [
        (float32_scores, True),
        (float16_scores, True),
        (float16_scores, False),
        (bfloat16_scores, True),
        (bfloat16_scores, False),
    ],
)
def test_the_verdict_is_the_argmax_of_what_scores_the_image(network, whole):
    """Equal scores are common in half precision; who reads a prediction sees the first of them.

    Sums of whole numbers are exact in any order, so those of float32 tie here, too.
    """
    rng, ties, statuses = np.random.default_rng(0), 0, set()
    for _ in range(6):
        weights = rng.integers(-2, 3, (3, C)) if whole else 0.05 * rng.standard_normal((3, C))
        score_fn = jax.tree_util.Partial(network, jnp.asarray(weights, jnp.float32))
        image = rng.integers(112, 144, (H, W, 3)).astype(np.float32)
        targets = targets_of(score_fn, image)
        for max_steps in (3, 60):
            method = Method(max_steps=max_steps, rounded=whole)
            result = dag_jax.attack(score_fn, image, targets, method)
            scores = np.asarray(score_fn(result.adversarial), np.float32)
            still = (scores.argmax(-1) == targets.labels) & targets.valid
            np.testing.assert_array_equal(still, result.active)
            statuses.add(int(result.status))
            ties += ((scores == scores.max(-1, keepdims=True)).sum(-1) > 1).sum()
    assert ties > (100 if whole else 0)
    assert Status.FOOLED in statuses and Status.MAX_STEPS in statuses


SHARES = (13 / 22, 0.01, 1 / 3, 0.999, 0.5, 1e-3, 1e-10, 1 - 1e-10, math.nextafter(1, 0))


def numbers_near(share, total):
    """Return numbers of so many targets on both sides of a share, and the ends."""
    middle = math.floor(fractions.Fraction(share) * total)
    near = {middle - 1, middle, middle + 1, 0, total}
    return sorted(number for number in near if 0 <= number <= total)


@pytest.mark.slow
@pytest.mark.parametrize("share", SHARES)
def test_at_most_is_the_comparison_in_python(share):
    totals = [1, 2, 3, 22, 100, 1000, 65535, 65536, 10**6, 2**24 + 1, 2**31 - 22, 2**31 - 1]
    pairs = [(number, total) for total in totals for number in numbers_near(share, total)]
    numbers, totals = jnp.int32(pairs).T
    expected = [number / total <= share for number, total in pairs]
    np.testing.assert_array_equal(at_most(numbers, share, totals), expected)
    assert True in expected and False in expected


def test_a_share_that_is_a_quotient_is_met_by_its_number_and_not_by_the_next(rng):
    for bits in (5, 10, 20, 24, 28, 31):
        for total in rng.integers(2 ** (bits - 1), 2**bits - 1, 20).tolist():
            number = int(rng.integers(0, total))
            met = at_most(jnp.int32([number, number + 1]), number / total, jnp.int32([total] * 2))
            np.testing.assert_array_equal(met, [True, False], err_msg=f"{number} of {total}")


def test_at_most_is_exact_arithmetic_for_shares_of_small_numbers(rng):
    for _ in range(50):
        below = int(rng.integers(2, 1000))
        share = fractions.Fraction(int(rng.integers(1, below)), below)
        totals = rng.integers(1, 2**31 - 1, 20).tolist()
        pairs = [(number, total) for total in totals for number in numbers_near(share, total)]
        expected = [number <= share * total for number, total in pairs]
        numbers, totals = jnp.int32(pairs).T
        np.testing.assert_array_equal(at_most(numbers, float(share), totals), expected)


def test_thirteen_of_twenty_two_stop_at_that_share(attacked):
    """In float32, 13/22 of 22 are less than 13."""
    weights = np.zeros((22, C, H * W * 3))
    weights[:, 0] = 0.01  # each target is lost at its own brightness
    bias = np.zeros((22, C))
    bias[:, 1] = 0.01 * H * W * 3 * (99.9 - np.arange(22))
    image = np.full((H, W, 3), 100, np.float32)
    targets = dag_jax.make_targets(np.zeros(22, np.int32), 1)
    method = Method(step_size=1.0, stop_fraction=13 / 22)
    result = dag_jax.attack(as_score_fn(weights, bias), image, targets, method)
    assert int(result.status) == Status.FOOLED
    np.testing.assert_array_equal(result.active_counts[:10], np.arange(22, 12, -1))
    assert int(result.num_steps) == 9 and int(result.active.sum()) == 13


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
    once = Method(max_steps=1)

    def stepped(image):
        state = dag_jax.init(once, image, targets)
        r = dag_jax.step(once, score_fn, state, targets).attack.perturbation
        return jnp.vdot(r.reshape(-1), jnp.asarray(seen, jnp.float32))

    def attacked(image):
        r = dag_jax.attack(score_fn, image, targets, once).perturbation
        return jnp.vdot(r.reshape(-1), jnp.asarray(seen, jnp.float32))

    image = jnp.asarray(image)
    assert abs(expected) > 1e-4
    value, slope = jax.jit(jax.value_and_grad(stepped))(image)
    np.testing.assert_allclose(value, by_hand(flat), rtol=1e-3)
    np.testing.assert_allclose(jnp.vdot(slope, direction), expected, rtol=1e-2)
    forward = jax.jit(lambda image, direction: jax.jvp(attacked, (image,), (direction,))[1])
    np.testing.assert_allclose(forward(image, direction), expected, rtol=1e-2)


jitted = jax.jit(dag_jax.attack)


@pytest.mark.parametrize("field", ["labels", "adversarial"])
@pytest.mark.parametrize("missing", [-1, C, 255])
def test_a_class_without_a_score_is_no_success_under_jit(attacked, field, missing):
    score_fn, image, targets = attacked
    changed = dataclasses.replace(targets, **{field: getattr(targets, field).at[1].set(missing)})
    assert int(jitted(score_fn, image, changed).status) == Status.NON_FINITE
    valid = targets.valid.at[1].set(False)
    padded = dataclasses.replace(changed, valid=valid)
    assert int(jitted(score_fn, image, padded).status) == Status.FOOLED


def both_scores(first, second, image):
    return {"a": first(image), "b": second(image)}


@pytest.fixture
def joint(rng, attacked):
    """Two networks, one image, and the targets of both."""
    first, image, targets = attacked
    second = as_score_fn(*linear_model(rng, (3, 2)))
    score_fn = jax.tree_util.Partial(both_scores, first, second)
    return score_fn, image, {"a": targets, "b": targets_of(second, image)}


def test_joint_attack_fools_both_and_counts_both(joint):
    score_fn, _, targets = joint
    result = dag_jax.attack(*joint, MANY)
    assert int(result.active_counts[0]) == 6 + 6
    assert int(result.status) == Status.FOOLED
    scores = score_fn(result.adversarial)
    for name in targets:
        assert not dag_jax.active_targets(scores[name], targets[name]).any()
    assert result.active["b"].shape == (3, 2)


def test_each_network_of_a_joint_attack_has_its_own_margin(joint):
    score_fn, _, targets = joint

    def run(margin):
        return dag_jax.attack(*joint, MANY.replace(margin=margin))

    result = run({"a": 0.0, "b": 5.0})
    assert int(result.status) == Status.FOOLED
    scores = score_fn(result.adversarial)
    assert not dag_jax.active_targets(scores["b"], targets["b"], 5.0).any()
    assert dag_jax.active_targets(scores["a"], targets["a"], 5.0).any()
    np.testing.assert_array_equal(run({"a": 2.0, "b": 2.0}).perturbation, run(2.0).perturbation)


def momentum(step_size):
    return optax.chain(optax.trace(0.9), dag_jax.dag_update(step_size))


def test_momentum_is_an_update_away(attacked):
    first = dag_jax.attack(*attacked, Method(update=momentum, max_steps=1))
    plain = dag_jax.attack(*attacked, Method(max_steps=1))
    np.testing.assert_array_equal(first.perturbation, plain.perturbation)
    result = dag_jax.attack(*attacked, Method(update=momentum))
    assert int(result.status) == Status.FOOLED


def test_integer_images_and_black_ones_are_images(attacked):
    score_fn, image, targets = attacked
    as_uint8 = dag_jax.attack(score_fn, image.astype(np.uint8), targets)
    as_float = dag_jax.attack(score_fn, image.astype(np.uint8).astype(np.float32), targets)
    np.testing.assert_array_equal(as_uint8.perturbation, as_float.perturbation)
    black = np.zeros((H, W, 3), np.float32)
    assert int(dag_jax.attack(score_fn, black, targets_of(score_fn, black)).status) == Status.FOOLED


def test_a_summary_names_status_steps_and_targets(attacked):
    result = dag_jax.attack(*attacked, Method(max_steps=4))
    largest = float(jnp.abs(result.perturbation).max())
    assert result.summary() == (
        f"MAX_STEPS after 4 steps; targets still active: {int(result.active.sum())} of 6; "
        f"largest change {largest:.1f} grey levels, p "
        f"{np.sqrt((np.asarray(result.perturbation) ** 2).sum(-1).mean()) / 255:.2g}"
    )
    nothing = dag_jax.init(Method(max_steps=1), *attacked[1:]).attack
    assert nothing.summary().startswith("RUNNING after 0 steps; targets still active: not yet")
    assert "after 1 step;" in dag_jax.attack(*attacked, Method(max_steps=1)).summary()


def test_a_repr_is_a_few_lines(joint):
    result = dag_jax.attack(*joint, MANY)
    first, *lines = repr(result).splitlines()
    assert first == f"Attack: {result.summary()}"
    assert [line.split(":")[0].strip() for line in lines] == [
        field.name for field in dataclasses.fields(result)
    ]
    assert lines[0] == f"  adversarial: float32[{H}, {W}, 3]" and "'b': 'bool[3, 2]'" in lines[3]
    assert all(len(line) < 100 for line in lines)
    assert len(repr(jax.device_get(result)).splitlines()) == 7


def test_a_repr_where_no_value_is_known(attacked):
    """Under tracing, and of the trees of shapes, axes and shardings that JAX takes and prints."""
    score_fn, image, targets = attacked
    texts = []

    def attack_and_repr(image):
        result = dag_jax.attack(score_fn, image, targets)
        texts.append(repr(result))
        return result

    shapes = jax.eval_shape(attack_and_repr, image)
    jax.eval_shape(jax.vmap(attack_and_repr), image[None])
    texts += [repr(shapes), repr(jax.tree.map(lambda _: None, shapes))]
    texts += [repr(jax.tree.map(lambda _: jax.sharding.PartitionSpec("images"), shapes))]
    assert len(texts) == 5
    for text in texts:
        assert text.startswith("Attack: its values are not known here\n  adversarial: ")
        assert len(text.splitlines()) == 7
