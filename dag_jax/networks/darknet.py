"""A network as darknet's `.cfg` describes it, with batch norm folded into its convolutions.

Shapes: `*B` no axis or one batch axis, `H W` pixels that the network reads, `h w` cells of a map.

Reference: https://github.com/AlexeyAB/darknet, src/*_layer.c.
"""

import functools
import operator

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from dag_jax.networks import depthwise, operations, resizing
from dag_jax.weights import darknet_cfg

_ACTIVATIONS = {
    "linear": lambda x: x,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky": functools.partial(jax.nn.leaky_relu, negative_slope=0.1),
    "logistic": jax.nn.sigmoid,
    "mish": jax.nn.mish,
    "swish": jax.nn.swish,
}


class Convolution(nn.Module):
    """One of a network's convolutions."""

    layer: darknet_cfg.Convolution

    @nn.compact
    def __call__(self, x):
        """Map f32[*B, h, w, channels] to f32[*B, h', w', filters]."""
        layer = self.layer
        shape = (layer.size, layer.size, layer.channels // layer.groups, layer.filters)
        he = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        kernel = self.param("kernel", he, shape)
        bias = self.param("bias", nn.initializers.zeros, (layer.filters,))
        geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        if layer.size == layer.stride == layer.groups == 1 and not layer.padding:
            x = x @ kernel[0, 0]
        elif layer.groups == layer.channels == layer.filters:
            x = depthwise.convolve(x, kernel[:, :, 0], **geometry)
        else:
            parts = (jnp.split(array, layer.groups, axis=-1) for array in (x, kernel))
            convolved = [
                operations.convolve(part, weights, **geometry)
                for part, weights in zip(*parts, strict=True)
            ]
            x = jnp.concatenate(convolved, axis=-1)
        x = x + bias.reshape((1,) * (x.ndim - 1) + (-1,))
        return _ACTIVATIONS[layer.activation](x)


def _max_pool(x, layer):
    first = layer.padding // 2
    config = [(0, 0, 0)] * (x.ndim - 3)
    for side in x.shape[-3:-1]:
        cells = (side + layer.padding - layer.size) // layer.stride + 1
        config.append((first, (cells - 1) * layer.stride + layer.size - side - first, 0))
    x = lax.pad(x, jnp.float32(-jnp.inf), (*config, (0, 0, 0)))
    return operations.max_pool(x, size=layer.size, stride=layer.stride)


class Darknet(nn.Module):
    """A network; its parameters are {"conv<index>": {"kernel", "bias"}}.

    Attributes:
      cfg: its layers.
    """

    cfg: darknet_cfg.Cfg

    @nn.compact
    def __call__(self, image):
        """Return the map that each of `cfg.heads` reads.

        Args:
          image: f32[*B, H, W, 3], RGB from 0 to 1, of `cfg.shape`.

        Returns:
          List of f32[*B, h, w, A (5 + classes)].
        """
        maps, heads = [image], []  # maps[i + 1] is the result of layer i
        for index, layer in enumerate(self.cfg.layers):
            x = maps[-1]
            match layer:
                case darknet_cfg.Convolution():
                    x = Convolution(layer, name=f"conv{index}")(x)
                case darknet_cfg.Shortcut():
                    x = functools.reduce(operator.add, (maps[i + 1] for i in layer.sources))
                    x = _ACTIVATIONS[layer.activation](x)
                case darknet_cfg.Route():
                    x = jnp.concatenate(
                        [
                            jnp.split(maps[i + 1], layer.parts, axis=-1)[layer.part]
                            for i in layer.sources
                        ],
                        axis=-1,
                    )
                case darknet_cfg.Upsample():
                    x = resizing.enlarge(x, layer.stride)
                case darknet_cfg.MaxPool():
                    x = _max_pool(x, layer)
                case darknet_cfg.Head():
                    heads.append(x)
            maps.append(x)
        return heads
