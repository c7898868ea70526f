"""PyTorch's modules compiled into JAX by torchax; their parameters and buffers are the leaves.

torchax runs a module's own code on tensors that hold what JAX traces. Some of it is replaced here:

- its convolutions, pools and resizing, which are slow on CPU, their gradients above all, and most
  inside compiled loops;
- its transposed convolution of groups, which is wrong;
- torchvision's RoIAlign, which it lacks;
- gradients, which it lets pass through what was detached;
- what a module keeps for its next call, which would be traced values;
- tensors that are neither parameters nor buffers, or that are made without a device, which it does
  not mix with others.

The result is compared with PyTorch's own, once.

Shapes: `B` images, `H W` cells, `C D` channels, `K` kernel size.
"""

import contextlib
import copy
import functools
import importlib
import importlib.metadata
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from dag_jax.adapters import checks, layers, regions
from dag_jax.errors import UserError, optional_import
from dag_jax.networks import operations, planes

_TOGETHER = "torchax 0.0.13 with torch 2.12.1 and jax 0.10.2"
_PARTS = ("torchax", "torch", "jax")
# How far outputs and the gradient may be from PyTorch's, in the norm, in single and in half
# precision. Rounding changes outputs by 1e-5, and a gradient that passes ties of ReLUs by 1e-2.
_APART = {"scores": (1e-3, 5e-2), "a gradient": (2e-1, 3e-1)}


def compiled(module: Any, output: Any, *, title: str) -> tuple[Callable, dict]:
    """Return (forward, variables) of a module, as `compiled.around` takes them.

    Args:
      module: a torch.nn.Module in evaluation mode, of one image as its argument.
      output: what `forward` returns of its outputs, as of `from_torch`.
      title: of the module.

    Raises:
      ValueError: without a torchax that works, and for a module in training mode. `forward` raises
        one for outputs that are not there, and for those that are no floats.
    """
    environment = _environment()
    checks.check_mode(module, title)
    torch = importlib.import_module("torch")
    states, stands_in, names = {}, {}, {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        states[name] = jnp.array(_to_numpy(tensor))
        stands_in[id(tensor)] = tensor.detach().to("meta")
        names[id(stands_in[id(tensor)])] = name
    # What the module is now, with something of no memory for each tensor that is a leaf.
    with environment:
        module = copy.deepcopy(module, stands_in)
    for part in module.modules():
        if type(part).__name__ == "MultiScaleRoIAlign" and regions.pools_levels(part):
            part.forward = _level_pool(environment, part)
    floats = (state.dtype for state in states.values() if jnp.issubdtype(state.dtype, jnp.floating))
    dtype = next(floats, jnp.dtype(jnp.float32))

    def forward(states, x):
        with contextlib.ExitStack() as stack:
            # What the module makes without saying where is made as if on a device of JAX's.
            for context in (
                warnings.catch_warnings(),
                torch.enable_grad(),
                environment,
                torch.device("jax"),
            ):
                stack.enter_context(context)
            # PyTorch's indices are of 64 bits, and become 32.
            warnings.filterwarnings("ignore", "Explicitly requested dtype int64")
            tensors = {place: environment.j2t_iso(states[name]) for place, name in names.items()}
            # What a module keeps for its next call was traced, and goes with this copy.
            module_copy = copy.deepcopy(module, tensors)
            outputs = environment.t2j_iso(module_copy(environment.j2t_iso(x.astype(dtype))))
        picked = []
        for which, index in checks.picks(output, title).items():
            each = checks.pick(outputs, index, title)
            checks.check_floating(jnp.issubdtype(each.dtype, jnp.floating), each.dtype, which)
            picked.append(each)
        return tuple(picked) if isinstance(output, tuple) else picked[0]

    return forward, states


def _to_numpy(tensor):
    """Return a copy of a tensor as an array; NumPy has no bfloat16."""
    tensor = tensor.detach().cpu()
    if "bfloat16" in str(tensor.dtype):
        return np.array(tensor.float().numpy(), jnp.bfloat16)
    return np.array(tensor.numpy())


def compare(
    function: Callable,
    image: Float[np.ndarray, "H W 3"],
    outputs: Sequence[np.ndarray],
    pull: Callable,
    title: str,
) -> None:
    """Compare what is compiled of a module with what PyTorch computes.

    Args:
      function: from `compiled.around`, of what `compiled` returns here.
      image: f32[H, W, 3], grey levels.
      outputs: PyTorch's own.
      pull: PyTorch's own function of the image and of an array for each output -> gradient.
      title: of the module.

    Raises:
      ValueError: where torchax cannot trace the module, or gets another output or gradient.
    """
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=output.shape).astype(np.float32) for output in outputs]

    @jax.jit
    def look(function, image):
        results, back = jax.vjp(lambda image: jax.tree.leaves(function(image)), image)
        return results, back(weights)[0]

    try:
        # A GPU and a TPU round factors unless they are told not to: here operators are compared.
        with jax.default_matmul_precision("highest"):
            results, gradient = look(function, image)
    except UserError:
        raise
    except Exception as error:  # PyTorch has just run the module: it is torchax that cannot
        first = str(error).strip().partition("\n")[0]
        raise UserError(
            f"torchax cannot trace {title} ({type(error).__name__}: {first:.200}); "
            "via='callback' takes any module"
        ) from error
    half = any(leaf.dtype.itemsize == 2 for leaf in jax.tree.leaves(function))
    pairs = [("scores", *pair) for pair in zip(results, outputs, strict=True)]
    pairs.append(("a gradient", gradient, pull(image, weights)))
    for quantity, ours, theirs in pairs:
        apart = np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), np.float32(1e-30))
        if not apart <= _APART[quantity][half]:
            raise UserError(
                f"{title} compiled by torchax has {quantity} other than PyTorch's own, by "
                f"{apart:.1g} of their norm; via='callback' runs PyTorch itself"
            )


def _level_pool(environment, pooler):
    """Return what a torchvision MultiScaleRoIAlign does, of tensors that hold JAX's arrays."""

    def pool(maps, boxes, shapes):
        maps = [each for name, each in maps.items() if name in pooler.featmap_names]
        maps, boxes = environment.t2j_iso((maps, boxes))
        shape = tuple(max(sides) for sides in zip(*shapes, strict=True))
        options = {"size": pooler.output_size[0], "samples": pooler.sampling_ratio}
        return environment.j2t_iso(regions.pool_levels(maps, boxes, shape, **options))

    return pool


@functools.cache
def _environment():
    """Return the place in which torchax runs modules, with operators of ours.

    Raises:
      ValueError: where torchax is not there, or does not work with the PyTorch or JAX that is.
    """
    with optional_import("torchax"):
        try:
            tensor = importlib.import_module("torchax.tensor")
        except ModuleNotFoundError:
            raise
        except (AttributeError, ImportError, RuntimeError) as error:
            versions = [f"{name} {importlib.metadata.version(name)}" for name in _PARTS]
            raise UserError(
                f"torchax cannot be imported ({error!s:.80}): {_TOGETHER} work together, and here "
                f"are {', '.join(versions)}"
            ) from error
    torch = importlib.import_module("torch")

    class Environment(tensor.Environment):
        """Does not differentiate what PyTorch does not; copies of other tensors are JAX's."""

        def dispatch(self, func, types, args, kwargs):
            if func is torch.Tensor.__deepcopy__:
                (each,) = args[:1]
                is_torchax = isinstance(each, tensor.Tensor)
                return self.j2t_iso(each.jax() if is_torchax else jnp.array(_to_numpy(each)))
            if str(func) == "torchvision.roi_align.default":  # there once torchvision is imported
                override(func, regions.roi_align)
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

    aten, jaten = torch.ops.aten, importlib.import_module("torchax.ops.jaten")
    override(aten.detach.default, lax.stop_gradient)
    override(aten.convolution.default, functools.partial(_convolve, jaten._aten_convolution))
    override(aten.upsample_bilinear2d.default, _resize)
    theirs = importlib.import_module("torchax.ops.jtorch")._functional_max_pool2d
    override(torch.nn.functional.max_pool2d, functools.partial(_max_pool, theirs))
    return environment


def _max_pool(
    theirs, x, size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
):
    """Return torch.nn.functional.max_pool2d; `theirs` does what the project's own does not."""
    stride = size if stride is None else stride
    squares = [
        {number} if isinstance(number, int) else {*number} for number in (size, stride, padding)
    ]
    supported = (
        x.ndim == 4 and dilation in (1, (1, 1)) and all(len(square) == 1 for square in squares)
    )
    if not supported or return_indices:
        return theirs(x, size, stride, padding, dilation, ceil_mode, return_indices)
    size, stride, padding = (number for square in squares for number in square)
    x = x.transpose(0, 2, 3, 1)
    if ceil_mode:
        y = operations.max_pool(x, size=size, stride=stride, padding=padding)
    else:
        y = layers.max_pool(x, size=size, stride=stride, pads=((padding, padding),) * 2)
    return y.transpose(0, 3, 1, 2)


def _resize(x, shape, align_corners, *scales):
    """Return aten::upsample_bilinear2d of [B, C, H, W]."""
    matrices = []
    for size, cells, scale in zip(shape, x.shape[2:], scales or (None, None), strict=True):
        if align_corners:
            matrices.append(planes.corners_matrix(size, cells).astype(x.dtype))
            continue
        places = np.maximum(
            0, (np.arange(size) + 0.5) * (1 / scale if scale else cells / size) - 0.5
        )
        places = np.minimum(places, cells - 1)[:, None]
        weights = np.maximum(0, 1 - np.abs(places - np.arange(cells)))
        matrices.append(weights.astype(x.dtype))
    return planes.resize(x, *matrices)


def _convolve(theirs, x, kernel, bias, *geometry):
    """Return aten::convolution; `theirs` does what the project's own do not."""
    *geometry, transposed, output_padding, groups = geometry
    if transposed and groups > 1:  # as one, of a kernel that is zero between groups
        kernel = kernel.reshape(groups, -1, 1, *kernel.shape[1:])
        apart = np.eye(groups, dtype=bool).reshape(groups, 1, groups, *(1,) * (kernel.ndim - 3))
        kernel = jnp.where(apart, kernel, 0)
        kernel = kernel.reshape(x.shape[1], -1, *kernel.shape[4:])
        groups = 1
    y = None
    if x.ndim == kernel.ndim == 4:
        y = _fast(x.transpose(0, 2, 3, 1), kernel, *geometry, transposed, output_padding, groups)
    if y is None:
        return theirs(x, kernel, bias, *geometry, transposed, output_padding, groups)
    y = y.transpose(0, 3, 1, 2).astype(x.dtype)
    return y if bias is None else y + bias[None, :, None, None]


def _fast(x, kernel, strides, paddings, dilations, transposed, output_padding, groups):
    """Return f32[B, H', W', D] of [B, H, W, C], or None where there is nothing of the project's."""
    if transposed:
        stride, padding = strides[0], paddings[0]
        alike = all(len({*pair}) == 1 for pair in (kernel.shape[2:], strides, dilations, paddings))
        if not alike or dilations[0] > 1 or max(output_padding) > padding:
            return None
        shape = tuple(
            (side - 1) * stride + kernel.shape[2] - 2 * padding + extra
            for side, extra in zip(x.shape[1:3], output_padding, strict=True)
        )
        kernel = kernel.transpose(2, 3, 0, 1)
        return operations.upsample_dense(x, kernel, shape, stride=stride, offset=padding)
    return layers.convolve(
        x,
        kernel.transpose(2, 3, 1, 0),
        strides=strides,
        pads=tuple((pad, pad) for pad in paddings),
        dilations=dilations,
        groups=groups,
    )
