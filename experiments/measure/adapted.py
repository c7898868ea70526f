"""An iteration of the attack on a module of PyTorch, beside PyTorch's own forward and gradient.

Both have the same image, labels and loss, and the same cores. The control is PyTorch's eager mode.

Shapes: `H W` pixels, `*T` cells of a map or queries, `C` classes.
"""

import importlib.util

import jax
import numpy as np
import torch

import dag_jax
from dag_jax import adapters
from dag_jax.progress import progress
from experiments.common import console
from experiments.measure import foreign, iterations, torch_comparison

WAYS = "callback", "torchax"


def problem(name, module, options, *, size, via) -> iterations.Problem:
    """Return an adapted module with a random image, all of whose targets stay active.

    Args:
      name: what a table calls it.
      module: in evaluation mode.
      options: of `adapters.from_torch`.
      size: pixels of the image's side.
      via: of `from_torch`.
    """
    model = adapters.from_torch(module, **foreign.IMAGENET, **options, via=via)
    score_fn = jax.tree_util.Partial(_scores, model)
    image = np.random.default_rng(0).uniform(0, 255, (size, size, 3)).astype(np.float32)
    order = np.asarray(score_fn(image)).argsort(axis=-1)
    targets = dag_jax.make_targets(order[..., -1], order[..., -2])
    return iterations.Problem(f"{name}, {size} px", model, score_fn, image, targets)


def _scores(model, image):
    """Return f32[*T, C] of a segmenter, or of a function of an image that gives boxes, too."""
    return model.scores(image) if hasattr(model, "scores") else model(image)[1]


def own(module, options, attacked: iterations.Problem):
    """Return a function of no arguments: PyTorch's forward pass and the margins' gradient."""
    mean, std = (torch.tensor(foreign.IMAGENET[key]) for key in ("mean", "std"))
    image = torch.tensor(attacked.image, requires_grad=True)
    classes = [
        torch.tensor(np.asarray(array)[..., None].astype(np.int64))
        for array in (attacked.targets.labels, attacked.targets.adversarial)
    ]
    output = options.get("output")
    name = output if isinstance(output, str) or output is None else output[1]

    def forward_and_gradient():
        pixels = ((image / 255 - mean) / std).permute(2, 0, 1)[None]
        outputs = module(pixels)
        (scores,) = outputs if name is None else outputs[name]
        if "classes" in options:
            scores = scores.permute(1, 2, 0)
        label, adversarial = (scores.gather(-1, index) for index in classes)
        return torch.autograd.grad((label - adversarial).sum(), image)[0].numpy()

    return forward_and_gradient


def measure(names, *, size, steps, pairs):
    """Return rows: an iteration inside the engine's loop against PyTorch's own.

    Args:
      names: of `foreign.ARCHITECTURES`; the row of those whose package is not there says so.
      size: pixels of the image's side.
      steps: the most iterations of a run.
      pairs: of timings.
    """
    torch_comparison.open_device(console.cores())
    ways = [way for way in WAYS if way == "callback" or importlib.util.find_spec(way)]
    cases, rows = [(name, way) for name in names for way in ways], []
    for name, way in progress(cases, desc="adapters", position=1, leave=False):
        if package := foreign.lacking(name):
            rows.append({"case": name, "via": f"{package} is not installed"})
            continue
        module, options = foreign.build(name)
        attacked = problem(name, module, options, size=size, via=way)
        control = own(module, options, attacked)
        how = {"iterations": steps, "pairs": pairs, "control": control}
        rows.append({"via": way, **iterations.engine(attacked, **how)})
    return rows
