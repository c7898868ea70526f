"""The residual trunk and the FCN on it: dilation, folding, and PyTorch with the same weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax.networks import layers
from dag_jax.networks.fcn import IMAGENET_MEAN_RGB, DilatedFcn
from dag_jax.networks.grids import pixels
from dag_jax.networks.resnet import Bottleneck, ResNet

# Narrow, but with every kind of block: the first of a stage and another, strided and dilated.
TRUNK = ResNet((6, 8, 12, 16, 24), (1, 2, 1, 2), stride=8)
GEOMETRY = {  # (stride, dilation) of each block's 3x3 convolution, as torchvision has them
    "stage2_1": (1, 1),
    **{"stage3_1": (2, 1), "stage3_2": (1, 1)},
    "stage4_1": (1, 1),
    **{"stage5_1": (1, 2), "stage5_2": (1, 4)},
}
FCN = DilatedFcn(TRUNK, fc_width=10, num_classes=4)
SIZE = 61, 74


def random_variables(module, rng, *inputs):
    """Return variables, none of whose gains, offsets and statistics is where it starts."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:3])), leaf.shape)
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape)
        return rng.normal(0, 0.3, leaf.shape)

    drawn = jax.tree_util.tree_map_with_path(draw, shapes)
    return jax.tree.map(np.float32, drawn)


def normalised(module):
    """Return a network as it trains."""
    return module.clone(batch_norm=True, backbone=module.backbone.clone(batch_norm=True))


def folded(variables):
    return {"params": layers.fold_batch_norm(variables["params"], variables["batch_stats"])}


def assert_equal(actual, expected, tolerance=1e-4):
    """Assert that arrays are equal to a part of what is expected at most."""
    expected = np.asarray(expected)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(actual, expected, atol=tolerance * np.abs(expected).max(), rtol=0)


@pytest.fixture(scope="module")
def variables():
    """Variables of `FCN` as it trains."""
    rng = np.random.default_rng(0)
    return random_variables(normalised(FCN), rng, jnp.zeros((*SIZE, 3)))


@pytest.fixture(scope="module")
def example(variables):
    """Return an image, weights of its scores, those scores, and the gradient of their sum."""
    rng = np.random.default_rng(1)
    image = rng.uniform(0, 255, (*SIZE, 3)).astype(np.float32)
    weights = rng.standard_normal((*SIZE, 4), np.float32)

    @jax.jit
    def run(variables, image):
        scores, vjp = jax.vjp(functools.partial(FCN.apply, variables), image)
        return scores, vjp(weights)[0]

    return image, weights, *run(folded(variables), image)


@pytest.mark.slow
def test_folding_batch_normalisation_leaves_the_scores(variables, example):
    image, _, scores, gradient = example
    assert scores.shape == (*SIZE, 4) and np.isfinite(gradient).all()
    assert (np.asarray(gradient) != 0).mean() > 0.99
    assert_equal(scores, jax.jit(normalised(FCN).apply)(variables, image))


@pytest.mark.slow
def test_a_dilated_trunk_has_the_strided_ones_cells_among_its_own(rng):
    # With the same weights: dilation fills in what a stride leaves out.
    image = rng.uniform(-120, 120, (83, 70, 3)).astype(np.float32)
    variables = random_variables(TRUNK, rng, image)
    maps = {
        stride: jax.jit(TRUNK.clone(stride=stride).apply)(variables, image)["stage5"].cells
        for stride in (8, 16, 32)
    }
    assert maps[8].shape == (11, 9, 24) and maps[32].shape == (3, 3, 24)
    for stride in (16, 32):
        assert_equal(maps[8][:: stride // 8, :: stride // 8], maps[stride])


def test_a_block_adds_to_what_it_is_given(rng):
    x, grid = rng.uniform(0, 1, (5, 6, 8)).astype(np.float32), pixels((5, 6, 8))
    variables = random_variables(Bottleneck(8), rng, x, grid)
    assert set(variables["params"]) == {"conv1", "conv2", "conv3"}
    silent = {
        **variables["params"],
        "conv3": {"kernel": np.zeros((1, 1, 2, 8)), "bias": np.ones(8)},
    }
    y, after = Bottleneck(8).apply({"params": jax.tree.map(jnp.float32, silent)}, x, grid)
    np.testing.assert_allclose(y, x + 1)
    assert after == grid
    for block in (Bottleneck(8, stride=2), Bottleneck(12)):  # the sum has another shape than x
        assert "shortcut" in random_variables(block, rng, x, grid)["params"]


def torch_scores(torch, image, variables):
    """Score an image f64[H, W, 3] by PyTorch's functions, normalisations and all."""
    functional = torch.nn.functional

    def conv(x, *path, relu=True, **options):
        parameters, statistics = variables["params"], variables["batch_stats"]
        for name in path:
            parameters, statistics = parameters[name], statistics.get(name, {})
        parameters = jax.tree.map(torch.tensor, jax.tree.map(np.float64, parameters))
        x = functional.conv2d(
            x, parameters["kernel"].permute(3, 2, 0, 1), parameters["bias"], **options
        )
        if "bn" in parameters:
            norm = jax.tree.map(lambda leaf: torch.tensor(np.float64(leaf)), statistics["bn"])
            gain, offset = parameters["bn"]["scale"], parameters["bn"]["bias"]
            x = functional.batch_norm(x, norm["mean"], norm["var"], gain, offset)
        return functional.relu(x) if relu else x

    x = (image - torch.tensor(IMAGENET_MEAN_RGB).double()).flip(-1).permute(2, 0, 1)[None]
    x = functional.max_pool2d(conv(x, "backbone", "conv1", stride=2, padding=3), 3, 2, 1)
    for name, (stride, dilation) in GEOMETRY.items():
        block = "backbone", name
        y = conv(x, *block, "conv1")
        y = conv(y, *block, "conv2", stride=stride, padding=dilation, dilation=dilation)
        y = conv(y, *block, "conv3", relu=False)
        if "shortcut" in variables["params"]["backbone"][name]:
            x = conv(x, *block, "shortcut", stride=stride, relu=False)
        x = functional.relu(x + y)
    x = conv(conv(x, "fc6", padding=1), "score", relu=False)
    x = functional.interpolate(x, size=image.shape[:2], mode="bilinear", align_corners=False)
    return x[0].permute(1, 2, 0)


@pytest.mark.slow
def test_scores_and_gradient_equal_pytorchs(variables, example):
    torch = pytest.importorskip("torch", reason="PyTorch, the second opinion, is not installed")
    image, weights, own_scores, own_gradient = example
    image = torch.tensor(image).double().requires_grad_()
    scores = torch_scores(torch, image, variables)
    (scores * torch.tensor(weights)).sum().backward()
    for actual, expected in ((own_scores, scores.detach()), (own_gradient, image.grad)):
        expected = expected.numpy()
        assert np.linalg.norm(actual - expected) < 1e-3 * np.linalg.norm(expected)
