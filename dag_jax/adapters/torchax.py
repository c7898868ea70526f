"""PyTorch's modules compiled into JAX by torchax; their parameters and buffers are the leaves.

torchax runs a module's own code on tensors that hold what JAX traces. It is mended here: its
convolutions and pools are slow on CPU, the gradient above all and inside compiled loops most; it
lets gradients pass through what was detached; and modules that keep what they computed for the next
call would keep what was traced.

Shapes: `B` images, `H W` cells, `C D` channels, `K` kernel size.
"""

import contextlib
import functools
import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dag_jax.adapters import checks
from dag_jax.errors import UserError
from dag_jax.networks import depthwise, operations

_TOGETHER = "torchax 0.0.13 with torch 2.12.1 and jax 0.10.2"
_FEW = 8  # groups that are convolved one by one


def compiled(module: Any, output: Any, *, title: str) -> tuple[Callable, dict]:
    """Return (forward, variables) of a module, as `compiled.around` takes them.

    Args:
      module: a torch.nn.Module in evaluation mode, of one image as its argument.
      output: what `forward` returns of its outputs, as of `from_torch`.
      title: of the module.

    Raises:
      ValueError: without a torchax that works. `forward` raises one for a module in training mode,
        for outputs that are not there, and for those that are no floats.
    """
    environment = _environment()
    checks.check_mode(module, title)
    torchax = importlib.import_module("torchax")
    states, call = torchax.extract_jax(module, environment)
    # Copies: what torchax gives may be PyTorch's own memory, which the user may change.
    states = {name: jnp.array(state) for name, state in states.items()}
    floats = (state.dtype for state in states.values() if jnp.issubdtype(state.dtype, jnp.floating))
    dtype = next(floats, jnp.dtype(jnp.float32))
    torch = importlib.import_module("torch")

    def forward(states, x):
        checks.check_mode(module, title)
        with _left_as_it_was(module), torch.enable_grad():
            outputs = call(states, (x.astype(dtype),))
        picked = []
        for which, index in checks.picks(output, title).items():
            each = checks.pick(outputs, index, title)
            checks.check_floating(jnp.issubdtype(each.dtype, jnp.floating), each.dtype, which)
            picked.append(each)
        return tuple(picked) if isinstance(output, tuple) else picked[0]

    return forward, states


@contextlib.contextmanager
def _left_as_it_was(module):
    """Take back what a module keeps in itself, its buffers and its parts: that was traced."""
    kept = [
        (attributes, dict(attributes))
        for part in module.modules()
        for attributes in (part.__dict__, part._buffers)
    ]
    try:
        yield
    finally:
        for attributes, before in kept:
            attributes.clear()
            attributes.update(before)


@functools.cache
def _environment():
    """Return the place in which torchax runs modules, with operators of ours.

    Raises:
      ValueError: where torchax is not there, or does not work with the PyTorch or JAX that is.
    """
    try:
        tensor = importlib.import_module("torchax.tensor")
    except ModuleNotFoundError as error:
        if error.name != "torchax":
            raise
        raise UserError(
            f"via='torchax' needs {_TOGETHER}: pip install 'dag-jax[torchax]'"
        ) from error
    except (AttributeError, ImportError, RuntimeError) as error:
        versions = [f"{name} {importlib.metadata.version(name)}" for name in _PARTS]
        raise UserError(
            f"torchax cannot be imported ({error!s:.80}): {_TOGETHER} work together, and here are "
            f"{', '.join(versions)}"
        ) from error
    torch = importlib.import_module("torch")

    class Environment(tensor.Environment):
        """Does not differentiate what PyTorch does not."""

        def dispatch(self, func, types, args, kwargs):
            outputs = super().dispatch(func, types, args, kwargs)
            if torch.is_grad_enabled():
                return outputs
            stop = lambda leaf: leaf.detach() if isinstance(leaf, tensor.Tensor) else leaf  # noqa: E731
            return torch.utils._pytree.tree_map(stop, outputs)

    environment = Environment()

    def override(operator, function):
        def of_tensors(*arguments, **named):
            arguments, named = environment.t2j_iso((arguments, named))
            return environment.j2t_iso(function(*arguments, **named))

        environment.override_op_definition(operator, of_tensors)

    aten = torch.ops.aten
    jaten = importlib.import_module("torchax.ops.jaten")
    override(aten.detach.default, lax.stop_gradient)
    override(
        aten.convolution.default,
        lambda x, kernel, bias, *geometry: _convolve(
            x, kernel, bias, geometry, jaten._aten_convolution
        ),
    )
    return environment


_PARTS = ("torchax", "torch", "jax")


def _convolve(x, kernel, bias, geometry, otherwise):
    """Return what aten::convolution does of [B, C, H, W] and [D, C / groups, K, K]."""
    y = _fast(x, kernel, *geometry) if x.ndim == kernel.ndim == 4 else None
    if y is None:
        return otherwise(x, kernel, bias, *geometry)
    y = y.transpose(0, 3, 1, 2).astype(x.dtype)
    return y if bias is None else y + bias[None, :, None, None]


def _fast(x, kernel, strides, paddings, dilations, transposed, more, groups):
    """Return f32[B, H', W', D] by the project's own convolutions, or None where these do not do."""
    stride, padding, dilation = strides[0], paddings[0], dilations[0]
    size, alike = kernel.shape[2], [kernel.shape[2:], strides, dilations]
    if any(len(set(pair)) > 1 for pair in alike) or (stride > 1 and dilation > 1):
        return None
    cells = x.transpose(0, 2, 3, 1)
    if transposed:
        shape = tuple(
            (side - 1) * stride + size - 2 * pad + extra
            for side, pad, extra in zip(x.shape[2:], paddings, more, strict=True)
        )
        if groups > 1 or dilation > 1 or len(set(paddings)) > 1 or max(more) > padding:
            return None
        weights = kernel.transpose(2, 3, 0, 1)
        return operations.upsample_dense(cells, weights, shape, stride=stride, offset=padding)
    weights = kernel.transpose(2, 3, 1, 0)
    if groups == x.shape[1] == kernel.shape[0] and len(set(paddings)) == 1:
        geometry = {"stride": stride, "padding": padding, "dilation": dilation}
        return depthwise.convolve(cells, weights[:, :, 0], **geometry)
    if groups > _FEW:
        return None
    if size == 1 and not any(paddings):
        cells, stride = cells[:, ::stride, ::stride], 1
    pads = tuple((pad, pad) for pad in paddings)
    parts = zip(
        jnp.split(cells, groups, axis=3), jnp.split(weights, groups, axis=3), strict=True
    )
    sums = [
        operations.convolve(part, each, stride=stride, padding=pads, dilation=dilation)
        for part, each in parts
    ]
    return jnp.concatenate(sums, axis=3)
