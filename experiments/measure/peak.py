"""What part of a device's matrix peak a network's layers reach.

The peak is that of one large product of matrices in the same process, in turns with what is
measured. All devices work at the same time, as they do in a stream.

Shapes: `D` devices.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import dag_jax
from dag_jax.networks import layers
from dag_jax.progress import progress
from experiments.measure import iterations, kernels, timing

SIDE = {"cpu": 1024}, 8192  # of the matrices, by platform
SHOWN = 0.05  # of an iteration's time, what a layer with a row of its own takes at least


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A layer as a network calls it.

    Attributes:
      name: its own.
      module: a `layers.Conv` or `layers.PatchDense` by itself.
      shape: of its input.
      padding: an argument of its call, or None.
    """

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    padding: object

    def __call__(self, x, kernel, bias):
        """Apply it."""
        more = {} if self.padding is None else {"padding": self.padding}
        return self.module.apply({"params": {"kernel": kernel, "bias": bias}}, x, **more)

    def weights(self):
        """Return the shapes of its kernel and its bias."""
        x = jax.ShapeDtypeStruct(self.shape, jnp.float32)
        parameters = jax.eval_shape(self.module.init, jax.random.key(0), x)["params"]
        return parameters["kernel"].shape, parameters["bias"].shape

    def flops(self):
        """Return the flops of its products: forward, and its input's gradient."""
        shapes = self.shape, *self.weights()
        x, kernel, bias = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
        *cells, _ = jax.eval_shape(self, x, kernel, bias).shape
        return 2 * 2 * math.prod(cells) * math.prod(kernel.shape)


def layers_of(network, image) -> list[Layer]:
    """Return the layers of a segmenter with kernels, in the order of their calls.

    Of the calls of a layer it is the largest: others are of what borders have in common.
    """
    calls: dict[str, Layer] = {}

    def note(call, args, options, context):
        module = context.module
        if (
            isinstance(module, layers.Conv | layers.PatchDense)
            and context.method_name == "__call__"
        ):
            x, *more = args
            padding = more[1] if len(more) > 1 else options.get("padding")
            name, known = module.name, calls.get(module.name)
            if known is None or math.prod(known.shape) < math.prod(x.shape):
                calls[name] = Layer(name, module.clone(parent=None), x.shape, padding)
        return call(*args, **options)

    with nn.intercept_methods(note):
        # Not `scores`, which is compiled and may be known already.
        jax.eval_shape(network.module.apply, {"params": network.parameters}, image)
    return list(calls.values())


def on_each(function, mesh, *arrays):
    """Return a function of no arguments that runs one of pytrees on all devices at once."""
    mesh = Mesh(mesh.devices, mesh.axis_names)  # whatever kind of axes it had
    axis = P(mesh.axis_names)

    def run(*parts):
        results = function(*jax.tree.map(lambda leaf: leaf[0], parts))
        return jax.tree.map(lambda leaf: leaf[None], results)

    def put(leaf):
        copies = np.broadcast_to(leaf, (mesh.size, *np.shape(leaf)))
        return jax.device_put(copies, NamedSharding(mesh, axis))

    options = {"in_specs": axis, "out_specs": axis, "check_vma": False}
    mapped = jax.jit(jax.shard_map(run, mesh=mesh, **options))
    return functools.partial(mapped, *jax.tree.map(put, arrays))


def product(mesh, precision="float32", side=None):
    """Return a function of no arguments that multiplies matrices on each device, and its flops.

    Args:
      mesh: devices.
      precision: one of `networks.PRECISIONS`.
      side: rows of the square matrices; None is the platform's.
    """
    known, default = SIDE
    side = side or known.get(mesh.devices.flat[0].platform, default)
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    matrix = np.random.default_rng(0).standard_normal((side, side), np.float32).astype(dtype)
    algorithm = "tensorfloat32" if precision == "tf32" else "highest"
    multiply = functools.partial(jnp.matmul, precision=algorithm)
    return on_each(multiply, mesh, matrix, matrix), 2 * side**3


def share(function, flops, peak, pairs) -> tuple[float, float]:
    """Return (median seconds of a function of no arguments, its share of the peak).

    Args:
      function: what is compared.
      flops: of it, on each device.
      peak: from `product`.
      pairs: how often both are timed in turns.
    """
    multiply, flops_of_product = peak
    compared = timing.compare(timing.alternate([multiply, function], pairs))
    return compared["seconds"][1], flops / flops_of_product * compared["ratio"]


def measure(name, *, mesh, size, pairs, side=None):
    """Return rows: milliseconds and share of the peak of an iteration, and of its layers.

    Args:
      name: of an FCN.
      mesh: from `console.open_mesh`.
      size: pixels of the image's side.
      pairs: as in `share`.
      side: as in `product`.
    """
    peak, loops = product(mesh, side=side), kernels.ITERATIONS
    problem = iterations.problem(name, miniature=True, size=size)
    method = iterations.EVERY_TARGET.replace(max_steps=loops - 1)  # the last one only scores
    attack = functools.partial(dag_jax.attack, method=method)
    measured = []
    for layer in progress(
        layers_of(problem.model, problem.image), desc=name, position=2, leave=False
    ):
        kernel = kernels.Kernel(layer.name, layer, layer, layer.shape, layer.weights())
        run = on_each(kernels.value_and_gradient(layer, looped=True), mesh, *kernels.arrays(kernel))
        flops = layer.flops()
        measured.append((layer.name, flops, *share(run, loops * flops, peak, pairs)))
    flops = sum(flops for _, flops, *_ in measured)
    run = on_each(attack, mesh, *problem.arguments)
    whole, share_of_whole = share(run, loops * flops, peak, pairs)

    def row(part, flops, seconds, of_peak):
        return {
            "case": problem.case,
            "part": part,
            "ms": 1000 * seconds / loops,
            "time": seconds / whole,
            "flops": flops,
            "peak": of_peak,
            "pairs": pairs,
        }

    rows = [row("an iteration", flops, whole, share_of_whole)]
    small = []
    for name_of_layer, flops, seconds, of_peak in measured:
        if seconds < SHOWN * whole:
            small.append((flops, seconds, of_peak))
        else:
            rows.append(row(name_of_layer, flops, seconds, of_peak))
    if small:
        flops, seconds = (sum(column) for column in list(zip(*small, strict=True))[:2])
        # At the peak they would take the sum of their times at the share that each reaches.
        ideal = sum(seconds * of_peak for _, seconds, of_peak in small)
        rows.append(row(f"{len(small)} smaller layers", flops, seconds, ideal / seconds))
    rest = whole - sum(seconds for _, _, seconds, _ in measured)
    return [*rows, row("all else", None, rest, None)]
