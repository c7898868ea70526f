"""torchvision's segmenters against what torchvision itself computed, and their interface.

torchvision.npz holds scores and image gradients in float64 of torchvision 0.27.1 and PyTorch
2.12.1: for `random_checkpoint(name)` on `look()`, which `transforms.functional.resize` scaled to
`SHORT` pixels, every 16th row and column of the gradient and every 48th of the scores; the scores
are `F.interpolate` of the model's own before its last step, to the image's size.
"""

import functools
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax import models, networks
from dag_jax.errors import UserError
from dag_jax.networks import planes, torchvision
from dag_jax.weights import convert, downloads, published

# Long enough that all dilations of DeepLabV3 read cells, at a stride of 16: 40 of them.
SIZE, SHORT = (48, 960), 32
RECORDED = pathlib.Path(__file__).parent / "torchvision.npz"
LRASPP = "lraspp_mobilenet_v3_large"
# MobileNetV3's Table 1: kernel, expanded, features, squeezed to (0: not).
ROWS = (
    *((3, 16, 16, 0), (3, 64, 24, 0), (3, 72, 24, 0), (5, 72, 40, 24), (5, 120, 40, 32)),
    *((5, 120, 40, 32), (3, 240, 80, 0), (3, 200, 80, 0), (3, 184, 80, 0), (3, 184, 80, 0)),
    *((3, 480, 112, 120), (3, 672, 112, 168), (5, 672, 160, 168), (5, 960, 160, 240)),
    (5, 960, 160, 240),
)


def look():
    """An image: smooth colours, edges and noise, in grey levels."""
    row, column = np.mgrid[: SIZE[0], : SIZE[1]] / 96
    waves = [np.sin(9 * column + 3 * row), np.cos(7 * row), np.sign(np.sin(15 * row * column))]
    noise = np.random.default_rng(0).uniform(-20, 20, (*SIZE, 3))
    return np.clip(128 + 90 * np.stack(waves, -1) + noise, 0, 255).astype(np.float32)


def names_and_shapes(name):
    """torchvision's names of arrays: layer by layer, and what each is."""

    def conv(name, out, given, size=1, bias=False):
        yield f"{name}.weight", (out, given, size, size)
        if bias:
            yield f"{name}.bias", (out,)

    def norm(name, count):
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield f"{name}.{part}", (count,)
        yield f"{name}.num_batches_tracked", ()

    def both(first, second, out, given, size=1):
        yield from conv(first, out, given, size)
        yield from norm(second, out)

    def pair(name, *numbers):
        yield from both(f"{name}.0", f"{name}.1", *numbers)

    if "resnet" in name:
        yield from both("backbone.conv1", "backbone.bn1", 64, 3, 7)
        given, blocks = 64, (3, 4, 23 if "101" in name else 6, 3)
        for layer, count in enumerate(blocks, start=1):
            width = 32 * 2**layer
            for block in range(count):
                path = f"backbone.layer{layer}.{block}"
                for number, size in enumerate((1, 3, 1), start=1):
                    out = width * (4 if number == 3 else 1)
                    source = given if number == 1 else width
                    yield from both(f"{path}.conv{number}", f"{path}.bn{number}", out, source, size)
                if not block:
                    yield from pair(f"{path}.downsample", 4 * width, given)
                given = 4 * width
        auxiliary = 1024
    else:
        yield from pair("backbone.0", 16, 3, 3)
        given, auxiliary = 16, 40
        for number, (size, wide, out, squeezed) in enumerate(ROWS, start=1):
            path, place = f"backbone.{number}.block", 0
            if wide != given:
                yield from pair(f"{path}.0", wide, given)
                place = 1
            yield from pair(f"{path}.{place}", wide, 1, size)
            if squeezed:
                place += 1
                yield from conv(f"{path}.{place}.fc1", squeezed, wide, bias=True)
                yield from conv(f"{path}.{place}.fc2", wide, squeezed, bias=True)
            yield from pair(f"{path}.{place + 1}", out, wide)
            given = out
        yield from pair("backbone.16", 960, 160)
        given = 960
    if "lraspp" in name:
        yield from pair("classifier.cbr", 128, 960)
        yield from conv("classifier.scale.1", 128, 960)
        yield from conv("classifier.low_classifier", 21, 40, bias=True)
        yield from conv("classifier.high_classifier", 21, 128, bias=True)
        return
    if "fcn" in name:
        yield from pair("classifier", given // 4, given, 3)
        yield from conv("classifier.4", 21, given // 4, bias=True)
    else:
        for view, size in enumerate((1, 3, 3, 3)):
            yield from pair(f"classifier.0.convs.{view}", 256, given, size)
        yield from both("classifier.0.convs.4.1", "classifier.0.convs.4.2", 256, given)
        yield from pair("classifier.0.project", 256, 5 * 256)
        yield from both("classifier.1", "classifier.2", 256, 256, 3)
        yield from conv("classifier.4", 21, 256, bias=True)
    yield from pair("aux_classifier", auxiliary // 4, auxiliary, 3)
    yield from conv("aux_classifier.4", 21, auxiliary // 4, bias=True)


def random_checkpoint(name):
    """A state_dict, drawn anew from one seed."""
    rng, arrays = np.random.default_rng(zlib.crc32(name.encode())), {}
    for key, shape in names_and_shapes(name):
        if not shape:
            arrays[key] = np.array(7)
            continue
        if len(shape) == 4:
            array = rng.standard_normal(shape, np.float32) * (2 / np.prod(shape[1:])) ** 0.5
        elif key.endswith(("running_var", "weight")):
            array = rng.uniform(0.3, 1.2, shape)
        else:
            array = rng.normal(0, 0.3, shape)
        arrays[key] = array.astype(np.float32)
    return arrays


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
        return jnp.sum(scores * weights.astype(np.float32)), scores

    return jax.jit(jax.value_and_grad(total, has_aux=True))


# Of the range, of gradients in float32: where a ReLU's input is within rounding of 0, its slope
# is either. Measured: 5.4e-3, 1.2e-2, 9.5e-4 for the first three; torchvision's own float32
# against its float64: 5.4e-3, 8.5e-6, 2.9e-5, 5.3e-3.
GRADIENTS = {
    **{LRASPP: 1.1e-2, "deeplabv3_mobilenet_v3_large": 2e-2},
    **{"fcn_resnet50": 2e-3, "deeplabv3_resnet50": 1.1e-2},
}


def difference(ours, name):
    with np.load(RECORDED) as recorded:
        theirs = recorded[name]
    return np.abs(ours - theirs).max() / np.ptp(theirs)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tolerance"), GRADIENTS.items())
def test_random_weights_give_what_torchvision_gives(name, tolerance):
    parameters = converted(name).parameters
    (_, scores), gradient = compiled(small(name))(look(), parameters)
    assert difference(scores[::48, ::48], f"{name}_scores") <= 1e-4
    assert difference(gradient[::16, ::16], f"{name}_gradient") <= tolerance


@pytest.mark.slow
def test_padding_changes_no_score():
    weights = converted(LRASPP)
    assert weights.layout == "torchvision_lraspp" and not weights.partial
    network = networks.SegmentationNetwork(
        LRASPP, small(LRASPP), weights.parameters, False, networks.facts(LRASPP)
    )
    bucketed, shape = network.bucket(SIZE)
    assert shape == (500, 1000) and bucketed.module.canvas_shape == (36, 642)
    padding = (0, 2), (0, 10), (0, 0)
    padded = np.pad(look(), padding, constant_values=77)
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
    sizes = {key: int(np.prod(shape)) for key, shape in names_and_shapes(name) if shape}
    means = {key: size for key, size in sizes.items() if key.endswith("running_mean")}
    assert sum(sizes.values()) - 2 * sum(means.values()) == COUNTS[name]
    # Folded, a normalisation leaves one number of a channel; ours have no auxiliary head.
    kept = sum(size for key, size in sizes.items() if not key.startswith("aux"))
    kept -= 3 * sum(size for key, size in means.items() if not key.startswith("aux"))
    image = jax.ShapeDtypeStruct((32, 48, 3), jnp.float32)
    module = networks.build(name)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == kept


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn_resnet101", "deeplabv3_resnet101"])
def test_every_name_of_the_deepest_has_its_place(name):
    arrays = {key: np.zeros(shape, np.float32) for key, shape in names_and_shapes(name)}
    weights = convert.convert(networks.build(name), [arrays])
    assert weights.layout == f"torchvision_{name.partition('_')[0]}" and not weights.partial


@pytest.mark.slow
@pytest.mark.parametrize(("extent", "scaled"), [(500, 384), (96, 520)])
def test_what_is_scaled_may_lie_in_a_larger_array(extent, scaled):
    matrix = planes.antialiased_matrix(scaled + 7, extent + 9, jnp.int32(extent), jnp.int32(scaled))
    plain = planes.antialiased_matrix(scaled, extent, extent)
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
