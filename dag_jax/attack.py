"""Dense Adversary Generation: Algorithm 1 as pure functions of one image.

    X_0 = X; r = 0
    for m = 0 .. M_0 - 1:
        T_m = targets whose label still wins at X_m;  stop when there is none
        r_m = sum over T_m of grad f_adversarial(X_m) - grad f_label(X_m)
        r   = r + gamma / ||r_m||_inf r_m

One forward and one backward pass an iteration: the scores that decide T_m are those whose gradient
is taken. X_m is the image that would be returned, clip(X + r, 0, 255), rounded where asked; the
gradient passes straight through clip and rounding, and r itself is never clipped. So status, active
targets and the last count are true of the returned image, and inside the range this is the paper's
algorithm to the letter.

Which targets are active and what is descended on is an `Objective`, the paper's if none is given;
`dag_jax.variants` has others.

Everything here takes one image; `jax.vmap` and `jax.shard_map` make it many.

Shapes: `H W` pixels, `*T` any target shape ([H, W] pixels or [N] proposals), `C` classes. Where
`score_fn` returns a pytree of scores (a joint attack on several networks), `targets` is the same
pytree of `Targets`, `active` one of masks, and counts sum over the leaves.

Reference: Xie et al., "Adversarial Examples for Semantic Segmentation and Object Detection",
ICCV 2017.
"""

import dataclasses
import enum

import jax
import jax.numpy as jnp
import optax
from jax import lax

from dag_jax.checks import WHITE, check, check_image, check_numbers, check_start
from dag_jax.objective import DAG, Objective
from dag_jax.targets import map_targets


class Status(enum.IntEnum):
    """Why an attack stopped."""

    RUNNING = 0
    FOOLED = 1  # no target is active any more, or as few as `stop_fraction` allows
    MAX_STEPS = 2  # targets are left after the last step
    ZERO_GRADIENT = 3  # targets are left, and no pixel moves them
    # A valid target's score, or the gradient, is not a finite number; or a valid target is of a
    # class that has no score, such as void.
    NON_FINITE = 4
    NO_TARGETS = 5  # none was active at the first iterate, the clean image unless `start` is given


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack on one image, finished or under way."""

    image: jax.Array  # f32[H, W, 3] clean, RGB grey levels
    perturbation: jax.Array  # f32[H, W, 3] r in grey levels, unclipped; the last iterate's
    num_steps: jax.Array  # i32 updates made
    active: jax.Array  # bool[*T] targets active at the last iterate scored
    active_counts: jax.Array  # i32[max_steps + 1] their number at iterate m; -1 where not reached
    status: jax.Array  # i32 a Status


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What the next step needs: the attack so far and its optimizer's state."""

    attack: Attack
    optimizer_state: optax.OptState


def _have_scores(scores, targets):
    """Return bool[*T], whether both classes of a target exist. Concrete ones were checked."""
    classes = jnp.stack([targets.labels, targets.adversarial])
    return jnp.all((classes >= 0) & (classes < scores.shape[-1]), axis=0)


def perturb(image, perturbation, *, rounded: bool = False):
    """Return the image that a perturbation makes: clip(X + r, 0, 255), rounded where asked.

    Args:
      image: f32[..., H, W, 3], RGB grey levels.
      perturbation: f32[..., H, W, 3] in grey levels.
      rounded: whether to round to whole grey levels, so that a cast to uint8 loses nothing.

    Returns:
      f32[..., H, W, 3].
    """
    perturbed = jnp.clip(image + perturbation, 0, WHITE)
    return jnp.round(perturbed) if rounded else perturbed


def scale_by_max_norm() -> optax.GradientTransformation:
    """Scale a gradient to a largest absolute value of 1; a zero gradient stays zero."""

    def update(gradient, state, params=None):
        del params
        largest = jnp.max(jnp.abs(gradient))
        return gradient / jnp.where(largest > 0, largest, 1), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def dag_update(step_size: float = 0.5) -> optax.GradientTransformation:
    """Return the paper's update rule: r + gamma / ||r_m||_inf r_m, where r_m = -gradient.

    `dag_jax.variants.momentum` is the same attack with momentum.

    Args:
      step_size: gamma, the largest change of a channel in one step, in grey levels.

    Returns:
      An optax transformation of the loss's gradient with respect to the image.
    """
    return optax.chain(scale_by_max_norm(), optax.scale(-step_size))


def init(image, targets, *, max_steps=200, step_size=0.5, optimizer=None, start=None) -> State:
    """Return the state before the first iteration.

    Args:
      image: f32[H, W, 3], RGB grey levels.
      targets: Targets, or a pytree of them.
      max_steps: M_0.
      step_size: gamma in grey levels, for the default optimizer.
      optimizer: optax transformation; None is `dag_update(step_size)`.
      start: f32[H, W, 3] in grey levels, r of the first iterate; None is 0.

    Returns:
      State with r = start.

    Raises:
      ValueError: as `checks.check_image`, `check_numbers` and `check_start` say.
    """
    check_numbers(max_steps, step_size, 0.0)
    check_image(image)
    image = jnp.asarray(image).astype(jnp.float32)
    if start is not None:
        check_start(start, image)
        start = jnp.asarray(start).astype(jnp.float32)
    attack = Attack(
        image=image,
        perturbation=jnp.zeros_like(image) if start is None else start,
        num_steps=jnp.int32(0),
        active=map_targets(lambda leaf: jnp.zeros(leaf.valid.shape, bool), targets),
        active_counts=jnp.full(max_steps + 1, -1, jnp.int32),
        status=jnp.int32(Status.RUNNING),
    )
    optimizer = optimizer or dag_update(step_size)
    return State(attack, optimizer.init(attack.perturbation))


def _stops(stop_fraction, targets, active, count, over):
    """Return whether few enough targets are active, or `over` and none is, where that is all."""
    if stop_fraction is None:
        return (count == 0) & over
    if stop_fraction == 0:
        return count == 0

    def few(targets, active):
        total = targets.valid.sum(dtype=jnp.float32)
        return active.sum(dtype=jnp.float32) <= stop_fraction * total

    # Of each network by itself: a thousand pixels must not make up for a detector's every box.
    return jnp.stack(jax.tree.leaves(map_targets(few, targets, active))).all()


def step(
    score_fn,
    state: State,
    targets,
    *,
    step_size=0.5,
    margin=0.0,
    rounded=False,
    optimizer=None,
    objective: Objective = DAG,
    stop_fraction: float | None = 0.0,
) -> State:
    """Advance an attack by one iteration; one that has stopped stays as it is.

    Args:
      score_fn: image f32[H, W, 3] -> scores f32[*T, C], or a pytree of scores.
      state: from `init` or an earlier step.
      targets: as in `attack`.
      step_size: gamma in grey levels, for the default optimizer.
      margin: as in `attack`.
      rounded: as in `attack`.
      optimizer: as given to `init`.
      objective: as in `attack`.
      stop_fraction: as in `attack`.

    Returns:
      The next State. `state.attack.status` says whether it has stopped and why.
    """
    attack = state.attack
    optimizer = optax.with_extra_args_support(optimizer or dag_update(step_size))
    max_steps = attack.active_counts.shape[0] - 1
    progress = attack.num_steps.astype(jnp.float32) / max_steps
    one_for_all = jax.tree.structure(margin) == jax.tree.structure(0)
    margins = map_targets(lambda _: margin, targets) if one_for_all else margin

    def loss(image):
        scores = score_fn(image)
        active = map_targets(lambda t, f, m: objective.active(f, t, m), targets, scores, margins)
        terms = map_targets(
            lambda t, f, on: objective.loss(f, t, on, progress).sum(), targets, scores, active
        )
        finite = map_targets(
            lambda t, f: jnp.all((jnp.isfinite(f).all(-1) & _have_scores(f, t)) | ~t.valid),
            targets,
            scores,
        )
        return sum(jax.tree.leaves(terms)), (active, finite)

    seen = perturb(attack.image, attack.perturbation, rounded=rounded)
    gradient, (active, finite) = jax.grad(loss, has_aux=True)(seen)
    count = sum(mask.sum(dtype=jnp.int32) for mask in jax.tree.leaves(active))
    scores_finite = jnp.stack(jax.tree.leaves(finite)).all()
    first = attack.num_steps == 0
    last = attack.num_steps == max_steps
    broken = ~jnp.isfinite(gradient).all()
    stuck = ~jnp.any(gradient != 0)
    reasons = [  # the first that holds
        (~scores_finite, Status.NON_FINITE),
        ((count == 0) & first, Status.NO_TARGETS),
        (_stops(stop_fraction, targets, active, count, last | stuck), Status.FOOLED),
        (last, Status.MAX_STEPS),
        (broken, Status.NON_FINITE),
        (stuck, Status.ZERO_GRADIENT),
    ]
    conditions, statuses = zip(*reasons, strict=True)
    status = jnp.select(
        conditions, [jnp.int32(value) for value in statuses], jnp.int32(Status.RUNNING)
    )
    updates, optimizer_state = optimizer.update(
        gradient, state.optimizer_state, attack.perturbation, image=attack.image
    )
    moves = status == Status.RUNNING

    def keep(condition, new, old):
        return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)

    scored = dataclasses.replace(
        attack,
        perturbation=keep(moves, attack.perturbation + updates, attack.perturbation),
        num_steps=attack.num_steps + moves.astype(jnp.int32),
        active=active,
        active_counts=attack.active_counts.at[attack.num_steps].set(count),
        status=status,
    )
    advanced = State(scored, keep(moves, optimizer_state, state.optimizer_state))
    return keep(attack.status == Status.RUNNING, advanced, state)


def attack(
    score_fn,
    image,
    targets,
    *,
    max_steps: int = 200,
    step_size: float = 0.5,
    margin: float = 0.0,
    rounded: bool = False,
    optimizer: optax.GradientTransformation | None = None,
    objective: Objective = DAG,
    stop_fraction: float | None = 0.0,
    start=None,
) -> Attack:
    """Find a perturbation of an image that makes a network wrong on every target.

    Pure; meant to be compiled: `jax.jit(functools.partial(attack, max_steps=200))`. A `score_fn`
    that is a pytree, such as a `jax.tree_util.Partial` of a function and its parameters, is then
    traced and not baked in. Derivatives of the result are forward-mode (`jax.jvp`), as the number
    of steps is not known before; `step` has both modes.

    Args:
      score_fn: image f32[H, W, 3] -> pre-softmax scores f32[*T, C], or a pytree of scores.
      image: [H, W, 3], RGB grey levels 0-255.
      targets: Targets of shape *T, or the same pytree of them as the scores.
      max_steps: M_0; the paper has 200 for segmentation and 150 for detection.
      step_size: gamma, the largest change of a channel in one step, in grey levels.
      margin: logits by which a label must have lost before its target rests; 0 is the paper's. One
        number, or in a joint attack the same pytree of numbers as of targets.
      rounded: whether the image is scored as rounded to whole grey levels, so that the saved PNG
        itself fools.
      optimizer: optax transformation of the gradient with respect to the image; None is
        `dag_update(step_size)`. It replaces `step_size`. Its parameters are r; one that takes
        further arguments (`optax.GradientTransformationExtraArgs`) gets `image`, the clean one.
      objective: which targets are active, and what is descended on; `DAG` is the paper's. A joint
        attack asks it of each network.
      stop_fraction: the attack stops as FOOLED once at most this share of the targets is active, of
        each network in a joint attack; 0 is the paper's. None: it goes on to max_steps, as attacks
        of a bounded norm do, and is FOOLED if none is active in the end.
      start: f32[H, W, 3] in grey levels, r of the first iterate; None is 0.

    Returns:
      Attack, whatever happened: its status says why it stopped.

    Raises:
      ValueError: as `checks.check` says.

    Reference: Xie et al., ICCV 2017, algorithm 1.
    """
    numbers = {"max_steps": max_steps, "step_size": step_size, "margin": margin}
    check(score_fn, image, targets, stop_fraction=stop_fraction, **numbers)
    new = {"max_steps": max_steps, "step_size": step_size, "optimizer": optimizer, "start": start}
    state = init(image, targets, **new)

    def body(state):
        return step(
            score_fn,
            state,
            targets,
            step_size=step_size,
            margin=margin,
            rounded=rounded,
            optimizer=optimizer,
            objective=objective,
            stop_fraction=stop_fraction,
        )

    return lax.while_loop(lambda state: state.attack.status == Status.RUNNING, body, state).attack
