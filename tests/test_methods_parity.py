"""The norm-bounded attacks against public implementations in PyTorch, iterate by iterate.

`cospgd` (github.com/shashankskagnihotri/cospgd, in the `torch` extra) has the weights of SegPGD and
CosPGD and the projected step; its loop is that of its repository, and takes grey levels by its
clamp arguments. `torchattacks` has FGSM and PGD whole, on images in [0, 1]; it asks for an old
`requests` and is in no extra: `pip install --no-deps torchattacks`.

Steps and images are whole grey levels, so that what is added and clipped has no rounding, and an
iterate can only differ by the sign of a gradient that is 0 but for float32's rounding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dag_jax
from dag_jax import methods, networks
from dag_jax.engine.scoring import as_callable_pytree

torch = pytest.importorskip("torch", reason="PyTorch, the second opinion here, is not installed")
cospgd = pytest.importorskip("cospgd", reason="cospgd, of the torch extra, is not installed")
from experiments.measure import torch_fcn  # noqa: E402  (needs PyTorch)

VOID = 255
EPSILON, ALPHA, STEPS = 8.0, 2.0, 6
METHODS = {"pgd": methods.pgd, "segpgd": methods.segpgd, "cospgd": methods.cospgd}
advance = jax.jit(dag_jax.step)


def public_step(name, scores_of, image, seen, labels, number, steps):
    """Take a step of the loop of cospgd's repository.

    Args:
      name: of the attack.
      scores_of: f32[1, H, W, 3] -> f32[1, C, *T].
      image: f32[1, H, W, 3], the clean one.
      seen: f32[1, H, W, 3], this iterate.
      labels: i64[1, *T], 255 for void.
      number: of the step, from 0.
      steps: their number.

    Returns:
      (the next iterate, the gradient), NumPy's [H, W, 3].
    """
    image, seen = torch.tensor(image), torch.tensor(seen, requires_grad=True)
    predictions = scores_of(seen)
    loss = torch.nn.functional.cross_entropy(
        predictions, labels, ignore_index=VOID, reduction="none"
    )
    if name == "segpgd":
        loss = cospgd.functions.segpgd_scale(predictions, labels, loss, number, steps)
    elif name == "cospgd":
        classes = predictions.shape[1]
        loss = cospgd.functions.cospgd_scale(predictions, labels, loss, num_classes=classes)
    loss.mean().backward()
    following = cospgd.functions.step_inf(
        seen, EPSILON, seen.grad, image, ALPHA, targeted=False, clamp_min=0, clamp_max=255
    )
    return following[0].numpy(), seen.grad[0].numpy()


def our_iterates(name, score_fn, image, targets, steps=STEPS):
    """Return the images that each iterate is scored as, [steps + 1] of f32[H, W, 3]."""
    method = METHODS[name](EPSILON, ALPHA, steps)
    state = dag_jax.init(method, image, targets)
    seen = []
    for _ in range(steps + 1):
        seen.append(np.asarray(state.attack.adversarial))
        state = advance(method, score_fn, state, targets)
    assert int(state.attack.status) != dag_jax.Status.RUNNING
    return seen


def targets_of(labels, classes):
    return dag_jax.make_targets(labels, np.where(labels == VOID, VOID, (labels + 1) % classes))


def linear_scores(weights, bias, image):
    return jnp.einsum("hwck,k->hwc", weights, image.reshape(-1) / 255) + bias


@pytest.fixture
def linear(rng):
    """A linear model of 3 x 4 pixels of an image of 10 x 12, a mask of it, PyTorch's of both."""
    classes = 5
    weights = 0.3 * rng.standard_normal((3, 4, classes, 10 * 12 * 3)).astype(np.float32)
    bias = rng.standard_normal((3, 4, classes)).astype(np.float32)
    image = rng.integers(0, 256, (10, 12, 3)).astype(np.float32)
    image[0] = rng.choice([0, 1, 254, 255], (12, 3))
    score_fn = jax.tree_util.Partial(linear_scores, jnp.asarray(weights), jnp.asarray(bias))
    labels = np.asarray(score_fn(image)).argmax(-1)
    labels[0] = (labels[0] + 1) % classes
    labels[1, 1] = VOID

    def scores_of(seen):
        flat = seen.reshape(len(seen), -1) / 255
        scores = torch.einsum("hwck,bk->bchw", torch.tensor(weights), flat)
        return scores + torch.tensor(bias).permute(2, 0, 1)

    return score_fn, image, labels, targets_of(labels, classes), scores_of


@pytest.mark.parametrize("name", METHODS)
def test_iterates_on_a_linear_model_are_the_same(linear, name):
    score_fn, image, labels, targets, scores_of = linear
    ours = our_iterates(name, score_fn, image, targets)
    seen = image[None]
    for number in range(STEPS):
        np.testing.assert_array_equal(ours[number], seen[0])
        arguments = image[None], seen, torch.tensor(labels)[None].long(), number, STEPS
        following, _ = public_step(name, scores_of, *arguments)
        seen = following[None]
    np.testing.assert_array_equal(ours[STEPS], seen[0])
    change = np.abs(seen[0] - image)
    assert change.max() == EPSILON and (change < EPSILON).any()  # both bounds were met


class OfUnitRange(torch.nn.Module):
    """A network of images f32[B, H, W, 3] in [0, 1], as torchattacks takes it."""

    def __init__(self, scores_of):
        super().__init__()
        self.scores_of = scores_of
        self.unused = torch.nn.Parameter(torch.zeros(()))  # by which it finds the device

    def forward(self, images):
        return self.scores_of(255 * images)


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_iterates_are_torchattacks(linear, name):
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed")
    score_fn, image, labels, targets, scores_of = linear
    mask = torch.tensor(np.where(labels == VOID, -100, labels))[None].long()  # PyTorch's void
    model, unit = OfUnitRange(scores_of), torch.tensor(image)[None] / 255
    for steps in (1,) if name == "fgsm" else range(1, STEPS + 1):
        if name == "fgsm":
            theirs = torchattacks.FGSM(model, eps=EPSILON / 255)
            method = methods.fgsm(EPSILON)
        else:
            theirs = torchattacks.PGD(
                model, eps=EPSILON / 255, alpha=ALPHA / 255, steps=steps, random_start=False
            )
            method = methods.pgd(EPSILON, ALPHA, steps)
        seen = dag_jax.attack(score_fn, image, targets, method).adversarial
        np.testing.assert_allclose(seen, 255 * theirs(unit, mask)[0].numpy(), atol=1e-3)


@pytest.fixture(scope="module")
def segmenter():
    """A miniature FCN, PyTorch's of it, an image, and a mask: half right, some wrong, some void."""
    rng = np.random.default_rng(0)
    network = networks.load("fcn_vgg", miniature=True)
    fcn = torch_fcn.Fcn("fcn_vgg", network.module, network.parameters)
    image = rng.integers(0, 256, (48, 48, 3)).astype(np.float32)
    score_fn = as_callable_pytree(network.scores)
    labels = np.asarray(jax.jit(score_fn)(image)).argmax(-1)
    kind = rng.choice(3, labels.shape, p=(0.6, 0.25, 0.15))
    labels = np.select([kind == 0, kind == 1], [labels, rng.integers(0, 21, kind.shape)], VOID)
    return score_fn, image, labels, targets_of(labels, 21), fcn.scores


@pytest.mark.parametrize("name", METHODS)
def test_iterates_on_an_fcn_are_the_same_but_where_the_gradient_is_none(segmenter, name):
    score_fn, image, labels, targets, scores_of = segmenter
    ours = our_iterates(name, score_fn, image, targets)
    labels, alone = torch.tensor(labels)[None].long(), image[None]
    for number in range(STEPS):
        # From our iterate: all that differs afterwards is this step's.
        arguments = labels, number, STEPS
        following, slope = public_step(name, scores_of, image[None], ours[number][None], *arguments)
        differ = following != ours[number + 1]
        assert np.abs(slope[differ]).max(initial=0) < 1e-4 * np.abs(slope).max()
        assert differ.mean() < 1e-3
        # By itself, from the clean image on.
        alone = public_step(name, scores_of, image[None], alone, *arguments)[0][None]
    assert (alone[0] != ours[STEPS]).mean() < 0.01
    assert np.abs(alone[0] - image).max() == EPSILON
