"""Each method against its own NumPy, and what sets it apart from the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dag_jax
from dag_jax import Status, Targets, methods

H, W, N, C = 8, 6, 9, 4
MAX_STEPS, GAMMA, EPSILON, ALPHA = 12, 0.5, 3.0, 0.8
BOUNDED = {
    "fgsm": methods.fgsm(EPSILON),
    "pgd": methods.pgd(EPSILON, ALPHA, MAX_STEPS),
    "segpgd": methods.segpgd(EPSILON, ALPHA, MAX_STEPS),
    "cospgd": methods.cospgd(EPSILON, ALPHA, MAX_STEPS),
}
DAGS = {
    "release": methods.release(),
    "release_detection": methods.release(background=0),
    "best_other": methods.best_other(),
    "momentum": methods.momentum(0.9),
    "momentum_best_other": methods.UNBOUNDED["momentum_best_other"](),
    "clipped_momentum": methods.momentum(0.9, 1.5),
    "clipped": methods.clipped(1.5),
    "clipped_best_other": methods.clipped_best_other(1.5),
}
METHODS = {name: dag.replace(max_steps=MAX_STEPS) for name, dag in DAGS.items()} | BOUNDED
advance = jax.jit(dag_jax.step)


def linear_scores(weights, bias, image):
    return jnp.einsum("...k,k->...", weights, image.reshape(-1) - 128) + bias


@pytest.fixture
def problem(rng):
    """A linear model, an image with pixels near the ends, and targets: one not valid, two wrong."""
    weights = 0.01 * rng.standard_normal((N, C, H * W * 3))
    image = rng.uniform(0, 255, (H, W, 3)).astype(np.float32)
    image[0] = rng.choice([0, 0.7, 254.2, 255], (W, 3))
    # Scores near 0, so that a few grey levels matter.
    bias = 0.5 * rng.standard_normal((N, C)) - weights @ (image.reshape(-1) - 128)
    labels = (weights @ (image.reshape(-1) - 128) + bias).argmax(-1).astype(np.int32)
    labels[5:7] = (labels[5:7] + 2) % C
    adversarial = ((labels + rng.integers(1, C, N)) % C).astype(np.int32)
    return weights, bias, image, labels, adversarial, np.arange(N) != 2


def of_engine(problem):
    """Return what `attack` takes of a problem."""
    weights, bias, image, *targets = problem
    score_fn = jax.tree_util.Partial(linear_scores, jnp.float32(weights), jnp.float32(bias))
    return score_fn, jnp.asarray(image), Targets(*map(jnp.asarray, targets))


def softmax(scores):
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def one_hot(index):
    return np.eye(C)[index]


def best_without(scores, index):
    return int(np.where(one_hot(index) > 0, -np.inf, scores).argmax())


def slope_of(name, scores, label, adversarial, progress):
    """Return the derivative of one target's loss with respect to its scores, from the papers."""
    seen, towards = int(scores.argmax()), one_hot(adversarial)
    right = seen == label
    if name == "release":
        return (seen != adversarial) * (one_hot(seen) - towards)
    if name == "release_detection":
        return (seen not in (adversarial, 0) or right) * (one_hot(label) - towards)
    if name.endswith("best_other"):
        return right * (one_hot(label) - one_hot(best_without(scores, label)))
    if name in ("momentum", "clipped", "clipped_momentum"):
        return right * (one_hot(label) - towards)
    likelihood = softmax(scores)
    if name == "segpgd":
        weight = 1 - progress / 2 if right else progress / 2
    elif name == "cospgd":
        weight = likelihood[label] / np.linalg.norm(likelihood)
    else:
        weight = 1.0
    return weight * (one_hot(label) - likelihood)  # of minus the cross-entropy


def twin(name, weights, bias, image, labels, adversarial, valid):
    """Return the iterates and counts of a method in float64."""
    image = image.astype(np.float64)
    r, velocity, iterates, counts = np.zeros_like(image), 0, [], []
    max_steps = 1 if name == "fgsm" else MAX_STEPS
    for m in range(max_steps + 1):
        scores = weights @ (np.clip(image + r, 0, 255).reshape(-1) - 128) + bias
        seen = scores.argmax(-1)
        active = valid & (seen != adversarial if name == "release" else seen == labels)
        iterates.append(r)
        counts.append(active.sum())
        few = 0.01 * valid.sum() if name == "release" else 0
        if name not in BOUNDED and counts[-1] <= few:
            break
        gradient = np.zeros(image.size)
        for n in np.flatnonzero(valid):
            slope = slope_of(name, scores[n], labels[n], adversarial[n], m / max_steps)
            gradient += slope @ weights[n]
        gradient = gradient.reshape(image.shape)
        if name in BOUNDED:
            r = r - (EPSILON if name == "fgsm" else ALPHA) * np.sign(gradient)
            seen_next = np.clip(image + np.clip(r, -EPSILON, EPSILON), 0, 255)
            r = seen_next - image
            continue
        if "momentum" in name:
            gradient = velocity = gradient / np.abs(gradient).max() + 0.9 * velocity
        if name.startswith("clipped"):
            gradient = np.clip(gradient / (1.5 * np.sqrt((gradient**2).mean())), -1, 1)
        r = r - GAMMA * gradient / np.abs(gradient).max()
    return iterates, counts


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_equals_numpy_iterate_by_iterate(problem, name):
    iterates, counts = twin(name, *problem)
    score_fn, image, targets = of_engine(problem)
    state = dag_jax.init(METHODS[name], image, targets)
    for m, (iterate, count) in enumerate(zip(iterates, counts, strict=True)):
        np.testing.assert_allclose(state.attack.perturbation, iterate, atol=2e-3)
        state = advance(METHODS[name], score_fn, state, targets)
        assert int(state.attack.active_counts[m]) == count
    assert int(state.attack.status) == (Status.MAX_STEPS if counts[-1] else Status.FOOLED)
    result = dag_jax.attack(score_fn, image, targets, METHODS[name])
    np.testing.assert_allclose(result.perturbation, iterates[-1], atol=2e-3)
    assert int(result.num_steps) == len(iterates) - 1 > 0
    assert counts[0] >= 6 > counts[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDED)
def test_a_bounded_attack_stays_in_its_ball_and_in_the_range(problem, name):
    score_fn, image, targets = of_engine(problem)
    image = jnp.round(image)  # whole grey levels: the sums below have no rounding
    for rounded in (False, True):
        method = METHODS[name].replace(rounded=rounded)
        result = dag_jax.attack(score_fn, image, targets, method)
        r = np.asarray(result.perturbation)
        assert np.abs(r).max() == EPSILON
        assert (image + r).min() >= 0 and (image + r).max() <= 255
        np.testing.assert_array_equal(
            result.adversarial, np.round(image + r) if rounded else image + r
        )
        assert (r[0] == 0).any() and int(result.num_steps) == method.max_steps


@pytest.mark.parametrize("name", ["best_other", *BOUNDED])
def test_adversarial_labels_do_not_matter_where_none_are_asked_for(problem, name):
    *inputs, labels, adversarial, valid = problem
    other_labels = (labels + 1 + (adversarial == (labels + 1) % C)).astype(np.int32) % C
    assert (other_labels != adversarial).all() and (other_labels != labels).all()
    result, relabelled = (
        dag_jax.attack(*of_engine((*inputs, labels, aims, valid)), METHODS[name])
        for aims in (adversarial, other_labels)
    )
    jax.tree.map(np.testing.assert_array_equal, result, relabelled)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_what_stands_where_there_is_no_target_does_not_matter(problem, name):
    score_fn, image, targets = of_engine(problem)
    spoiled = jax.tree_util.Partial(without_third, score_fn)
    labels, adversarial = (leaf.at[2].set(255) for leaf in (targets.labels, targets.adversarial))
    result = dag_jax.attack(score_fn, image, targets, METHODS[name])
    targets = Targets(labels, adversarial, targets.valid)
    spoiled_result = dag_jax.attack(spoiled, image, targets, METHODS[name])
    jax.tree.map(np.testing.assert_array_equal, result, spoiled_result)


def without_third(score_fn, image):
    return score_fn(image).at[2].set(jnp.nan)


def test_fgsm_is_one_step_and_segpgd_begins_with_what_is_right(problem):
    score_fn, image, targets = of_engine(problem)
    assert methods.fgsm(EPSILON) == methods.pgd(EPSILON, EPSILON, 1)
    fgsm = dag_jax.attack(score_fn, image, targets, METHODS["fgsm"])
    # At lambda = 0 a pixel that is wrong has no weight: without it, nothing changes.
    once = methods.segpgd(EPSILON, EPSILON, 1)
    right = targets.valid & (score_fn(image).argmax(-1) == targets.labels)
    assert 0 < right.sum() < targets.valid.sum()
    of_right = Targets(targets.labels, targets.adversarial, right)
    segpgd = dag_jax.attack(score_fn, image, targets, once)
    expected = dag_jax.attack(score_fn, image, of_right, once)
    np.testing.assert_array_equal(segpgd.perturbation, expected.perturbation)
    assert (segpgd.perturbation != fgsm.perturbation).any()


def test_the_losses_by_hand():
    scores = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]])) + 7
    targets = Targets(jnp.zeros(2, jnp.int32), jnp.full(2, 2), jnp.array([True, True]))
    active = jnp.array([True, False])

    def terms(method):
        return method.objective.loss(scores, targets, active, jnp.float32(0.5))

    log2 = np.log(2)
    np.testing.assert_allclose(terms(methods.pgd()), [-log2, -2 * log2], rtol=1e-6)
    np.testing.assert_allclose(terms(methods.segpgd()), [-0.75 * log2, -0.5 * log2], rtol=1e-6)
    length = np.sqrt(0.5**2 + 2 * 0.25**2)
    cosines = np.array([0.5, 0.25]) / length
    np.testing.assert_allclose(terms(methods.cospgd()), cosines * [-log2, -2 * log2], rtol=1e-6)
    np.testing.assert_allclose(terms(methods.best_other()), [log2, 0], rtol=1e-6)
    np.testing.assert_allclose(terms(methods.release()), [log2, 0], rtol=1e-6)
    # The second is seen as class 1, neither adversarial nor background: it is driven on.
    np.testing.assert_allclose(terms(methods.release(background=0)), [log2, 0], atol=1e-6)
    swapped = Targets(targets.labels + 2, targets.adversarial - 2, targets.valid)
    release = methods.release(background=0).objective
    higher = scores + jnp.array([[0.0, 0.0, 1.0]])
    driven = release.loss(higher, swapped, jnp.array([False, False]), jnp.float32(0))
    np.testing.assert_allclose(driven, [1 - log2, 1], atol=1e-6)


def test_the_release_lets_what_is_seen_as_the_background_of_a_detector_rest():
    scores = jnp.array([[0.0, 3.0, 1.0, 2.0]])
    targets = Targets(jnp.array([2]), jnp.array([3]), jnp.array([True]))
    settled, driven = (
        methods.release(background=background).objective.loss(
            scores, targets, jnp.array([False]), jnp.float32(0)
        )
        for background in (1, 0)
    )
    np.testing.assert_array_equal(settled, [0])
    np.testing.assert_array_equal(driven, [-1])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_losses_of_scores_of_any_precision_are_float32(name, dtype):
    scores = jnp.asarray([[1, 2, 0], [0, 1, 1]], dtype)
    targets = Targets(jnp.array([1, 2]), jnp.array([0, 1]), jnp.array([True, False]))
    objective = METHODS[name].objective
    active = objective.active(scores, targets, 0.0)
    loss = lambda scores: objective.loss(scores, targets, active, jnp.float32(0)).sum()  # noqa: E731
    value, slope = jax.value_and_grad(loss)(scores)
    assert active.dtype == bool and active.tolist() == [True, False]
    assert value.dtype == jnp.float32 and slope.dtype == dtype
    assert (slope[0] != 0).any() and not (slope[1] != 0).any()


def test_the_release_is_done_where_argmax_answers_the_adversarial_label(rng):
    scores = jnp.float32(rng.integers(-1, 2, (200, C)))  # most of them tie
    adversarial = rng.integers(0, C, 200)
    targets = Targets((adversarial + 1) % C, adversarial, np.ones(200, bool))
    active = methods.release().objective.active(scores, targets, 0.0)
    np.testing.assert_array_equal(active, np.asarray(scores).argmax(-1) != adversarial)


def test_margins_are_logits_by_which_the_adversarial_label_leads_the_release():
    scores = jnp.array([[0.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
    targets = Targets(jnp.zeros(2, jnp.int32), jnp.ones(2, jnp.int32), jnp.array([True, True]))
    active = methods.release().objective.active
    np.testing.assert_array_equal(active(scores, targets, 0.0), [False, True])
    np.testing.assert_array_equal(active(scores, targets, 0.9), [False, True])
    np.testing.assert_array_equal(active(scores, targets, 1.5), [True, True])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["release", "momentum", "segpgd", "cospgd"])
def test_a_stream_gives_what_attack_gives(rng, problem, name):
    score_fn, _, targets = of_engine(problem)
    examples = []
    for key in range(4):
        image = rng.uniform(0, 255, (H, W, 3)).astype(np.float32)
        examples.append((key, image, jax.tree.map(np.asarray, targets)))
    results = dict(dag_jax.attack_stream(score_fn, examples, METHODS[name], slots=2))
    for key, image, _ in examples:
        alone = dag_jax.attack(score_fn, image, targets, METHODS[name])
        for field in ("num_steps", "status", "active", "active_counts"):
            np.testing.assert_array_equal(getattr(results[key], field), getattr(alone, field))
        np.testing.assert_allclose(results[key].perturbation, alone.perturbation, atol=1e-4)


@pytest.mark.slow
def test_the_same_arguments_compile_once(caplog, problem):
    score_fn, image, targets = problem = of_engine(problem)
    examples = [(0, np.asarray(image), jax.tree.map(np.asarray, targets))]

    def run(method):
        dag_jax.attack(*problem, method)
        list(dag_jax.attack_stream(score_fn, examples, method, slots=1))

    run(methods.segpgd(5, 1, 3))
    with jax.log_compiles():
        run(methods.segpgd(5.0, 1.0, 3))
        run(methods.segpgd(5.0, 0.7, 3))
        assert "Compiling" not in caplog.text
        run(methods.pgd(5.0, 1.0, 3))
        assert caplog.text.count("Compiling jit(_advance)") == 1
        assert caplog.text.count("Compiling jit(_compiled)") == 1


def test_a_random_start_is_drawn_within_the_ball_and_the_range(problem):
    score_fn, image, targets = of_engine(problem)
    key = dag_jax.image_key(0, "image")
    start = methods.random_start(key, image, EPSILON)
    np.testing.assert_array_equal(start, methods.random_start(key, np.asarray(image), EPSILON))
    other_start = methods.random_start(dag_jax.image_key(0, "another"), image, EPSILON)
    assert start.dtype == jnp.float32 and (start != other_start).mean() > 0.9
    assert 0.9 * EPSILON < jnp.abs(start).max() <= EPSILON and abs(float(start.mean())) < 0.5
    assert float((image + start).min()) >= 0 and float((image + start).max()) <= 255
    result = dag_jax.attack(score_fn, image, targets, METHODS["pgd"], start=start)
    assert int(result.num_steps) == MAX_STEPS
    assert np.abs(result.perturbation).max() <= EPSILON * (1 + 1e-6)
    plain = dag_jax.attack(score_fn, image, targets, METHODS["pgd"])
    assert int(result.active_counts[-1]) < int(plain.active_counts[0])
    assert (result.perturbation != plain.perturbation).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: methods.pgd(0), "epsilon is 0; it is a positive number of grey levels"),
        (lambda: methods.fgsm(float("inf")), "epsilon is inf"),
        (lambda: methods.cospgd(8, -1), "step_size is -1"),
        (lambda: methods.momentum(1.0), "decay is 1.0"),
        (lambda: methods.momentum(-0.1), "decay is -0.1"),
        (lambda: methods.momentum(0.9, -1), "factor is -1; it is a positive number"),
        (lambda: methods.clipped(0), "factor is 0; it is a positive number"),
        (lambda: methods.dag(step_size=0), "step_size is 0"),
        (lambda: methods.segpgd(max_steps=0), "max_steps is 0"),
        (lambda: methods.random_start(jax.random.key(0), np.zeros((2, 2, 3)), -1), "epsilon"),
    ],
)
def test_numbers_that_no_attack_has_are_named(make, message):
    with pytest.raises(dag_jax.UserError, match=message):
        make()
