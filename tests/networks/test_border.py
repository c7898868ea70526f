"""Leaving out what the image does not reach changes nothing: scores, gradients, padded images."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax import networks
from dag_jax.networks import backbones, operations
from dag_jax.networks.border import Reach, _reached
from dag_jax.networks.fcn import Fcn
from dag_jax.networks.grids import pixels

WIDTHS = (4, 4, 6, 6, 8)
VGG = Fcn(
    backbones.Vgg16(WIDTHS, first_padding=100),
    skips=("stage4", "stage3"),
    fc_width=8,
    num_classes=3,
)
ALEX = Fcn(
    backbones.AlexNet(WIDTHS, first_padding=100),
    fc_width=8,
    fc_size=6,
    upsample_size=63,
    num_classes=3,
)
NARROW = {"fcn_vgg": VGG, "fcn_alex": ALEX}


def everywhere(module):
    """Return a network that computes its maps cell by cell."""
    return module.clone(backbone=module.backbone.clone(everywhere=True))


def random_parameters(module):
    """Return parameters whose biases are not zero: else the border would be."""
    image = jax.ShapeDtypeStruct((64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    rng = np.random.default_rng(0)

    def fill(leaf):
        scale = 0.3 if leaf.ndim == 1 else (2 / math.prod(leaf.shape[:-1])) ** 0.5
        return rng.normal(0, scale, leaf.shape).astype(np.float32)

    return jax.tree.map(fill, shapes)


def run(module, parameters, image, weights, extent=None):
    """Return scores, and the gradients of a sum of them by image and parameters."""

    def loss(image, parameters):
        scores = module.apply({"params": parameters}, image, extent=extent)
        return (weights * scores).sum(), scores

    gradients, scores = jax.grad(loss, (0, 1), has_aux=True)(image, parameters)
    return scores, gradients


def compiled(module, *arguments):
    return jax.jit(functools.partial(run, module)).lower(*arguments).compile()


def flops(function):
    return function.cost_analysis()["flops"]


def assert_equal(actual, expected):
    """Assert that trees of arrays are equal to 1e-5 of each array's largest entry."""

    def check(actual, expected):
        largest = np.abs(expected).max()
        assert np.isfinite(actual).all() and largest > 0
        np.testing.assert_allclose(actual, expected, atol=1e-5 * largest, rtol=0)

    jax.tree.map(check, actual, expected)


def example(rng, shape):
    image = rng.uniform(0, 255, (*shape, 3)).astype(np.float32)
    return image, rng.normal(size=(*shape, 3)).astype(np.float32)


LEARNED = VGG.clone(dense=("upscore", "upscore_stage4"))


@pytest.mark.slow
@pytest.mark.parametrize(("module", "size"), [(LEARNED, (75, 40))])
def test_scores_and_gradients_are_those_of_every_cell(module, size, rng):
    arguments = (random_parameters(module), *example(rng, size))
    bordered, everywhere_program = (compiled(m, *arguments) for m in (module, everywhere(module)))
    assert_equal(bordered(*arguments), everywhere_program(*arguments))
    assert flops(bordered) < 0.6 * flops(everywhere_program)


@pytest.mark.slow
@pytest.mark.parametrize("name", NARROW)
def test_images_in_one_array_have_each_their_own_border(name, rng):
    # Every remainder by the largest stride, along both axes, so that each pool ends in each way.
    module, side = NARROW[name], 64
    image, weights = example(rng, (side, side))
    extents = np.int32([(1 + n, 1 + (7 * n) % side) for n in range(32)] + [(side, side)])
    parameters = random_parameters(module)

    def gradients(module):
        def gradient_at(extent):
            scores, (by_image, _) = run(module, parameters, image, weights, extent)
            return scores, by_image

        return jax.jit(lambda extents: jax.lax.map(gradient_at, extents, batch_size=11))(extents)

    bordered, all_cells = gradients(module), gradients(everywhere(module))
    for index in range(len(extents)):
        assert_equal(
            *(jax.tree.map(lambda x, i=index: x[i], tree) for tree in (bordered, all_cells))
        )


@pytest.mark.slow
def test_what_the_image_does_not_reach_does_not_move_with_it(rng):
    backbone = VGG.backbone.clone(everywhere=True)
    images, _ = example(rng, (2, 30, 41))
    variables = {"params": random_parameters(backbone)}
    maps = jax.jit(backbone.apply)(variables, images)
    bordered = jax.jit(backbone.clone(everywhere=False).apply)(variables, images)
    for name in ("stage1", "stage2", "stage3"):
        assert_equal(bordered[name].cells, maps[name].cells)
        cells = np.asarray(maps[name].cells)
        differs = (cells[0] != cells[1]).any(-1)
        reached = differs.any(1).sum() * differs.any(0).sum()
        assert 0 < reached < 0.4 * differs.size


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn_alex"])
def test_a_miniature_is_the_same(name, rng):
    network = networks.load(name, miniature=True)
    image = rng.uniform(0, 255, (70, 95, 3)).astype(np.float32)
    bordered, all_cells = (
        jax.jit(module.apply)({"params": network.parameters}, image)
        for module in (network.module, everywhere(network.module))
    )
    assert_equal(bordered, all_cells)


def test_batch_normalisation_sees_every_cell():
    image = jax.ShapeDtypeStruct((2, 40, 40, 3), jnp.float32)
    backbone = backbones.AlexNet(WIDTHS, first_padding=100, batch_norm=True)
    all_cells = backbone.clone(everywhere=True)
    variables = jax.eval_shape(backbone.init, jax.random.key(0), image)
    for options in ({"train": False}, {"train": True, "mutable": ["batch_stats"]}):
        bordered, every = (
            jax.make_jaxpr(lambda *a, m=module: m.apply(*a, **options))(variables, image)  # noqa: B023
            for module in (backbone, all_cells)
        )
        assert len(bordered.eqns) == len(every.eqns)


@pytest.mark.slow
def test_a_border_has_a_cell_of_every_kind():
    # A map of 9 x 8 cells, of which one is the image's; the edges are felt two cells deep.
    border = jnp.pad(jnp.arange(25.0).reshape(5, 5, 1) + 1, ((0, 1), (0, 1), (0, 0)))
    for rows, columns in ((9, 8), (jnp.int32(9), jnp.int32(8))):
        grid = pixels((9, 8, 1))._replace(rows=rows, columns=columns)
        reach = Reach(jnp.full((1, 1, 1), -1.0), (4, 3), grid, pixels((9, 8, 1)), grid, border)
        expected = np.array([0, 1, 2, 2, 2, 2, 2, 3, 4])[:, None] * 5 + [0, 1, 2, 2, 2, 2, 3, 4] + 1
        expected[4, 3] = -1
        np.testing.assert_array_equal(reach.whole().cells[..., 0], expected)
        read = reach._read(range(-1, 6), range(2, 10))[..., 0]
        np.testing.assert_array_equal(read[1:, :6], expected[:6, 2:])
        assert not read[0].any() and not read[:, 6:].any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(3, 1, 1), (2, 2, 0), (3, 2, 0), (5, 1, 2), (11, 4, 9)]
)
def test_the_reach_is_what_a_convolution_moves(size, stride, padding):
    kernel = jnp.ones((size, 1, 1, 1))
    kernel = jnp.broadcast_to(kernel, (size, size, 1, 1))
    for begin, end in ((0, 1), (3, 7), (11, 14), (0, 14)):
        x = jnp.zeros((14, 14, 1)).at[begin:end].set(1)
        y = operations.convolve(x, kernel, stride=stride, padding=padding).any((1, 2))
        reached = _reached(begin, end, size, stride, padding, len(y))
        np.testing.assert_array_equal(np.flatnonzero(y), reached)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "most"), [("fcn_vgg", 0.7), ("fcn_alex", 0.93)])
def test_a_full_size_network_works_less(name, most):
    module = networks.build(name)
    image = jax.ShapeDtypeStruct((375, 500, 3), jnp.float32)
    parameters = jax.eval_shape(module.init, jax.random.key(0), image)["params"]

    def loss(image, parameters, module):
        return (module.apply({"params": parameters}, image) ** 2).sum()

    bordered_cost, full_cost = (
        flops(
            jax.jit(jax.value_and_grad(functools.partial(loss, module=m))).lower(image, parameters)
        )
        for m in (module, everywhere(module))
    )
    assert bordered_cost < most * full_cost
