"""Flax modules of Caffe-era networks, and how batch normalisation folds into them.

Shapes: `*B` no axis or one batch axis, `H W` pixels or cells, `C` channels, `K` kernel size.

Arrays are channels-last. Parameters are float32; a layer multiplies in the dtype of its input,
float32 or bfloat16, and in JAX's default precision at the call, adds up in float32, and gives back
its input's dtype after a ReLU and float32 without one. Each module equals its Caffe namesake in
value and gradient; the functions of arrays alone are in `operations`. A grouped convolution runs
part by part, as XLA's own is slower than its parts on CPU.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from dag_jax.errors import UserError
from dag_jax.networks import operations


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _multiply(x, kernel, precision):
    """Return x @ kernel of [*B, C] and [C, D], of one dtype, in float32."""
    sums = np.promote_types(x.dtype, jnp.float32)
    return jnp.matmul(x, kernel, precision=precision, preferred_element_type=sums)


def _multiply_forward(x, kernel, precision):
    return _multiply(x, kernel, precision), (x, kernel)


def _multiply_backward(precision, residuals, cotangent):
    # JAX's own would multiply the float32 cotangent with a bfloat16 kernel.
    x, kernel = residuals
    cotangent = cotangent.astype(x.dtype)
    _, vjp = jax.vjp(functools.partial(jnp.matmul, precision=precision), x, kernel)
    return vjp(cotangent)


_multiply.defvjp(_multiply_forward, _multiply_backward)


def _by_patches(x, kernel, *, precision):
    """Gather the patches of [*B, H, W, C] and multiply once with [K, K, C, D]."""
    size, _, _, features = kernel.shape
    height, width = (extent - size + 1 for extent in x.shape[-3:-1])
    patches = jnp.concatenate(
        [
            x[..., row : row + height, column : column + width, :]
            for row, column in np.ndindex(size, size)
        ],
        axis=-1,
    )
    return _multiply(patches, kernel.reshape(-1, features), precision)


def _in_best_form(run, *arrays):
    """Return `run` of a function that slides a large kernel over a map, and of arrays."""
    patches = functools.partial(run, _by_patches)
    return lax.platform_dependent(
        *arrays, cpu=patches, default=functools.partial(run, operations.convolve)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _slide(x, kernel, precision):
    """Correlate [*B, H, W, C] with [K, K, C, D], of one dtype, in float32."""
    return _in_best_form(lambda form, *arrays: form(*arrays, precision=precision), x, kernel)


def _slide_forward(x, kernel, precision):
    return _slide(x, kernel, precision), (x, kernel)


def _slide_backward(precision, residuals, cotangent):
    def run(form, *arrays):
        *arrays, cotangent = arrays
        return jax.vjp(functools.partial(form, precision=precision), *arrays)[1](cotangent)

    return _in_best_form(run, *residuals, cotangent)


_slide.defvjp(_slide_forward, _slide_backward)


class Conv(nn.Module):
    """Convolution with a bias, for training with batch normalisation, and ReLU if asked.

    Attributes:
      features: channels of the output.
      kernel_size: cells of the kernel's side.
      stride: cells between two outputs.
      padding: zero cells on each side.
      groups: parts that the channels fall into, each convolved alone.
      batch_norm: whether to normalise before the ReLU. It is how the network trains;
        `fold_batch_norm` takes it out again.
      relu: whether to end with a ReLU.
      scale: factor of the initial weights.
      dilation: cells between two that the kernel reads.
      precision: as in `operations.convolve`.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int = 0
    groups: int = 1
    batch_norm: bool = False
    relu: bool = True
    scale: float = 1.0
    dilation: int = 1
    precision: str | None = None

    @nn.compact
    def __call__(self, x, train: bool = False, padding=None):
        """Map [*B, H, W, C] to [*B, H', W', features].

        `padding`, as in `operations.convolve`, takes the attribute's place.
        """
        shape = (self.kernel_size,) * 2 + (x.shape[-1] // self.groups, self.features)
        he = nn.initializers.variance_scaling(2.0 * self.scale**2, "fan_in", "normal")
        kernel = self.param("kernel", he, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        parts = zip(
            jnp.split(x, self.groups, axis=-1),
            jnp.split(kernel.astype(x.dtype), self.groups, axis=-1),
            strict=True,
        )
        padding = self.padding if padding is None else padding
        how = {"stride": self.stride, "padding": padding, "dilation": self.dilation}
        how["precision"] = self.precision
        sums = jnp.concatenate(
            [operations.convolve(part, weights, **how) for part, weights in parts], axis=-1
        )
        return _finish(self, sums, bias, train, x.dtype)


class PatchDense(nn.Module):
    """A fully connected layer slid over a map: a convolution with a large kernel, as a product.

    FCN's fc6 has few outputs and a large kernel; gathering the patches and multiplying once is
    the same numbers, and on CPU, where it is done, its gradient is two orders of magnitude faster.

    Attributes:
      features: channels of the output.
      kernel_size: cells of the patch's side.
      batch_norm: as in `Conv`.
    """

    features: int
    kernel_size: int
    batch_norm: bool = False
    relu: bool = True

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Map [*B, H, W, C] to [*B, H - K + 1, W - K + 1, features]."""
        size = self.kernel_size
        height, width = (extent - size + 1 for extent in x.shape[-3:-1])
        if height < 1 or width < 1:
            raise UserError(
                f"a map of {x.shape[-3]}x{x.shape[-2]} cells is smaller than the {size}x{size} "
                "patch of the first fully connected layer: the image is too small"
            )
        he = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        kernel = self.param("kernel", he, (size, size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        weights, precision = kernel.astype(x.dtype), operations.default_precision()
        if height == width == 1:  # the patch is the map: a region's bins, say
            patch = x.reshape(*x.shape[:-3], 1, 1, size * size * x.shape[-1])
            sums = _multiply(patch, weights.reshape(-1, self.features), precision)
        else:
            sums = _slide(x, weights, precision)
        return _finish(self, sums, bias, train, x.dtype)


class Upsample(nn.Module):
    """A transposed convolution with a kernel of its own, where a bilinear one will not do.

    Attributes:
      kernel_size: pixels of the filter's side.
      stride: pixels between two cells.
    """

    kernel_size: int
    stride: int

    @nn.compact
    def __call__(self, x, shape: tuple[int, int], offset: int):
        """Map f32[*B, h, w, C] to f32[*B, H, W, C]; see `operations.upsample_dense`."""
        channels = x.shape[-1]
        he = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        kernel = self.param("kernel", he, (self.kernel_size,) * 2 + (channels, channels))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        x = operations.upsample_dense(x, kernel, shape, stride=self.stride, offset=offset)
        return x + bias.reshape((1,) * (x.ndim - 1) + (-1,))


def _finish(module, sums, bias, train, dtype):
    """Add the bias to f32[*B, H, W, D], normalise while training, and rectify, as `module` says."""
    x = sums + bias.reshape((1,) * (sums.ndim - 1) + (-1,))
    if module.batch_norm:
        x = nn.BatchNorm(use_running_average=not train, momentum=0.95, name="bn")(x)
    return jax.nn.relu(x).astype(dtype) if module.relu else x


def fold_batch_norm(parameters, statistics, *, epsilon: float = 1e-5):
    """Fold batch normalisation into the layers before it.

    Args:
      parameters: nested dict of a network built with `batch_norm=True`.
      statistics: its `batch_stats`.
      epsilon: what the normalisation added to the variance.

    Returns:
      Parameters of the same network with `batch_norm=False`: equal outputs.
    """
    if "bn" not in parameters:
        return {
            name: fold_batch_norm(child, statistics.get(name, {}), epsilon=epsilon)
            if isinstance(child, dict)
            else child
            for name, child in parameters.items()
        }
    norm, running = parameters["bn"], statistics["bn"]
    gain = norm["scale"] / jnp.sqrt(running["var"] + epsilon)
    kernel = parameters["kernel"]
    return {
        "kernel": kernel * gain.reshape((1,) * (kernel.ndim - 1) + (-1,)),
        "bias": (parameters["bias"] - running["mean"]) * gain + norm["bias"],
    }
