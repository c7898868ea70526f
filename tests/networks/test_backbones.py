"""The trunks: their sizes are published numbers, their geometry is measured on the trunk itself."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax.networks import backbones
from dag_jax.networks.resnet import ResNet

VGG, ALEX, ZF = backbones.Vgg16(), backbones.AlexNet(), backbones.Zf()
RESNET = ResNet()


def shapes(module, height, width):
    """Return (parameter tree, maps) of a trunk, shapes only."""
    image = jax.ShapeDtypeStruct((height, width, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    return variables["params"], jax.eval_shape(module.apply, variables, image)


@pytest.mark.parametrize(
    ("module", "total"),
    [
        (VGG, 14_714_688),  # VGG-16 without its classifier
        (ALEX, 2_334_080),  # CaffeNet's: 34,944 + 307,456 + 885,120 + 663,936 + 442,624
        (ZF, 3_726_464),  # 14,208 + 614,656 + 885,120 + 1,327,488 + 884,992
        (RESNET, 23_481_472),  # torchvision's resnet50 without classifier and normalisations
    ],
)
def test_number_of_parameters_is_the_published_one(module, total):
    params, _ = shapes(module, 64, 64)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == total


def test_kernels_have_caffes_names_and_shapes():
    params, _ = shapes(VGG, 64, 64)
    kernels = {name: layer["kernel"].shape for name, layer in params.items()}
    assert len(kernels) == 13
    assert kernels["conv1_1"] == (3, 3, 3, 64)
    assert kernels["conv5_3"] == (3, 3, 512, 512)
    params, _ = shapes(ALEX, 64, 64)
    assert [params[f"conv{n}"]["kernel"].shape for n in range(1, 6)] == [
        (11, 11, 3, 96),
        (5, 5, 48, 256),  # two groups
        (3, 3, 256, 384),
        (3, 3, 192, 384),
        (3, 3, 192, 256),
    ]
    params, _ = shapes(ZF, 64, 64)
    assert [params[f"conv{n}"]["kernel"].shape for n in range(1, 6)] == [
        (7, 7, 3, 96),
        (5, 5, 96, 256),
        (3, 3, 256, 384),
        (3, 3, 384, 384),
        (3, 3, 384, 256),
    ]


def test_maps_have_caffes_sizes():
    stages = {
        name: stage.cells.shape
        for name, stage in shapes(backbones.Vgg16(first_padding=100), 500, 375)[1].items()
    }
    # (500 + 198, 375 + 198), halved with ceil mode.
    assert stages == {
        "stage1": (349, 287, 64),
        "stage2": (175, 144, 128),
        "stage3": (88, 72, 256),
        "stage4": (44, 36, 512),
        "stage5": (22, 18, 512),
    }
    detector = backbones.Vgg16(pooled=(1, 2, 3, 4))
    assert shapes(detector, 600, 1000)[1]["stage5"].cells.shape == (38, 63, 512)
    assert shapes(ZF, 600, 1000)[1]["stage5"].cells.shape == (39, 64, 256)
    # CaffeNet's own pool5 for its crop of 227 pixels.
    assert shapes(ALEX, 227, 227)[1]["stage5"].cells.shape == (6, 6, 256)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(224, 224), (375, 500), (129, 130)])
def test_a_residual_map_is_as_fine_as_asked(size):
    for stride in (4, 8, 16, 32):
        stage = shapes(ResNet(stride=stride), *size)[1]["stage5"]
        # Each layer with a stride rounds up: 7 x 7 cells of the classifier's 224 pixels.
        assert stage.cells.shape == (*(math.ceil(side / stride) for side in size), 2048)
    with pytest.raises(ValueError, match=r"stride is 10; it must be one of \(4, 8, 16, 32\)"):
        shapes(ResNet(stride=10), *size)


@pytest.mark.slow
def test_batch_and_single_image_have_the_same_maps():
    for module in (VGG, ALEX, ZF, RESNET):
        _, single = shapes(module, 96, 64)
        image = jax.ShapeDtypeStruct((2, 96, 64, 3), jnp.float32)
        variables = jax.eval_shape(module.init, jax.random.key(0), image)
        batch = jax.eval_shape(module.apply, variables, image)
        assert {name: features.cells.shape for name, features in batch.items()} == {
            name: (2, *features.cells.shape) for name, features in single.items()
        }


def reach(stack, cells):
    """Return (first, last) pixel that cell j sees, for each j, by walking down a stack of layers.

    Args:
      stack: (kernel size, stride, padding) of each layer from the image upwards.
      cells: how many cells to follow.
    """
    spans = []
    for cell in range(cells):
        first = last = cell
        for size, stride, padding in reversed(stack):
            first, last = first * stride - padding, last * stride - padding + size - 1
        spans.append((first, last))
    return spans


def vgg_stack(first_padding, pooled, stages):
    stack = []
    for stage in range(1, stages + 1):
        for index in range(2 if stage < 3 else 3):
            stack.append((3, 1, first_padding if stage == 1 and index == 0 else 1))
        if stage in pooled:
            stack.append((2, 2, 0))
    return stack


def alex_stack(stride, padding):
    pool = (3, 2, 0)
    same = [(3, 1, 1)] * 3
    return [(11, stride, padding), pool, (5, 1, 2), pool, *same, pool]


def resnet_stack(dilations):
    """The 3x3 convolution of each block has the (stride, dilation)."""
    blocks = [(2 * dilation + 1, stride, dilation) for stride, dilation in dilations]
    return [(7, 2, 3), (3, 2, 1), *blocks]


SMALL_RESNET = ResNet((4, 8, 8, 8, 8), (1, 2, 1, 2), 8)
GEOMETRIES = [
    (backbones.Vgg16(first_padding=100), f"stage{n}", vgg_stack(100, (1, 2, 3, 4, 5), n))
    for n in (3, 4, 5)
] + [
    (backbones.Vgg16(pooled=(1, 2, 3)), "stage5", vgg_stack(1, (1, 2, 3), 5)),
    (backbones.AlexNet(first_padding=100), "stage5", alex_stack(4, 100)),
    (backbones.AlexNet(first_stride=2, first_padding=24), "stage5", alex_stack(2, 24)),
    (
        SMALL_RESNET,
        "stage5",
        resnet_stack([(1, 1), (2, 1), (1, 1), (1, 1), (1, 2), (1, 4)]),
    ),
    (
        SMALL_RESNET.clone(stride=32),
        "stage5",
        resnet_stack([(1, 1), (2, 1), (1, 1)] + 2 * [(2, 1)]),
    ),
]


def grid_of(module, stage):
    """Return the grid of a stage, whose numbers are known before anything runs."""
    grids = {}

    def note(image):
        maps, variables = module.init_with_output(jax.random.key(0), image)
        grids.update({name: features.grid for name, features in maps.items()})
        return variables

    jax.eval_shape(note, jax.ShapeDtypeStruct((128, 128, 3), jnp.float32))
    return grids[stage]


@pytest.mark.slow
@pytest.mark.parametrize(("module", "stage", "stack"), GEOMETRIES)
def test_a_cell_is_centred_where_the_geometry_says(module, stage, stack):
    grid = grid_of(module, stage)
    for cell, (first, last) in enumerate(reach(stack, 4)):
        assert grid.stride * cell + grid.origin == (first + last) / 2


@pytest.mark.parametrize(
    ("module", "stage"),
    [
        (backbones.Vgg16((2, 2, 2, 2, 2), first_padding=10), "stage4"),
        (backbones.AlexNet((2, 4, 4, 4, 2), 2, first_padding=24), "stage5"),
        (ResNet((4, 8, 8, 8, 8), (1, 1, 1, 1), 8), "stage5"),
    ],
)
def test_the_map_moves_with_the_image(module, stage):
    # A patch on an image of zeros: without biases all the rest of every map is zero, so the padding
    # is invisible, and a patch moved by the trunk's stride moves the map by one cell.
    stride = int(grid_of(module, stage).stride)
    patch = np.random.default_rng(0).standard_normal((12, 12, 3)).astype(np.float32)
    images = np.zeros((2, 128, 96, 3), np.float32)
    images[0, 48:60, 40:52] = patch  # no cell that sees it lies outside the map
    images[1, 48 + stride : 60 + stride, 40:52] = patch
    rng = np.random.default_rng(1)
    variables = jax.tree.map(  # kernels at random, biases zero
        lambda leaf: rng.standard_normal(leaf.shape, np.float32) * (len(leaf.shape) > 1),
        jax.eval_shape(module.init, jax.random.key(0), images),
    )
    here, moved = jax.jit(lambda v, x: module.apply(v, x)[stage].cells)(variables, images)
    assert np.abs(here[1:-1]).max() > 0
    np.testing.assert_allclose(moved[1:], here[:-1], rtol=1e-5, atol=1e-6 * np.abs(here).max())
