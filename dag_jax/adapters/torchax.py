"""PyTorch's modules compiled by JAX: torchax turns each of their operations into JAX's.

What torchax lacks is mended here, in an environment of its own:

    convolutions   are this project's, whose gradients stay fast inside compiled loops
    detach, no_grad  stop the gradient, as in PyTorch; torchax passes it on
    promotion      is NumPy's inside, whatever the caller's is
    state          each trace runs on a copy of the module: what a module keeps between calls, such
                   as anchors, would be tracers of a trace that has ended
    tensors        that are no parameters and no buffers become constants of JAX's

Shapes: `H W` pixels of an image.
"""

import contextlib
import copy
import dataclasses
import functools
import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from dag_jax.errors import UserError
from dag_jax.networks import depthwise, operations

_NEEDS = "torchax 0.0.13, which works with PyTorch 2.12: pip install 'dag-jax[torchax]'"
# How far scores and the gradient may be from PyTorch's own, in the norm. Rounding leaves 1e-5 of
# scores, and 1e-2 of a gradient that passes ties of ReLUs and pools; half precision more.
_APART = {"scores": (1e-3, 5e-2), "a gradient": (1e-1, 3e-1)}


@functools.cache
def _environment() -> Any:
    """Return torchax's environment, mended; tensors of it are made by `wrap`.

    Raises:
      ValueError: where torchax is not there, or is not for this PyTorch.
    """
    torch = importlib.import_module("torch")
    try:
        tensor: Any = importlib.import_module("torchax").tensor
    except (ImportError, AttributeError) as error:
        reason = f"with PyTorch {torch.__version__} it says: {error!s:.200}"
        raise UserError(f"via='torchax' needs {_NEEDS}; {reason}") from error

    base: Any = tensor.Environment

    class Environment(base):
        def wrap(self, array):
            return tensor.Tensor(array, self)

        def dispatch(self, func, types, args, kwargs):
            if func is torch.Tensor.__deepcopy__:  # while a module is copied
                (each,) = args[:1]
                ours = isinstance(each, tensor.Tensor)
                return self.wrap(each.jax() if ours else jnp.array(_to_numpy(each)))
            result = super().dispatch(func, types, args, kwargs)
            if torch.is_grad_enabled():
                return result
            return torch.utils._pytree.tree_map_only(tensor.Tensor, self.stop, result)

        def stop(self, each):
            return self.wrap(lax.stop_gradient(each.jax()))

    environment, aten = Environment(), torch.ops.aten
    operators = environment._ops
    for name, function in (
        (aten.convolution, _convolution(operators[aten.convolution].func)),
        (aten.detach, lax.stop_gradient),
    ):
        operators[name] = dataclasses.replace(operators[name], func=function)
    return environment


def _convolution(fallback):
    def convolve(x, kernel, bias, stride, padding, dilation, transposed, output_padding, groups):
        """Take the arguments of aten.convolution; `x` is [B, C, H, W]."""
        sides = (kernel.shape[2:], stride, padding, dilation)
        square = x.ndim == kernel.ndim == 4 and all(len({*pair}) == 1 for pair in sides)
        if transposed or not square or min(stride[0], dilation[0]) > 1:
            arguments = (x, kernel, bias, stride, padding, dilation)
            return fallback(*arguments, transposed, output_padding, groups)
        geometry = {"stride": stride[0], "padding": padding[0], "dilation": dilation[0]}
        dtype, x, kernel = x.dtype, x.transpose(0, 2, 3, 1), kernel.transpose(2, 3, 1, 0)
        if groups == x.shape[-1] == kernel.shape[-1]:
            y = depthwise.convolve(x, kernel[:, :, 0], **geometry)
        else:
            parts = zip(*(jnp.split(each, groups, axis=-1) for each in (x, kernel)), strict=True)
            y = [operations.convolve(part, weights, **geometry) for part, weights in parts]
            y = jnp.concatenate(y, axis=-1)
        y = y if bias is None else y + bias
        return y.astype(dtype).transpose(0, 3, 1, 2)

    return convolve


def _to_numpy(tensor):
    """Return a tensor as an array that is not PyTorch's memory; NumPy has no bfloat16."""
    tensor = tensor.detach().cpu()
    if "bfloat16" in str(tensor.dtype):
        return np.asarray(tensor.float().numpy(), jnp.bfloat16)
    return np.array(tensor.numpy())


class _Traced:
    """What of a module is no array; two of them are the same where they are one object."""

    def __init__(self, module, names, pipeline, single):
        self._module, self._names = module, names  # {id of a placeholder in the module: name}
        self._pipeline, self._single = pipeline, single

    def __call__(self, arrays, image):
        torch, environment = importlib.import_module("torch"), _environment()
        with contextlib.ExitStack() as stack:
            for context in (
                warnings.catch_warnings(),
                jax.numpy_dtype_promotion("standard"),
                jax.numpy_rank_promotion("allow"),
                torch.enable_grad(),
                environment,
                torch.device("jax"),  # where what the module makes lies
            ):
                stack.enter_context(context)
            # PyTorch's whole numbers have 64 bits, JAX's 32.
            warnings.filterwarnings("ignore", "Explicitly requested dtype")
            tensors = {place: environment.wrap(arrays[name]) for place, name in self._names.items()}
            image = jnp.asarray(image).astype(jnp.float32)
            module = copy.deepcopy(self._module, tensors)
            inputs = map(environment.wrap, (image, arrays["mean"], arrays["std"]))
            outputs = self._pipeline.run(module, *inputs)
            results = [each.jax().astype(jnp.float32) for each in outputs]
        return results[0] if self._single else tuple(results)


def trace(module: Any, pipeline: Any, *, single: bool) -> Callable:
    """Return a module as a function of JAX, whose leaves are its parameters and buffers.

    Args:
      module: a torch.nn.Module.
      pipeline: from `torch.Pipeline`.
      single: whether there is one output, and no tuple of them.

    Returns:
      A `jax.tree_util.Partial`, image f32[H, W, 3] -> the outputs as float32.

    Raises:
      ValueError: where torchax is not there, or is not for this PyTorch.
    """
    environment = _environment()
    arrays = {"mean": jnp.array(pipeline.mean), "std": jnp.array(pipeline.std)}
    placeholders, names = {}, {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        arrays[f"module.{name}"] = jnp.array(_to_numpy(tensor))
        placeholders[id(tensor)] = tensor.detach().to("meta")
        names[id(placeholders[id(tensor)])] = f"module.{name}"
    # A copy is what the module is now, and holds none of its memory.
    with jax.numpy_dtype_promotion("standard"), environment:
        module = copy.deepcopy(module, placeholders)
    return jax.tree_util.Partial(_Traced(module, names, pipeline, single), arrays)


def compare(
    function: Callable,
    image: Float[np.ndarray, "H W 3"],
    outputs: Sequence[np.ndarray],
    pull: Callable,
    title: str,
) -> None:
    """Raise a UserError where what JAX compiles of a module is not what PyTorch computes.

    Args:
      function: from `trace`.
      image: f32[H, W, 3], grey levels.
      outputs: PyTorch's own.
      pull: PyTorch's own function of the image and of an array for each output -> gradient.
      title: what tables call the module.
    """
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=each.shape).astype(np.float32) for each in outputs]

    @jax.jit
    def both(function, image):
        results, back = jax.vjp(function, image)
        pulled = back(jax.tree.unflatten(jax.tree.structure(results), weights))[0]
        return jax.tree.leaves(results), pulled

    try:
        # A GPU and a TPU round factors unless they are told not to: here operations are tested.
        with jax.default_matmul_precision("highest"):
            results, gradient = both(function, image)
    except UserError:
        raise
    except Exception as error:  # a tracer fails in any way; PyTorch has just run the module
        first = str(error).strip().partition("\n")[0]
        raise UserError(
            f"torchax cannot trace {title} ({type(error).__name__}: {first:.200}); "
            "via='callback' takes any module"
        ) from error
    half = any(leaf.dtype.itemsize == 2 for leaf in jax.tree.leaves(function))
    pairs = [("scores", *pair) for pair in zip(results, outputs, strict=True)]
    pairs.append(("a gradient", gradient, pull(image, weights)))
    for what, ours, theirs in pairs:
        apart = np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), np.float32(1e-30))
        if not apart <= _APART[what][half]:
            raise UserError(
                f"{title} compiled by torchax has {what} other than PyTorch's own, by {apart:.1g} "
                "of their norm; via='callback' runs PyTorch itself"
            )
