"""One check for each adapter: every way to attack says the same of its models."""

import jax
import jax.numpy as jnp
import numpy as np

import dag_jax


def check(function, image, targets):
    """Attack one by one, by `attack_batch` (a vmap) and by the stream on two devices; audit."""
    method = dag_jax.Method(max_steps=3)
    images = np.stack([image, 255 - image])
    single = [dag_jax.attack(function, each, targets, method) for each in images]
    assert single[0].active_counts[0] > 0 and np.abs(single[0].perturbation).max() > 0
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), targets)
    batch = dag_jax.attack_batch(function, images, twice, method)
    mesh = jax.sharding.Mesh(jax.local_devices(), ("images",))
    examples = [(name, images[name % 2], targets) for name in range(4)]
    streamed = dict(dag_jax.attack_stream(function, examples, method, slots=2, mesh=mesh))
    assert sorted(streamed) == [0, 1, 2, 3]
    for i, expected in enumerate(single):
        row = jax.tree.map(lambda leaf, i=i: leaf[i], batch)
        for result in (row, streamed[i], streamed[i + 2]):
            np.testing.assert_allclose(result.perturbation, expected.perturbation, atol=1e-4)
            np.testing.assert_array_equal(result.active_counts, expected.active_counts)
    findings = dag_jax.audit(function, image, targets)
    assert all(finding.passed for finding in findings), findings
