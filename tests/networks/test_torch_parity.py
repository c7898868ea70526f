"""The FCNs' scores and an attack's gradient at the image, against PyTorch with the same weights.

The networks there are `experiments.measure.torch_fcn`, written anew with PyTorch's functions after
the deploy files of shelhamer/fcn.berkeleyvision.org; the margin loss is written anew here.

Of the millions of ReLUs and pools a few lie so near a tie that rounding decides, in ours and in
PyTorch's, and one can move the gradient by more than the tolerance. So PyTorch takes its gradient
with the decisions of ours, and asserts that each which is not its own is such a tie: where there is
none, this is PyTorch's own gradient.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dag_jax
from dag_jax import networks
from dag_jax.networks import layers

torch = pytest.importorskip("torch", reason="PyTorch, the second opinion here, is not installed")
from experiments.measure import torch_fcn  # noqa: E402  (needs PyTorch)

functional = torch.nn.functional

VOID = 255


# Channels of the trunk and of fc6 in the quick tests.
NARROW = {"fcn_vgg": ((8, 12, 16, 24, 24), 48), "fcn_alex": ((16, 24, 32, 32, 24), 48)}


class Judged(torch_fcn.Fcn):
    """An FCN that notes how many ReLUs let pass, and may be told what they and pools decide."""

    maps = None  # ours after each ReLU, by layer: what they decide is taken over

    def scores(self, image):
        """Map an RGB image [H, W, 3] to scores [H, W, C]."""
        self.alive, self.used = [], []
        scores = super().scores(image[None])
        assert set(self.used) == self.weights.keys()
        return scores[0].permute(1, 2, 0)

    def conv(self, layer, x, **options):
        self.used.append(layer)
        return super().conv(layer, x, **options)

    def relu(self, x):
        self.alive.append((x > 0).float().mean().item())
        if self.maps is None:
            return super().relu(x)
        passed = x * (self.maps[self.used[-1]] > 0)
        assert_tied(passed, super().relu(x))
        return passed

    def pool(self, x, size):
        pooled = super().pool(x, size)
        if self.maps is None:
            return pooled
        _, winners = functional.max_pool2d(
            self.maps[self.used[-1]], size, stride=2, ceil_mode=True, return_indices=True
        )
        taken = x.flatten(2).gather(2, winners.flatten(2)).view_as(pooled)
        assert_tied(taken, pooled)
        return taken

    def gradient(self, image, labels, adversarial, maps):
        """Return the active targets bool[H, W], and the gradient of their margins."""
        self.maps = {
            layer: torch.tensor(array).permute(2, 0, 1)[None] for layer, array in maps.items()
        }
        image = torch.tensor(image, requires_grad=True)
        labels, adversarial = torch.tensor(labels).long(), torch.tensor(adversarial).long()
        scores = self.scores(image)
        valid = (labels != VOID) & (adversarial != VOID) & (labels != adversarial)
        active = valid & (scores.argmax(-1) == labels)
        rows, columns = active.nonzero(as_tuple=True)
        of_label = scores[rows, columns, labels[active]]
        of_adversarial = scores[rows, columns, adversarial[active]]
        (of_label - of_adversarial).sum().backward()
        return active.numpy(), image.grad.numpy()


def assert_tied(values, expected):
    """What was decided otherwise than PyTorch would is as good, but for float32's rounding."""
    assert (values - expected).abs().max() < 1e-5 * expected.abs().max()


def random_parameters(module, rng):
    """Return NumPy parameters: activations stay near an image's grey levels."""
    image = jax.ShapeDtypeStruct((128, 128, 3), jnp.float32)
    tree = jax.eval_shape(module.init, jax.random.key(0), image)["params"]

    def fill(leaf):
        values = rng.standard_normal(leaf.shape, np.float32)
        if len(leaf.shape) == 1:
            return values
        values *= np.float32(np.sqrt(2 / np.prod(leaf.shape[:3])))
        return values

    return jax.tree.map(fill, tree)


def random_labels(scores, rng):
    """Return a mask that is in part right, in part wrong and in part void, and another map."""
    classes = scores.shape[-1]
    labels = scores.argmax(-1)
    kind = rng.choice(3, labels.shape, p=(0.6, 0.25, 0.15))
    labels = np.select([kind == 0, kind == 1], [labels, rng.integers(0, classes, kind.shape)], VOID)
    adversarial = rng.integers(0, classes, labels.shape)
    adversarial[rng.random(labels.shape) < 0.1] = VOID
    return labels, adversarial


@functools.partial(jax.jit, static_argnums=0)
def run(module, parameters, image, labels, adversarial):
    """Return scores, active targets, the gradient of their margins, and each layer's map."""
    targets = dag_jax.make_targets(labels, adversarial)

    def loss(image):
        scores = module.apply({"params": parameters}, image)
        active = dag_jax.active_targets(scores, targets)
        margins = dag_jax.margin_loss(scores, targets)
        return jnp.where(active, margins, 0).sum(), (scores, active)

    gradient, (scores, active) = jax.grad(loss, has_aux=True)(image)
    # Of the maps, the module computes what the image reaches; PyTorch is to have all their cells.
    everywhere = module.clone(backbone=module.backbone.clone(everywhere=True))
    _, state = everywhere.apply(
        {"params": parameters},
        image,
        capture_intermediates=lambda layer, _: isinstance(layer, layers.Conv | layers.PatchDense),
    )
    maps = torch_fcn.flat(state["intermediates"])
    return (
        scores,
        active,
        gradient,
        {name: layer_outputs["__call__"][0] for name, layer_outputs in maps.items()},
    )


def check(name, module, size, rng):
    """Compare on a random image; return the relative deviations, largest and root mean square."""
    parameters = random_parameters(module, rng)
    theirs = Judged(name, module, parameters)
    image = rng.uniform(0, 255, (*size, 3)).astype(np.float32)
    with torch.no_grad():
        scores = theirs.scores(torch.tensor(image)).numpy()
    labels, adversarial = random_labels(scores, rng)
    own_scores, own_active, own_gradient, maps = jax.device_get(
        run(module, parameters, image, labels, adversarial)
    )
    active, gradient = theirs.gradient(image, labels, adversarial, maps)
    # Nothing is dead or trivial: ReLUs, classes, targets, pixels.
    assert 0.2 < min(theirs.alive) and max(theirs.alive) < 0.8, theirs.alive
    assert len(np.unique(labels[active])) > 1
    assert 0.2 < active.mean() < 0.7
    assert (gradient != 0).mean() > 0.99

    np.testing.assert_array_equal(own_active, active)
    deviations = relative(own_scores, scores), relative(own_gradient, gradient)
    assert np.max(deviations) < 1e-3, deviations
    return deviations


def relative(ours, expected):
    """Return deviations as shares of what is expected: in the largest value, and in the norm."""
    assert ours.shape == expected.shape
    difference, expected = np.float64(ours) - expected, np.float64(expected)
    return [
        float(norm(difference) / norm(expected))
        for norm in (lambda array: np.abs(array).max(), np.linalg.norm)
    ]


ODD, EVEN = (67, 90), (48, 64)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("fcn_vgg", ODD),
        ("fcn_vgg", EVEN),
        pytest.param("fcn_alex", ODD, marks=pytest.mark.slow),
        pytest.param("fcn_alex", EVEN, marks=pytest.mark.slow),
    ],
)
def test_scores_and_gradient_equal_pytorchs(rng, name, size):
    widths, fc_width = NARROW[name]
    module = networks.build(name)
    module = module.clone(backbone=module.backbone.clone(widths=widths), fc_width=fc_width)
    check(name, module, size, rng)


@pytest.mark.slow
@pytest.mark.parametrize("name", torch_fcn.FCNS)
def test_full_size_scores_and_gradient_equal_pytorchs(rng, name):
    check(name, networks.build(name), ODD, rng)


@pytest.mark.parametrize("name", torch_fcn.FCNS)
def test_miniature_scores_equal_pytorchs(rng, name):
    network = networks.load(name, miniature=True)
    theirs = Judged(name, network.module, network.parameters)
    image = rng.uniform(0, 255, (*ODD, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs.scores(torch.tensor(image)).numpy()
    ours = jax.jit(network.scores)(image)
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


def two_attacks(network, rng):
    """Return two images, the best class of some of their pixels, and the second best."""
    images = rng.uniform(0, 255, (2, 48, 48, 3)).astype(np.float32)
    labels, adversarial = np.full((2, 2, 48, 48), VOID)
    for index, (image, side) in enumerate(zip(images, (6, 4), strict=True)):
        order = np.argsort(jax.jit(network.scores)(image)[:side, :side], axis=-1)
        labels[index, :side, :side] = order[..., -1]
        adversarial[index, :side, :side] = order[..., -2]
    return images, labels, adversarial


def test_attack_takes_the_steps_of_ours(rng):
    network = networks.load("fcn_vgg", miniature=True)
    images, labels, adversarial = two_attacks(network, rng)
    targets = dag_jax.make_targets(labels, adversarial)
    ours = dag_jax.attack_batch(network.scores, images, targets)
    fcn = torch_fcn.Fcn("fcn_vgg", network.module, network.parameters)
    arrays = (np.int64(labels % VOID), np.int64(adversarial % VOID), np.asarray(targets.valid))
    perturbations, steps = torch_fcn.attack(fcn, *map(torch.tensor, (images, *arrays)))
    assert (np.asarray(ours.status) == dag_jax.Status.FOOLED).all()
    assert steps[0] != steps[1]  # the batch shrank
    np.testing.assert_allclose(steps, ours.num_steps, atol=2)  # float32's rounding
    assert np.abs(perturbations.numpy() - ours.perturbation).max() < 0.5  # one step


def test_attack_ends_at_the_last_step(rng):
    network = networks.load("fcn_vgg", miniature=True)
    images, labels, adversarial = two_attacks(network, rng)
    fcn = torch_fcn.Fcn("fcn_vgg", network.module, network.parameters)
    arrays = (np.int64(labels % VOID), np.int64(adversarial % VOID), labels != VOID)
    perturbations, steps = torch_fcn.attack(
        fcn, *map(torch.tensor, (images, *arrays)), max_steps=3, step_size=0.25
    )
    assert steps.tolist() == [3, 3]
    assert 0.25 < perturbations.abs().max() <= 0.75
