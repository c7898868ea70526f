"""The engine with each network is a program for accelerators, too: it lowers without having one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import dag_jax
from dag_jax import Method, networks
from dag_jax.engine import lanes
from dag_jax.engine.scoring import as_callable_pytree
from dag_jax.models import DETECTION

SIZE, BOXES, LANES = 128, 300, 4


def structs(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def whole_network(name):
    """Return a full-size network whose parameters are shapes alone."""
    module = networks.build(name)
    image = jax.ShapeDtypeStruct((SIZE, SIZE, 3), jnp.float32)
    parameters = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    detects = networks.TASKS[name] == DETECTION
    kind = networks.DetectionNetwork if detects else networks.SegmentationNetwork
    return kind(name, module, parameters, False, networks.facts(name))


@pytest.mark.parametrize(
    "name",
    [
        *("fcn_alex", "fr_zf_07", "fcn_resnet"),
        pytest.param("fcn_vgg", marks=pytest.mark.slow),
    ],
)  # of each kind of layer one
def test_the_compiled_engine_lowers_for_tpu_and_cuda(name):
    network = whole_network(name)
    detects = isinstance(network, networks.DetectionNetwork)
    labels = np.zeros(BOXES if detects else (SIZE, SIZE), np.int32)
    inputs = (np.zeros((BOXES, 4), np.float32),) if detects else ()
    image = np.zeros((SIZE, SIZE, 3), np.float32)
    example = image, dag_jax.make_targets(labels, labels + 1), inputs
    method = jax.tree.map(np.float32, Method())
    idle = functools.partial(lanes._idle, lanes=LANES)
    states = jax.eval_shape(idle, method, example)
    score_fn, method, states = structs((as_callable_pytree(network.scores), method, states))
    mesh = Mesh(jax.devices()[:1], ("images",))
    exported = jax.export.export(lanes._advance, platforms=("tpu", "cuda"))(
        score_fn, method, np.int32(4), *states, together=True, mesh=mesh
    )
    assert exported.platforms == ("tpu", "cuda")
    text = exported.mlir_module()
    assert "stablehlo.while" in text and "stablehlo.convolution" in text
    assert "optimization_barrier" not in text  # which helps a CPU
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
    score_fn = structs(as_callable_pytree(network.scores))
    state = dag_jax.init(Method(), image, targets)

    def loss(score_fn, image):
        return dag_jax.margin_loss(score_fn(image), targets).sum()

    least = flops(jax.value_and_grad(loss, argnums=1), score_fn, image)
    ours = flops(
        lambda score_fn, state: dag_jax.step(Method(), score_fn, state, targets), score_fn, state
    )
    assert ours <= 1.05 * least
