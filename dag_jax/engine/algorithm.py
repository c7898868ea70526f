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

`init` and `step` take one image and are pure; `dag_jax.engine.door` has `attack`, which runs them
to the end.

Shapes: `H W` pixels, `*T` any target shape ([H, W] pixels or [N] proposals), `C` classes. Where
`score_fn` returns a pytree of scores (a joint attack on several networks), `targets` is the same
pytree of `Targets`, `active` one of masks, and counts sum over the leaves.

Reference: Xie et al., "Adversarial Examples for Semantic Segmentation and Object Detection",
ICCV 2017.
"""

import dataclasses
import enum
import fractions
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Bool, Float, Float32, Int32, Integer, Num, PyTree

from dag_jax.arrays import Array, Scalar
from dag_jax.engine.checks import WHITE, check_image, check_start
from dag_jax.engine.method import Method
from dag_jax.engine.targets import Targets, map_targets


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

    # RGB grey levels, the image that fools: clip(X + r, 0, 255), rounded where the method says so
    adversarial: Float32[Array, "H W 3"]
    perturbation: Float32[Array, "H W 3"]  # r in grey levels, unclipped; the last iterate's
    num_steps: Int32[Array, ""]  # updates made
    active: PyTree[Bool[Array, "*T"]]  # targets active at the last iterate scored
    active_counts: Int32[Array, " max_steps+1"]  # their number at iterate m; -1 where not reached
    status: Int32[Array, ""]  # a Status

    def summary(self) -> str:
        """Return one line: the status, the steps, the active targets and the size of r.

        The size is r's largest change of a channel in grey levels, and the paper's perceptibility
        p; r is not clipped. For a batch the line has the number of attacks. Inside `jit`, where
        values are not known, it says so.
        """
        leaves = jax.tree.leaves(self, is_leaf=lambda leaf: leaf is None)
        if not all(map(_is_known, leaves)):
            return "its values are not known here"
        if self.status.ndim:
            number = self.status.size
            return f"{number} attack{'s' * (number != 1)} of {self.perturbation.shape[-3:]} pixels"
        steps, counts = int(self.num_steps), np.asarray(self.active_counts)
        r = np.asarray(self.perturbation, np.float64)
        reached = counts[counts >= 0]
        targets = f"{reached[-1]} of {reached[0]}" if reached.size else "not yet scored"
        p = np.sqrt((r**2).sum(-1).mean()) / WHITE
        return (
            f"{Status(int(self.status)).name} after {steps} step{'s' * (steps != 1)}; targets "
            f"still active: {targets}; largest change {np.abs(r).max(initial=0):.1f} grey levels, "
            f"p {p:.2g}"
        )

    def __repr__(self):
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        lines = [f"  {name}: {jax.tree.map(_shape_of, value)}" for name, value in fields.items()]
        return "\n".join([f"Attack: {self.summary()}", *lines])


def _is_known(leaf):
    is_array = isinstance(leaf, np.ndarray | np.generic | jax.Array)
    return is_array and not isinstance(leaf, jax.core.Tracer)


def _shape_of(leaf):
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else repr(leaf)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What the next step needs: the attack so far, what it started from, its optimizer's state."""

    attack: Attack
    image: Float32[Array, "H W 3"]  # clean, RGB grey levels
    optimizer_state: optax.OptState


def perturb(
    image: Num[Array, "*B H W 3"],
    perturbation: Num[Array, "*B H W 3"],
    *,
    rounded: bool | np.bool_ = False,
) -> Float[jax.Array, "*B H W 3"]:
    """Return the image that a perturbation makes: clip(X + r, 0, 255), rounded where asked.

    Args:
      image: [..., H, W, 3], RGB grey levels; integers are taken as f32, so that no sum wraps.
      perturbation: [..., H, W, 3] in grey levels, likewise.
      rounded: whether to round to whole grey levels, so that a cast to uint8 loses nothing.

    Returns:
      f32[..., H, W, 3].
    """
    image, perturbation = (
        array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.float32)
        for array in (image, perturbation)
    )
    perturbed = jnp.clip(image + perturbation, 0, WHITE)
    return jnp.round(perturbed) if rounded else perturbed


def init(
    method: Method,
    image: Num[Array, "H W 3"],
    targets: PyTree[Targets],
    *,
    start: Num[Array, "H W 3"] | None = None,
) -> State:
    """Return the state before the first iteration.

    Args:
      method: what the attack is.
      image: f32[H, W, 3], RGB grey levels.
      targets: Targets, or a pytree of them.
      start: f32[H, W, 3] in grey levels, r of the first iterate; None is 0.

    Returns:
      State with r = start.

    Raises:
      ValueError: as `checks.check_image` and `check_start` say.
    """
    check_image(image)
    image = jnp.asarray(image).astype(jnp.float32)
    if start is not None:
        check_start(start, image)
        start = jnp.asarray(start).astype(jnp.float32)
    perturbation = jnp.zeros_like(image) if start is None else start
    attack = Attack(
        adversarial=perturb(image, perturbation, rounded=method.rounded),
        perturbation=perturbation,
        num_steps=jnp.int32(0),
        active=map_targets(lambda leaf: jnp.zeros(leaf.valid.shape, bool), targets),
        active_counts=jnp.full(method.max_steps + 1, -1, jnp.int32),
        status=jnp.int32(Status.RUNNING),
    )
    return State(attack, image, method.optimizer().init(perturbation))


def step(method: Method, score_fn: Callable, state: State, targets: PyTree[Targets]) -> State:
    """Advance an attack by one iteration. A stopped attack stays as it is.

    Args:
      method: as given to `init`.
      score_fn: image f32[H, W, 3] -> scores f32[*T, C], or a pytree of scores.
      state: from `init` or an earlier step. Its status says whether and why it has stopped.
      targets: Targets, or the same pytree of them as the scores.
    """
    attack, m = state.attack, state.attack.num_steps

    # T_m, and minus r_m: the gradient of the sum of its targets' margins at X_m
    slope = jax.grad(_loss, has_aux=True)
    gradient, (active, scored) = slope(attack.adversarial, method, score_fn, targets, m)
    status = _verdict(method, targets, active, scored, gradient, m)

    # r = r + gamma / ||r_m||_inf r_m;  X_{m+1} = clip(X + r)
    change, optimizer_state = method.optimizer().update(
        gradient, state.optimizer_state, attack.perturbation, image=state.image
    )
    r = attack.perturbation + change
    x = perturb(state.image, r, rounded=method.rounded)
    moved = dataclasses.replace(attack, adversarial=x, perturbation=r, num_steps=m + 1)

    goes_on = status == Status.RUNNING
    counts = jnp.asarray(attack.active_counts).at[m].set(_count(active))
    attack = dataclasses.replace(
        _where(goes_on, moved, attack), active=active, active_counts=counts, status=status
    )
    advanced = State(attack, state.image, _where(goes_on, optimizer_state, state.optimizer_state))
    return _where(state.attack.status == Status.RUNNING, advanced, state)


def advance(
    method: Method,
    score_fn: Callable,
    state: State,
    targets: PyTree[Targets],
    end: int | Integer[Scalar, ""],
) -> State:
    """Advance an attack until it has made `end` steps or has stopped.

    Args:
      method: as given to `init`.
      score_fn: as in `step`.
      state: from `init`, `step` or here.
      targets: as in `step`.
      end: i32[], the number of steps.
    """
    return lax.while_loop(
        lambda state: (state.attack.status == Status.RUNNING) & (state.attack.num_steps < end),
        lambda state: step(method, score_fn, state, targets),
        state,
    )


def run(
    method: Method,
    score_fn: Callable,
    image: Num[Array, "H W 3"],
    targets: PyTree[Targets],
    start: Num[Array, "H W 3"] | None = None,
) -> Attack:
    """Run an attack to its end. A pure function that checks shapes alone; see `dag_jax.attack`."""
    return lax.while_loop(
        lambda state: state.attack.status == Status.RUNNING,
        lambda state: step(method, score_fn, state, targets),
        init(method, image, targets, start=start),
    ).attack


def verdict_on(
    method: Method, score_fn: Callable, image: Num[Array, "H W 3"], targets: PyTree[Targets]
) -> tuple[Int32[Scalar, ""], Bool[Array | np.bool, ""]]:
    """Judge an image, such as a saved PNG, by the attack's own rule.

    Args:
      method: what the attack is.
      score_fn: image f32[H, W, 3] -> scores f32[*T, C], or a pytree of scores.
      image: f32[H, W, 3], RGB grey levels.
      targets: Targets, or the same pytree of them as the scores.

    Returns:
      (i32[] number of active targets, bool[] whether the attack would stop as FOOLED).
    """
    active = _active(method, score_fn(image), targets)
    return _count(active), _is_fooled(method.stop_fraction, targets, active, jnp.bool_(True))


def _active(method, scores, targets):
    one_for_all = jax.tree.structure(method.margin) == jax.tree.structure(0)
    margins = map_targets(lambda _: method.margin, targets) if one_for_all else method.margin
    return map_targets(lambda t, f, m: method.objective.active(f, t, m), targets, scores, margins)


def _loss(image, method, score_fn, targets, num_steps):
    """Return the loss at an iterate.

    Returns:
      (f32[] the sum of the objective's terms, (bool[*T] active targets, bool[*T] targets that can
      be judged: their scores are finite, and both of their classes have a score)).
    """
    scores = score_fn(image)
    active = _active(method, scores, targets)
    progress = num_steps.astype(jnp.float32) / method.max_steps
    terms = map_targets(
        lambda t, f, on: method.objective.loss(f, t, on, progress).sum(), targets, scores, active
    )
    scored = map_targets(
        lambda t, f: (jnp.isfinite(f).all(-1) & _have_scores(f, t)) | ~t.valid, targets, scores
    )
    return sum(jax.tree.leaves(terms)), (active, scored)


def _have_scores(scores, targets):
    """Return bool[*T], whether both classes of a target have a score."""
    classes = jnp.stack([targets.labels, targets.adversarial])
    return jnp.all((classes >= 0) & (classes < scores.shape[-1]), axis=0)


def _verdict(method, targets, active, scored, gradient, num_steps):
    """Return i32[], the Status after an iterate: the first reason to stop that holds."""
    count, last = _count(active), num_steps == method.max_steps
    stuck = ~jnp.any(gradient != 0)
    reasons = [
        (~_all(scored), Status.NON_FINITE),
        ((count == 0) & (num_steps == 0), Status.NO_TARGETS),
        (_is_fooled(method.stop_fraction, targets, active, last | stuck), Status.FOOLED),
        (last, Status.MAX_STEPS),
        (~jnp.isfinite(gradient).all(), Status.NON_FINITE),
        (stuck, Status.ZERO_GRADIENT),
    ]
    conditions, statuses = zip(*reasons, strict=True)
    statuses = [jnp.int32(value) for value in statuses]
    return jnp.select(conditions, statuses, jnp.int32(Status.RUNNING))


def _is_fooled(stop_fraction, targets, active, ends):
    """Return whether the attack has succeeded.

    At most `stop_fraction` of each model's targets may be active. With None the attack runs to the
    end, and then none may be.
    """
    if stop_fraction is None:
        return (_count(active) == 0) & ends

    def few(targets, active):
        number, total = (mask.sum(dtype=jnp.int32) for mask in (active, targets.valid))
        return at_most(number, stop_fraction, total)

    # Of each network by itself: a thousand pixels must not make up for a detector's every box.
    return _all(map_targets(few, targets, active))


def at_most(
    number: Integer[Scalar, "*#B"], share: float, total: Integer[Scalar, "*#B"]
) -> Bool[Array | np.bool, "*B"]:
    """Return whether number / total <= share, exactly as Python's floats compare.

    Args:
      number: i32[*B], at most total.
      share: 0 or more and less than 1. 13 of 22 are at most the float 13/22.
      total: i32[*B].

    Returns:
      bool[*B].
    """
    if share == 0:
        return number == 0
    exact = _largest_fraction(float(share))
    low = _product(total, exact.numerator)
    high = _product(number, exact.denominator)
    return (high[0] < low[0]) | ((high[0] == low[0]) & (high[1] <= low[1]))


def _largest_fraction(share: float) -> fractions.Fraction:
    """Return the largest fraction of two i32 that, rounded to a float, is at most `share`."""
    most = 2**31 - 1
    limit = (fractions.Fraction(share) + fractions.Fraction(math.nextafter(share, 1))) / 2
    nearest = limit.limit_denominator(most)
    if nearest <= limit:
        return nearest
    # Its lower neighbour p / q among those fractions has b p - a q = -1 where it is a / b.
    a, b = nearest.as_integer_ratio()
    q = pow(a, -1, b)
    q += (most - q) // b * b
    return fractions.Fraction((a * q - 1) // b, q)


def _product(number, factor: int):
    """Return (u32[], u32[]), the upper and the lower half of number * factor."""
    number, factor = number.astype(jnp.uint32), jnp.uint32(factor)
    (a1, a0), (b1, b0) = ((x >> 16, x & 0xFFFF) for x in (number, factor))
    middle = a1 * b0 + (a0 * b0 >> 16)
    lower_middle = a0 * b1 + (middle & 0xFFFF)
    return a1 * b1 + (middle >> 16) + (lower_middle >> 16), number * factor


def _count(active):
    return sum(mask.sum(dtype=jnp.int32) for mask in jax.tree.leaves(active))


def _all(tree):
    return jnp.stack([leaf.all() for leaf in jax.tree.leaves(tree)]).all()


def _where(condition, new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
