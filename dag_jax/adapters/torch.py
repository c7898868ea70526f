"""PyTorch's modules as ours: PyTorch itself runs forward and backward, JAX calls it.

What is compiled calls back to the host, once for scores and once for their gradient, so that any
module of any version goes in as it is, and the gradient is PyTorch's to the last bit. The graph
that autograd makes of the forward pass is kept for the second call. Preparing
the image is done in PyTorch, too. A module on a GPU works there, but the image goes through the
host; on a TPU callbacks need a host that has PyTorch. The other way is `torchax`: no PyTorch runs.

Shapes: `H W` pixels of the user's image, `h w` cells of a map, `C` classes.
"""

import hashlib
import importlib
import itertools
import threading
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from dag_jax.adapters import checks, compiled, torchax
from dag_jax.adapters.functions import FunctionSegmenter, class_names, from_function
from dag_jax.arrays import Array
from dag_jax.errors import UserError, optional_import

Output = str | int | None
WAYS = ("callback", "torchax")


class TorchFunction:
    """A function of an image that a PyTorch module computes; a pytree without leaves.

    JAX compares it by identity. It keeps the graphs of the last forward passes, one for each device
    of JAX, until they are pulled back or newer ones come.

    Attributes:
      title: what tables call the module.
    """

    def __init__(
        self,
        module: Any,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        layout: str,
        output: Output | tuple[Output, ...],
        size: tuple[int, int] | None,
        title: str,
        count: int | None,
    ):
        """Keep what `from_torch` was given, and how many classes there are."""
        self.title = title
        self._torch = importlib.import_module("torch")
        self._module, self._layout, self._size, self._count = module, layout, size, count
        self._mean, self._std = (
            np.asarray(values, np.float32).reshape(1, 3, 1, 1) for values in (mean, std)
        )
        self._picks, self._single = checks.picks(output, title), not isinstance(output, tuple)
        self._shapes_of: dict[tuple[int, ...], list] = {}
        self._graphs: dict[int, tuple] = {}  # by ticket, oldest first
        self._tickets, self._lock = itertools.count(), threading.Lock()
        self._call = jax.custom_vjp(self._scores)
        self._call.defvjp(self._scores_and_graph, self._pull)

    def __call__(self, image: Float[Array, "H W 3"]) -> PyTree[Float[Array, "..."]]:
        """Return the module's output, or the tuple of those that were named, as float32.

        Args:
          image: f32[H, W, 3], RGB grey levels.

        Raises:
          ValueError: where the module is in training mode, or returns anything else than it did.
        """
        outputs = self._call(jnp.asarray(image).astype(jnp.float32))
        return outputs[0] if self._single else tuple(outputs)

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the module's parameters and buffers as they are now, mean, std and size."""
        picks = tuple(self._picks.values())
        digest = hashlib.sha256(f"{self._size} {picks} {self._layout}\n".encode())
        digest.update(self._mean.tobytes() + self._std.tobytes())
        state = self._module.state_dict()
        unsaved = {n: tensor for n, tensor in self._module.named_buffers() if n not in state}
        for name, tensor in {**state, **unsaved}.items():
            if not isinstance(tensor, self._torch.Tensor):  # a module's extra state
                digest.update(f"{name} {tensor!r}\n".encode())
                continue
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(self._torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def try_out(self, image: Float[np.ndarray, "H W 3"]) -> checks.Trial:
        """Run forward and backward once.

        Raises:
          ValueError: for a module in training mode, without a named output, or without a gradient;
            for an output that is not finite.
        """
        x, outputs = self._forward(image)
        rng = np.random.default_rng(0)
        weights, gradients = [], []
        for title, output in zip(self._picks, outputs, strict=True):
            checks.check_floating(output.is_floating_point(), output.dtype, title)
            weights.append(rng.normal(size=tuple(output.shape)).astype(np.float32))
            gradients.append(self._gradient(x, [output], weights[-1:], retain_graph=True))
        arrays = [self._as_numpy(output) for output in outputs]
        trial = checks.Trial([*self._picks], arrays, weights, gradients)
        checks.check_trial(trial)
        return trial

    def run(self, image: Float[Array, "H W 3"]) -> list[np.ndarray]:
        """Return the outputs that were named, as float32."""
        return [self._as_numpy(output) for output in self._forward(image)[1]]

    def pull(
        self, image: Float[Array, "H W 3"], cotangents: Sequence[Float[Array, "..."]]
    ) -> Float[np.ndarray, "H W 3"]:
        """Return the gradient f32[H, W, 3] of the sum of each output times its cotangent."""
        return self._pulled(self._forward(image), cotangents)

    def _pulled(self, graph, cotangents):
        x, outputs = graph
        gradient = self._gradient(x, outputs, cotangents)
        return np.zeros(x.shape, np.float32) if gradient is None else gradient

    def _forward(self, image):
        """Return (tensor of the image that the gradient is of, list of outputs)."""
        checks.check_mode(self._module, self.title)
        torch = self._torch
        like = next((p for p in self._module.parameters() if p.is_floating_point()), None)
        leaf = torch.from_numpy(np.array(image, np.float32))  # a copy: JAX's memory is its own
        leaf.requires_grad_()
        with torch.enable_grad():
            x = leaf.permute(2, 0, 1)[None]
            x = x if like is None else x.to(like.device, like.dtype)
            if self._size is not None and tuple(x.shape[2:]) != self._size:
                x = torch.nn.functional.interpolate(
                    x, self._size, mode="bilinear", align_corners=False
                )
            mean, std = (torch.from_numpy(values).to(x) for values in (self._mean, self._std))
            x, size = (x / 255 - mean) / std, x.shape[2:]
            outputs = self._module(x if self._layout == "nchw" else x.permute(0, 2, 3, 1))
            outputs = [checks.pick(outputs, index, self.title) for index in self._picks.values()]
            return leaf, [self._take(output, size) for output in outputs]

    def _take(self, tensor, size):
        """Return scores [h, w, C] of an image of `size` pixels, or an output less its batch."""
        if self._count is None:
            return tensor[0] if tensor.ndim and len(tensor) == 1 else tensor
        checks.check_map(tensor.shape, size, self._layout, self._count, self.title)
        return tensor[0].permute(1, 2, 0) if self._layout == "nchw" else tensor[0]

    def _gradient(self, x, outputs, cotangents, **options):
        """Return f32[H, W, 3], or None where no output depends on the image by autograd."""
        torch = self._torch
        pairs = [
            (output, torch.from_numpy(np.array(weights)).to(output))
            for output, weights in zip(outputs, cotangents, strict=True)
            if output.requires_grad
        ]
        if not pairs:
            return None
        tensors, weights = zip(*pairs, strict=True)
        (gradient,) = torch.autograd.grad(tensors, x, weights, allow_unused=True, **options)
        return None if gradient is None else gradient.numpy()

    def _as_numpy(self, tensor):
        return np.asarray(tensor.detach().to("cpu", self._torch.float32).numpy())

    # What JAX traces, and what it calls back.

    def _shapes(self, shape):
        """Return the shapes of the outputs of an image, by running the module once a shape."""
        if shape not in self._shapes_of:
            outputs = self._forward(np.zeros(shape, np.float32))[1]
            self._shapes_of[shape] = [
                jax.ShapeDtypeStruct(tuple(output.shape), jnp.float32) for output in outputs
            ]
        return self._shapes_of[shape]

    def _scores(self, image):
        shapes = self._shapes(image.shape)
        return jax.pure_callback(self.run, shapes, image, vmap_method="sequential")

    def _scores_and_graph(self, image):
        ticket = jax.ShapeDtypeStruct((), jnp.int32)
        shapes = self._shapes(image.shape), ticket
        outputs, ticket = jax.pure_callback(
            self._run_and_keep, shapes, image, vmap_method="sequential"
        )
        return outputs, (image, ticket)

    def _pull(self, residuals, cotangents):
        image, ticket = residuals
        shape = jax.ShapeDtypeStruct(image.shape, jnp.float32)
        pulled = jax.pure_callback(
            self._pull_kept, shape, image, ticket, cotangents, vmap_method="sequential"
        )
        return (pulled,)

    def _run_and_keep(self, image):
        """Return the outputs, and the ticket that their graph is kept under."""
        graph = self._forward(image)
        with self._lock:
            ticket = next(self._tickets) % 2**31
            self._graphs[ticket] = graph
            while len(self._graphs) > jax.local_device_count():
                del self._graphs[next(iter(self._graphs))]
        return [self._as_numpy(output) for output in graph[1]], np.int32(ticket)

    def _pull_kept(self, image, ticket, cotangents):
        """Return `pull`, by the kept graph where there is one: it serves once."""
        with self._lock:
            graph = self._graphs.pop(int(ticket), None)
        return self._pulled(graph or self._forward(image), cotangents)


jax.tree_util.register_pytree_node(
    TorchFunction, lambda function: ((), function), lambda function, _: function
)


def from_torch(
    module: Any,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str] | None = None,
    layout: str = "nchw",
    output: Output | tuple[Output, ...] = None,
    size: tuple[int, int] | None = None,
    title: str | None = None,
    via: str = "callback",
) -> FunctionSegmenter | TorchFunction | jax.tree_util.Partial:
    """Return a PyTorch module as a segmenter, or as a function of an image.

    The module sees (resize(image) / 255 - mean) / std, and is tried once on noise.

    By callback the module runs as it is, on its own device and in its own dtype. If its weights
    change later, the new ones are used at once, and run folders tell them apart. By torchax the
    module is compiled for the device of JAX, in single precision or less, and compared with PyTorch
    on the noise. Its weights are then those of now: parameters and buffers are the leaves of what
    is returned. Either way the gradient is autograd's: what the module detaches has none. A
    UserWarning says where the gradient is no slope of an output on the noise; of an image of yours
    the audit says so.

    Args:
      module: a torch.nn.Module in evaluation mode, of one image [1, 3, h, w] as its argument.
      mean: of R, G and B, of images in 0..1.
      std: likewise.
      classes: names of the C classes of each pixel; None for what segments no image.
      layout: "nchw" or "nhwc", of the module's images and scores.
      output: which of its outputs are scores, a key of a dict or an index of a tuple; None where
        there is one. Without classes also a tuple of these.
      size: pixels (h, w) that the image is resized to, bilinearly; None leaves it as it is.
      title: what tables call it; None is the module's class.
      via: "callback" or "torchax".

    Returns:
      With classes a segmenter, `models.Segmenter`. Else a `TorchFunction` or, by torchax, a
      `jax.tree_util.Partial`, image f32[H, W, 3] -> the output as the module shapes it, less its
      first axis of 1; a tuple of them where `output` is one. All are pytrees; they work in `jit`,
      `vmap`, `grad` and `shard_map`.

    Raises:
      ValueError: without PyTorch, or without a torchax that works with it; for a module in training
        mode; for scores that are not there, of another number of classes, of a strange size, not
        finite, probabilities, or without a gradient; for what torchax cannot trace, or gets wrong.
    """
    with optional_import("torch"):
        torch = importlib.import_module("torch")
    if not isinstance(module, torch.nn.Module):
        raise UserError(f"module is a {type(module).__name__}; it must be a torch.nn.Module")
    checks.check_normalisation(mean, std)
    checks.check_layout(layout)
    checks.check_size(size)
    if via not in WAYS:
        raise UserError(f"via is {via!r:.50}; it must be one of {', '.join(WAYS)}")
    title = title or type(module).__name__
    if classes is not None and isinstance(output, tuple):
        raise UserError(f"output is {output!r:.80}; of a segmenter it names one")
    names = None if classes is None else class_names(classes)
    count = None if names is None else len(names)
    options: dict[str, Any] = {
        "mean": mean,
        "std": std,
        "layout": layout,
        "size": size,
        "title": title,
    }
    function: Any
    function = called = TorchFunction(module, **options, output=output, count=count)
    if via == "torchax":
        forward, states = torchax.compiled(module, output, title=title)
        function = compiled.around(forward, states, **options, count=count)
    image = checks.noise(size)
    trial = called.try_out(image)
    if names is not None:
        checks.check_scores(trial.outputs[0], title)
    if via == "torchax":
        torchax.compare(function, image, trial.outputs, called.pull, title)
    checks.check_slopes(called.run, image, trial)
    if names is None:
        return function
    return from_function(function, classes=names, title=title)
