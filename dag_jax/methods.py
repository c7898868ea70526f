"""Attacks by the same engine: each function returns the `Method` of one attack.

    result = dag_jax.attack(score_fn, image, targets, dag_jax.methods.pgd(8.0))

The same arguments give equal methods, so that a second call compiles nothing. `Method.replace`
returns a method with other numbers.

There are two families. Variants of DAG change the rule of active targets, the loss or the update; r
is not bounded, and the attack stops by itself. FGSM, PGD, SegPGD and CosPGD raise the cross-entropy
of the labels by signed steps within epsilon grey levels. They ignore the adversarial labels and
always take max_steps. Their update keeps |r| <= epsilon and 0 <= X + r <= 255 at every iterate, as
public implementations do with the image, so the engine's own clip changes nothing.

Shapes: `H W` pixels, `*T` any target shape ([H, W] pixels or [N] proposals), `C` classes.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Float32, Num, PRNGKeyArray

from dag_jax.arrays import Array
from dag_jax.engine import objective
from dag_jax.engine.checks import WHITE
from dag_jax.engine.method import Method
from dag_jax.engine.objective import (
    Objective,
    active_targets,
    lead,
    leads,
    margin_loss,
    others,
    predicted,
    score_of,
    wide,
)
from dag_jax.engine.targets import Targets
from dag_jax.engine.updates import ClippedStep, Momentum, SignStep
from dag_jax.errors import UserError


def dag(
    step_size: float = 0.5, margin: float = 0.0, max_steps: int = 200, *, rounded: bool = False
) -> Method:
    """Return the paper's attack, `Method` with its defaults.

    Args:
      step_size: gamma, the largest change of a channel in one step, in grey levels.
      margin: logits by which a label must have lost before its target rests.
      max_steps: M_0; the paper has 200 for segmentation and 150 for detection.
      rounded: whether the image is scored as rounded to whole grey levels.

    Reference: Xie et al., ICCV 2017, algorithm 1.
    """
    return Method(step_size=step_size, margin=margin, max_steps=max_steps, rounded=rounded)


def release(background: int | None = None) -> Method:
    """Return the attack of the authors' code, which differs from the paper's.

    Segmentation: a target is active until its adversarial label is predicted (by `margin` logits),

        loss = f_predicted - f_adversarial,    stop once at most 1% of the targets is active

    (theirs is 1% of the foreground). Detection: targets are active and the attack stops by the
    paper's rule, but the loss is the margin of the label over the adversarial one for every target
    predicted as neither its adversarial label nor background. Not reproduced: in their code, fooled
    boxes that score below 0.8 after an NMS of 0.35 become active again.

    The caller makes the adversarial labels by `absent_labels`: classes that the image lacks.

    Args:
      background: for targets that are a detector's proposals, the class that is no object; None
        for those of a segmentation.

    Reference: github.com/cihangxie/DAG, code/fooling_seg_net.m and back_propogation_det.m.
    """
    if background is None:
        return Method(Objective(_not_adversarial, _lead_over_adversarial), stop_fraction=0.01)
    return Method(Objective(active_targets, MarginsOfUnsettled(background)))


def best_other() -> Method:
    """Return DAG with the margin of the label over the best other class.

        loss = f_label - max of the other scores, over active targets

    The adversarial labels are ignored. adversarial-library stops once 99% of the targets are wrong
    (`stop_fraction=0.01`), and its gradient is 0 where the image is clipped.

    Reference: github.com/jeromerony/adversarial-library, segmentation/dense_adversary.py.
    """
    return Method(Objective(active_targets, _lead_of_label))


def momentum(decay: float = 0.9, factor: float | None = None) -> Method:
    """Return DAG with momentum: steps follow a decaying sum of gradients.

        g_m = decay g_{m-1} + r_m / ||r_m||_inf,    r = r + gamma / ||g_m||_inf g_m

    Each gradient is divided by its norm, as in MI-FGSM (here the largest change). Otherwise the
    gradients of many active targets would outweigh those of the last few.

    Args:
      decay: what is left of a gradient one step later, 0 or more and less than 1.
      factor: a step is clip(g_m / (factor rms(g_m)), -1, 1) as in `clipped`; None: as above.

    Raises:
      ValueError: for a number outside this range.

    Reference: Dong et al., Boosting Adversarial Attacks with Momentum, CVPR 2018.
    """
    return Method(update=Momentum(decay, factor))


def clipped(factor: float = 4.0) -> Method:
    """Return DAG whose gradient is scaled by its root mean square and clipped.

        r = r + gamma clip(r_m / (factor rms(r_m)), -1, 1)

    rms(r_m) is the root mean square over pixels and channels. The largest value of r_m is many
    times as large: a step that is scaled by it, as in the paper, moves few pixels.

    Args:
      factor: of the root mean square, at which a gradient is clipped; a positive number.

    Raises:
      ValueError: for a number that is not.
    """
    return Method(update=ClippedStep(factor))


def clipped_best_other(factor: float = 4.0) -> Method:
    """Return `best_other` with the steps of `clipped`."""
    return best_other().replace(update=ClippedStep(factor))


def fgsm(epsilon: float = 8.0) -> Method:
    """Return the fast gradient sign method: one step of epsilon up the cross-entropy.

    Args:
      epsilon: largest change of a channel, in grey levels.

    Raises:
      ValueError: where it is not positive.

    Reference: Goodfellow et al., Explaining and Harnessing Adversarial Examples, ICLR 2015.
    """
    return pgd(epsilon, epsilon, 1)


def pgd(epsilon: float = 8.0, step_size: float = 2.0, max_steps: int = 40) -> Method:
    """Return projected gradient descent in the L-infinity norm.

        r = project(r + alpha sign(gradient of the sum of cross-entropies))

    It starts at 0; `random_start` gives `attack` the other usual start.

    Args:
      epsilon: largest change of a channel, in grey levels.
      step_size: alpha, in grey levels.
      max_steps: steps, all of which are taken.

    Raises:
      ValueError: where a number of grey levels is not positive.

    Reference: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR
      2018; iterates as github.com/Harry24k/adversarial-attacks-pytorch, attacks/pgd.py.
    """
    return _bounded(_pgd_loss, epsilon, step_size, max_steps)


def segpgd(epsilon: float = 8.0, step_size: float = 2.0, max_steps: int = 40) -> Method:
    """Return SegPGD, which shifts its weight from right pixels to wrong ones as steps go by.

        lambda_t = (t - 1) / (2 T);    weight = 1 - lambda_t if right (active), lambda_t if wrong

    Args:
      epsilon: as in `pgd`.
      step_size: as in `pgd`.
      max_steps: T.

    Raises:
      ValueError: as `pgd`.

    Reference: Gu et al., SegPGD, ECCV 2022, algorithm 1; the same schedule from 0 as
      github.com/shashankskagnihotri/cospgd, functions.segpgd_scale.
    """
    return _bounded(_segpgd_loss, epsilon, step_size, max_steps)


def cospgd(epsilon: float = 8.0, step_size: float = 2.0, max_steps: int = 40) -> Method:
    """Return CosPGD, which weighs pixels by how well their prediction agrees with the label.

        weight = cos(softmax(f), one-hot label) = p_label / ||p||_2, taken as a constant

    Args:
      epsilon: as in `pgd`.
      step_size: as in `pgd`.
      max_steps: as in `pgd`.

    Raises:
      ValueError: as `pgd`.

    Reference: Agnihotri et al., CosPGD, ICML 2024; softmax and the constant weight as in
      github.com/shashankskagnihotri/cospgd, functions.cospgd_scale.
    """
    return _bounded(_cospgd_loss, epsilon, step_size, max_steps)


def random_start(
    key: PRNGKeyArray, image: Num[Array, "H W 3"], epsilon: float = 8.0
) -> Float32[jax.Array, "H W 3"]:
    """Draw the random start of PGD, for `attack(start=...)`.

    Args:
      key: JAX key; `image_key` makes one per image.
      image: [H, W, 3], grey levels 0-255.
      epsilon: largest change of a channel, in grey levels.

    Returns:
      f32[H, W, 3], uniform within epsilon, clipped so that the image stays within 0 to 255.

    Raises:
      ValueError: where epsilon is not positive.
    """
    epsilon = _grey_levels("epsilon", epsilon)
    image = jnp.asarray(image).astype(jnp.float32)
    noise = jax.random.uniform(key, image.shape, jnp.float32, -epsilon, epsilon)
    return jnp.clip(noise, -image, WHITE - image)


def _bounded(loss, epsilon, step_size, max_steps):
    epsilon, step_size = _grey_levels("epsilon", epsilon), _grey_levels("step_size", step_size)
    return Method(
        Objective(active_targets, loss),
        SignStep(epsilon),
        step_size,
        max_steps=max_steps,
        stop_fraction=None,
    )


def _grey_levels(name, value):
    if not 0 < value < math.inf:
        raise UserError(f"{name} is {value}; it is a positive number of grey levels")
    return float(value)


def _known(scores, targets):
    """Return scores with 0 where there is no target, so that no NaN there enters a gradient."""
    return jnp.where(targets.valid[..., None], wide(scores), 0)


def _not_adversarial(scores, targets, margin):
    settled = leads(scores, targets.adversarial)

    def ahead():
        rivals = others(scores, targets.adversarial).max(axis=-1)
        return settled & (score_of(scores, targets.adversarial) - rivals >= margin)

    return targets.valid & ~lax.cond(margin > 0, ahead, lambda: settled)


def _lead_over_adversarial(scores, targets, active, progress):
    del progress
    rivals = objective.best_other(scores, targets.adversarial)
    return lead(scores, rivals, targets.adversarial, active)


@dataclasses.dataclass(frozen=True)
class MarginsOfUnsettled:
    """Margins of targets that are active, or predicted as neither adversarial nor background.

    Attributes:
      background: the class that is no object.
    """

    background: int

    def __call__(
        self,
        scores: Float[Array, "*T C"],
        targets: Targets,
        active: Bool[Array, "*T"],
        progress: Float[Array, ""],
    ) -> Float[jax.Array, "*T"]:
        """Return f32[*T]: the loss of an `Objective`."""
        del progress
        prediction = predicted(scores)
        settled = (prediction == targets.adversarial) | (prediction == self.background)
        return jnp.where(active | targets.valid & ~settled, margin_loss(scores, targets), 0)


def _lead_of_label(scores, targets, active, progress):
    del progress
    rivals = objective.best_other(scores, targets.labels)
    return lead(scores, targets.labels, rivals, active)


def _log_likelihood(scores, targets):
    """Return minus the cross-entropy of each label, f32[*T]; 0 where there is no target."""
    logarithms = jax.nn.log_softmax(_known(scores, targets))
    return jnp.where(targets.valid, score_of(logarithms, targets.labels), 0)


def _pgd_loss(scores, targets, active, progress):
    del active, progress
    return _log_likelihood(scores, targets)


def _segpgd_loss(scores, targets, active, progress):
    share = progress / 2
    return jnp.where(active, 1 - share, share) * _log_likelihood(scores, targets)


def _cospgd_loss(scores, targets, active, progress):
    del active, progress
    likelihood = jax.nn.softmax(_known(scores, targets))
    length = jnp.sqrt((likelihood * likelihood).sum(axis=-1))
    weight = jnp.where(targets.valid, score_of(likelihood, targets.labels) / length, 0)
    return jax.lax.stop_gradient(weight) * _log_likelihood(scores, targets)


# Those that stop by themselves and bound no change, by name.
UNBOUNDED = {
    "dag": dag,
    "best_other": best_other,
    "momentum": momentum,
    "clipped": clipped,
    "clipped_best_other": clipped_best_other,
    "momentum_best_other": lambda: momentum().replace(objective=best_other().objective),
    "clipped_momentum": lambda: momentum(factor=4.0),
}
