"""Each check of a network fires on its fault, and is silent on a network without one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.experimental import io_callback

import dag_jax
from dag_jax import attack, attack_stream, scale_by_max_norm
from dag_jax.engine.audit import check_engine, check_stream

H, W, C = 16, 16, 5
LOGITS, REPEAT, GRADIENT, SLOPES, PLANTED, STREAM = CHECKS = (
    "scores are logits",
    "forward passes repeat",
    "gradients are finite and not zero",
    "gradients are the slopes of the scores",
    "a planted adversarial example is found",
    "a stream finds planted adversarial examples",
)


def convolve(x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=numbers)[0]


def small_network(parameters, image):
    first, second = parameters
    return convolve(jax.nn.relu(convolve(image - 128, first)), second)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    shapes = (3, 3, 3, 16), (3, 3, 16, C)
    parameters = [
        jnp.float32(scale * rng.standard_normal(shape))
        for scale, shape in zip((0.02, 0.1), shapes, strict=True)
    ]
    score_fn = jax.tree_util.Partial(small_network, parameters)
    image = rng.integers(0, 256, (H, W, 3)).astype(np.float32)
    labels = jnp.argmax(score_fn(image), axis=-1)
    return score_fn, image, dag_jax.make_targets(labels, (labels + 1) % C)


def verdicts(*problem, **options):
    """Return {check: finding}."""
    findings = dag_jax.audit(*problem, **options)
    assert tuple(finding.check for finding in findings) == CHECKS
    assert all(finding.detail and finding.remedy for finding in findings)
    return {finding.check: finding for finding in findings}


@pytest.mark.slow
def test_a_healthy_network_passes_every_check(problem):
    findings = verdicts(*problem)
    assert all(finding.passed is True for finding in findings.values()), findings
    assert f"scores of {H * W} targets" in findings[LOGITS].detail
    assert "FOOLED after 20, 0 left" in findings[PLANTED].detail
    assert findings == verdicts(*problem)  # nothing is drawn from a clock
    score_fn, image, targets = problem
    assert findings == verdicts(score_fn, image.astype(np.uint8), targets)


@pytest.mark.slow
@pytest.mark.parametrize("squash", [jax.nn.softmax, jax.nn.sigmoid])
def test_probabilities_for_logits(problem, squash):
    score_fn, image, targets = problem
    finding = verdicts(lambda x: squash(score_fn(x)), image, targets)[LOGITS]
    assert finding.passed is False and "softmax" in finding.remedy
    # In percent, too.
    if squash is jax.nn.softmax:
        finding = verdicts(lambda x: 100 * squash(score_fn(x)), image, targets)[LOGITS]
        assert finding.passed is False and "sum to 100" in finding.detail


def test_log_probabilities_have_the_margins_of_logits(problem):
    score_fn, image, targets = problem
    findings = verdicts(lambda x: jax.nn.log_softmax(score_fn(x)), image, targets)
    assert all(finding.passed is True for finding in findings.values())
    assert "log-probabilities" in findings[LOGITS].detail


def test_scores_that_are_not_finite_cannot_be_judged(problem):
    score_fn, image, targets = problem
    findings = verdicts(lambda x: score_fn(x).at[0, 0].set(jnp.nan), image, targets)
    assert findings[LOGITS].passed is None and "not finite" in findings[LOGITS].detail
    assert findings[REPEAT].passed is True


def dropout(score_fn, draw, image):
    keep = jax.random.bernoulli(jax.random.key(draw()), 0.9, image.shape)
    return score_fn(jnp.where(keep, image, 128))


def test_a_layer_that_is_random_in_every_call(problem):
    score_fn, image, targets = problem
    seeds = np.random.default_rng(0)

    def draw():
        number = jax.ShapeDtypeStruct((), jnp.uint32)
        return io_callback(lambda: np.uint32(seeds.integers(2**32)), number)

    findings = verdicts(functools.partial(dropout, score_fn, draw), image, targets)
    assert findings[REPEAT].passed is False
    assert (
        "scores that differ by" in findings[REPEAT].detail and "dropout" in findings[REPEAT].remedy
    )
    assert findings[SLOPES].passed is None and "random layer" in findings[SLOPES].remedy


def test_a_layer_that_is_random_in_every_trace(problem):
    score_fn, image, targets = problem
    seeds = np.random.default_rng(0)
    findings = verdicts(
        functools.partial(dropout, score_fn, lambda: int(seeds.integers(2**31))), image, targets
    )
    assert findings[REPEAT].passed is False
    assert "the same bits; traced anew they differ" in findings[REPEAT].detail


def test_a_detached_gradient(problem):
    score_fn, image, targets = problem
    findings = verdicts(lambda x: lax.stop_gradient(score_fn(x)), image, targets)
    assert findings[GRADIENT].passed is False and findings[SLOPES].passed is False
    assert "8 have a gradient of exactly zero" in findings[GRADIENT].detail
    assert "stop_gradient" in findings[GRADIENT].remedy


def test_a_class_whose_gradient_is_detached(problem):
    score_fn, image, targets = problem
    labels = np.asarray(targets.labels)
    present, counts = np.unique(labels, return_counts=True)
    rare = present[counts.argmin()]
    assert counts.min() < labels.size / len(present)

    def detached(x):
        scores = score_fn(x)
        return jnp.where((labels == rare)[..., None], lax.stop_gradient(scores), scores)

    finding = verdicts(detached, image, targets)[GRADIENT]
    assert finding.passed is False and " 0 have a gradient" not in finding.detail


def test_a_branch_whose_gradient_is_detached(problem):
    score_fn, image, targets = problem
    partly = lambda x: score_fn(x.at[..., 0].set(lax.stop_gradient(x[..., 0])))  # noqa: E731
    findings = verdicts(partly, image, targets)
    assert findings[GRADIENT].passed is True  # there is one, and it is wrong
    assert findings[SLOPES].passed is False and "custom_vjp" in findings[SLOPES].remedy


def masked(change):
    """Return the identity, whose gradient is changed on its way back."""

    @jax.custom_vjp
    def identity(x):
        return x

    identity.defvjp(lambda x: (x, None), lambda _, gradient: (change(gradient),))
    return identity


def checkers(gradient):
    rows, columns = np.indices((H, W))
    return gradient * np.float32((rows + columns) % 2)[..., None]


def noise(gradient):
    random = jax.random.normal(jax.random.key(0), gradient.shape)
    return random * jnp.linalg.norm(gradient) / jnp.linalg.norm(random)


@pytest.mark.parametrize(
    "change", [lambda g: 0 * g, lambda g: -g, lambda g: 2 * g, checkers, noise]
)
def test_a_network_whose_gradient_is_masked(problem, change):
    score_fn, image, targets = problem
    layer = masked(change)
    findings = verdicts(lambda x: score_fn(layer(x)), image, targets)
    assert findings[SLOPES].passed is False
    assert findings[LOGITS].passed is findings[REPEAT].passed is True


@pytest.mark.parametrize("straight_through", [False, True])
def test_an_image_that_is_quantised_coarsely(problem, straight_through):
    score_fn, image, targets = problem

    def quantised(x):
        coarse = 32 * jnp.floor(x / 32) + 16
        return score_fn(x + lax.stop_gradient(coarse - x) if straight_through else coarse)

    findings = verdicts(quantised, image, targets)
    assert findings[SLOPES if straight_through else GRADIENT].passed is False


def test_scores_that_saturate(problem):
    score_fn, image, targets = problem
    findings = verdicts(lambda x: jax.nn.softmax(1000 * score_fn(x)), image, targets)
    assert findings[LOGITS].passed is False and findings[GRADIENT].passed is False


def test_a_gradient_that_is_not_finite(problem):
    score_fn, image, targets = problem
    findings = verdicts(lambda x: score_fn(x) + jnp.sqrt(x.sum() * 0), image, targets)
    assert (
        findings[GRADIENT].passed is False
        and "8 one that is not finite" in findings[GRADIENT].detail
    )
    assert findings[SLOPES].passed is None


def test_scores_too_rough_for_slopes(problem):
    score_fn, image, targets = problem

    def rough(x):  # as low precision is: noise that an image always gives, and no gradient has
        noise = jnp.sin(1e5 * lax.stop_gradient(score_fn(x)))
        return score_fn(x) + 30 * noise

    labels = jnp.argmax(rough(image), axis=-1)
    targets = dag_jax.make_targets(labels, (labels + 1) % C)
    findings = verdicts(rough, image, targets)
    assert findings[REPEAT].passed is True
    assert findings[SLOPES].passed is None and "precision" in findings[SLOPES].remedy


def half_precision(parameters, image):
    """The same network in the precision of its parameters."""
    first, second = parameters
    shades = (image - 128).astype(first.dtype)
    return convolve(jax.nn.relu(convolve(shades, first)), second)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_scores_of_half_precision_are_logits_whose_slopes_may_be_too_rough_to_judge(problem, dtype):
    score_fn, image, _ = problem
    parameters = jax.tree.map(lambda leaf: leaf.astype(dtype), score_fn.args[0])
    half = jax.tree_util.Partial(half_precision, parameters)
    labels = jnp.argmax(half(image), axis=-1)
    findings = verdicts(half, image, dag_jax.make_targets(labels, (labels + 1) % C))
    for check in (LOGITS, REPEAT, GRADIENT, PLANTED, STREAM):
        assert findings[check].passed is True, findings[check]
    assert findings[SLOPES].passed is not False, findings[SLOPES]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_probabilities_of_half_precision_are_no_logits(problem, dtype):
    score_fn, image, targets = problem
    squashed = lambda x: jax.nn.softmax(score_fn(x)).astype(dtype)  # noqa: E731
    findings = verdicts(squashed, image, targets)
    assert findings[LOGITS].passed is False and "softmax" in findings[LOGITS].remedy


def test_several_networks_at_once(problem):
    score_fn, image, targets = problem
    both = {"a": targets, "b": targets}
    healthy = verdicts(lambda x: {"a": score_fn(x), "b": 2 * score_fn(x)}, image, both)
    assert all(finding.passed is True for finding in healthy.values())
    detached = lambda x: {"a": score_fn(x), "b": lax.stop_gradient(score_fn(x))}  # noqa: E731
    findings = verdicts(detached, image, both)
    assert (
        findings[GRADIENT].passed is False
        and "of 8 targets of 8 classes, " in findings[GRADIENT].detail
    )
    assert findings[SLOPES].passed is False
    squashed = lambda x: {"a": score_fn(x), "b": jax.nn.softmax(score_fn(x))}  # noqa: E731
    assert verdicts(squashed, image, both)[LOGITS].passed is False


def test_nothing_to_attack_cannot_be_judged(problem):
    score_fn, image, targets = problem
    nothing = dag_jax.make_targets(targets.labels, targets.adversarial, False)
    findings = verdicts(score_fn, image, nothing)
    for check in (LOGITS, GRADIENT, SLOPES):
        assert findings[check].passed is None, check
    assert "network gets right" in findings[SLOPES].remedy


def test_bad_input_is_refused(problem):
    score_fn, image, targets = problem
    with pytest.raises(ValueError, match="must be"):
        dag_jax.audit(score_fn, image[0], targets)
    with pytest.raises(ValueError, match="grey levels"):
        dag_jax.audit(score_fn, image / 255, targets)


def ascent(step_size):
    return optax.chain(scale_by_max_norm(), optax.scale(step_size))


def uphill(score_fn, image, targets, method):
    return attack(score_fn, image, targets, method.replace(update=ascent))


def short(score_fn, image, targets, method):
    return attack(score_fn, image, targets, method.replace(max_steps=method.max_steps // 4))


def halting(score_fn, image, targets, method):
    return attack(score_fn, image, targets, method.replace(step_size=method.step_size / 2))


def forgetful(score_fn, image, targets, method):
    """Attack all targets to the end, also those that are lost."""
    return attack(score_fn, image, targets, method.replace(margin=5.0))


@pytest.mark.parametrize("engine", [uphill, short, halting, forgetful])
def test_an_engine_that_misses_the_planted_example(engine):
    assert check_engine(attack).passed is True
    finding = check_engine(engine)
    assert finding.passed is False and "64 targets" in finding.detail


def mixed_up(*arguments, **options):
    keys, *columns = zip(*attack_stream(*arguments, **options), strict=True)
    return zip(keys[1:] + keys[:1], *columns, strict=True)


def losing(*arguments, **options):
    return list(attack_stream(*arguments, **options))[1:]


def cut_short(score_fn, examples, method, **options):
    short = method.replace(max_steps=method.max_steps // 4)
    return attack_stream(score_fn, examples, short, **options)


@pytest.mark.parametrize("stream", [mixed_up, losing, cut_short])
def test_a_stream_that_misses_planted_examples(stream):
    assert check_stream(attack_stream).passed is True
    assert check_stream(stream).passed is False


def test_equal_sums_of_too_few_targets_tell_nothing():
    image = np.full((H, W, 3), 100, np.float32)
    weights = jnp.float32([5, 2, 1])
    targets = dag_jax.make_targets(jnp.array([0]), jnp.array([1]))
    findings = verdicts(lambda x: (1 + x.mean() / 255) * weights[None], image, targets)
    assert findings[LOGITS].passed is None and "too few targets" in findings[LOGITS].detail
    findings = verdicts(lambda x: jax.nn.softmax(x.mean() * weights[None]), image, targets)
    assert findings[LOGITS].passed is False
