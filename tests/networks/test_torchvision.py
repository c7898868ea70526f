"""torchvision's segmenters against what torchvision itself computed, and their interface.

torchvision.npz holds scores and image gradients in float64 of torchvision 0.27.1 and PyTorch
2.12.1: for `random_checkpoint(name)` on `look(*SIZE)`, which `transforms.functional.resize` scaled
to `SHORT` pixels, every 16th row and column of the gradient and every 48th of the scores; the
scores are `F.interpolate` of the model's own before its last step, to the image's size. The
gradient is that of their sum, weighted as in `compiled`.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax import models, networks
from dag_jax.errors import UserError
from dag_jax.networks import resizing, torchvision
from dag_jax.weights import convert, downloads, published
from tests.networks import torchvision_files
from tests.networks.torchvision_files import look

# Long enough that all dilations of DeepLabV3 read cells, at a stride of 16: 40 of them.
SIZE, SHORT = (48, 960), 32
RECORDED = pathlib.Path(__file__).parent / "torchvision.npz"
LRASPP = "lraspp_mobilenet_v3_large"


def random_checkpoint(name):
    return torchvision_files.drawn(name, torchvision_files.segmenter(name))


def small(name):
    """The network of a name for images of `SHORT` pixels."""
    return networks.build(name).clone(short_side=SHORT)


def converted(name):
    return convert.convert(small(name), [random_checkpoint(name)])


@functools.cache
def compiled(module):
    """A function of parameters and an image: its scores, and the gradient of a sum of them."""

    def total(image, parameters):
        scores = module.apply({"params": parameters}, image)
        weights = np.sin(np.linspace(-1, 1, scores.size)).reshape(scores.shape)
        return jnp.sum(scores * weights.astype(scores.dtype)), scores

    return jax.jit(jax.value_and_grad(total, has_aux=True))


# Of the range. Where a ReLU's input is within rounding of 0, its slope is either: in float32, ours
# and torchvision's differ from float64 by up to 1.2e-2. In float64 the rest is of our parameters,
# which are rounded to float32 after folding.
GRADIENTS = {
    # Each trunk and each head. The 101 layers are 50 with more blocks: as many as `COUNTS` says.
    **{LRASPP: 1e-4, "deeplabv3_mobilenet_v3_large": 1e-4, "fcn_resnet50": 1e-4},
}


def difference(ours, name):
    with np.load(RECORDED) as recorded:
        theirs = recorded[name]
    return np.abs(np.asarray(ours) - theirs).max() / np.ptp(theirs)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tolerance"), GRADIENTS.items())
def test_random_weights_give_in_float64_what_torchvision_gives(name, tolerance):
    module, weights = small(name), converted(name)
    assert weights.layout == f"torchvision_{name.partition('_')[0]}" and not weights.partial
    if "resnet" in name:
        module = module.clone(backbone=module.backbone.clone(dtype="float64"))
    # Its constants are float32's, which float64 may join.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        image, parameters = jax.tree.map(np.float64, (look(*SIZE), weights.parameters))
        (_, scores), gradient = compiled(module)(image, parameters)
        assert scores.dtype == gradient.dtype == jnp.float64
    assert difference(scores[::48, ::48], f"{name}_scores") <= 1e-6
    assert difference(gradient[::16, ::16], f"{name}_gradient") <= tolerance


@pytest.mark.slow
def test_padding_changes_no_score():
    weights = converted(LRASPP)
    network = networks.SegmentationNetwork(
        LRASPP, small(LRASPP), weights.parameters, False, networks.facts(LRASPP)
    )
    bucketed, shape = network.bucket(SIZE)
    assert shape == (500, 1000) and bucketed.module.canvas_shape == (36, 642)
    padding = (0, 2), (0, 10), (0, 0)
    padded = np.pad(look(*SIZE), padding, constant_values=77)
    scores = jax.jit(type(network).scores)(bucketed, padded, np.int32(SIZE))
    assert difference(scores[:48:48, :960:48], f"{LRASPP}_scores") <= 1e-4
    assert not scores[48:].any() and not scores[:, 960:].any()


# In torchvision's own tables of weights, auxiliary heads included.
COUNTS = {
    **{LRASPP: 3_221_538, "deeplabv3_mobilenet_v3_large": 11_029_328},
    **{"fcn_resnet50": 35_322_218, "fcn_resnet101": 54_314_346},
    **{"deeplabv3_resnet50": 42_004_074, "deeplabv3_resnet101": 60_996_202},
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if "101" in name else name
        for name in torchvision.ENTRIES
    ],
)
def test_each_has_the_published_number_of_weights(name):
    sizes = {key: int(np.prod(shape)) for key, shape in torchvision_files.segmenter(name) if shape}
    means = {key: size for key, size in sizes.items() if key.endswith("running_mean")}
    assert sum(sizes.values()) - 2 * sum(means.values()) == COUNTS[name]
    # Folded, a normalisation leaves one number of a channel; ours have no auxiliary head.
    number = sum(size for key, size in sizes.items() if not key.startswith("aux"))
    number -= 3 * sum(size for key, size in means.items() if not key.startswith("aux"))
    image = jax.ShapeDtypeStruct((32, 48, 3), jnp.float32)
    module = networks.build(name)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == number


@pytest.mark.slow
@pytest.mark.parametrize(("extent", "scaled"), [(500, 384), (96, 520)])
def test_what_is_scaled_may_lie_in_a_larger_array(extent, scaled):
    matrix = resizing.antialiased_matrix(
        scaled + 7, extent + 9, jnp.int32(extent), jnp.int32(scaled)
    )
    plain = resizing.antialiased_matrix(scaled, extent, extent)
    np.testing.assert_allclose(matrix[:scaled, :extent], plain, atol=1e-6)
    assert not matrix[scaled:].any() and not matrix[:, extent:].any()


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (520, 520), (33, 100)])
def test_the_shorter_side_is_scaled_to_520(size):
    module = networks.build(LRASPP)
    canvas = module.canvas(*size)
    short, long = min(size), max(size)
    assert sorted(canvas) == [520, int(520 * long / short)]
    assert module.canvas(*map(jnp.int32, size)) == canvas


@pytest.mark.slow
def test_what_is_said_of_each_and_what_cannot_be_had():
    network = jax.eval_shape(lambda: networks.load(LRASPP, random=True))
    assert isinstance(network, models.Segmenter)
    assert models.about(network).background == 0 and len(network.classes) == 21
    bucketed, shape = network.bucket((375, 500, 3))
    assert bucketed.module.canvas_shape == (520, 728) and shape == (500, 500)
    image = jax.ShapeDtypeStruct((*shape, 3), jnp.float32)
    extent = jax.ShapeDtypeStruct((2,), jnp.int32)
    scores = jax.eval_shape(type(network).scores, bucketed, image, extent)
    assert scores.shape == (500, 500, 21)
    with pytest.raises(UserError, match="an extent needs a network with a canvas_shape"):
        jax.eval_shape(type(network).scores, network, image, extent)
    with pytest.raises(UserError, match="has no miniature"):
        networks.load(LRASPP, miniature=True)


def test_a_checksum_of_first_digits_tells_files_apart(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"weights")
    digits = downloads.checksum_of(path, "sha256:")[: len("sha256:") + 8]
    release = published.Published(path.name, ("http://127.0.0.1:9/",), digits)
    assert downloads.get(release, tmp_path)["published"] == digits
    path.write_bytes(b"other weights")
    with pytest.raises(UserError, match=f"published is {digits}"):
        downloads.get(release, tmp_path)
