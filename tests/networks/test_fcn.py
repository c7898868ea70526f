"""The FCNs against Caffe's deploy files, restated layer by layer with the crops written there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dag_jax.networks import backbones, grids, zoo
from dag_jax.networks.fcn import MEAN_RGB, Fcn

# Narrow networks of full depth, padding and strides.
ALEX = Fcn(
    backbones.AlexNet((2, 4, 4, 4, 2), first_padding=100),
    fc_size=6,
    fc_width=4,
    upsample_size=63,
    num_classes=3,
)
VGG32 = Fcn(backbones.Vgg16((2, 2, 2, 2, 2), first_padding=100), fc_width=4, num_classes=3)
VGG8 = VGG32.clone(skips=("stage4", "stage3"))


def random_variables(module, image, rng):
    """He-like weights and biases that are not zero."""
    tree = jax.eval_shape(module.init, jax.random.key(0), image)

    def draw(leaf):
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100
        return rng.normal(0, np.sqrt(2 / fan_in), leaf.shape).astype(np.float32)

    return jax.tree.map(draw, tree)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "published"),
    [
        (ALEX, [18]),  # fcn-alexnet: score
        (VGG32, [19]),  # fcn32s: score
        (VGG8, [5, 9, 31]),  # fcn8s: score_pool4c, score_pool3c, score
    ],
)
@pytest.mark.parametrize("size", [(33, 64), (500, 375)])
def test_crop_offsets_are_those_of_the_deploy_files(monkeypatch, module, published, size):
    offsets = []
    offset = grids.Grid.offset

    def spy(self, target):
        offsets.append(offset(self, target))
        return offsets[-1]

    monkeypatch.setattr(grids.Grid, "offset", spy)
    image = jax.ShapeDtypeStruct((*size, 3), jnp.float32)
    scores, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), image)
    assert offsets == published
    assert scores.shape == (*size, 3)


# A deploy file is a list of layers; these are Caffe's, in [B, C, H, W].


def convolution(x, params, stride=1, pad=0, group=1):
    y = lax.conv_general_dilated(
        x,
        params["kernel"].transpose(3, 2, 0, 1),
        (stride, stride),
        ((pad, pad), (pad, pad)),
        feature_group_count=group,
    )
    return y + params["bias"][None, :, None, None]


def pooling(x, size):
    ends = [(0, -(extent - size) % 2) for extent in x.shape[2:]]  # ceil mode
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 1, size, size), (1, 1, 2, 2), ((0, 0), (0, 0), *ends)
    )


def norm(x):
    total = lax.reduce_window(
        x * x, 0.0, lax.add, (1, 5, 1, 1), (1, 1, 1, 1), ((0, 0), (2, 2), (0, 0), (0, 0))
    )
    return x / (1 + 1e-4 / 5 * total) ** 0.75


def deconvolution(x, size, stride):
    """A full kernel [C, C] with FCN's bilinear filler on its diagonal, over the dilated input."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    line = 1 - np.abs(np.arange(size) - centre) / factor
    kernel = np.eye(x.shape[1])[:, :, None, None] * np.outer(line, line)[None, None]
    return lax.conv_general_dilated(
        x,
        jnp.asarray(kernel, jnp.float32),
        (1, 1),
        ((size - 1, size - 1),) * 2,
        lhs_dilation=(stride, stride),
    )


def crop(x, like, offset):
    height, width = like.shape[2:]
    return x[:, :, offset : offset + height, offset : offset + width]


def relu(x):
    return jnp.maximum(x, 0)


def fcn8s_deploy(params, data):
    trunk, maps, x = params["backbone"], {}, data
    for stage, count in enumerate((2, 2, 3, 3, 3), start=1):
        for index in range(1, count + 1):
            pad = 100 if (stage, index) == (1, 1) else 1
            x = relu(convolution(x, trunk[f"conv{stage}_{index}"], pad=pad))
        x = maps[stage] = pooling(x, 2)
    x = relu(convolution(relu(convolution(x, params["fc6"])), params["fc7"]))
    upscore2 = deconvolution(convolution(x, params["score_fr"]), 4, 2)
    score_pool4 = convolution(maps[4], params["score_stage4"])
    fuse_pool4 = upscore2 + crop(score_pool4, upscore2, 5)
    upscore_pool4 = deconvolution(fuse_pool4, 4, 2)
    score_pool3 = convolution(maps[3], params["score_stage3"])
    fuse_pool3 = upscore_pool4 + crop(score_pool3, upscore_pool4, 9)
    return crop(deconvolution(fuse_pool3, 16, 8), data, 31)


def alexnet_deploy(params, data):
    trunk = params["backbone"]
    x = norm(pooling(relu(convolution(data, trunk["conv1"], stride=4, pad=100)), 3))
    x = norm(pooling(relu(convolution(x, trunk["conv2"], pad=2, group=2)), 3))
    x = relu(convolution(x, trunk["conv3"], pad=1))
    x = relu(convolution(x, trunk["conv4"], pad=1, group=2))
    x = pooling(relu(convolution(x, trunk["conv5"], pad=1, group=2)), 3)
    x = relu(convolution(relu(convolution(x, params["fc6"])), params["fc7"]))
    return crop(deconvolution(convolution(x, params["score_fr"]), 63, 32), data, 18)


@pytest.mark.slow
@pytest.mark.parametrize(("module", "deploy"), [(ALEX, alexnet_deploy), (VGG8, fcn8s_deploy)])
def test_scores_and_gradient_are_those_of_the_deploy_file(rng, module, deploy):
    image = rng.uniform(0, 255, (37, 52, 3)).astype(np.float32)
    variables = random_variables(module, image, rng)
    weights = rng.standard_normal((37, 52, 3)).astype(np.float32)

    def theirs(params, image):
        bgr = (image - jnp.asarray(MEAN_RGB, jnp.float32)[None, None, :])[:, :, ::-1]
        return deploy(params, bgr.transpose(2, 0, 1)[None])[0].transpose(1, 2, 0)

    def ours(params, image):
        return module.apply({"params": params}, image)

    def run(score, params, image):
        scores, vjp = jax.vjp(functools.partial(score, params), image)
        return scores, vjp(jnp.asarray(weights))[0]

    results = [
        jax.jit(functools.partial(run, f))(variables["params"], image) for f in (ours, theirs)
    ]
    for actual, expected in zip(*results, strict=True):
        scale = np.abs(expected).max()
        assert scale > 0
        np.testing.assert_allclose(actual, expected, atol=1e-4 * scale)


@pytest.mark.slow
def test_an_upsampling_may_have_a_kernel_of_its_own(rng):
    image = rng.uniform(0, 255, (32, 40, 3)).astype(np.float32)
    assert VGG8.upsamplings() == ("upscore_stage4", "upscore_stage3", "upscore")
    dense = VGG8.clone(dense=("upscore_stage3", "upscore"))
    params = random_variables(dense, image, rng)["params"]
    assert params["upscore_stage3"]["kernel"].shape == (4, 4, 3, 3)
    assert params["upscore"]["kernel"].shape == (16, 16, 3, 3) and "upscore_stage4" not in params
    bias = params["upscore"]["bias"]
    shifted = {**params, "upscore": {**params["upscore"], "bias": bias + 3}}
    apply = jax.jit(lambda params: dense.apply({"params": params}, image))
    scores = apply(params)
    np.testing.assert_allclose(apply(shifted) - scores, 3, atol=1e-5 * np.abs(scores).max())
    line = 1 - np.abs(np.arange(4) - 1.5) / 2, 1 - np.abs(np.arange(16) - 7.5) / 8
    for name, weights in zip(dense.dense, line, strict=True):
        kernel = np.outer(weights, weights)[:, :, None, None] * np.eye(3)
        params[name] = {"kernel": np.float32(kernel), "bias": np.zeros(3, np.float32)}
    plain = {name: leaf for name, leaf in params.items() if name not in dense.dense}
    expected = jax.jit(VGG8.apply)({"params": plain}, image)
    np.testing.assert_allclose(apply(params), expected, atol=1e-5 * np.abs(expected).max())


def test_an_unknown_upsampling_is_refused():
    image = jax.ShapeDtypeStruct((40, 96, 3), jnp.float32)
    with pytest.raises(ValueError, match="dense has .'score'., there are .*upscore_stage4"):
        jax.eval_shape(VGG8.clone(dense=("score",)).init, jax.random.key(0), image)


@pytest.mark.slow
def test_batch_equals_single_images(rng):
    images = rng.uniform(0, 255, (2, 32, 40, 3)).astype(np.float32)
    variables = random_variables(ALEX, images, rng)
    apply = jax.jit(ALEX.apply)
    batch = apply(variables, images)
    assert batch.shape == (2, 32, 40, 3)
    for image, scores in zip(images, batch, strict=True):
        np.testing.assert_allclose(apply(variables, image), scores, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_scores_move_with_the_image(rng):
    # On an image of the mean colour and without biases every map is zero, so a patch moved by the
    # largest stride moves the scores. They are compared away from the borders, where FCN-8s
    # upsamples from cells that do not exist.
    module, stride, patch = VGG8, 32, rng.uniform(0, 255, (16, 16, 3))
    images = np.tile(np.float32(MEAN_RGB), (2, 128, 128, 1))
    images[0, 50:66, 40:56] = patch
    images[1, 50 + stride : 66 + stride, 40:56] = patch
    variables = random_variables(module, images, rng)
    variables = jax.tree.map(lambda leaf: leaf * (leaf.ndim > 1), variables)
    here, moved = jax.jit(module.apply)(variables, images)
    middle = here[32:64]
    assert np.abs(middle).max() > 0
    np.testing.assert_allclose(moved[64:96], middle, atol=1e-4 * np.abs(middle).max())


def test_an_image_that_the_network_cannot_see_is_refused():
    small = jax.ShapeDtypeStruct((40, 96, 3), jnp.float32)
    unpadded = Fcn(backbones.Vgg16((2, 2, 2, 2, 2)), fc_width=4)
    with pytest.raises(ValueError, match="2x3 cells is smaller than the 7x7.*too small"):
        jax.eval_shape(unpadded.init, jax.random.key(0), small)


def test_a_crop_outside_the_maps_is_refused():
    image = jax.ShapeDtypeStruct((256, 256, 3), jnp.float32)
    unpadded = Fcn(backbones.Vgg16((2, 2, 2, 2, 2)), fc_width=4)
    with pytest.raises(ValueError, match="a crop of 256 pixels at .* too small"):
        jax.eval_shape(unpadded.init, jax.random.key(0), image)
    skipping = unpadded.clone(skips=("stage4",), fc_size=1)
    with pytest.raises(
        ValueError, match="stage4 would be read from cell -1: fc_size 1 is too small"
    ):
        jax.eval_shape(skipping.init, jax.random.key(0), image)


@pytest.mark.parametrize("size", [(80, 112), (113, 96), (240, 131)])
def test_a_miniature_takes_images_of_any_size(size):
    module = zoo.build("fcn_vgg", miniature=True)
    image = jax.ShapeDtypeStruct((*size, 3), jnp.float32)
    scores, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), image)
    assert scores.shape == (*size, 21)
