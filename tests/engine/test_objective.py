"""What an attack may be told to be after: objectives, when to stop, where to start."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dag_jax
from dag_jax import Method, Objective, Status, Targets
from dag_jax.engine import objective

H, W, N, C = 8, 6, 7, 4


def linear_scores(weights, bias, image):
    return jnp.einsum("...k,k->...", weights, image.reshape(-1) - 128) + bias


def linear_model(rng, shape=(N,)):
    weights = 0.02 * rng.standard_normal((*shape, C, H * W * 3))
    bias = rng.standard_normal((*shape, C))
    return jax.tree_util.Partial(linear_scores, jnp.float32(weights), jnp.float32(bias))


@pytest.fixture
def problem(rng):
    score_fn = linear_model(rng)
    image = rng.uniform(28, 228, (H, W, 3)).astype(np.float32)
    labels = np.asarray(score_fn(image)).argmax(-1).astype(np.int32)
    valid = np.arange(N) != 2
    return score_fn, image, Targets(labels, (labels + 1) % C, valid)


def test_margin_loss_and_active_targets_by_hand():
    scores = jnp.array([[3.0, 1.0, 2.0], [0.0, 5.0, 5.0], [9.0, 0.0, 0.0]])
    targets = Targets(jnp.array([0, 2, 0]), jnp.array([1, 0, 2]), jnp.array([True, True, False]))
    np.testing.assert_array_equal(objective.score_of(scores, targets.labels), [3, 5, 9])
    np.testing.assert_array_equal(objective.best_other(scores, targets.labels), [2, 1, 1])
    np.testing.assert_array_equal(dag_jax.margin_loss(scores, targets), [2.0, 5.0, 0.0])
    np.testing.assert_array_equal(dag_jax.active_targets(scores, targets), [True, False, False])
    np.testing.assert_array_equal(
        dag_jax.active_targets(scores, targets, margin=0.5), [True, True, False]
    )


def test_a_lead_is_a_difference_and_nothing_where_it_does_not_count():
    scores = np.array([[3.0, 1.0, 2.0], [np.nan, np.inf, 5.0], [9.0, 4.0, -np.inf]], np.float32)
    labels, rivals, where = np.array([0, 0, 1]), np.array([2, 1, 0]), np.array([True, False, True])

    def total(scores):
        return objective.lead(scores, labels, rivals, where).sum()

    np.testing.assert_array_equal(objective.lead(scores, labels, rivals, where), [1, 0, -5])
    expected = [[1, 0, -1], [0, 0, 0], [-1, 1, 0]]
    np.testing.assert_array_equal(jax.grad(total)(scores), expected)
    assert "scatter" not in jax.jit(jax.grad(total)).lower(scores).as_text()


def still_right(scores, targets, margin):
    """The paper's rule, written anew."""
    label = jax.nn.one_hot(targets.labels, C, dtype=bool)
    rivals = jnp.where(label, -jnp.inf, scores).max(-1)
    label_scores = jnp.where(label, scores, 0).sum(-1)
    return (label_scores - rivals > -margin) & targets.valid


def equation_1(scores, targets, active, progress):
    """The paper's loss, written anew."""
    sign = jax.nn.one_hot(targets.labels, C) - jax.nn.one_hot(targets.adversarial, C)
    return jnp.where(active, (scores * sign).sum(-1), 0)


def test_the_default_is_the_paper_to_the_last_bit(problem):
    default = dag_jax.attack(*problem)
    explicit = dag_jax.attack(*problem, Method(objective=dag_jax.DAG, stop_fraction=0.0))
    anew = dag_jax.attack(*problem, Method(Objective(still_right, equation_1)))
    assert int(default.status) == Status.FOOLED and int(default.num_steps) > 3
    for result in (explicit, anew):
        jax.tree.map(np.testing.assert_array_equal, default, result)


def in_proportion(scores, targets, active, progress):
    return progress * jnp.where(targets.valid, scores[:, 0], 0)


def test_a_loss_sees_how_far_the_attack_is(problem):
    score_fn, _, targets = problem
    options = {"update": optax.sgd, "step_size": 1.0, "stop_fraction": None, "max_steps": 4}
    slope = np.asarray(score_fn.args[0])[targets.valid][:, 0].sum(0).reshape(H, W, 3)
    method = Method(Objective(still_right, after_the_first), margin=1e6, **options)
    result = dag_jax.attack(*problem, method)
    assert int(result.num_steps) == 4 and int(result.status) == Status.MAX_STEPS
    steps = [1 + m / 4 for m in range(4)]
    np.testing.assert_allclose(result.perturbation, -sum(steps) * slope, atol=1e-4)
    method = method.replace(objective=Objective(still_right, in_proportion))
    result = dag_jax.attack(*problem, method)
    assert int(result.status) == Status.ZERO_GRADIENT  # 0 of it at the first step


def after_the_first(scores, targets, active, progress):
    return in_proportion(scores, targets, active, 1 + progress)


def downhill(scores, targets, active, progress):
    """Margins of all targets, active or not: such an attack never comes to rest by itself."""
    return dag_jax.margin_loss(scores, targets)


def test_none_goes_on_to_the_last_step(problem):
    method = Method(Objective(dag_jax.active_targets, downhill))
    plain = dag_jax.attack(*problem, method)
    steps = int(plain.num_steps)
    assert int(plain.status) == Status.FOOLED and 3 < steps < 190
    for max_steps, status in ((200, Status.FOOLED), (3, Status.MAX_STEPS)):
        endless = method.replace(max_steps=max_steps, stop_fraction=None)
        result = dag_jax.attack(*problem, endless)
        assert int(result.status) == status and int(result.num_steps) == max_steps
        assert (np.asarray(result.active_counts) >= 0).all()


def test_none_stops_where_no_pixel_moves_what_is_left_and_says_whether_it_got_there(problem):
    endless = Method(stop_fraction=None)
    paper, result = dag_jax.attack(*problem), dag_jax.attack(*problem, endless)
    assert int(result.status) == Status.FOOLED and int(result.num_steps) == int(paper.num_steps)
    score_fn, image, targets = problem
    flat = jax.tree_util.Partial(flattened, score_fn)
    assert int(dag_jax.attack(flat, image, targets, endless).status) == Status.ZERO_GRADIENT


def flattened(score_fn, image):
    return jax.lax.stop_gradient(score_fn(image))


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9])
def test_stops_once_few_enough_are_active(problem, fraction):
    whole = dag_jax.attack(*problem)
    result = dag_jax.attack(*problem, Method(stop_fraction=fraction))
    counts = np.asarray(whole.active_counts)
    steps = int(np.argmax((counts <= fraction * 6) & (counts >= 0)))  # 6 of 7 are valid
    assert int(result.num_steps) == steps and int(result.status) == Status.FOOLED
    np.testing.assert_array_equal(result.active_counts[: steps + 1], counts[: steps + 1])
    assert int(result.active.sum()) == counts[steps] <= fraction * 6


def test_a_clean_image_may_be_fooled_enough(problem):
    score_fn, image, targets = problem
    labels = np.where(np.arange(N) == 0, targets.labels, targets.adversarial)
    wrong = Targets(labels, (labels + 1) % C, targets.valid)  # one of six is right
    method = Method(stop_fraction=0.2)
    result = dag_jax.attack(score_fn, image, wrong, method)
    assert int(result.status) == Status.FOOLED and int(result.num_steps) == 0
    assert not np.any(result.perturbation)
    none = Targets(targets.adversarial, targets.labels, targets.valid)
    assert int(dag_jax.attack(score_fn, image, none, method).status) == Status.NO_TARGETS


def both(first, second, image):
    return {"pixels": first(image), "boxes": jax.lax.stop_gradient(second(image))}


@pytest.mark.slow
def test_each_network_of_a_joint_attack_must_be_fooled(rng, problem):
    """Five boxes are a tenth of 65 targets; none of them moves, and they are not forgotten."""
    _, image, _ = problem
    score_fn = jax.tree_util.Partial(both, linear_model(rng, (10, 6)), linear_model(rng, (5,)))
    scores = score_fn(image)
    targets = {
        name: dag_jax.make_targets(logits.argmax(-1), (logits.argmax(-1) + 1) % C)
        for name, logits in scores.items()
    }
    method = Method(stop_fraction=0.1, max_steps=300)
    result = dag_jax.attack(score_fn, image, targets, method)
    counts = np.asarray(result.active_counts)
    assert counts[0] == 65 and (counts[counts >= 0] <= 0.1 * 65).any()
    assert int(result.status) in (Status.MAX_STEPS, Status.ZERO_GRADIENT)
    assert int(result.active["boxes"].sum()) == 5
    alone = jax.tree_util.Partial(pixels_alone, score_fn)
    result = dag_jax.attack(alone, image, targets["pixels"], method)
    assert int(result.status) == Status.FOOLED


def pixels_alone(score_fn, image):
    return score_fn(image)["pixels"]


@pytest.mark.slow
def test_an_attack_goes_on_from_where_it_starts(problem):
    whole = dag_jax.attack(*problem, Method(max_steps=5))
    half = dag_jax.attack(*problem, Method(max_steps=3))
    assert int(half.status) == Status.MAX_STEPS
    continued = dag_jax.attack(*problem, Method(max_steps=2), start=half.perturbation)
    np.testing.assert_allclose(continued.perturbation, whole.perturbation, atol=1e-5)
    np.testing.assert_array_equal(continued.active_counts, whole.active_counts[3:])
    # What fools before the first step was no success of the steps.
    done = dag_jax.attack(*problem)
    result = dag_jax.attack(*problem, start=np.asarray(done.perturbation))
    assert int(result.status) == Status.NO_TARGETS
    np.testing.assert_array_equal(result.perturbation, done.perturbation)
    np.testing.assert_array_equal(result.adversarial, done.adversarial)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (np.zeros((H, W), np.float32), r"start has shape \(8, 6\), image has \(8, 6, 3\)"),
        (np.full((H, W, 3), np.inf, np.float32), "start has values that are not finite"),
        (np.zeros((H, W, 3)).tolist(), "start is a list; it must be an array"),
    ],
)
def test_a_start_that_fits_no_image_is_named(problem, start, message):
    with pytest.raises(ValueError, match=message):
        dag_jax.attack(*problem, start=start)


def bright_only(step_size):
    """Return steps up where the clean image is bright, and none elsewhere."""

    def update(gradient, state, params, *, image, **unused):
        del params, unused
        return jnp.where(image > 128, -step_size * jnp.sign(gradient), 0), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def chained(step_size):
    return optax.chain(optax.scale(2.0), bright_only(step_size))


@pytest.mark.parametrize("update", [bright_only, chained])
def test_an_update_may_ask_for_the_image(problem, update):
    _, image, _ = problem
    result = dag_jax.attack(*problem, Method(update=update, step_size=1.0, max_steps=3))
    assert not np.asarray(result.perturbation)[image <= 128].any()
    assert np.abs(np.asarray(result.perturbation)[image > 128]).max() == 3


DTYPES = [jnp.float32, jnp.float16, jnp.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_of_equal_scores_is_predicted(dtype):
    scores = jnp.asarray([[1, 2, 2, 0], [3, 3, 3, 3], [0, 1, 0, 1], [5, 0, 0, 5]], dtype)
    np.testing.assert_array_equal(objective.predicted(scores), [1, 0, 1, 0])
    for label, expected in enumerate(([0, 1, 0, 1], [1, 0, 1, 0], [0] * 4, [0] * 4)):
        labels = jnp.full(4, label)
        np.testing.assert_array_equal(objective.leads(scores, labels), np.array(expected, bool))


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_half_precision_are_compared_in_it_whatever_a_compiler_carries(dtype):
    """Some compilers drop a rounding between two operations, unless it is one of its own."""
    program = jax.jit(objective.predicted).lower(jnp.zeros((2, C), dtype)).as_text()
    assert ("reduce_precision" in program) == (dtype != jnp.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_target_is_active_where_argmax_answers_its_label(rng, dtype):
    """Among few values most scores are equal to another."""
    scores = jnp.asarray(rng.integers(-2, 3, (500, C)), dtype)
    labels = rng.integers(0, C, 500)
    valid = rng.random(500) < 0.9
    targets = Targets(labels, (labels + 1) % C, valid)
    expected = (np.asarray(scores, np.float32).argmax(-1) == labels) & valid
    for margin in (0.0, jnp.float32(0)):
        np.testing.assert_array_equal(dag_jax.active_targets(scores, targets, margin), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_with_a_margin_what_is_predicted_is_active_and_what_is_within_it(rng, dtype):
    scores = jnp.asarray(rng.integers(-2, 3, (500, C)), dtype)
    labels = rng.integers(0, C, 500)
    targets = Targets(labels, (labels + 1) % C, np.ones(500, bool))
    numbers = np.asarray(scores, np.float64)
    rows = zip(numbers, labels, strict=True)
    ahead = [row[label] - np.delete(row, label).max() for row, label in rows]
    for margin in (0.5, 1.0, 2.5):
        expected = np.array(ahead) > -margin  # ties are within any margin
        np.testing.assert_array_equal(dag_jax.active_targets(scores, targets, margin), expected)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_margins_of_half_precision_are_taken_in_float32(dtype):
    """The difference of 256 and 0.5 is no number of bfloat16, nor of 2048 and 0.5 in float16."""
    large = 256 if dtype is jnp.bfloat16 else 2048
    scores = jnp.asarray([[large, 0.5]], dtype)
    margin = dag_jax.margin_loss(scores, Targets(jnp.array([0]), jnp.array([1]), jnp.array([True])))
    assert margin.dtype == jnp.float32 and float(margin[0]) == large - 0.5
