"""Each module against JAX's own convolution, and against itself with the normalisation folded."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax.networks import layers


def variables_of(module, x, rng):
    """Random parameters and batch statistics, none of them at its initial 0 or 1."""
    tree = jax.eval_shape(module.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.2, 1, leaf.shape), leaf.dtype), tree)


def compare(first, second, params, x):
    """Assert that two functions have equal values and gradients."""

    def run(function, params, x):
        y, vjp = jax.vjp(function, params, x)
        return y, vjp(jnp.cos(y))

    results = (jax.jit(functools.partial(run, f))(params, x) for f in (first, second))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-3), *results)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_conv_equals_jax_own_grouped_convolution(rng, groups, stride, dilation):
    x = jnp.asarray(rng.standard_normal((2, 7, 6, 4)), jnp.float32)
    module = layers.Conv(6, 3, stride, padding=1, groups=groups, relu=False, dilation=dilation)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 4 // groups, 6)), jnp.float32)
    bias = jnp.asarray(rng.standard_normal(6), jnp.float32)
    params = {"kernel": kernel, "bias": bias}
    expected_shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, expected_shapes)

    def ours(params, x):
        return module.apply({"params": params}, x)

    def theirs(params, x):
        y = jax.lax.conv_general_dilated(
            x,
            params["kernel"],
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
            rhs_dilation=(dilation, dilation),
        )
        return y + params["bias"][None, None, None, :]

    compare(ours, theirs, params, x)


def test_conv_ends_with_a_relu_whose_slope_at_zero_is_zero():
    x = jnp.zeros((2, 2, 1))
    module = layers.Conv(1, 1)
    params = {"kernel": jnp.ones((1, 1, 1, 1)), "bias": jnp.zeros(1)}
    gradient = jax.grad(lambda x: module.apply({"params": params}, x).sum())(x)
    np.testing.assert_array_equal(gradient, 0)
    assert module.apply({"params": params}, x - 1).max() == 0
    linear = layers.Conv(1, 1, relu=False)
    assert linear.apply({"params": params}, x - 1).max() == -1


@pytest.mark.parametrize("size", [1, 2, 3])
def test_patch_dense_equals_a_convolution(rng, size):
    x = jnp.asarray(rng.standard_normal((2, 5, 4, 3)), jnp.float32)
    dense, conv = layers.PatchDense(6, size), layers.Conv(6, size)
    params = {
        "kernel": jnp.asarray(rng.standard_normal((size, size, 3, 6)), jnp.float32),
        "bias": jnp.asarray(rng.standard_normal(6), jnp.float32),
    }
    compare(*(lambda p, x, m=m: m.apply({"params": p}, x) for m in (dense, conv)), params, x)
    assert jax.eval_shape(dense.apply, {"params": params}, x).shape == (2, 6 - size, 5 - size, 6)


def test_patch_dense_refuses_a_map_below_its_patch():
    with pytest.raises(ValueError, match="2x5 cells is smaller than the 3x3"):
        layers.PatchDense(4, 3).init(jax.random.key(0), jnp.zeros((2, 5, 1)))


class Normalised(nn.Module):
    """A nested network with every kind of layer that can be normalised."""

    batch_norm: bool

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = layers.Conv(4, 3, groups=2, batch_norm=self.batch_norm, name="conv")(x, train)
        x = layers.PatchDense(5, 2, batch_norm=self.batch_norm, name="fc")(x, train)
        return layers.Conv(3, 1, relu=False, name="score")(x)


class Nested(nn.Module):
    batch_norm: bool

    @nn.compact
    def __call__(self, x, train: bool = False):
        return Normalised(self.batch_norm, name="inner")(x, train)


def test_folding_batch_normalisation_leaves_the_outputs(rng):
    x = jnp.asarray(rng.standard_normal((2, 6, 5, 2)), jnp.float32)
    variables = variables_of(Nested(True), x, rng)
    folded = layers.fold_batch_norm(variables["params"], variables["batch_stats"])
    plain = jax.eval_shape(Nested(False).init, jax.random.key(0), x)["params"]
    shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)  # noqa: E731
    assert shapes(folded) == shapes(plain)
    y = jax.jit(Nested(False).apply)({"params": folded}, x)
    np.testing.assert_allclose(y, jax.jit(Nested(True).apply)(variables, x), rtol=1e-4)


def test_folding_a_network_without_normalisation_changes_nothing(rng):
    params = variables_of(Nested(False), jnp.zeros((1, 6, 5, 2)), rng)["params"]
    folded = layers.fold_batch_norm(params, {})
    jax.tree.map(np.testing.assert_array_equal, folded, params)


def test_training_normalises_by_the_batch(rng):
    x = jnp.asarray(5 + 3 * rng.standard_normal((4, 6, 6, 2)), jnp.float32)
    module = layers.Conv(3, batch_norm=True, relu=False)
    variables = variables_of(module, x, rng)
    variables["params"]["bn"] = {"scale": jnp.ones(3), "bias": jnp.zeros(3)}
    y, changed = module.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1, atol=1e-3)
    before, after = (tree["batch_stats"]["bn"]["mean"] for tree in (variables, changed))
    assert np.abs(after - before).max() > 0


LAYERS = {
    "conv": lambda x: _apply(layers.Conv(4, 3, 2, padding=2, groups=2), x),
    "patch_dense": lambda x: _apply(layers.PatchDense(4, 3), x),
}


def _apply(module, x):
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    return module.apply(params, x)


@pytest.mark.parametrize("name", LAYERS)
def test_single_equals_batch_equals_vmap(assert_batching_changes_nothing, name):
    assert_batching_changes_nothing(LAYERS[name])


class Slid(nn.Module):
    """A convolution without padding, and a large kernel."""

    @nn.compact
    def __call__(self, x):
        return layers.PatchDense(5, 3)(layers.Conv(4, 3)(x))


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_what_helps_a_cpu_is_compiled_for_cpus_alone(platform):
    text = _gradient_for(platform, Slid(), jnp.zeros((8, 7, 40)))
    is_cpu = platform == "cpu"
    assert ("optimization_barrier" in text) == is_cpu
    # Of the large kernel, patches and their products.
    assert ("stablehlo.dot_general" in text) == is_cpu
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(convolutions) == (2 if is_cpu else 4)
    padded = [line for line in convolutions if "pad = [[0, 0], [0, 1]]" in line]
    assert len(padded) == is_cpu


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_few_channels_are_correlated_in_blocks_by_a_cpu_alone(platform):
    text = _gradient_for(platform, layers.Conv(4, 3, padding=1), jnp.zeros((8, 7, 3)))
    kernels = re.findall(r"stablehlo.convolution.*: \(tensor<\S+>, tensor<(\S+)xf32>\)", text)
    assert kernels == (["2x2x12x16", "2x2x16x12"] if platform == "cpu" else ["3x3x3x4", "3x3x4x3"])


def _gradient_for(platform, module, x):
    """Return the program of a module's gradient, lowered for a platform."""
    variables = module.init(jax.random.key(0), x)
    gradient = jax.jit(jax.grad(lambda x: module.apply(variables, x).sum()))
    return jax.export.export(gradient, platforms=(platform,))(x).mlir_module()
