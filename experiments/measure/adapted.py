"""An iteration of the attack on an adapted network, beside its framework's forward and gradient.

Both have the same image, labels and loss, and the same cores. The control is PyTorch's eager mode;
of Keras and Flax NNX it is their own function, compiled.

Shapes: `H W` pixels, `*T` cells of a map or queries, `C` classes.
"""

import functools
import importlib.util

import jax
import numpy as np
from flax import nnx
from jax.tree_util import Partial

import dag_jax
from dag_jax import adapters, models
from dag_jax.progress import progress
from experiments.common import console
from experiments.measure import foreign, foreign_keras, iterations

NNX = "nnx"
# By name, the ways in which an architecture is adapted.
WAYS = {
    **dict.fromkeys(foreign.ARCHITECTURES, ("callback", "torchax")),
    **dict.fromkeys(foreign_keras.ARCHITECTURES, ("keras",)),
    NNX: ("from_function", "with_fast_layers"),
}


def problem(name, model, *, size) -> iterations.Problem:
    """Return an adapted network with a random image, all of whose targets stay active.

    Args:
      name: what a table calls it.
      model: a segmenter, or a function of an image: f32[*T, C], or those behind boxes.
      size: pixels of the image's side.
    """
    score_fn = Partial(_scores, model)
    image = np.random.default_rng(0).uniform(0, 255, (size, size, 3)).astype(np.float32)
    order = np.asarray(score_fn(image)).argsort(axis=-1)
    targets = dag_jax.make_targets(order[..., -1], order[..., -2])
    return iterations.Problem(f"{name}, {size} px", model, score_fn, image, targets)


def _scores(model, image):
    """Return f32[*T, C] of a segmenter, or of a function of an image that may give boxes, too."""
    if isinstance(model, models.Segmenter):
        return model.scores(image)
    outputs = model(image)
    return outputs[1] if isinstance(outputs, tuple) else outputs


def of_torch(name, module, options, *, size, via):
    """Return (problem, control) of a module of PyTorch.

    Args:
      name: what a table calls it.
      module: in evaluation mode.
      options: of `adapters.from_torch`, but mean, std and via.
      size: pixels of the image's side.
      via: of `from_torch`.

    Returns:
      The control is a function of no arguments: PyTorch's forward pass and the margins' gradient.
    """
    import torch

    model = adapters.from_torch(module, **foreign.IMAGENET, **options, via=via)
    attacked = problem(name, model, size=size)
    mean, std = (torch.tensor(foreign.IMAGENET[key]) for key in ("mean", "std"))
    image = torch.tensor(attacked.image, requires_grad=True)
    classes = [
        torch.tensor(np.asarray(array)[..., None].astype(np.int64))
        for array in (attacked.targets.labels, attacked.targets.adversarial)
    ]
    output = options.get("output")
    key = output if isinstance(output, str) or output is None else output[1]

    def control():
        pixels = ((image / 255 - mean) / std).permute(2, 0, 1)[None]
        outputs = module(pixels)
        (scores,) = outputs if key is None else outputs[key]
        if "classes" in options:
            scores = scores.permute(1, 2, 0)
        label, adversarial = (scores.gather(-1, index) for index in classes)
        return torch.autograd.grad((label - adversarial).sum(), image)[0].numpy()

    return attacked, control


def of_keras(name, module, options, *, size):
    """Return (problem, control) of a model of Keras: its own forward pass, compiled, and gradient.

    Args:
      name: what a table calls it.
      module: built, on the JAX backend.
      options: of `adapters.from_keras`.
      size: pixels of the image's side.
    """
    attacked = problem(name, adapters.from_keras(module, **options), size=size)
    variables = [
        [variable.value for variable in kind]
        for kind in (module.trainable_variables, module.non_trainable_variables)
    ]

    def scores(variables, image):
        x = (image / 255 - np.float32(options["mean"])) / np.float32(options["std"])
        outputs, _ = module.stateless_call(*variables, x[None], training=False)
        return (outputs[options["output"]] if "output" in options else outputs)[0]

    return attacked, _compiled(Partial(scores, variables), attacked)


def of_nnx(name, module, *, size, via):
    """Return (problem, control) of a Flax NNX module: its own forward pass, compiled, and gradient.

    Args:
      name: what a table calls it.
      module: f32[1, H, W, 3] in 0..1 -> f32[1, H, W, C].
      size: pixels of the image's side.
      via: "with_fast_layers", or "from_function" for the module as it is.
    """
    forward = _forward if via == "from_function" else adapters.with_fast_layers(_forward)
    model = adapters.from_function(Partial(forward, module), classes=foreign.CLASSES)
    attacked = problem(name, model, size=size)
    return attacked, _compiled(Partial(_forward, module), attacked)


def _forward(module, image):
    return module(image[None] / 255)[0]


def _compiled(score_fn, attacked):
    arguments = score_fn, attacked.image, attacked.targets
    return functools.partial(iterations.forward_and_gradient, *arguments)


class Convolutions(nnx.Module):
    """Four convolutions of 32, 64, 64 and C channels, with GELUs between."""

    def __init__(self, rngs):
        sizes = (3, 32, 3), (32, 64, 3), (64, 64, 3), (64, len(foreign.CLASSES), 1)
        self.layers = nnx.List(
            nnx.Conv(channels, features, (side, side), rngs=rngs)
            for channels, features, side in sizes
        )

    def __call__(self, x):
        """Map f32[1, H, W, 3] to f32[1, H, W, C]."""
        *inner, last = self.layers
        for layer in inner:
            x = jax.nn.gelu(layer(x))
        return last(x)


def _lacking(name, way) -> str | None:
    """Return the package that a case needs and that is not installed, or None."""
    if name == NNX:
        return None
    if name in foreign_keras.ARCHITECTURES:
        return foreign_keras.lacking()
    packages = ("torch", "torchax") if way == "torchax" else ("torch",)
    absent = [package for package in packages if not importlib.util.find_spec(package)]
    return absent[0] if absent else foreign.lacking(name)


def _case(name, way, *, size):
    if name == NNX:
        return of_nnx(name, Convolutions(nnx.Rngs(0)), size=size, via=way)
    if name in foreign_keras.ARCHITECTURES:
        return of_keras(name, *foreign_keras.build(name, size=size), size=size)
    from experiments.measure import torch_comparison

    torch_comparison.open_device(console.cores())
    return of_torch(name, *foreign.build(name), size=size, via=way)


def measure(names, *, size, steps, pairs):
    """Return rows: an iteration inside the engine's loop against the framework's own.

    Args:
      names: of `WAYS`; rows of those whose package is not there say so.
      size: pixels of the image's side.
      steps: the most iterations of a run.
      pairs: of timings.
    """
    cases, rows = [(name, way) for name in names for way in WAYS[name]], []
    for name, way in progress(cases, desc="adapters", position=1, leave=False):
        if package := _lacking(name, way):
            rows.append({"case": name, "via": f"{way}: {package} is not installed"})
            continue
        attacked, control = _case(name, way, size=size)
        how = {"iterations": steps, "pairs": pairs, "control": control}
        rows.append({"via": way, **iterations.engine(attacked, **how)})
    return rows
