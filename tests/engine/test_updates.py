import jax.numpy as jnp
import numpy as np

from dag_jax import Method, methods
from dag_jax.engine.updates import ClippedStep


def test_the_updates_by_hand():
    gradient = jnp.float32([[-4, 1, 0]])
    update = Method(step_size=0.5).optimizer()
    change, _ = update.update(gradient, update.init(gradient), gradient)
    np.testing.assert_array_equal(change, [[0.5, -0.125, 0]])
    change, _ = update.update(0 * gradient, update.init(gradient), gradient)
    np.testing.assert_array_equal(change, [[0, 0, 0]])
    update = methods.momentum(0.5).optimizer()
    state = update.init(gradient)
    change, state = update.update(gradient, state, gradient)
    np.testing.assert_array_equal(change, [[0.5, -0.125, 0]])
    change, state = update.update(100 * gradient[:, ::-1], state, gradient)
    # 0.5 [-1, 1/4, 0] + [0, 1/4, -1], whose largest is 1.
    np.testing.assert_array_equal(change, [[0.25, -0.1875, 0.5]])


def test_a_clipped_step_asks_for_no_unit_of_the_gradient(rng):
    gradient = jnp.asarray(rng.standard_normal((8, 6, 3)), jnp.float32).at[0, 0, 0].set(90)
    update = ClippedStep(4.0)(0.5).update
    steps = [update(scale * gradient, ())[0] for scale in (1.0, 1e-30, 1e30)]
    for step in steps:
        np.testing.assert_allclose(step, steps[0], rtol=1e-5)
        assert float(step[0, 0, 0]) == -0.5 and np.median(np.abs(step)) > 0.005
    assert not update(jnp.zeros((8, 6, 3)), ())[0].any()
