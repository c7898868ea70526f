"""ESPNetv2 against what PyTorch computed with EdgeNets' own definition of it, and its interface.

espnetv2.npz holds PyTorch 2.13's scores and image gradients in float64, of sacmehta/EdgeNets at
2b232d3f7fb60658755dad1ebca0ffc895cc795e: for `random_checkpoint()` of 21 and of 20 classes and for
published files, whose SHA-256 `weights.published` has, on `look()` at its own size, every sixteenth
row and column. test_edgenets.py compares all published files, by hand.
"""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dag_jax import datasets, files, models, networks
from dag_jax.errors import UserError
from dag_jax.networks import espnetv2, planes, resizing
from dag_jax.networks.espnetv2 import EspNetV2
from dag_jax.runs.subject import subject_of
from dag_jax.weights import convert, published

SIZE = 96, 128
RECORDED = pathlib.Path(__file__).parent / "espnetv2.npz"
NAMES = [name for name in networks.ENTRIES if name.startswith("espnetv2")]


def look():
    """An image: smooth colours, edges and noise, in grey levels."""
    row, column = np.mgrid[: SIZE[0], : SIZE[1]] / 96
    waves = [np.sin(9 * column + 3 * row), np.cos(7 * row), np.sign(np.sin(15 * row * column))]
    noise = np.random.default_rng(0).uniform(-20, 20, (*SIZE, 3))
    return np.clip(128 + 90 * np.stack(waves, -1) + noise, 0, 255).astype(np.float32)


def names_and_shapes(widths=(16, 32, 64, 128), classes=21):
    """EdgeNets' names of arrays, in its own words: layer by layer, and what each is."""
    narrow = min(classes // 2, 16)

    def conv(name, out, each, size=3):
        yield f"{name}.weight", (out, each, size, size)

    def norm(name, count):
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield f"{name}.{part}", (count,)

    def act(name, count):
        yield f"{name}.weight", (count,)

    def cbr(name, parts, out, each, size=3):
        yield from conv(f"{name}.{parts[0]}", out, each, size)
        yield from norm(f"{name}.{parts[1]}", out)
        yield from act(f"{name}.{parts[2]}", out)

    plain, numbered = ("conv", "bn", "act"), ("cbr.0", "cbr.1", "cbr.2")

    def eesp(name, width, out):
        each = out // 4
        yield from cbr(f"{name}.proj_1x1", plain, each, width // 4, 1)
        for branch in range(4):
            yield from conv(f"{name}.spp_dw.{branch}.conv", each, 1)
        yield from conv(f"{name}.conv_1x1_exp.conv", out, each, 1)
        yield from norm(f"{name}.conv_1x1_exp.bn", out)
        yield from norm(f"{name}.br_after_cat.bn", out)
        yield from act(f"{name}.br_after_cat.act", out)
        yield from act(f"{name}.module_act", out)

    yield from cbr("base_net.level1", plain, widths[0], 3)
    for level, blocks in ((2, 0), (3, 3), (4, 7)):
        name, width, out = f"base_net.level{level}", widths[level - 2], widths[level - 1]
        yield from eesp(f"{name}_0.eesp", width, out - width)
        yield from cbr(f"{name}_0.inp_reinf.0", plain, 3, 3)
        yield from conv(f"{name}_0.inp_reinf.1.conv", out, 3, 1)
        yield from norm(f"{name}_0.inp_reinf.1.bn", out)
        yield from act(f"{name}_0.act", out)
        for block in range(blocks):
            yield from eesp(f"{name}.{block}", out, out)
    planes_of = (widths[3], 64, 48, 32, classes)
    for level in range(1, 5):
        name, width, out = f"bu_dec_l{level}", planes_of[level - 1], planes_of[level]
        for stage in range(5):
            yield from conv(f"{name}.stages.{stage}", narrow, 1)
        yield from cbr(f"{name}.projection_layer", numbered, narrow, width, 1)
        yield from norm(f"{name}.merge_layer.0.br.0", 5 * narrow)
        yield from act(f"{name}.merge_layer.0.br.1", 5 * narrow)
        yield from cbr(f"{name}.merge_layer.2", numbered, narrow, 5)
        yield from conv(f"{name}.merge_layer.3", out, narrow, 1)
        if level == 4:
            yield f"{name}.merge_layer.3.bias", (out,)
        else:
            yield from norm(f"{name}.br.br.0", out)
            yield from act(f"{name}.br.br.1", out)
    for level in range(2, 5):
        width, out = widths[4 - level], planes_of[level - 1]
        yield from conv(f"merge_enc_dec_l{level}.wt_layer.1", out, width, 1)
        each = width // np.gcd(width, out)
        yield from cbr(f"merge_enc_dec_l{level}.expansion_layer", numbered, out, each)
        yield from norm(f"bu_br_l{level}.0", out)
        yield from act(f"bu_br_l{level}.1", out)


def random_checkpoint(classes=21):
    """A state_dict of the smallest network, drawn anew from one seed."""
    rng, arrays = np.random.default_rng(0), {}
    for name, shape in names_and_shapes(classes=classes):
        if len(shape) == 4:
            array = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape)
        elif name.endswith(("running_var", "weight")):
            array = rng.uniform(0.2, 1.5, shape)
        else:
            array = rng.normal(0, 0.3, shape)
        arrays[name] = array.astype(np.float32)
    return arrays


@functools.cache
def compiled(module):
    """A function of parameters and an image: its scores, and the gradient of a sum of them."""

    def total(image, parameters):
        scores = module.apply({"params": parameters}, image)
        weights = np.sin(np.linspace(-1, 1, scores.size)).reshape(scores.shape)
        return jnp.sum(scores * weights.astype(np.float32)), scores

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def assert_is_recorded(name, module, parameters):
    (_, scores), gradient = compiled(module)(look(), parameters)
    with np.load(RECORDED) as recorded:
        for kind, ours in (("scores", scores), ("gradient", gradient)):
            theirs = recorded[f"{name}_{kind}"]
            assert np.abs(ours[::16, ::16] - theirs).max() <= 1e-4 * np.ptp(theirs), kind


@pytest.mark.slow
@pytest.mark.parametrize(("name", "classes"), [("random", 21), ("random_20", 20)])
def test_random_weights_give_what_pytorch_gives(name, classes):
    module = EspNetV2(0.5, SIZE, classes)
    converted = convert.convert(module, [random_checkpoint(classes)])
    assert converted.layout == "edgenets_espnetv2" and not converted.partial
    assert_is_recorded(name, module, converted.parameters)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [f"espnetv2_{each}" for each in ("20_384", "20_256", "10_384", "05_384")]
)
def test_published_weights_give_what_pytorch_gives(name, shared):
    (file,) = published.ORIGINS[name].files
    path = shared / "weights" / file.name
    assert f"sha256:{files.sha256_of(path)}" == file.checksum
    network = networks.load(name, checkpoint=path)
    assert network.module.size == (int(name[-3:]),) * 2
    assert_is_recorded(name, network.module.clone(size=SIZE), network.parameters)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_published_files_are_read(name, shared):
    (file,) = published.ORIGINS[name].files
    if not (path := shared / "weights" / file.name).is_file():
        pytest.skip(f"no weights/{file.name} in the folder named shared")
    network = networks.load(name, checkpoint=path)
    width, columns, rows = re.search(r"_([\d.]+)_[a-z]+_(\d+)x(\d+)", file.name).groups()
    assert network.module.width == float(width)
    assert network.module.size == (int(rows), int(columns))
    assert network.module.num_classes == len(network.classes) == (20 if "city" in name else 21)


@pytest.mark.slow
def test_padding_changes_no_score():
    size = 32, 48
    module = EspNetV2(0.5, size)
    parameters = convert.convert(module, [random_checkpoint()]).parameters
    facts = networks.facts("espnetv2_05_384")
    network = networks.SegmentationNetwork("mine", module, parameters, False, facts)
    assert network.bucket((333, 500)) == network.bucket((40, 20)) == (network, (500, 500))
    image = look()[:40, :70]
    scores = jax.jit(type(network).scores)
    padded = np.pad(image, ((0, 24), (0, 2), (0, 0)), constant_values=77)
    ours = scores(network, padded, np.int32(image.shape[:2]))
    np.testing.assert_allclose(ours[:40, :70], scores(network, image), rtol=1e-4, atol=0.1)
    assert not ours[40:].any() and not ours[:, 70:].any()


@pytest.mark.slow
@pytest.mark.parametrize(("extent", "size"), [(500, 384), (333, 384), (75, 32), (96, 96)])
def test_images_are_scaled_as_pillow_scales(extent, size, rng):
    image = rng.uniform(0, 255, (extent, 7)).astype(np.float32)
    theirs = np.asarray(Image.fromarray(image).resize((7, size), Image.Resampling.BILINEAR))
    padded = np.pad(image, ((0, 9), (0, 0)), constant_values=np.nan)
    matrix = np.asarray(resizing.antialiased_matrix(size, extent + 9, jnp.int32(extent)))
    assert not matrix[:, extent:].any()
    np.testing.assert_allclose(matrix[:, :extent] @ padded[:extent], theirs, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("extent", "size", "cells"), [(500, 384, 192), (333, 384, 192), (9, 4, 2)])
def test_scores_come_back_by_nearest_neighbours(extent, size, cells, rng):
    scores = rng.normal(size=cells).astype(np.float32)
    places = np.arange(size) * ((cells - 1) / (size - 1))
    enlarged = np.interp(places, np.arange(cells), scores).astype(np.float32)
    np.testing.assert_allclose(planes.corners_matrix(size, cells) @ scores, enlarged, atol=1e-5)
    theirs = Image.fromarray(enlarged[:, None]).resize((1, extent), Image.Resampling.NEAREST)
    matrix = resizing.nearest_corners_matrix(extent + 5, size, cells, jnp.int32(extent))
    ours = np.asarray(matrix) @ scores
    # On a cell's border Pillow's sum of steps rounds to either side.
    clear = (2 * np.arange(extent) + 1) * size % (2 * extent) > 0
    np.testing.assert_allclose(ours[:extent][clear], np.asarray(theirs)[clear, 0], atol=1e-4)
    assert clear.mean() > 0.7 and not ours[extent:].any()


@pytest.mark.parametrize(("pixels", "part"), [(500, 1), (500, 0.7), (75, 0.1), (30, 1)])
def test_bands_hold_all_of_the_resizes(pixels, part, rng):
    """Of images up to the whole array: an int where they fill it, traced where padding follows."""
    extent = pixels if part == 1 else jnp.int32(part * pixels)
    scale = functools.partial(espnetv2._scaled, size=64, cells=pixels, axis=1)
    enlarge = functools.partial(espnetv2._enlarged, pixels=pixels, size=64, axis=1)
    matrices = resizing.antialiased_matrix, resizing.nearest_corners_matrix
    sizes = (64, pixels, extent), (pixels, 64, 32, extent)
    for function, matrix, size in zip((scale, enlarge), matrices, sizes, strict=True):
        whole = np.asarray(matrix(*size))
        x = rng.normal(size=(1, whole.shape[1], 3)).astype(np.float32)
        cotangent = rng.normal(size=(1, len(whole), 3)).astype(np.float32)
        run = jax.jit(lambda x, extent, function=function: function(x, extent=extent))
        if part == 1:
            run = functools.partial(lambda function, x, _: function(x, extent=pixels), function)
        y, pull = jax.vjp(lambda x, run=run: run(x, extent), x)
        np.testing.assert_allclose(y[0], whole @ x[0], atol=1e-5)
        np.testing.assert_allclose(pull(cotangent)[0][0], whole.T @ cotangent[0], atol=1e-4)


def test_what_cannot_be_had_is_said():
    with pytest.raises(UserError, match="espnetv2_20_384 has no miniature; those that have are"):
        networks.load("espnetv2_20_384", miniature=True)
    with pytest.raises(UserError, match="--networks=espnetv2_20_384` gets .*random=True") as error:
        networks.load("espnetv2_20_384")
    assert "miniature" not in str(error.value)
    with pytest.raises(UserError, match="cannot be trained here"):
        networks.build("espnetv2_20_384", batch_norm=True)
    with pytest.raises(UserError, match="unknown precision 'bfloat16' of espnetv2_20_384"):
        networks.load("espnetv2_20_384", random=True, precision="bfloat16")


@pytest.mark.slow
def test_random_weights_and_what_is_said_of_each():
    network = jax.eval_shape(lambda: networks.load("espnetv2_05_384", random=True))
    assert isinstance(network, models.Segmenter)
    about = models.about(network)
    assert (about.title, about.background) == ("ESPNetv2 0.5 (384)", 0)
    assert network.split == "voc2012_seg_val"
    image = jax.ShapeDtypeStruct((333, 500, 3), jnp.float32)
    scores = jax.eval_shape(lambda network, image: network.scores(image), network, image)
    assert scores.shape == (333, 500, 21) and scores.dtype == jnp.float32
    # In the authors' own table: 0.79 million weights at width 2.
    shapes = jax.eval_shape(lambda: networks.load("espnetv2_20_384", random=True).parameters)
    assert 0.78e6 < sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) < 0.80e6


@pytest.mark.slow
def test_background_of_cityscapes_is_last_and_no_label():
    names = datasets.CITYSCAPES_NAMES
    network = jax.eval_shape(lambda: networks.load("espnetv2_20_city_512x256", random=True))
    about = models.about(network)
    assert (about.title, about.background) == ("ESPNetv2 2.0 (Cityscapes 512 x 256)", 19)
    assert about.classes == (*names, "background") and network.split == "val"
    image = jax.ShapeDtypeStruct((100, 150, 3), jnp.float32)
    scores = jax.eval_shape(lambda network, image: network.scores(image), network, image)
    assert scores.shape == (100, 150, 20)
    mask = np.where(np.eye(2, 19), 255, np.arange(19))
    example = {"image_id": "a", "image": np.zeros((2, 19, 3), np.uint8), "mask": mask}
    examples = datasets.ExampleSet([example], names[::-1])
    subject = subject_of(network, examples, weights_sha256="")
    assert subject.shared.of_model == tuple(range(19))
    assert subject.shared.only_model == ("background",) and not subject.shared.only_dataset
    relabelled = subject.examples[0]["mask"][:, :, 0]
    np.testing.assert_array_equal(relabelled, np.where(mask == 255, 255, 18 - mask))
    of_voc = "background", "bicycle", "bus", "car", "motorbike", "person", "train"
    shared = models.share_classes(about, of_voc)
    assert shared.to_model == (19, 18, 15, 13, 17, 11, 16)
    assert models.share_classes(about, datasets.CLASS_NAMES).of_model == shared.of_model


@pytest.mark.slow
def test_names_that_do_not_fit_are_listed():
    arrays = random_checkpoint()
    module = EspNetV2(0.5, SIZE)
    del arrays["base_net.level1.bn.running_var"]
    with pytest.raises(UserError, match="level1.bn is no batch normalisation.*running_var"):
        convert.convert(module, [arrays])
    arrays = random_checkpoint()
    arrays["base_net.level5.0.weight"] = arrays.pop("bu_dec_l4.merge_layer.3.bias")
    with pytest.raises(UserError, match="left over: base_net.level5.0") as error:
        convert.convert(module, [arrays])
    assert "missing: bias of bu_dec_l4.merge_layer.3" in str(error.value)
    with pytest.raises(UserError, match="other shape: kernel of base_net.level1.conv"):
        convert.convert(EspNetV2(1.0, SIZE), [random_checkpoint()])
