"""`attack` called plainly compiles once and gives what the pure function gives inside JAX's own."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dag_jax
from dag_jax import Method, Status, Targets, UserError
from dag_jax.engine import door

H, W, N, C = 8, 6, 5, 4
METHOD = Method(max_steps=100)


def scores(weights, image):
    return weights @ (image.reshape(-1) - 128)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weights"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Model:
    """A model that is a pytree."""

    weights: jax.Array

    def scores(self, image):
        return scores(self.weights, image)


class PlainModel:
    """A model whose parameters nobody sees."""

    def __init__(self, weights):
        self.weights = weights

    def logits(self, image):
        return scores(self.weights, image)


@pytest.fixture
def weights(rng):
    return jnp.float32(0.02 * rng.standard_normal((N, C, H * W * 3)))


@pytest.fixture
def score_fn(weights):
    return jax.tree_util.Partial(scores, weights)


def drawn(rng, score_fn):
    """Return an image and its targets, one of which is padding."""
    image = rng.uniform(28, 228, (H, W, 3)).astype(np.float32)
    labels = np.asarray(score_fn(image)).argmax(-1).astype(np.int32)
    return image, Targets(labels, (labels + 1) % C, np.arange(N) != 2)


@pytest.fixture
def problem(rng, score_fn):
    return score_fn, *drawn(rng, score_fn)


@pytest.fixture
def compiled(caplog):
    """A function that calls another, and returns its result and the programs that were compiled."""

    def call(function, *arguments, **options):
        caplog.clear()
        with jax.log_compiles():
            result = jax.block_until_ready(function(*arguments, **options))
        lines = [record.getMessage() for record in caplog.records]
        return result, [line for line in lines if line.startswith("Compiling ")]

    return call


def assert_equal(result, expected):
    jax.tree.map(np.testing.assert_array_equal, result, expected)


def assert_close(result, expected):
    """Two programs may round a perturbation in two ways, but decide alike."""
    for name in ("num_steps", "status", "active", "active_counts"):
        assert_equal(getattr(result, name), getattr(expected, name))
    for name in ("perturbation", "adversarial"):
        ours, theirs = getattr(result, name), getattr(expected, name)
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_another_image_of_the_shape_compiles_nothing(compiled, rng, score_fn, kind):
    images = [jax.tree.map(kind, drawn(rng, score_fn)) for _ in range(2)]
    dag_jax.attack(score_fn, *images[0], METHOD)
    _, programs = compiled(dag_jax.attack, score_fn, *images[1], METHOD)
    assert programs == []


def test_the_first_image_of_a_shape_compiles_one_program(compiled, problem):
    _, programs = compiled(dag_jax.attack, *problem, METHOD.replace(max_steps=7))
    assert len(programs) == 1 and "jit(_compiled)" in programs[0]


def test_other_parameters_and_numbers_compile_nothing(compiled, rng, weights, problem):
    score_fn, image, targets = problem
    dag_jax.attack(*problem, METHOD)
    negated = jax.tree_util.Partial(scores, -np.asarray(weights))
    image, targets = drawn(rng, negated)
    for change in (
        {},
        {"step_size": 0.25},
        {"margin": np.float64(1)},
        {"step_size": jnp.float32(1)},
    ):
        method = METHOD.replace(**change)
        result, programs = compiled(dag_jax.attack, negated, image, targets, method)
        assert programs == []
        assert int(result.status) == Status.FOOLED
    _, programs = compiled(dag_jax.attack, negated, image, targets, METHOD.replace(max_steps=101))
    assert len(programs) == 1 and "jit(_compiled)" in programs[0]


def test_a_method_of_a_pytree_compiles_once(compiled, rng, weights):
    model, negated = Model(weights), Model(-weights)
    compiles = []
    for score_fn in (model.scores, model.scores, negated.scores):
        image, targets = drawn(rng, score_fn)
        _, programs = compiled(dag_jax.attack, score_fn, image, targets, METHOD)
        compiles.append(len(programs))
    assert compiles == [1, 0, 0]


def test_a_plain_function_compiles_once_for_each_object(compiled, rng, problem):
    score_fn, image, targets = problem
    first, second = (lambda image, factor=factor: factor * score_fn(image) for factor in (1, 2))
    for function in (first, second):
        _, programs = compiled(dag_jax.attack, function, image, targets, METHOD)
        assert sum("jit(<lambda>)" in program for program in programs) == 1
        for step_size in (0.5, 0.25):
            method = METHOD.replace(step_size=step_size)
            result, programs = compiled(dag_jax.attack, function, image, targets, method)
            assert programs == []
    assert_close(result, dag_jax.attack(score_fn, image, targets, METHOD.replace(step_size=0.25)))


def test_a_method_of_a_plain_object_compiles_once(compiled, rng, weights):
    model = PlainModel(weights)
    image, targets = drawn(rng, model.logits)
    dag_jax.attack(model.logits, image, targets, METHOD)
    _, programs = compiled(dag_jax.attack, model.logits, *drawn(rng, model.logits), METHOD)
    assert programs == []


def test_few_plain_functions_are_kept(problem):
    score_fn, image, targets = problem
    assert door._program.cache_info().maxsize <= 64
    number = door._program.cache_info().currsize
    dag_jax.attack(score_fn, image, targets, METHOD)
    assert door._program.cache_info().currsize == number  # those of a pytree are JAX's own to keep


def test_plain_functions_and_pytrees_give_one_result(problem):
    score_fn, image, targets = problem
    expected = dag_jax.attack(score_fn, image, targets, METHOD)
    assert int(expected.status) == Status.FOOLED
    model = Model(*score_fn.args)
    for same in (lambda image: score_fn(image), model.scores, PlainModel(*score_fn.args).logits):
        assert_close(dag_jax.attack(same, image, targets, METHOD), expected)


def test_inside_jit_it_is_the_plain_call(problem):
    expected = dag_jax.attack(*problem, METHOD)
    assert_equal(jax.jit(dag_jax.attack)(*problem, METHOD), expected)
    score_fn, image, targets = problem
    start = jnp.full((H, W, 3), 0.5, jnp.float32)
    inner = jax.jit(
        lambda image, start: dag_jax.attack(score_fn, image, targets, METHOD, start=start)
    )
    assert_close(inner(image, start), dag_jax.attack(*problem, METHOD, start=start))


def test_inside_jit_what_is_captured_may_be_traced(weights, problem):
    """Nothing that `attack` is given is a tracer there, but the weights that the function sees."""
    _, image, targets = problem

    @jax.jit
    def attacked(weights):
        return dag_jax.attack(lambda image: scores(weights, image), image, targets, METHOD)

    for factor in (1.0, 0.5):
        expected = dag_jax.attack(
            jax.tree_util.Partial(scores, factor * weights), image, targets, METHOD
        )
        assert_close(attacked(factor * weights), expected)


def many(rng, score_fn, count):
    """Return images and targets of a batch."""
    drawn_ones = [drawn(rng, score_fn) for _ in range(count)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *drawn_ones)


def row_of(tree, row):
    return jax.tree.map(lambda leaf: leaf[row], tree)


def test_inside_vmap_it_is_the_plain_call(rng, score_fn):
    images, targets = many(rng, score_fn, 3)
    batch = jax.vmap(dag_jax.attack, (None, 0, 0, None))(score_fn, images, targets, METHOD)
    assert len(set(batch.num_steps.tolist())) > 1  # lanes that stop at different times
    for row in range(3):
        alone = dag_jax.attack(score_fn, images[row], row_of(targets, row), METHOD)
        assert_close(row_of(batch, row), alone)


def test_inside_vmap_the_numbers_of_a_method_may_differ(problem):
    def run(step_size, margin):
        return dag_jax.attack(*problem, METHOD.replace(step_size=step_size, margin=margin))

    sizes, margins = (0.5, 2.0), (0.0, 1.0)
    batch = jax.vmap(run)(jnp.float32(sizes), jnp.float32(margins))
    sweep = jax.tree.map(lambda *numbers: jnp.float32(numbers), METHOD, METHOD)
    both = jax.vmap(lambda method: dag_jax.attack(*problem, method))(
        sweep.replace(step_size=jnp.float32(sizes), margin=jnp.float32(margins))
    )
    assert_equal(both, batch)
    for row, numbers in enumerate(zip(sizes, margins, strict=True)):
        assert_close(row_of(batch, row), run(*numbers))


def test_inside_jvp_it_is_the_plain_call_and_has_a_slope(problem):
    """A step ends where the gradient's largest pixel is: the image's own change passes through."""
    score_fn, image, targets = problem
    run = lambda image: dag_jax.attack(score_fn, image, targets, METHOD)  # noqa: E731
    tangent = np.ones((H, W, 3), np.float32)
    result, slope = jax.jvp(run, (jnp.asarray(image),), (jnp.asarray(tangent),))
    assert_close(result, run(image))
    inside = (np.asarray(result.adversarial) > 0) & (np.asarray(result.adversarial) < 255)
    np.testing.assert_allclose(np.asarray(slope.adversarial)[inside], 1, atol=1e-5)
    np.testing.assert_allclose(slope.perturbation, 0, atol=1e-5)  # the scores are linear


def test_inside_grad_a_step_is_the_plain_step(problem):
    score_fn, image, targets = problem

    def total(image):
        state = dag_jax.step(METHOD, score_fn, dag_jax.init(METHOD, image, targets), targets)
        return state.attack.perturbation.sum() + 3 * state.image.sum(), state.attack

    gradient, attack = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(image))
    once = dag_jax.attack(*problem, METHOD.replace(max_steps=1))
    np.testing.assert_allclose(attack.perturbation, once.perturbation, atol=1e-6)
    np.testing.assert_allclose(gradient, 3, atol=1e-5)


def test_inside_shard_map_it_is_the_plain_call(rng, score_fn):
    images, targets = many(rng, score_fn, 4)
    mesh = jax.make_mesh((2,), ("images",), axis_types=(jax.sharding.AxisType.Auto,))
    P = jax.sharding.PartitionSpec

    def batched(score_fn, images, targets):
        return jax.vmap(dag_jax.attack, (None, 0, 0, None))(score_fn, images, targets, METHOD)

    sharded = jax.shard_map(
        batched,
        mesh=mesh,
        in_specs=(P(), P("images"), P("images")),
        out_specs=P("images"),
        check_vma=False,
    )
    shared = jax.jit(sharded)(score_fn, images, targets)
    assert_equal(shared, jax.jit(batched)(score_fn, images, targets))
    for row in range(4):
        alone = dag_jax.attack(score_fn, images[row], row_of(targets, row), METHOD)
        assert_close(row_of(shared, row), alone)


@pytest.mark.parametrize("with_start", [False, True])
def test_a_batch_is_attack_one_by_one(rng, score_fn, with_start):
    images, targets = many(rng, score_fn, 3)
    starts = rng.uniform(-1, 1, images.shape).astype(np.float32) if with_start else None
    batch = dag_jax.attack_batch(score_fn, images, targets, METHOD, start=starts)
    assert batch.active_counts.shape == (3, METHOD.max_steps + 1)
    for row in range(3):
        start = None if starts is None else starts[row]
        arguments = score_fn, images[row], row_of(targets, row), METHOD
        assert_close(row_of(batch, row), dag_jax.attack(*arguments, start=start))
    assert repr(batch).startswith(f"Attack: 3 attacks of ({H}, {W}, 3) pixels\n  adversarial: ")


def test_a_batch_compiles_once_and_takes_whole_grey_levels(compiled, rng, score_fn):
    images, targets = many(rng, score_fn, 3)
    images = np.round(images)
    first = dag_jax.attack_batch(score_fn, images, targets, METHOD)
    for same in (images.astype(np.uint8), images):
        result, programs = compiled(dag_jax.attack_batch, score_fn, same, targets, METHOD)
        assert programs == []
        assert_equal(result, first)
    inside = jax.jit(dag_jax.attack_batch)(score_fn, images, targets, METHOD)
    assert_equal(inside, first)


def two_scores(weights, image):
    return {"a": scores(weights, image), "b": scores(-weights[:3], image)}


@pytest.mark.slow
def test_a_joint_attack_comes_in_batches_too(rng, weights):
    both = jax.tree_util.Partial(two_scores, weights)
    images = rng.uniform(28, 228, (2, H, W, 3)).astype(np.float32)
    labels = {name: np.asarray(f).argmax(-1) for name, f in jax.vmap(both)(images).items()}
    targets = {name: dag_jax.make_targets(label, (label + 1) % C) for name, label in labels.items()}
    batch = dag_jax.attack_batch(both, images, targets, METHOD)
    for row in range(2):
        alone = dag_jax.attack(both, images[row], row_of(targets, row), METHOD)
        assert_close(row_of(batch, row), alone)


def test_a_bad_batch_is_named(rng, score_fn):
    images, targets = many(rng, score_fn, 3)
    nan = np.where(np.arange(3)[:, None, None, None] == 1, np.float32(np.nan), images)
    wrong = dataclasses.replace(targets, labels=np.where(np.arange(3) == 2, 9, targets.labels.T).T)
    for arguments, message in [
        ((score_fn, images[0], row_of(targets, 0)), r"\(8, 6, 3\); they must be \[B, H, W, 3\]"),
        ((score_fn, images[:0], targets), "B at least 1"),
        ((score_fn, images.transpose(0, 3, 1, 2), targets), r"\(3, 3, 8, 6\); they must be"),
        (
            (score_fn, images, row_of(targets, 0)),
            r"3 images, but targets .* have first axes of \(5,\)",
        ),
        ((score_fn, images[:2], targets), r"2 images, but targets .* have first axes of \(3,\)"),
        ((score_fn, images, None), "image 0: targets are a NoneType"),
        ((score_fn, images, targets.labels), r"image 0: targets are an array int32\[5\]"),
        ((score_fn, nan, targets), "image 1: image has values that are not finite"),
        ((score_fn, images / 255, targets), "image 0: .*multiply the image by 255"),
        ((score_fn, images, wrong), "image 2: targets.labels has class 9, scores have 4"),
        ((score_fn, images, targets, {"max_steps": 3}), "method is a dict"),
        ((3, images, targets), "score_fn is an int"),
    ]:
        with pytest.raises(UserError, match=message):
            dag_jax.attack_batch(*arguments)
    start = np.zeros((H, W, 3), np.float32)
    with pytest.raises(UserError, match=r"and start\) have first axes of \(3,\), \(8,\)"):
        dag_jax.attack_batch(score_fn, images, targets, start=start)
    with pytest.raises(UserError, match="image 0: start has values that are not finite"):
        dag_jax.attack_batch(score_fn, images, targets, start=start + np.float32(np.nan) * images)


def attack_in_double():
    """Attack with 64-bit numbers on, by every kind of number that a sweep gives; in a child."""
    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(1)
    for dtype in (np.float32, np.float64):
        weights = (0.02 * rng.standard_normal((N, C, H * W * 3))).astype(dtype)
        score_fn = jax.tree_util.Partial(scores, weights)
        image = rng.integers(0, 256, (H, W, 3)).astype(np.float32)
        labels = np.asarray(score_fn(image)).argmax(-1)
        targets = dag_jax.make_targets(labels, (labels + 1) % C)
        expected = dag_jax.attack(score_fn, image, targets, METHOD)
        assert int(expected.num_steps) > 3
        for step_size in (np.linspace(0.5, 2, 4)[0], np.float32(0.5), jnp.float64(0.5)):
            method = METHOD.replace(step_size=step_size, margin=np.float64(0))
            for function in (dag_jax.attack, jax.jit(dag_jax.attack)):
                result = function(score_fn, image, targets, method)
                assert_equal(result, expected)
                assert result.perturbation.dtype == result.adversarial.dtype == np.float32
        ((_, result),) = dag_jax.attack_stream(score_fn, [(0, image, targets)], method, slots=1)
        assert_close(result, expected)
    print("all equal")


@pytest.mark.slow
def test_with_64_bit_numbers_on_a_numpy_step_size_is_a_number():
    root = pathlib.Path(dag_jax.__file__).parents[1]
    code = (
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('child', {__file__!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "module.attack_in_double()"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr
    assert "all equal" in child.stdout
