"""The engine with each network is a program for accelerators, too: it lowers without having one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import dag_jax
from dag_jax import lanes, networks

SIZE, BOXES, LANES = 128, 300, 4


def structs(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def whole_network(name):
    """Return a full-size network whose parameters are shapes alone."""
    module = networks.build(name)
    image = jax.ShapeDtypeStruct((SIZE, SIZE, 3), jnp.float32)
    parameters = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    return networks.Network(name, module, parameters, False)


@pytest.mark.parametrize(
    "name",
    [
        *("fcn_alex", "fr_zf_07", "fcn_resnet"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("fcn_vgg", "fr_vgg_07")),
        pytest.param("fr_resnet", marks=pytest.mark.slow),
    ],
)  # of each architecture one
def test_the_compiled_engine_lowers_for_tpu_and_cuda(name):
    network = whole_network(name)
    labels = np.zeros(BOXES if network.detects else (SIZE, SIZE), np.int32)
    inputs = (np.zeros((BOXES, 4), np.float32),) if network.detects else ()
    image = np.zeros((SIZE, SIZE, 3), np.float32)
    example = image, dag_jax.make_targets(labels, labels + 1), inputs
    new = {"max_steps": 200, "optimizer": None}
    idle = functools.partial(lanes._idle, lanes=LANES, **new)
    score_fn, numbers, states = structs(
        (
            networks.score_fn(network),
            {"step_size": np.float32(0.5), "margin": np.float32(0)},
            jax.eval_shape(idle, example),
        )
    )
    mesh = Mesh(jax.devices()[:1], ("images",))
    options = {"chunk": 4, "rounded": False, "optimizer": None, "mesh": mesh}
    exported = jax.export.export(lanes._advance, platforms=("tpu", "cuda"))(
        score_fn, numbers, *states, **options
    )
    assert exported.platforms == ("tpu", "cuda")
    text = exported.mlir_module()
    assert "stablehlo.while" in text and "stablehlo.convolution" in text
    assert len(exported.mlir_module_serialized) > 10_000
    shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(states[0])]
    out = [(aval.shape, aval.dtype) for aval in exported.out_avals]
    assert out == [*shapes, ((1, 2), jnp.int32)]


def flops(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn_vgg", "fcn_alex"])
def test_an_iteration_is_a_forward_and_a_gradient_of_the_image(name):
    network = whole_network(name)
    labels = np.zeros((SIZE, SIZE), np.int32)
    targets = dag_jax.make_targets(labels, labels + 1)
    image = np.full((SIZE, SIZE, 3), 99, np.float32)
    score_fn = structs(networks.score_fn(network))
    state = dag_jax.init(image, targets, max_steps=200)

    def loss(score_fn, image):
        return dag_jax.margin_loss(score_fn(image), targets).sum()

    least = flops(jax.value_and_grad(loss, argnums=1), score_fn, image)
    ours = flops(lambda score_fn, state: dag_jax.step(score_fn, state, targets), score_fn, state)
    assert ours <= 1.05 * least
