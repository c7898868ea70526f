"""Does an attack measure what it seems to? Checks of a network and of the engine, with remedies.

An attack that fails looks like a network that is robust. More often a gradient is masked, a layer
is random, or what is attacked are probabilities that have saturated; each shows in a few calls:

    for finding in dag_jax.audit(score_fn, image, targets):
        print(finding.check, finding.passed, finding.detail, finding.remedy)

Shapes: `H W` pixels, `*T` any target shape, `C` classes, `M` targets of all leaves together.

References: Carlini et al., "On Evaluating Adversarial Robustness", 2019; Athalye et al.,
"Obfuscated Gradients Give a False Sense of Security", ICML 2018.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Num, PyTree

from dag_jax.arrays import Array
from dag_jax.engine import planted
from dag_jax.engine.checks import WHITE, check
from dag_jax.engine.door import attack
from dag_jax.engine.objective import active_targets, margin_loss
from dag_jax.engine.scoring import as_callable_pytree, told_apart
from dag_jax.engine.stream import attack_stream
from dag_jax.engine.targets import Targets, map_targets

TARGETS = 8  # whose own gradients are taken, of as many classes as there are
DIRECTIONS = 8  # in which slopes are compared: the estimate of an error is good to a quarter
# Grey levels (standard deviation) to both sides between which a slope is measured. A network of
# ReLUs bends within a hundredth of one; longer distances are for scores of low precision.
DISTANCES = (0.001, 0.01, 0.1, 1.0)
_AGREE = 0.3  # of their length, by which slopes over two distances may differ and be measured
MOST_OFF = 0.1  # of a gradient's length, by which it may miss the slopes that are measured
_INSIDE = 4 * max(DISTANCES)  # grey levels from black and white, so that nothing is clipped
_BESIDE = 0.25  # grey levels from whole and half ones, where a layer that rounds would jump
_FEWEST = 3  # targets, whose sums of scores are not equal by chance
_NORMALISED = 1e-3  # by which sums of probabilities may miss 1
_SAME = 1e-3  # of the scores' range, by which two compilations of one network may differ


class Finding(NamedTuple):
    """What a check found.

    check: what must hold. passed: whether it does; None where it could not be judged. detail: the
    numbers. remedy: what to do where it does not hold, or could not be judged.
    """

    check: str
    passed: bool | None
    detail: str
    remedy: str

    def as_json(self) -> dict[str, Any]:
        """Return the finding as run folders have it, where `detail` is called "said"."""
        return {
            "check": self.check,
            "passed": self.passed,
            "said": self.detail,
            "remedy": self.remedy,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Finding":
        """Return the finding that `as_json` was of."""
        return cls(content["check"], content["passed"], content["said"], content["remedy"])


def audit(
    score_fn: Callable, image: Num[Array, "H W 3"], targets: PyTree[Targets], *, seed: int = 0
) -> list[Finding]:
    """Check a network on one image, and the engine on a model of its own.

    Scores are logits; forward passes repeat; gradients are finite and not zero; gradients are the
    slopes of the scores; an adversarial example that provably exists is found, by `attack` and by
    `attack_stream` (looked for once in a process). It costs 25 to 75 passes forward and 10
    backward, and three compilations of the network.

    A gradient is compared with differences of the same loss in random directions d: the error
    ||g - g'|| / ||g'|| of a gradient g is estimated by the root mean square of <g, d> - <g', d>.

    Args:
      score_fn: image f32[H, W, 3] -> pre-softmax scores f32[*T, C], or a pytree of scores. A
        `jax.tree_util.Partial` has its parameters traced.
      image: [H, W, 3], RGB grey levels 0-255; one on which targets are active.
      targets: Targets of shape *T, or the same pytree of them as the scores.
      seed: of the targets and directions that are drawn.

    Returns:
      List of Finding, one for each check, always in the same order.

    Raises:
      ValueError: as `checks.check` says.

    References: Carlini et al., 2019; Athalye et al., ICML 2018, section 3.1.
    """
    check(score_fn, image, targets)
    score_fn = told_apart(as_callable_pytree(score_fn))
    image = np.asarray(image, np.float32)
    rng = np.random.default_rng(seed)
    scores = _score(score_fn, image)
    inside = np.clip(image, _INSIDE, WHITE - _INSIDE) + np.float32(_BESIDE)
    active = np.asarray(_margins(score_fn, targets, inside)[1][0])
    return [
        _check_logits(scores, targets),
        _check_repeats(score_fn, targets, image, scores),
        _check_gradients(score_fn, targets, inside, active, rng),
        _check_slopes(score_fn, targets, inside, active, rng),
        check_engine(attack),
        check_stream(attack_stream),
    ]


@jax.jit
def _score(score_fn, image):
    return score_fn(image)


def _flat(tree):
    return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(tree)])


def _margins_of(score_fn, targets, image):
    """Return f32[M] margins of the targets, and (bool[M] whether each is active, the scores)."""
    scores = score_fn(image)
    margins = map_targets(lambda t, f: margin_loss(f, t), targets, scores)
    active = map_targets(lambda t, f: active_targets(f, t), targets, scores)
    return _flat(margins), (_flat(active), scores)


_margins = jax.jit(_margins_of)


@jax.jit
def _gradient(score_fn, targets, image, weights):
    """Return f32[H, W, 3], the gradient of the margins' sum, weighted by f32[M]."""
    _, pull, _ = jax.vjp(
        lambda image: _margins_of(score_fn, targets, image), jnp.asarray(image), has_aux=True
    )
    return pull(weights)[0]


def _check_logits(scores, targets) -> Finding:
    """Check for probabilities: at least 0, and of sum 1. Log-probabilities pass: margins agree."""

    def judged(passed, detail):
        return Finding(
            "scores are logits",
            passed,
            detail,
            "return the scores before softmax or sigmoid: probabilities saturate, and margin and "
            "step_size then mean something else",
        )

    valid = map_targets(lambda t, f: np.asarray(f)[np.asarray(t.valid)], targets, scores)
    details = []
    for rows in jax.tree.leaves(valid):  # [n, C] of each network
        rows = rows.astype(np.float64)
        if not rows.size:
            continue
        if rows.shape[-1] == 2 and not np.ptp(rows[:, 1]):  # of a sigmoid head, and its threshold
            rows = rows[:, :1]
        if not np.isfinite(rows).all():
            share = 1 - np.isfinite(rows).all(axis=-1).mean()
            return judged(None, f"{share:.1%} of the targets have a score that is not finite")
        low, high, sums = rows.min(), rows.max(), rows.sum(axis=-1)
        span = f"scores of {len(rows)} targets run from {low:.4g} to {high:.4g}"
        if low >= 0 and np.ptp(sums) <= _NORMALISED * sums.max():
            sum_of = f"{span}, and those of a target sum to {sums.mean():.4g}"
            is_whole = min(abs(sums.mean() / total - 1) for total in (1, 100)) < 0.01
            if len(rows) >= _FEWEST or is_whole:
                return judged(False, sum_of)
            return judged(None, f"{sum_of}: too few targets to tell")
        if low >= 0 and high <= 1:
            return judged(False, f"{span}: they look like the outputs of a sigmoid")
        total = np.logaddexp.reduce(rows, axis=-1)
        log = np.abs(total).max() <= _NORMALISED
        same = ": log-probabilities, whose margins are the logits' own" if log else ""
        details.append(span + same)
    return judged(bool(details) or None, "; ".join(details) or "there is no target")


def _check_repeats(score_fn, targets, image, scores) -> Finding:
    """Check that an image scored again, after another one or by a new trace, scores the same."""
    _score(score_fn, WHITE - image)
    again, anew = _score(score_fn, image), _margins(score_fn, targets, image)[1][1]
    first, *repeats = (
        [np.asarray(leaf) for leaf in jax.tree.leaves(f)] for f in (scores, again, anew)
    )
    calls, traces = (max(map(_apart, first, repeat)) for repeat in repeats)
    bits = all(map(functools.partial(np.array_equal, equal_nan=True), first, repeats[0]))
    return Finding(
        "forward passes repeat",
        bits and traces <= _SAME,
        "one image scored again has "
        + ("the same bits" if bits else f"scores that differ by {calls:.2%} of their range")
        + f"; traced anew they differ by {traces:.2g} of it",
        "switch off dropout, augmentation and the statistics of a batch (flax: train=False, "
        "deterministic=True); what must stay random gets a key of its own that does not change. On "
        "a GPU, XLA_FLAGS=--xla_gpu_deterministic_ops=true",
    )


def _apart(reference, scores):
    """Return the largest difference of two arrays, as a share of the reference's range."""
    reference, scores = reference.astype(np.float64), scores.astype(np.float64)
    span = np.ptp(reference[np.isfinite(reference)]) if np.isfinite(reference).any() else 0.0
    differ = ~((reference == scores) | (np.isnan(reference) & np.isnan(scores)))
    return float(np.abs(reference[differ] - scores[differ]).max(initial=0) / (span or 1.0))


def _labels(targets):
    """Return i64[M], each target's class as a number that differs between networks."""
    leaves = jax.tree.leaves(targets, is_leaf=lambda node: isinstance(node, Targets))
    flat = [np.asarray(leaf.labels).reshape(-1) + 10**6 * i for i, leaf in enumerate(leaves)]
    return np.concatenate(flat)


def _draw(rng, labels, active, number):
    """Return the indices of `number` random active targets, of as many classes as possible."""
    order = rng.permutation(np.flatnonzero(active))
    order = order[np.argsort(labels[order], kind="stable")]
    _, first, group = np.unique(labels[order], return_index=True, return_inverse=True)
    turn = np.arange(len(order)) - first[group]
    return order[np.argsort(turn, kind="stable")][:number]


def _check_gradients(score_fn, targets, image, active, rng) -> Finding:
    """Check the gradient of the attack's loss, and those of single targets."""

    def judged(passed, detail):
        return Finding(
            "gradients are finite and not zero",
            passed,
            detail,
            "look between image and scores for stop_gradient, argmax, rounding, NumPy or a "
            "saturated activation (probabilities for logits), and for float16",
        )

    if not active.any():
        return judged(None, "no target is active: give an image that the network gets right")
    total = np.asarray(_gradient(score_fn, targets, image, np.float32(active)))
    labels = _labels(targets)
    places = _draw(rng, labels, active, TARGETS)
    largest = [float(np.abs(total).max())]
    for place in places:
        weights = np.arange(len(active)) == place
        gradient = np.asarray(_gradient(score_fn, targets, image, np.float32(weights)))
        largest.append(float(np.abs(gradient).max()))
    wrong = int((~np.isfinite(largest[1:])).sum())
    zero = int((np.array(largest[1:]) == 0).sum())
    detail = (
        f"largest slope of the loss {largest[0]:.3g} logits a grey level; of {len(places)} targets "
        f"of {len(set(labels[places]))} classes, {zero} have a gradient of exactly zero, {wrong} "
        "one that is not finite"
    )
    return judged(bool(np.isfinite(largest[0]) and largest[0] > 0 and not wrong + zero), detail)


def _check_slopes(score_fn, targets, image, active, rng) -> Finding:
    """Compare <g, d> with (L(X + h d) - L(X - h d)) / 2 h, L the sum over active targets."""

    def judged(passed, detail, remedy=None):
        return Finding(
            "gradients are the slopes of the scores",
            passed,
            detail,
            remedy
            or "a layer has a derivative that is not its own (custom_jvp, custom_vjp, "
            "stop_gradient, detach, quantisation): take the gradient through the layer itself, or "
            "through a smooth stand-in that behaves like it, and score the attack without the "
            "stand-in (rounded=True for images in whole grey levels)",
        )

    if not active.any():
        return judged(None, "no target is active", "give an image that the network gets right")
    gradient = np.asarray(_gradient(score_fn, targets, image, np.float32(active)), np.float64)
    directions = rng.standard_normal((DIRECTIONS, *image.shape)).astype(np.float32)
    expected = np.array([np.vdot(gradient, direction) for direction in directions])

    def loss(image):
        margins = _margins(score_fn, targets, image)[0]
        return float(np.asarray(margins, np.float64)[active].sum())

    def apart(first, second):
        return np.linalg.norm(first - second) / (max(map(np.linalg.norm, (first, second))) or 1.0)

    measured = []
    for distance in DISTANCES:
        ahead, behind = (
            np.array([loss(image + h * direction) for direction in directions])
            for h in (np.float32(distance), np.float32(-distance))
        )
        measured.append((ahead - behind) / (2 * distance))
        if not np.isfinite([expected, measured[-1]]).all():
            return judged(None, "scores or gradients are not finite")
        off = apart(expected, measured[-1])
        if off <= MOST_OFF and expected.any():
            return judged(
                True,
                f"the gradient is off by {off:.1%} of its length from slopes measured over "
                f"{distance:g} grey levels in {DIRECTIONS} directions",
            )
    numbers = ", ".join(
        f"{apart(expected, slopes):.0%} over {distance:g}"
        for slopes, distance in zip(measured, DISTANCES, strict=True)
    )
    detail = (
        f"the gradient is off by {numbers} grey levels, of its length, from slopes measured in "
        f"{DIRECTIONS} directions; {MOST_OFF:.0%} is the most"
    )
    if not (expected.any() or np.any(measured)):
        return judged(None, "neither the gradient nor the scores say that the image matters")
    if min(map(apart, measured, measured[1:])) > _AGREE:
        return judged(
            None,
            f"{detail}, but the slopes do not agree with each other either",
            "score in float32 throughout (jax_default_matmul_precision='highest'): scores are too "
            "rough to have slopes; a random layer does that, too",
        )
    return judged(False, detail)


@functools.cache
def check_engine(engine: Callable) -> Finding:
    """Try an engine on a model whose adversarial example provably exists.

    Args:
      engine: as `dag_jax.attack`, with the paper's rule of step and active targets.

    Returns:
      Finding: whether it finds the example in the fewest possible steps, and reports it.
    """
    model = planted.plant(0)
    right, detail = planted.judge(model, jax.device_get(planted.attack_by(model, engine=engine)))
    return Finding(
        "a planted adversarial example is found",
        right,
        detail,
        "the engine itself is wrong on this machine: run tests/engine/test_algorithm.py there, and "
        "look at versions of jax and jaxlib and at XLA_FLAGS",
    )


@functools.cache
def check_stream(stream: Callable) -> Finding:
    """Try a stream on three models whose adversarial examples provably exist, in two slots.

    Args:
      stream: as `dag_jax.attack_stream`, with the paper's rule of step and active targets.

    Returns:
      Finding: whether it finds all in the fewest possible steps, and reports them.
    """
    every = {seed: planted.plant(seed) for seed in range(3)}
    examples = [
        (seed, model.image, planted.targets_of(model), (model,)) for seed, model in every.items()
    ]
    attacks = dict(stream(planted.score, examples, method=planted.METHOD, slots=2))
    judged = {seed: planted.judge(every[seed], result) for seed, result in attacks.items()}
    wrong = [detail for right, detail in judged.values() if not right]
    return Finding(
        "a stream finds planted adversarial examples",
        attacks.keys() == every.keys() and not wrong,
        "; ".join(wrong) or f"{len(attacks)} of {len(every)}, each in the fewest steps",
        "the stream is wrong on this machine: run tests/engine/test_stream.py and test_lanes.py "
        "there, and look at versions of jax and jaxlib and at XLA_FLAGS",
    )
