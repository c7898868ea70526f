"""Convolutions and pools that take the place of JAX's own, against those, and NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.extend.core import jaxprs_in_params
from jax.tree_util import Partial

import dag_jax
from dag_jax import adapters
from dag_jax.adapters import layers

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 13, 17, 4)).astype(np.float32)
LAST = ("NHWC", "HWIO", "NHWC")


def convolution(kernel, strides=1, padding="SAME", dilation=1, groups=1, names=LAST):
    return functools.partial(
        lax.conv_general_dilated,
        rhs=RNG.normal(size=kernel).astype(np.float32),
        window_strides=(strides,) * 2 if isinstance(strides, int) else strides,
        padding=padding,
        rhs_dilation=(dilation, dilation),
        feature_group_count=groups,
        dimension_numbers=names,
    )


def pool(size, strides, padding="VALID", names="NHWC", dtype=np.float32):
    def run(x):
        window, steps = (
            [1 if name in "NC" else number for name in names] for number in (size, strides)
        )
        return lax.reduce_window(x.astype(dtype), -jnp.inf, lax.max, window, steps, padding)

    return run


def primitives(function, *args):
    """The names of what a function is made of, functions inside it included."""

    def of(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name
            for inner in jaxprs_in_params(equation.params):
                yield from of(inner)

    return {*of(jax.make_jaxpr(function)(*args).jaxpr)}


def channels_first(function):
    return lambda x: function(x.transpose(0, 3, 1, 2))


LOOPED = convolution((1, 1, 4, 4))
REPLACED = {
    "square": convolution((3, 3, 4, 6)),
    "even, with a stride": convolution((4, 4, 4, 6), 2),
    "padded on one side": convolution((3, 3, 4, 6), 2, [(0, 1), (1, 0)]),
    "dilated": convolution((3, 3, 4, 6), dilation=2),
    "of groups": convolution((3, 3, 2, 6), groups=2),
    "of each channel": convolution((3, 3, 1, 4), groups=4),
    "of each channel, one side": convolution((3, 3, 1, 4), 2, [(0, 1), (0, 1)], groups=4),
    "of pixels": convolution((1, 1, 4, 6), 2),
    "channels first": channels_first(convolution((6, 4, 3, 3), names=("NCHW", "OIHW", "NCHW"))),
    "pool": pool(3, 2),
    "pool, padded": pool(3, 2, "SAME"),
    "pool, channels first": channels_first(pool(2, 2, names="NCHW")),
    "inside a function that is compiled": jax.jit(convolution((3, 3, 4, 6), 2)),
}
LEFT = {
    "no square": convolution((3, 2, 4, 6)),
    "two strides": convolution((3, 3, 4, 6), (1, 2)),
    "cropped": convolution((3, 3, 4, 6), 1, [(-1, 0), (0, 0)]),
    "pool of integers": pool(2, 2, dtype=np.int32),
    "pool of columns": lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 1, 3, 1), (1,) * 4, "SAME"
    ),
    "along one axis": lambda x: lax.conv_general_dilated(
        x[:, 0],
        np.ones((3, 4, 6), np.float32),
        (1,),
        "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
    ),
    "with a derivative of its own": lambda x: jax.nn.relu(x) + 2 * jax.nn.silu(x),
    "a loop": lambda x: lax.scan(lambda y, _: (LOOPED(y), None), x, None, 3)[0],
}


@pytest.mark.parametrize("name", [*REPLACED, *LEFT])
def test_values_and_gradients_are_those_of_the_function(name):
    function = (REPLACED | LEFT)[name]
    results = []
    for each in (function, adapters.with_fast_layers(function)):
        y, pull = jax.vjp(jax.jit(each), X)
        if jnp.issubdtype(y.dtype, jnp.floating):
            (slope,) = pull(np.sin(np.arange(y.size, dtype=np.float32)).reshape(y.shape))
            results.append((y, slope))
        else:
            results.append((y,))
    for theirs, ours in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("name", REPLACED)
def test_none_of_it_is_left(name):
    function = REPLACED[name]
    (theirs,) = {"conv_general_dilated", "reduce_window_max"} & primitives(function, X)
    ours = primitives(adapters.with_fast_layers(function), X)
    assert "reduce_window_max" not in ours
    assert theirs == "reduce_window_max" or "custom_vjp_call" in ours


def test_a_convolution_is_numpy_s():
    kernel = RNG.normal(size=(3, 3, 4, 5)).astype(np.float32)
    geometry = {"strides": (2, 2), "pads": ((1, 2), (0, 1)), "dilations": (1, 1), "groups": 1}
    ours = layers.convolve(X, kernel, **geometry)
    padded = np.pad(X.astype(np.float64), ((0, 0), (1, 2), (0, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    expected = np.einsum("bhwcij,ijcd->bhwd", windows[:, ::2, ::2], kernel)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_parameters_stay_arguments_and_other_leaves_parts():
    def forward(module, image):
        assert module["title"] == "small"
        return module["act"](
            lax.conv_general_dilated(
                image[None], module["kernel"], (1, 1), "SAME", dimension_numbers=LAST
            )[0]
        )

    image = X[0, :, :, :3]
    module = {"kernel": RNG.normal(size=(3, 3, 3, 3)), "title": "small", "act": jnp.tanh}
    module["kernel"] = module["kernel"].astype(np.float32)
    model = adapters.from_function(
        Partial(adapters.with_fast_layers(forward), module), classes=("a", "b", "c")
    )
    (kernel,) = jax.tree.leaves(model)
    np.testing.assert_array_equal(kernel, module["kernel"])
    ours = jax.jit(lambda model: model.scores(image))(model)
    np.testing.assert_allclose(ours, forward(module, image), atol=1e-5)


class Trained(nnx.Module):
    """A convolution, and a layer that differs in training."""

    def __init__(self, layer):
        self.kernel = nnx.Conv(3, 3, (3, 3), rngs=nnx.Rngs(0))
        self.layer = layer

    def __call__(self, x):
        return self.layer(self.kernel(x))


@pytest.mark.parametrize(
    "layer", [lambda rngs: nnx.BatchNorm(3, rngs=rngs), lambda rngs: nnx.Dropout(0.5, rngs=rngs)]
)
def test_a_module_that_changes_itself_is_refused(layer):
    module, image = Trained(layer(nnx.Rngs(0))), X[0, :, :, :3]
    fast = adapters.with_fast_layers(lambda module, image: module(image[None])[0])
    with pytest.raises(dag_jax.UserError, match="in training mode does .* call module.eval"):
        jax.jit(fast)(module, image)
    module.eval()
    np.testing.assert_allclose(jax.jit(fast)(module, image), module(image[None])[0], atol=1e-5)
