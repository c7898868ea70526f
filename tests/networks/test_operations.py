"""Each operation against the loop that Caffe runs, in value and gradient."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax.networks import operations


def correlate_by_loop(x, kernel, stride, padding):
    """Caffe's Convolution for f64[B, H, W, C]."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    size = kernel.shape[0]
    rows, columns = ((extent - size) // stride + 1 for extent in x.shape[1:3])
    y = np.zeros((x.shape[0], rows, columns, kernel.shape[3]))
    for i, j in np.ndindex(rows, columns):
        patch = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
        y[:, i, j] = np.einsum("bijc,ijcd->bd", patch, kernel)
    return y


def correlate_gradients(x, kernel, cotangent, stride, padding):
    """Its gradients with respect to both arguments, scattered output by output."""
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    dx, dk = np.zeros_like(padded), np.zeros_like(kernel)
    size = kernel.shape[0]
    for i, j in np.ndindex(cotangent.shape[1:3]):
        here = (slice(None), *(slice(k * stride, k * stride + size) for k in (i, j)))
        dx[here] += np.einsum("bd,ijcd->bijc", cotangent[:, i, j], kernel)
        dk += np.einsum("bijc,bd->ijcd", padded[here], cotangent[:, i, j])
    rows, columns = (slice(padding, padding + extent) for extent in x.shape[1:3])
    return dx[:, rows, columns], dk


CONVOLUTIONS = [  # height, width, kernel size, stride, padding, dilation
    (6, 7, 3, 1, 1, 1),
    (6, 7, 3, 1, 0, 1),
    (7, 5, 5, 1, 2, 1),
    (4, 5, 3, 1, 5, 1),  # padding beyond the kernel, as FCN's 100
    (6, 5, 4, 1, 1, 1),
    (7, 8, 3, 2, 1, 1),
    (9, 8, 5, 2, 2, 1),
    (7, 6, 1, 2, 0, 1),
    (13, 15, 11, 4, 3, 1),
    (12, 13, 3, 4, 0, 1),  # kernel below the stride: some pixels are never read
    (11, 9, 4, 4, 1, 1),
    (6, 7, 3, 1, 2, 2),
    (9, 8, 3, 1, 0, 3),
    (3, 5, 3, 1, 4, 4),  # all but the middle of the kernel may lie outside
]


@pytest.mark.parametrize(
    ("features", "geometry"),
    # A CPU correlates few features in blocks.
    [*((4, geometry) for geometry in CONVOLUTIONS), *((48, each) for each in CONVOLUTIONS[:2])],
)
def test_convolve_equals_a_loop_in_value_and_both_gradients(rng, features, geometry):
    height, width, size, stride, padding, dilation = geometry
    x = rng.standard_normal((2, height, width, 3))
    kernel = rng.standard_normal((size, size, 3, features))
    spread = np.zeros((*[dilation * (size - 1) + 1] * 2, 3, features))
    spread[::dilation, ::dilation] = kernel  # what a dilated kernel is: zeros in between
    expected = correlate_by_loop(x, spread, stride, padding)
    cotangent = rng.standard_normal(expected.shape)

    @jax.jit
    def run(x, kernel, cotangent):
        function = functools.partial(
            operations.convolve, stride=stride, padding=padding, dilation=dilation
        )
        y, vjp = jax.vjp(function, x, kernel)
        return y, vjp(cotangent)

    y, (dx, dk) = run(*(jnp.asarray(a, jnp.float32) for a in (x, kernel, cotangent)))
    expected_dx, expected_dk = correlate_gradients(x, spread, cotangent, stride, padding)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    np.testing.assert_allclose(dx, expected_dx, atol=1e-4)
    np.testing.assert_allclose(dk, expected_dk[::dilation, ::dilation], atol=1e-4)


def test_a_convolution_is_strided_or_dilated():
    with pytest.raises(ValueError, match="stride is 2 and dilation 3; one of them must be 1"):
        operations.convolve(jnp.zeros((9, 9, 1)), jnp.zeros((3, 3, 1, 1)), stride=2, dilation=3)


def test_convolve_by_hand():
    x = jnp.arange(9, dtype=jnp.float32).reshape(1, 3, 3, 1)
    kernel = jnp.float32([[1, 0], [0, 10]]).reshape(2, 2, 1, 1)
    y = operations.convolve(x, kernel)[0, :, :, 0]
    np.testing.assert_array_equal(y, [[40, 51], [73, 84]])  # not flipped: a correlation
    y = operations.convolve(x, kernel, stride=2, padding=1)[0, :, :, 0]
    np.testing.assert_array_equal(y, [[0, 20], [60, 84]])


def test_convolve_has_the_same_gradient_inside_a_loop_and_under_vmap(rng):
    x = jnp.asarray(rng.standard_normal((2, 1, 6, 5, 2)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 2, 2)), jnp.float32)

    def descend(x):
        loss = lambda x: jnp.sum(operations.convolve(x, kernel, padding=1) ** 2)  # noqa: E731
        return x - 0.01 * jax.grad(loss)(x)

    twice = jax.jit(lambda x_row: descend(descend(x_row)))
    alone = np.stack([twice(x_row) for x_row in x])
    looped = jax.jit(
        jax.vmap(lambda x_row: jax.lax.fori_loop(0, 2, lambda _, x: descend(x), x_row))
    )(x)
    np.testing.assert_allclose(looped, alone, atol=1e-5)


def pool_by_loop(x, size, stride, padding, cotangent=None):
    """Caffe's PoolingLayer for f32[B, H, W, C]; with a cotangent, its gradient."""
    height, width = x.shape[1:3]
    counts = []
    for extent in (height, width):
        count = math.ceil((extent + 2 * padding - size) / stride) + 1
        if padding and (count - 1) * stride >= extent + padding:
            count -= 1
        counts.append(count)
    y = np.full((x.shape[0], *counts, x.shape[3]), -np.inf, np.float32)
    gradient = np.zeros_like(x)
    for b, i, j, c in np.ndindex(y.shape):
        best = None
        for h in range(max(i * stride - padding, 0), min(i * stride - padding + size, height)):
            for w in range(max(j * stride - padding, 0), min(j * stride - padding + size, width)):
                if x[b, h, w, c] > y[b, i, j, c]:
                    y[b, i, j, c], best = x[b, h, w, c], (b, h, w, c)
        if cotangent is not None:
            gradient[best] += cotangent[b, i, j, c]
    return gradient if cotangent is not None else y


POOLS = [(2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 3, 0), (2, 2, 1), (3, 1, 1)]


@pytest.mark.parametrize(("size", "stride", "padding"), POOLS)
def test_max_pool_equals_caffe_bit_by_bit(rng, size, stride, padding):
    # Few distinct values, many of them 0 as after a ReLU: most windows have a tie. The last channel
    # is negative: padding must not win there.
    x = np.maximum(rng.integers(-3, 4, (2, 7, 8, 3)), 0).astype(np.float32)
    x[..., 2] -= 9
    expected = pool_by_loop(x, size, stride, padding)
    cotangent = rng.integers(-9, 10, expected.shape).astype(np.float32)

    @jax.jit
    def run(x, cotangent):
        pool = functools.partial(operations.max_pool, size=size, stride=stride, padding=padding)
        y, vjp = jax.vjp(pool, x)
        return y, vjp(cotangent)[0]

    y, gradient = run(x, cotangent)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(gradient, pool_by_loop(x, size, stride, padding, cotangent))


def test_first_of_equal_maxima_takes_the_whole_gradient():
    x = jnp.float32([[1, 5, 7], [5, 5, 2], [0, 0, 0]])[:, :, None]
    pool = lambda x: operations.max_pool(x, size=2, stride=2)[:, :, 0]  # noqa: E731
    np.testing.assert_array_equal(pool(x), [[5, 7], [0, 0]])
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(pool(x))))(x)[:, :, 0]
    np.testing.assert_array_equal(gradient, [[0, 1, 1], [0, 0, 0], [1, 0, 1]])


def bilinear_filler(size):
    """FCN's filter of a Deconvolution, f64[K, K] (surgery.py's upsample_filt)."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 == 1 else factor - 0.5
    rows, columns = np.ogrid[:size, :size]
    return (1 - abs(rows - centre) / factor) * (1 - abs(columns - centre) / factor)


def deconvolve_by_loop(x, kernel, stride):
    """Caffe's Deconvolution with group = channels, one kernel for all, of f32[h, w, C]."""
    size = len(kernel)
    shape = [(extent - 1) * stride + size for extent in x.shape[:2]]
    y = np.zeros((*shape, x.shape[2]))
    for i, j in np.ndindex(x.shape[:2]):
        y[i * stride : i * stride + size, j * stride : j * stride + size] += (
            kernel[:, :, None] * x[i, j]
        )
    return y


UPSAMPLINGS = [(2, 4, 0), (8, 16, 31), (32, 64, 19), (32, 63, 18), (4, 7, 3)]


@pytest.mark.parametrize(("stride", "size", "offset"), UPSAMPLINGS)
def test_upsample_equals_a_transposed_convolution_and_a_crop(rng, stride, size, offset):
    x = rng.standard_normal((6, 5, 2)).astype(np.float32)
    whole = deconvolve_by_loop(x, bilinear_filler(size), stride)
    height, width = (
        extent - offset - cut for extent, cut in zip(whole.shape, (1, 2), strict=False)
    )
    expected = whole[offset : offset + height, offset : offset + width]
    cotangent = rng.standard_normal(expected.shape).astype(np.float32)

    @jax.jit
    def run(x, cotangent):
        rise = functools.partial(
            operations.upsample,
            shape=(height, width),
            stride=stride,
            kernel_size=size,
            offset=offset,
        )
        y, vjp = jax.vjp(rise, x)
        return y, vjp(cotangent)[0]

    y, gradient = run(x, cotangent)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    filled = np.zeros(whole.shape)
    filled[offset : offset + height, offset : offset + width] = cotangent
    adjoint = correlate_by_loop(  # each class by itself
        filled.transpose(2, 0, 1)[..., None], bilinear_filler(size)[:, :, None, None], stride, 0
    )
    np.testing.assert_allclose(gradient, adjoint[..., 0].transpose(1, 2, 0), rtol=1e-4, atol=1e-4)


def deconvolve_densely_by_loop(x, kernel, stride):
    """Caffe's Deconvolution without groups, of f32[h, w, C] by f32[K, K, C, D]."""
    size, _, _, features = kernel.shape
    y = np.zeros((*((extent - 1) * stride + size for extent in x.shape[:2]), features))
    for i, j in np.ndindex(x.shape[:2]):
        y[i * stride : i * stride + size, j * stride : j * stride + size] += np.einsum(
            "c,abcd->abd", x[i, j], kernel
        )
    return y


@pytest.mark.parametrize(("stride", "size", "offset"), UPSAMPLINGS)
def test_upsample_dense_equals_a_loop_in_value_and_both_gradients(rng, stride, size, offset):
    x = rng.standard_normal((3, 4, 2)).astype(np.float32)
    kernel = rng.standard_normal((size, size, 2, 3)).astype(np.float32)
    whole = deconvolve_densely_by_loop(x, kernel, stride)
    height, width = whole.shape[0] - offset - 1, whole.shape[1] - offset - 2
    expected = whole[offset : offset + height, offset : offset + width]
    cotangent = rng.standard_normal(expected.shape).astype(np.float32)

    @jax.jit
    def run(x, kernel, cotangent):
        def rise(x, kernel):
            return operations.upsample_dense(
                x, kernel, (height, width), stride=stride, offset=offset
            )

        y, vjp = jax.vjp(rise, x, kernel)
        return y, *vjp(cotangent)

    y, x_gradient, kernel_gradient = run(x, kernel, cotangent)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    filled = np.zeros(whole.shape)
    filled[offset : offset + height, offset : offset + width] = cotangent
    for i, j in np.ndindex(x.shape[:2]):
        window = filled[i * stride : i * stride + size, j * stride : j * stride + size]
        np.testing.assert_allclose(
            x_gradient[i, j], np.einsum("abd,abcd->c", window, kernel), rtol=1e-3, atol=1e-3
        )
    slope = np.zeros(kernel.shape)
    for i, j in np.ndindex(x.shape[:2]):
        window = filled[i * stride : i * stride + size, j * stride : j * stride + size]
        slope += np.einsum("c,abd->abcd", x[i, j], window)
    np.testing.assert_allclose(kernel_gradient, slope, rtol=1e-3, atol=1e-3)


def test_upsample_dense_with_bilinear_kernels_is_upsample(rng):
    x = rng.standard_normal((6, 5, 2)).astype(np.float32)
    kernel = np.float32(bilinear_filler(63)[:, :, None, None] * np.eye(2))
    options = {"stride": 32, "offset": 18}
    np.testing.assert_allclose(
        operations.upsample_dense(x, kernel, (150, 140), **options),
        operations.upsample(x, (150, 140), kernel_size=63, **options),
        atol=1e-5,
    )


def test_bilinear_matrix_by_hand():
    matrix = operations.bilinear_matrix(4, 2, stride=2, kernel_size=4, offset=1)
    np.testing.assert_array_equal(matrix, [[0.75, 0], [0.75, 0.25], [0.25, 0.75], [0, 0.75]])
    assert matrix.dtype == np.float32


@pytest.mark.parametrize(("size", "offset"), [(7, 0), (4, 3), (2, -1)])
def test_a_crop_beyond_the_upsampled_map_is_refused(size, offset):
    with pytest.raises(ValueError, match=f"{size} pixels at {offset} .*6 pixels.*too small"):
        operations.bilinear_matrix(size, 2, stride=2, kernel_size=4, offset=offset)
    with pytest.raises(ValueError, match=f"{size} pixels at {offset} .*6 pixels.*too small"):
        x, kernel = jnp.zeros((2, 2, 1)), jnp.zeros((4, 4, 1, 1))
        operations.upsample_dense(x, kernel, (size, size), stride=2, offset=offset)


def test_subtract_mean_gives_bgr():
    image = jnp.float32([[[10, 20, 30], [200, 100, 0]]])
    expected = [[[27, 18, 9], [-3, 98, 199]]]
    np.testing.assert_array_equal(operations.subtract_mean(image, (1.0, 2.0, 3.0)), expected)
    batch = operations.subtract_mean(jnp.stack([image, image + 1]), (1.0, 2.0, 3.0))
    np.testing.assert_array_equal(batch[1], np.add(expected, 1))
    gradient = jax.grad(lambda x: operations.subtract_mean(x, (1.0, 2.0, 3.0))[..., 0].sum())(image)
    np.testing.assert_array_equal(gradient[0], [[0, 0, 1], [0, 0, 1]])  # blue comes first


OPERATIONS = {
    "max_pool": functools.partial(operations.max_pool, size=3, stride=2, padding=1),
    "upsample_dense": lambda x: operations.upsample_dense(
        x, jnp.cos(jnp.arange(5.0 * 5 * 4 * 3).reshape(5, 5, 4, 3)), (15, 12), stride=2, offset=1
    ),
    "upsample": functools.partial(
        operations.upsample, shape=(15, 12), stride=2, kernel_size=4, offset=1
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_single_equals_batch_equals_vmap(assert_batching_changes_nothing, name):
    assert_batching_changes_nothing(OPERATIONS[name])
