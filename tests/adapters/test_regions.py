"""Pools of regions in JAX, against torchvision's own, which a module compiled by torchax has."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dag_jax
from dag_jax import adapters
from dag_jax.adapters import regions

torch = pytest.importorskip("torch", reason="PyTorch, of the torch extra, is not installed")
ops = pytest.importorskip("torchvision.ops", reason="torchvision is not installed")
needs_torchax = pytest.mark.skipif(
    not importlib.util.find_spec("torchax"), reason="torchax, an extra, is not installed"
)

RNG = np.random.default_rng(0)
MAPS = RNG.normal(size=(2, 5, 12, 17))
# A pixel's breadth, an image's, beyond each border, far outside, and of no size.
EDGES = [[3, 4, 4, 5], [0, 0, 34, 24], [-9, -7, 50, 40]]
EDGES += [[90, 2, 99, 9], [8, 8, 8, 8], [5, 3, 6, 22]]
EDGES = np.concatenate([EDGES, np.sort(RNG.uniform(-3, 36, (20, 2, 2)), axis=1).reshape(20, 4)])
REGIONS = np.concatenate([RNG.integers(0, 2, (len(EDGES), 1)), EDGES], axis=1)
PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("size", "samples", "scale"), [((7, 7), 2, 0.5), ((3, 5), 3, 0.31)])
def test_roi_align_and_its_gradient_are_torchvision_s(dtype, aligned, size, samples, scale):
    leaf = torch.tensor(MAPS).requires_grad_()
    theirs = ops.roi_align(leaf, torch.tensor(REGIONS), size, scale, samples, aligned)
    weights = RNG.normal(size=theirs.shape)
    (theirs * torch.tensor(weights)).sum().backward()
    pool = lambda x: regions.roi_align(  # noqa: E731
        x, jnp.asarray(REGIONS.astype(dtype)), scale, *size, samples, aligned
    )
    with jax.enable_x64(dtype == np.float64):
        ours, pull = jax.vjp(pool, MAPS.astype(dtype))
        (slope,) = pull(jnp.asarray(weights.astype(dtype)))
        assert ours.dtype == slope.dtype == dtype
    atol = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(ours, theirs.detach(), atol=atol)
    np.testing.assert_allclose(slope, leaf.grad, atol=10 * atol)


def test_samples_by_the_size_of_each_region_are_refused():
    with pytest.raises(dag_jax.UserError, match="sampling_ratio=-1 .* via='callback'"):
        regions.roi_align(np.float32(MAPS), np.float32(REGIONS), 1.0, 7, 7, -1, False)


@pytest.mark.parametrize("shapes", [[(96, 96)], [(96, 80), (64, 96)]])
def test_levels_are_torchvision_s(shapes):
    maps = [RNG.normal(size=(len(shapes), 3, 96 >> k, 96 >> k)) for k in (2, 3, 4)]
    edges = [
        np.sort(RNG.uniform(0, 500, (12 + i, 2, 2)), axis=1).reshape(-1, 4) ** 1.1
        for i in range(len(shapes))
    ]
    pooler = ops.MultiScaleRoIAlign(["0", "1", "2"], 7, 2)
    named = {str(i): torch.tensor(each) for i, each in enumerate(maps)}
    theirs = pooler(named, [torch.tensor(each) for each in edges], shapes)
    ours = regions.pool_levels(
        [np.float32(each) for each in maps],
        [np.float32(each) for each in edges],
        tuple(max(sides) for sides in zip(*shapes, strict=True)),
        size=7,
        samples=2,
    )
    assert regions.pools_levels(pooler)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    "pooler",
    [
        ops.MultiScaleRoIAlign(["0"], 7, 2, canonical_scale=112),
        ops.MultiScaleRoIAlign(["0"], (7, 3), 2),
        ops.MultiScaleRoIAlign(["0"], 7, -1),
    ],
)
def test_other_pools_are_left_to_torchvision(pooler):
    assert not regions.pools_levels(pooler)


class Pooled(torch.nn.Module):
    """A convolution whose outputs are pooled in fixed regions."""

    def __init__(self, samples):
        super().__init__()
        torch.manual_seed(0)
        self.network, self.samples = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1), samples
        inside = REGIONS * [0, 1, 1, 1, 1]
        self.register_buffer("regions", torch.tensor(inside, dtype=torch.float32))

    def forward(self, x):
        rows = self.regions
        return ops.roi_align(self.network(x), rows, (3, 2), 0.5, self.samples, aligned=True)


def check_as_by_callback(module, image, distance):
    """Compare what torchax makes of a module with what PyTorch computes in float64."""
    size = image.shape[:2]
    compiled = adapters.from_torch(module.eval(), **PLAIN, size=size, via="torchax")
    called = adapters.from_torch(module.double(), **PLAIN, size=size)
    pairs = []
    for function in (compiled, called):
        output, pull = jax.vjp(jax.jit(function), image)
        weights = np.random.default_rng(1).normal(size=output.shape).astype(np.float32)
        pairs.append((output, pull(weights)[0]))
    for ours, theirs in zip(*pairs, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=distance * np.abs(theirs).max())


@needs_torchax
def test_torchax_compiles_a_module_with_it():
    image = RNG.uniform(0, 255, (24, 34, 3)).astype(np.float32)
    check_as_by_callback(Pooled(2), image, 3e-6)


@needs_torchax
def test_torchax_refuses_what_cannot_be_compiled():
    with pytest.raises(dag_jax.UserError, match="sampling_ratio=-1"):
        adapters.from_torch(Pooled(-1).eval(), **PLAIN, size=(24, 34), via="torchax")


class Heads(torch.nn.Module):
    """What the heads of a torchvision Faster R-CNN say of fixed boxes, on a pyramid of two maps."""

    def __init__(self):
        super().__init__()
        rcnn = importlib.import_module("torchvision.models.detection.faster_rcnn")
        torch.manual_seed(0)
        self.fine = torch.nn.Conv2d(3, 4, 4, stride=4)
        self.coarse = torch.nn.Conv2d(4, 4, 2, stride=2)
        self.heads = torch.nn.ModuleList(
            [
                ops.MultiScaleRoIAlign(["0", "1"], 3, 2),
                rcnn.TwoMLPHead(4 * 9, 8),
                rcnn.FastRCNNPredictor(8, 5),
            ]
        )
        boxes = [[1.0, 2, 190, 161], [4, 3, 20, 47], [0, 0, 2, 30], [10, 10, 15, 15.5]]
        self.register_buffer("boxes", torch.tensor(boxes))

    def forward(self, x):
        fine = self.fine(x)
        maps = {"0": fine, "1": self.coarse(fine.tanh()), "pool": fine}
        pool, head, predictor = self.heads
        return predictor(head(pool(maps, [self.boxes], [tuple(x.shape[2:])])))[0]


@needs_torchax
def test_torchax_compiles_the_heads_of_a_faster_rcnn():
    check_as_by_callback(Heads(), RNG.uniform(0, 255, (160, 192, 3)).astype(np.float32), 1e-5)
