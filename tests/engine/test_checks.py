"""Bad input gets one error that names it, before any work."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import PIL.Image
import pytest

import dag_jax
from dag_jax import Method, UserError
from dag_jax.engine import checks

H, W, N, C = 6, 5, 7, 4


@pytest.fixture
def problem(rng):
    weights = jnp.asarray(rng.standard_normal((N, C, H * W * 3)), jnp.float32)
    image = rng.uniform(0, 255, (H, W, 3)).astype(np.float32)
    labels = jnp.arange(N) % C
    return lambda x: weights @ x.reshape(-1), image, dag_jax.make_targets(labels, (labels + 1) % C)


WHOLE = np.arange(H * W * 3, dtype=np.float32).reshape(H, W, 3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (WHOLE[..., 0], r"image has shape \(6, 5\); it must be \[H, W, 3\]"),
        (WHOLE.transpose(2, 0, 1), r"\(3, 6, 5\).*channels last: image.transpose\(1, 2, 0\)"),
        (WHOLE[None], r"\(1, 6, 5, 3\).*one image. dag_jax.attack_batch takes several"),
        (WHOLE[:0], r"image has shape \(0, 5, 3\): it has no pixels"),
        (WHOLE / 255, "multiply the image by 255"),
        (WHOLE - 9, "from -9 to 80; they are grey levels from 0 to 255, before any mean"),
        (WHOLE + np.float32(np.nan), "image has values that are not finite"),
        (WHOLE > 3, "image is bool; it must be numbers"),
        (WHOLE.tolist(), r"image is a list; it must be an array \[H, W, 3\]: np.asarray"),
        (PIL.Image.new("RGB", (W, H)), r"image is an Image; .*np.asarray\(image\)"),
        ("photo.png", "image is a str; it must be an array"),
    ],
)
def test_what_is_no_image_is_named(problem, image, message):
    score_fn, _, targets = problem
    assert_refused((score_fn, image, targets), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(labels=np.zeros(N + 1, np.int32)), r"targets.labels has shape \(8,\), scores have"),
        (dict(labels=np.full(N, C, np.int32)), "has class 4, scores have 4 classes"),
        (dict(labels=np.full(N, 255, np.int32)), "has class 255.*void belongs into targets.valid"),
        (dict(adversarial=np.full(N, -1, np.int32)), "targets.adversarial has class -1"),
        (dict(adversarial=np.arange(N, dtype=np.int32) % C), "7 target.* their own label"),
        (dict(labels=np.zeros(N, np.float32)), "targets.labels is float32; it must be an integer"),
        (dict(valid=np.ones(N, np.int32)), "targets.valid is int32; it must be bool"),
    ],
)
def test_targets_that_fit_no_scores_are_named(problem, change, message):
    score_fn, image, targets = problem
    assert_refused((score_fn, image, dataclasses.replace(targets, **change)), message)


def test_what_are_no_targets_is_named(problem):
    score_fn, image, targets = problem
    mask = np.zeros((H, W), np.int32)
    requirement = r"they must be dag_jax.Targets \(make_targets\(mask, adversarial\)"
    assert_refused((score_fn, image, mask), rf"targets are an array int32\[6, 5\]; {requirement}")
    assert_refused((score_fn, image, None), f"targets are a NoneType; {requirement}")
    assert_refused((score_fn, image, [targets, mask]), f"targets are a list; {requirement}")
    assert_refused((score_fn, image, [targets, targets]), "takes the same pytree of Targets as of")


def test_swapped_arguments_are_named(problem):
    score_fn, image, targets = problem
    order = r"The order is attack\(score_fn, image, targets, method\)"
    swapped = rf"score_fn is an array float32\[6, 5, 3\]; it must be a function .*{order}"
    assert_refused((image, score_fn, targets), swapped)
    assert_refused((targets, image, score_fn), f"score_fn is a Targets; .*{order}")
    assert_refused((score_fn, targets, image), "image is a Targets; it must be an array")


class Model:
    """What a segmenter looks like."""

    def scores(self, image):
        return image @ jnp.ones((3, C))


class CallableModel(Model):
    __call__ = Model.scores


@pytest.mark.parametrize("model", [Model(), CallableModel()])
def test_a_model_for_its_scores_is_named(problem, model):
    _, image, targets = problem
    assert_refused((model, image, targets), "odel, a model: give .* model.scores of a segmenter")


@pytest.mark.parametrize("score_fn", [3, "fcn_vgg", None, {"weights": np.ones(3)}])
def test_what_scores_nothing_is_named(problem, score_fn):
    _, image, targets = problem
    kind = type(score_fn).__name__
    assert_refused((score_fn, image, targets), f"score_fn is an? {kind}; it must be a function of")


def test_scores_of_whole_numbers_are_named(problem):
    score_fn, image, targets = problem
    seen = lambda x: score_fn(x).argmax(-1)  # noqa: E731
    assert_refused((seen, image, targets), r"scores are int32\(7,\); they must be floats")


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (optax.adam(0.1), "a GradientTransformation"),
        ({"max_steps": 3}, "a dict"),
        (Method, "a type"),
        (dag_jax.methods.pgd, "a function"),
        (200, "an int"),
        (None, "a NoneType"),
    ],
)
def test_what_is_no_method_is_named(problem, method, kind):
    score_fn, image, _ = problem
    message = f"method is {kind}.*; it must be a dag_jax.Method, such as"
    assert_refused((*problem, method), message)
    with pytest.raises(UserError, match=message):
        dag_jax.attack_stream(score_fn, [], method)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(margin={"fcn": 0.0, "detector": 3.0}), "margin is .*one number for all, or the same"),
        (dict(margin=np.ones(3)), r"margin is an array float64\[3\]; it must be one number"),
        (dict(margin=None), "margin is .*give one number"),
        (dict(step_size=None), "step_size is a NoneType; it must be one number"),
        (dict(step_size=np.ones(2)), r"step_size is an array float64\[2\]; it must be one number"),
    ],
)
def test_numbers_that_fit_no_attack_are_named(problem, change, message):
    assert_refused((*problem, Method(**change)), message)


def assert_refused(arguments, message):
    """Assert that each door raises the project's own error, at once."""
    for door in (dag_jax.attack, checks.check):
        with pytest.raises(UserError, match=message) as error:
            door(*arguments)
        assert "\n" not in str(error.value)
    assert issubclass(UserError, ValueError)


@pytest.mark.parametrize("score_fn", [3, WHOLE, Model()])
def test_a_stream_and_an_audit_say_at_once_what_scores_nothing(problem, score_fn):
    _, image, targets = problem
    with pytest.raises(UserError, match="score_fn is "):
        dag_jax.attack_stream(score_fn, [])
    with pytest.raises(UserError, match="score_fn is "):
        dag_jax.audit(score_fn, image, targets)


def test_good_input_passes(problem):
    checks.check(*problem)
    checks.check_image(np.zeros((H, W, 3), np.uint8))
    score_fn, image, targets = problem
    checks.check(lambda x: [score_fn(x), score_fn(x)], image, [targets, targets])


def test_values_of_padding_do_not_matter(problem):
    score_fn, image, targets = problem
    labels = targets.labels.at[0].set(255)
    valid = targets.valid.at[0].set(False)
    checks.check(score_fn, image, dataclasses.replace(targets, labels=labels, valid=valid))


def test_the_loop_in_steps_checks_what_it_is_given(problem):
    _, image, targets = problem
    with pytest.raises(UserError, match="multiply the image by 255"):
        dag_jax.init(Method(), image / 255, targets)
    with pytest.raises(UserError, match="start has shape"):
        dag_jax.init(Method(), image, targets, start=image[0])


def test_values_are_not_looked_at_where_they_are_traced(problem):
    score_fn, image, targets = problem
    jax.eval_shape(lambda image: dag_jax.attack(score_fn, image, targets), image / 255)
    with pytest.raises(UserError, match="image has shape"):
        jax.eval_shape(lambda image: dag_jax.attack(score_fn, image, targets), image[0])


def test_scores_of_a_pytree_are_traced_once(problem):
    score_fn, image, targets = problem
    traces = []

    def counted(factor, image):
        traces.append(1)
        return factor * score_fn(image)

    for factor in (1.0, 2.0):
        checks.check(jax.tree_util.Partial(counted, jnp.float32(factor)), image, targets)
    assert len(traces) == 1
