"""The FCNs' scores and an attack's gradient at the image, against PyTorch with the same weights.

Networks and margin loss are written anew with PyTorch's functions, after the deploy files of
shelhamer/fcn.berkeleyvision.org; weights are carried over by transposing.

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
functional = torch.nn.functional

MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)
VOID = 255


def bilinear(channels, size):
    """The kernel of a bilinear Deconvolution, [channels, channels, size, size]."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    line = 1 - (torch.arange(size) - centre).abs() / factor
    return torch.eye(channels)[:, :, None, None] * torch.outer(line, line)


def upsample(x, size, stride):
    return functional.conv_transpose2d(x, bilinear(x.shape[1], size), stride=stride)


def crop(x, offset, like):
    return x[..., offset : offset + like.shape[-2], offset : offset + like.shape[-1]]


def fcn_8s(data, conv, relu, pool):
    """voc-fcn8s (at once, heavy)."""
    x, pools = data, []
    for stage, count in enumerate((2, 2, 3, 3, 3), start=1):
        for number in range(1, count + 1):
            pad = 100 if stage == number == 1 else 1
            x = relu(conv(f"conv{stage}_{number}", x, padding=pad))
        x = pool(x, 2)
        pools.append(x)
    x = relu(conv("fc7", relu(conv("fc6", x))))
    x = upsample(conv("score_fr", x), 4, 2)
    x = x + crop(conv("score_stage4", pools[3]), 5, x)
    x = upsample(x, 4, 2)
    x = x + crop(conv("score_stage3", pools[2]), 9, x)
    return crop(upsample(x, 16, 8), 31, data)


def fcn_alex_32s(data, conv, relu, pool):
    """voc-fcn-alexnet."""

    def norm(x):
        return functional.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1)

    x = norm(pool(relu(conv("conv1", data, stride=4, padding=100)), 3))
    x = norm(pool(relu(conv("conv2", x, padding=2, groups=2)), 3))
    x = relu(conv("conv3", x, padding=1))
    x = relu(conv("conv4", x, padding=1, groups=2))
    x = pool(relu(conv("conv5", x, padding=1, groups=2)), 3)
    x = relu(conv("fc7", relu(conv("fc6", x))))
    return crop(upsample(conv("score_fr", x), 63, 32), 18, data)


FCNS = {"fcn_vgg": fcn_8s, "fcn_alex": fcn_alex_32s}
# Channels of the trunk and of fc6 in the quick tests.
NARROW = {"fcn_vgg": ((8, 12, 16, 24, 24), 48), "fcn_alex": ((16, 24, 32, 32, 24), 48)}


def flat(tree):
    """Return one dict of all layers, the trunk's and the head's."""
    return tree["backbone"] | {layer: kept for layer, kept in tree.items() if layer != "backbone"}


class Torch:
    """An FCN of `FCNS` with the parameters of ours."""

    def __init__(self, name, parameters):
        self.forward = FCNS[name]
        self.weights = {
            layer: (
                torch.from_numpy(leaves["kernel"].transpose(3, 2, 0, 1).copy()),
                torch.from_numpy(leaves["bias"].copy()),
            )
            for layer, leaves in flat(parameters).items()
        }

    def scores(self, image, maps=None):
        """Map an RGB image [H, W, 3] to scores [H, W, C]; note how many ReLUs let pass.

        `maps` are ours after each ReLU, by layer: what they decide is taken over.
        """
        self.alive, self.used = [], []

        def conv(layer, x, **options):
            self.used.append(layer)
            return functional.conv2d(x, *self.weights[layer], **options)

        def relu(x):
            self.alive.append((x > 0).float().mean().item())
            if maps is None:
                return functional.relu(x)
            passed = x * (maps[self.used[-1]] > 0)
            assert_tied(passed, functional.relu(x))
            return passed

        def pool(x, size):
            options = {"kernel_size": size, "stride": 2, "ceil_mode": True}
            pooled = functional.max_pool2d(x, **options)
            if maps is None:
                return pooled
            _, winners = functional.max_pool2d(maps[self.used[-1]], **options, return_indices=True)
            taken = x.flatten(2).gather(2, winners.flatten(2)).view_as(pooled)
            assert_tied(taken, pooled)
            return taken

        data = (image.flip(-1) - torch.tensor(MEAN_BGR)).permute(2, 0, 1)[None]
        scores = self.forward(data, conv, relu, pool)
        assert set(self.used) == self.weights.keys()
        return scores[0].permute(1, 2, 0)

    def gradient(self, image, labels, adversarial, maps):
        """Return the active targets bool[H, W], and the gradient of their margins."""
        image = torch.tensor(image, requires_grad=True)
        labels, adversarial = torch.tensor(labels).long(), torch.tensor(adversarial).long()
        maps = {layer: torch.tensor(array).permute(2, 0, 1)[None] for layer, array in maps.items()}
        scores = self.scores(image, maps)
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
        scores, state = module.apply(
            {"params": parameters},
            image,
            capture_intermediates=lambda layer, _: isinstance(
                layer, layers.Conv | layers.PatchDense
            ),
        )
        active = dag_jax.active_targets(scores, targets)
        margins = dag_jax.margin_loss(scores, targets)
        maps = state["intermediates"]
        maps = {layer: kept["__call__"][0] for layer, kept in flat(maps).items()}
        return jnp.where(active, margins, 0).sum(), (scores, active, maps)

    gradient, (scores, active, maps) = jax.grad(loss, has_aux=True)(image)
    return scores, active, gradient, maps


def check(name, module, size, rng):
    """Compare on a random image; return the relative deviations, largest and root mean square."""
    parameters = random_parameters(module, rng)
    theirs = Torch(name, parameters)
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


def relative(own, expected):
    """Return deviations as shares of what is expected: in the largest value, and in the norm."""
    assert own.shape == expected.shape
    difference, expected = np.float64(own) - expected, np.float64(expected)
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
@pytest.mark.parametrize("name", FCNS)
def test_full_size_scores_and_gradient_equal_pytorchs(rng, name):
    check(name, networks.build(name), ODD, rng)
