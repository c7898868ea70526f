import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax.metrics import perceptibility, permute


def some_perturbation(height=6, width=5, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(0, 3, (height, width, 3)), jnp.float32)


def test_literal_sizes():
    perturbation = np.zeros((2, 2, 3), np.float32)
    perturbation[0, 0] = [255, 0, 0]
    assert perceptibility(perturbation) == pytest.approx(0.5)  # one pixel of four, length 1
    perturbation[0, 0] = [3, 4, 12]
    assert perceptibility(perturbation) == pytest.approx(13 / 255 / 2)


def test_size_agrees_with_numpy():
    perturbation = some_perturbation()
    total = 0.0
    for pixel in np.asarray(perturbation, np.float64).reshape(-1, 3) / 255:
        total += np.dot(pixel, pixel)
    assert perceptibility(perturbation) == pytest.approx(np.sqrt(total / 30), rel=1e-6)


def test_size_is_the_same_jitted_and_vmapped():
    batch = jnp.stack([some_perturbation(seed=seed) for seed in range(3)])
    one_by_one = jnp.stack([perceptibility(perturbation) for perturbation in batch])
    np.testing.assert_allclose(jax.jit(jax.vmap(perceptibility))(batch), one_by_one, rtol=1e-6)


def test_permuting_keeps_values_and_size():
    perturbation = some_perturbation()
    permuted = permute(jax.random.key(3), perturbation)
    assert permuted.dtype == perturbation.dtype
    pixels = np.asarray(perturbation).reshape(-1, 3)
    shuffled = np.asarray(permuted).reshape(-1, 3)
    assert not np.array_equal(pixels, shuffled)
    np.testing.assert_array_equal(pixels[np.lexsort(pixels.T)], shuffled[np.lexsort(shuffled.T)])
    np.testing.assert_allclose(perceptibility(permuted), perceptibility(perturbation), rtol=1e-6)


def test_rows_and_columns_move_as_wholes():
    height, width = 7, 9
    grid = jnp.arange(height * width, dtype=jnp.float32).reshape(height, width)
    perturbation = jnp.stack([grid, grid + 1000, grid + 2000], axis=-1)
    both = np.asarray(permute(jax.random.key(0), perturbation))
    rows_at = both[:, 0, 0].astype(int) // width
    columns_at = both[0, :, 0].astype(int) % width
    assert sorted(rows_at) == list(range(height)) and sorted(columns_at) == list(range(width))
    np.testing.assert_array_equal(both, np.asarray(perturbation)[rows_at][:, columns_at])

    rows = permute(jax.random.key(0), perturbation, columns=False)
    np.testing.assert_array_equal(rows, np.asarray(perturbation)[rows_at])
    columns = permute(jax.random.key(0), perturbation, rows=False)
    np.testing.assert_array_equal(columns, np.asarray(perturbation)[:, columns_at])


def test_a_key_decides_alone():
    perturbation = some_perturbation(20, 20)
    keys = jax.random.split(jax.random.key(1), 3)
    one_by_one = [permute(key, perturbation) for key in keys]
    together = jax.vmap(permute, in_axes=(0, None))(keys, perturbation)
    np.testing.assert_array_equal(together, jnp.stack(one_by_one))
    assert not np.array_equal(one_by_one[0], one_by_one[1])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"\[H, W, 3\], got shape \(4, 5\)"):
        perceptibility(np.zeros((4, 5)))
    with pytest.raises(ValueError, match=r"got shape \(2, 4, 5, 3\)"):
        permute(jax.random.key(0), np.zeros((2, 4, 5, 3)))
    with pytest.raises(ValueError, match="nothing to shuffle"):
        permute(jax.random.key(0), np.zeros((4, 5, 3)), rows=False, columns=False)
