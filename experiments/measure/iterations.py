"""The cost of one iteration of an attack: time, work and memory.

Shapes: `H W` pixels, `N` boxes, `L` lanes of a vmap.
"""

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dag_jax
from dag_jax import models, networks
from dag_jax.progress import progress
from experiments.measure import timing
from experiments.measure.cost import MARGIN

EVERY_TARGET = dag_jax.Method(margin=MARGIN)  # no run ends early
RUN_SECONDS = 3  # about as long as a run takes at most, of which there are many


def title(name, miniature):
    """Return what a table calls a network."""
    return f"{networks.facts(name).title} {'miniature' if miniature else 'full size'}"


def load(name, miniature):
    """Return a network: a trained miniature, or a full-size one with random weights."""
    return networks.load(name, miniature=miniature, random=not miniature)


def abstract_network(name, miniature):
    """Return a network whose parameters are shapes alone."""
    return jax.eval_shape(functools.partial(load, name, miniature))


class Problem(NamedTuple):
    """An image to be attacked, all of whose targets stay active."""

    case: str  # what a table calls it
    model: object
    score_fn: Callable
    image: jax.Array  # f32[H, W, 3]
    targets: dag_jax.Targets

    @property
    def arguments(self):
        """The arguments of the functions below."""
        return self.score_fn, self.image, self.targets


def problem(name, *, miniature, size, proposals=None, abstract=False) -> Problem:
    """Return a network with random targets on a random image.

    Args:
      name: of a network.
      miniature: whether it is the small one.
      size: pixels of the image's side.
      proposals: N, of a detector.
      abstract: whether parameters are shapes alone, for what is only compiled.
    """
    network = abstract_network(name, miniature) if abstract else load(name, miniature)
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.uniform(0, 255, (size, size, 3)), jnp.float32)
    shape, boxes, classes = (size, size), None, len(network.classes)
    if models.about(network).detects:
        corners = np.sort(rng.uniform(0, size - 1, (proposals, 2, 2)), axis=1)
        shape, boxes = (proposals,), jnp.asarray(corners.reshape(-1, 4), jnp.float32)
    labels = jnp.asarray(rng.integers(0, classes, shape), jnp.int32)
    targets = dag_jax.make_targets(labels, (labels + 1) % classes)
    case = f"{title(name, miniature)}, {size} px"
    return Problem(case, network, models.score_fn(network, boxes), image, targets)


@jax.jit
def bare(score_fn, image, targets):
    """Return the loss of an iteration and its gradient, which is all that an attack must do."""

    def loss(image):
        scores = score_fn(image)
        active = dag_jax.active_targets(scores, targets, MARGIN)
        return jnp.where(active, dag_jax.margin_loss(scores, targets), 0).sum()

    return jax.value_and_grad(loss)(image)


@jax.jit
def forward_and_gradient(score_fn, image, targets):
    """Return the sum of the margins and its gradient: a network's work and nothing else."""

    def loss(image):
        return dag_jax.margin_loss(score_fn(image), targets).sum()

    return jax.value_and_grad(loss)(image)


@jax.jit
def advance(score_fn, state, targets):
    """Advance an attack by one iteration."""
    return dag_jax.step(EVERY_TARGET, score_fn, state, targets)


@jax.jit
def advance_lanes(score_fn, states, targets):
    """Advance L attacks by one iteration."""
    step = functools.partial(dag_jax.step, EVERY_TARGET, score_fn)
    return jax.vmap(step)(states, targets)


def engine(problem: Problem, *, iterations, pairs, control=None):
    """Return a row: iterations inside the engine's loop against calls of a control from Python.

    Args:
      problem: what is attacked.
      iterations: the most of a run.
      pairs: of runs.
      control: function of no arguments; None is `bare` of the problem.
    """
    arguments = problem.arguments
    control = control or functools.partial(bare, *arguments)
    timing.timed(control)
    once = timing.timed(control)
    iterations = min(iterations, max(3, math.ceil(RUN_SECONDS / once)))

    def called():
        return [control() for _ in range(iterations)][-1]

    # The last of its iterations only scores, as every attack's does; it costs as much.
    method = EVERY_TARGET.replace(max_steps=iterations - 1)
    attack = jax.jit(functools.partial(dag_jax.attack, method=method))
    comparison = timing.compare(timing.alternate([lambda: attack(*arguments), called], pairs))
    inside, outside = (1000 * seconds / iterations for seconds in comparison["seconds"])
    return {
        "case": problem.case,
        "engine_ms": inside,
        "bare_ms": outside,
        "ratio": comparison["ratio"],
        "range": comparison["range"],
        "iterations": iterations,
        "pairs": pairs,
    }


def _flops(function, *arguments):
    return timing.account(function.lower(*arguments).compile())["flops"]


def work(problem: Problem):
    """Return rows: flops of an iteration, and of the same network in another way. Nothing is run.

    The controls: forward and gradient alone; of an FCN also an iteration that computes what lies
    out of the image's reach, too.
    """
    state = dag_jax.init(EVERY_TARGET, problem.image, problem.targets)
    iteration = _flops(advance, problem.score_fn, state, problem.targets)

    def row(name, control, flops):
        return {
            "case": problem.case,
            "iteration": name,
            "control": control,
            "flops": iteration,
            "control_flops": flops,
            "ratio": iteration / flops if iteration and flops else None,
        }

    alone = _flops(forward_and_gradient, *problem.arguments)
    rows = [row("an iteration", "forward and gradient", alone)]
    if isinstance(problem.model, networks.SegmentationNetwork):
        naive = models.score_fn(everywhere(problem.model))
        flops = _flops(advance, naive, state, problem.targets)
        rows.append(row("bordered", "every cell computed", flops))
    return rows


def everywhere(network):
    """Return an FCN that computes every cell of its padded maps: the same scores, naively."""
    backbone = network.module.backbone.clone(everywhere=True)
    return dataclasses.replace(network, module=network.module.clone(backbone=backbone))


def cost(problem: Problem, *, lanes=1, repeats=0):
    """Return flops, temporaries and, where repeated, seconds of an iteration.

    Args:
      problem: what is attacked.
      lanes: L.
      repeats: calls to time, after one that is not; 0 compiles alone.
    """
    targets, function = problem.targets, advance
    state = dag_jax.init(EVERY_TARGET, problem.image, targets)
    if lanes > 1:
        state, targets = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (lanes, *leaf.shape)).copy(), (state, targets)
        )
        function = advance_lanes
    arguments = problem.score_fn, state, targets
    compiled = function.lower(*arguments).compile()
    seconds = [timing.timed(compiled, *arguments) for _ in range(repeats and repeats + 1)][1:]
    return {
        "lanes": lanes,
        "seconds": statistics.median(seconds) if seconds else None,
        **timing.account(compiled),
    }


def curves(*, lanes, sizes, counts, repeats, miniature, size):
    """Return points of every curve of an iteration's cost, by curve.

    Args:
      lanes: numbers of lanes.
      sizes: pixels of sides.
      counts: numbers of proposals.
      repeats: as in `cost`.
      miniature: whether the networks of the curves over size and proposals are miniatures.
      size: pixels of the side for the curves over lanes and proposals.
    """
    fcns = "fcn_vgg", "fcn_alex"
    cases = [
        *(("lanes", name, True, size, None, lane, repeats) for name in fcns for lane in lanes),
        *(("lanes", name, False, size, None, lane, 0) for name in fcns for lane in lanes),
        *(("sizes", name, miniature, side, None, 1, repeats) for name in fcns for side in sizes),
        *(("proposals", "fr_vgg_07", miniature, size, count, 1, repeats) for count in counts),
    ]
    if miniature:  # nothing of full size, not even its memory
        cases = [case for case in cases if case[2]]
    points = {}
    for curve, name, small, side, count, lane, times in progress(
        cases, desc="scaling", position=1, leave=False
    ):
        setting = {"size": side, "proposals": count}
        attacked = problem(name, miniature=small, abstract=not times, **setting)
        point = {"network": title(name, small), **setting}
        point |= cost(attacked, lanes=lane, repeats=times)
        points.setdefault(curve, []).append(point)
    return points
