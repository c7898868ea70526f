"""The project's convolutions and max pools in the place of others'.

On a CPU those of XLA are slow inside a compiled loop, and their gradients slower.

Shapes: `B` images, `H W` cells, `C D` channels, `K` kernel size.
"""

import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from dag_jax.errors import UserError
from dag_jax.networks import depthwise, operations

_FEW = 8  # groups that are convolved one by one


def convolve(x, kernel, *, strides, pads, dilations, groups, precision=None):
    """Return the convolution of a map, or None where the project has nothing for it.

    Args:
      x: f32[B, H, W, C].
      kernel: f32[K, K, C / groups, D].
      strides: cells between two outputs along each axis.
      pads: ((above, below), (left, right)), zero cells.
      dilations: cells between two that the kernel reads, along each axis.
      groups: parts that channels are in.
      precision: as of `operations.convolve`.

    Returns:
      f32[B, H', W', D].
    """
    (stride, *_), (dilation, *_), size = strides, dilations, kernel.shape[0]
    alike = all(len(set(pair)) == 1 for pair in (kernel.shape[:2], strides, dilations))
    if not alike or (stride > 1 and dilation > 1) or min(map(min, pads)) < 0:
        return None
    geometry = {"stride": stride, "dilation": dilation}
    if 1 < groups == x.shape[3] == kernel.shape[3]:
        if len({*pads[0], *pads[1]}) > 1:
            x, pads = jnp.pad(x, ((0, 0), *pads, (0, 0))), ((0, 0), (0, 0))
        return depthwise.convolve(x, kernel[:, :, 0], padding=pads[0][0], **geometry)
    if groups > _FEW:
        return None
    if size == 1 and not any(map(any, pads)):
        x, geometry["stride"] = x[:, ::stride, ::stride], 1
    geometry |= {"padding": tuple(map(tuple, pads)), "precision": precision}
    parts = zip(jnp.split(x, groups, axis=3), jnp.split(kernel, groups, axis=3), strict=True)
    sums = [operations.convolve(*part, **geometry) for part in parts]
    return jnp.concatenate(sums, axis=3)


def max_pool(x, *, size: int, stride: int, pads: Sequence[tuple[int, int]]):
    """Return the maxima f32[B, H', W', C] of whole windows of f32[B, H, W, C].

    Args:
      x: the map.
      size: cells of a window's side.
      stride: cells between two windows.
      pads: ((above, below), (left, right)), cells of minus infinity.
    """
    config = []
    for side, (before, after) in zip(x.shape[1:3], pads, strict=True):
        # `operations.max_pool` has a window for what is left over: it gets what whole ones cover.
        covered = (side + before + after - size) // stride * stride + size
        config.append((before, covered - side - before, 0))
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), *config, (0, 0, 0)))
    return operations.max_pool(x, size=size, stride=stride)


def with_fast_layers(function: Callable) -> Callable:
    """Return a function of JAX whose convolutions and max pools are the project's, on a CPU.

    They are faster inside an attack's loop; last bits differ. What has no counterpart here, or is
    inside loops, `jax.checkpoint` and functions with a derivative of their own, stays as it is; on
    a GPU and a TPU everything does.

    Args:
      function: of pytrees, such as the forward pass of a Flax or Equinox module and an image. In
        `jax.tree_util.Partial(function, module)` it is what is wrapped: the arrays of a function
        that is wrapped with them are constants.

    Returns:
      A function that raises a ValueError where the given one changes its arguments, on a CPU.
    """

    def fast(*args):
        if jax.default_backend() != "cpu":
            return function(*args)
        leaves, structure = jax.tree.flatten(args)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)]

        def of_arrays(*arrays):
            filled = dict(enumerate(leaves)) | dict(zip(places, arrays, strict=True))
            given = jax.tree.unflatten(structure, filled.values())
            before = jax.tree.leaves(given)
            outputs = function(*given)
            after = jax.tree.leaves(given)
            if len(after) != len(before) or any(map(operator.is_not, after, before)):
                raise UserError(
                    "the function changes its arguments, as a module in training mode does "
                    "(dropout, batch normalisation): call module.eval() first"
                )
            return outputs

        arrays = [leaves[i] for i in places]
        program, shapes = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
        return jax.tree.unflatten(jax.tree.structure(shapes), _run(program, arrays))

    return fast


def _run(program, inputs) -> list:
    """Return the outputs of a jaxpr, of whose equations some are replaced."""
    jaxpr = program.jaxpr
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*program.consts, *inputs), strict=True))

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        outputs = None
        if equation.primitive.name in _REPLACED:
            operands = map(read, equation.invars)
            outputs = _REPLACED[equation.primitive.name](equation, *operands)
        if outputs is None:
            names = [atom for atom in equation.invars if not isinstance(atom, core.Literal)]
            names = list(dict.fromkeys(names))
            about = core.DebugInfo("with_fast_layers", equation.primitive.name, None, None)
            alone = core.Jaxpr((), names, equation.outvars, [equation], equation.effects, about)
            run = core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))
            outputs = run(*map(read, names))
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _compiled(equation, *inputs):
    """Return the outputs of a function that was compiled by itself."""
    return _run(equation.params["jaxpr"], inputs)


def _convolution(equation, x, kernel):
    params = equation.params
    if x.ndim != 4 or {*params["lhs_dilation"]} != {1} or params["batch_group_count"] != 1:
        return None
    image, weights, scores = params["dimension_numbers"]
    y = convolve(
        x.transpose(image[0], *image[2:], image[1]),
        kernel.transpose(*weights[2:], weights[1], weights[0]),
        strides=params["window_strides"],
        pads=params["padding"],
        dilations=params["rhs_dilation"],
        groups=params["feature_group_count"],
        precision=params["precision"],
    )
    if y is None:
        return None
    places = np.argsort((scores[0], *scores[2:], scores[1]))
    return [y.transpose(places).astype(equation.outvars[0].aval.dtype)]


def _max_window(equation, x):
    params = equation.params
    windows, strides, pads = (
        params[f"window_{name}"] if name != "padding" else params[name]
        for name in ("dimensions", "strides", "padding")
    )
    wide = [axis for axis, size in enumerate(windows) if size > 1]
    spread = {*params["base_dilation"], *params["window_dilation"]} != {1}
    if x.ndim != 4 or wide not in ([1, 2], [2, 3]) or spread or x.dtype not in _FLOATS:
        return None
    others = [axis for axis in range(4) if axis not in wide]
    squares = len({windows[axis] for axis in wide}) == len({strides[axis] for axis in wide}) == 1
    if not squares or any(strides[axis] != 1 or any(pads[axis]) for axis in others):
        return None
    order = (others[0], *wide, others[1])
    geometry = {"size": windows[wide[0]], "stride": strides[wide[0]]}
    y = max_pool(x.transpose(order), pads=[pads[axis] for axis in wide], **geometry)
    return [y.transpose(np.argsort(order))]


_FLOATS = (jnp.float32, jnp.bfloat16, jnp.float16)
_REPLACED: dict[str, Callable] = {
    "conv_general_dilated": _convolution,
    "reduce_window_max": _max_window,
    **dict.fromkeys(("jit", "pjit"), _compiled),
}
