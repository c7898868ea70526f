"""A network that multiplies in bfloat16 says nearly the same, in float32."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax import models, networks
from dag_jax.networks import layers, lrn, operations
from dag_jax.runs import evaluation

BOXES = np.float32([[4, 6, 40, 50], [10, 12, 70, 90], [0, 0, 95, 95], [30, 20, 80, 60]])


@functools.cache
def scores_and_gradient(name, precision):
    network = networks.load(name, miniature=True, precision=precision)
    rng = np.random.default_rng(0)
    # Smooth, as photographs are: of noise, bfloat16's error is a larger part.
    coarse = jnp.asarray(rng.uniform(0, 255, (8, 8, 3)), jnp.float32)
    image = jax.image.resize(coarse, (96, 96, 3), "linear")
    score_fn = models.score_fn(network, BOXES if models.about(network).detects else None)

    @jax.jit
    def run(score_fn, image):
        scores, vjp = jax.vjp(score_fn, image)
        # As an attack's: the class that is best here against the next one.
        best = jax.lax.top_k(scores.mean(axis=tuple(range(scores.ndim - 1))), 2)[1]
        first, second = jax.nn.one_hot(best, 21)
        return scores, vjp(jnp.broadcast_to(first - second, scores.shape))[0]

    return network, *run(score_fn, image)


# Of VGG-16's thirteen layers the gradients are less alike: cells that bfloat16 makes equal are all
# maxima of their window, and the first one takes its gradient.
COSINES = {"fcn_vgg": 0.94, "fr_zf_07": 0.98}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "cosine"), COSINES.items())
def test_bfloat16_is_close(name, cosine):
    network, scores, gradient = scores_and_gradient(name, "bfloat16")
    _, expected, expected_gradient = scores_and_gradient(name, "float32")
    assert scores.dtype == gradient.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(network.parameters)} == {jnp.dtype("float32")}
    assert 0 < np.abs(scores - expected).max() < 0.02 * np.ptp(expected)
    assert np.isfinite(gradient).all()
    a, b = (np.ravel(x).astype(np.float64) for x in (gradient, expected_gradient))
    assert a @ b > cosine * np.sqrt((a @ a) * (b @ b))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "wide"), [("fcn_vgg", 3), ("fr_zf_07", 2), ("fcn_resnet", 2)])
def test_the_products_are_of_bfloat16(name, wide):
    # But for the image's own: forward, backward and, where it is padded far, the border's.
    network = networks.load(name, miniature=True, precision="bfloat16")
    score_fn = models.score_fn(network, BOXES if models.about(network).detects else None)
    image = jax.ShapeDtypeStruct((96, 96, 3), jnp.float32)

    def run(score_fn, image):
        return jax.grad(lambda image: score_fn(image).sum())(image)

    lines = jax.jit(run).lower(score_fn, image).as_text().splitlines()
    lines = [line for line in lines if "stablehlo.convolution" in line]
    operands = [line[line.rindex(" : (") :].split("->")[0] for line in lines]
    assert len(operands) > 10
    assert sum("f32>" in operand.replace("bf16>", "") for operand in operands) == wide


def products(name, precision, platform):
    """Return the lines of the products of a network's scores and their gradient, by precision."""
    network = networks.load(name, miniature=True, precision=precision)
    score_fn = models.score_fn(network, BOXES if models.about(network).detects else None)

    @jax.jit
    def run(score_fn, image):
        return jax.grad(lambda image: score_fn(image).sum())(image)

    image = jax.ShapeDtypeStruct((96, 96, 3), jnp.float32)
    with jax.default_matmul_precision("highest"):  # as launches have it
        exported = jax.export.export(run, platforms=(platform,))(score_fn, image)
    lines = exported.mlir_module().splitlines()
    lines = [line for line in lines if re.search(r"stablehlo\.(convolution|dot_general)", line)]
    high = [line for line in lines if "HIGH, " in line or "HIGH>" in line]
    return high, [line for line in lines if line not in high]


@pytest.mark.parametrize(("name", "wide"), [("fcn_alex", 5), ("fr_zf_07", 3)])
def test_the_products_are_of_tf32(name, wide):
    # But for the image's own (forward, backward, a padded one's border), those that scale an FCN's
    # scores (2) and a detector's last one, backward.
    high, exact = products(name, "tf32", "cuda")
    assert len(high) > 10 and all("HIGHEST" in line for line in exact)
    assert len(exact) == wide


def test_tf32_on_a_cpu_is_float32():
    image = np.random.default_rng(0).uniform(0, 255, (64, 64, 3)).astype(np.float32)
    scores = [
        networks.load("fcn_alex", miniature=True, precision=kind).scores(image)
        for kind in ("float32", "tf32")
    ]
    np.testing.assert_array_equal(*scores)


def test_a_perturbation_below_bfloat16s_resolution_is_seen():
    network = networks.load("fcn_vgg", miniature=True, precision="bfloat16")
    image = jnp.full((96, 96, 3), 240.0)
    scores = jax.jit(network.scores)
    moved = scores(image + 0.1)
    assert (moved != scores(image)).any()


@pytest.mark.parametrize(
    ("name", "dtypes"),
    [("fcn_alex", {"int32"}), ("fr_vgg_07", {"float32", "int32", "bool"})],
)
def test_an_evaluation_runs_in_bfloat16(name, dtypes):
    network = networks.load(name, miniature=True, precision="bfloat16")
    network, shape = network.bucket((96, 110))
    image = np.full((*shape, 3), 120, np.float32)
    result = jax.eval_shape(evaluation.look, network, image, np.int32([96, 110]))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(result)} == dtypes


LAYERS = {
    "conv": layers.Conv(4, 3, 2, padding=2, groups=2),
    "conv_valid": layers.Conv(4, 3, relu=False),
    "patch_dense": layers.PatchDense(4, 3),
    "max_pool": functools.partial(operations.max_pool, size=3, stride=2, padding=1),
    "lrn_across": lrn.across_channels,
    "lrn_within": lrn.within_channel,
}


@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_is_close_and_keeps_its_dtype(name, rng):
    layer = LAYERS[name]
    x = jnp.asarray(rng.standard_normal((7, 6, 4)), jnp.float32)
    parameters = {}
    if isinstance(layer, layers.nn.Module):
        shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
        parameters = jax.tree.map(lambda leaf: np.float32(rng.standard_normal(leaf.shape)), shapes)

    def run(parameters, x):
        y = layer.apply(parameters, x) if parameters else layer(x)
        return y.astype(jnp.float32).sum(), y

    gradient = jax.jit(jax.grad(run, (0, 1), has_aux=True))
    (by_parameters, by_x), y = gradient(parameters, x.astype(jnp.bfloat16))
    (expected_by_parameters, expected_by_x), expected = gradient(
        parameters, x.astype(jnp.bfloat16).astype(jnp.float32)
    )
    assert by_x.dtype == jnp.bfloat16
    assert y.dtype == (jnp.float32 if name == "conv_valid" else jnp.bfloat16)
    pairs = [(y, expected), (by_x, expected_by_x)]
    pairs += zip(*map(jax.tree.leaves, (by_parameters, expected_by_parameters)), strict=True)
    for actual, known in pairs:
        known = np.asarray(known)
        assert np.abs(np.asarray(actual, np.float32) - known).max() <= 0.02 * np.abs(known).max()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(by_parameters))


def test_an_unknown_precision_is_named():
    with pytest.raises(ValueError, match="precision 'half' of fcn_vgg; .* float32, tf32, bfloat16"):
        networks.load("fcn_vgg", miniature=True, precision="half")
