import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax import networks
from experiments.measure import peak


def test_a_product_runs_on_each_device(mesh):
    for precision, dtype in (("float32", "float32"), ("tf32", "float32"), ("bfloat16", "bfloat16")):
        multiply, flops = peak.product(mesh, precision, side=8)
        result = multiply()
        assert flops == 2 * 8**3 and result.shape == (2, 8, 8) and result.dtype == dtype
        np.testing.assert_array_equal(result[0], result[1])


def test_an_fcns_layers_and_their_flops_by_hand():
    network = networks.load("fcn_alex", miniature=True)
    layers = peak.layers_of(network, jnp.zeros((64, 64, 3)))
    names = [f"conv{number}" for number in range(1, 6)]
    assert [layer.name for layer in layers] == [*names, "fc6", "fc7", "score_fr"]
    assert {layer.name for layer in layers} == set(network.parameters) - {"backbone"} | set(names)
    conv1, *_, score = layers
    assert conv1.shape == (64, 64, 3) and conv1.weights() == ((11, 11, 3, 24), (24,))
    # 21 classes of 128 channels at each cell; forward, and the gradient.
    assert score.flops() == 2 * 2 * np.prod(score.shape) * 21


def test_the_parts_of_an_iteration_sum_up(mesh):
    rows = peak.measure("fcn_alex", mesh=mesh, size=48, pairs=1, side=8)
    whole, *parts = rows
    assert whole["part"] == "an iteration" and whole["time"] == 1
    assert parts[-1]["part"] == "all else" and parts[-1]["peak"] is None
    assert sum(row["ms"] for row in parts) == pytest.approx(whole["ms"])
    assert sum(row["flops"] or 0 for row in parts) == whole["flops"]
    assert all(row["peak"] > 0 for row in rows[:-1])
