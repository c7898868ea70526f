"""The networks: what they are at full size, how they meet the engine, what ships."""

import functools
import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from dag_jax import datasets, models, networks
from dag_jax.networks import layers, zoo
from dag_jax.networks.faster_rcnn import FasterRCNN
from dag_jax.networks.fcn import DilatedFcn, Fcn
from dag_jax.weights import store

IMAGE = jax.ShapeDtypeStruct((128, 96, 3), jnp.float32)
EVERY_NAME = networks.NAMES + networks.BLACK_BOX  # with a miniature
SEGMENTERS = (*networks.NAMES[:4], "fcn_resnet")
DETECTORS = (*networks.NAMES[4:], "fr_resnet")


@functools.cache
def parameter_shapes(name, miniature):
    module = networks.build(name, miniature=miniature)
    return jax.eval_shape(module.init, jax.random.key(0), IMAGE)["params"]


def network_of(name, miniature, parameters):
    """A network of shapes in place of arrays, or of any parameters."""
    kind = networks.SegmentationNetwork if name in SEGMENTERS else networks.DetectionNetwork
    module = networks.build(name, miniature=miniature)
    return kind(name, module, parameters, miniature, networks.facts(name, miniature=miniature))


def random_parameters(name):
    """Parameters of a miniature: what is stored needs no training."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, parameter_shapes(name, True))


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_the_names_are_those_of_table_1():
    assert sorted(networks.MINIATURES) == sorted(EVERY_NAME)
    assert networks.NAMES == (
        *("fcn_alex", "fcn_alex_star", "fcn_vgg", "fcn_vgg_star"),
        *("fr_zf_07", "fr_zf_0712", "fr_vgg_07", "fr_vgg_0712"),
    )
    assert networks.BLACK_BOX == ("fcn_resnet", "fr_resnet")  # beside them
    assert all(isinstance(networks.build(name), Fcn | DilatedFcn) for name in SEGMENTERS)
    assert all(isinstance(networks.build(name), FasterRCNN) for name in DETECTORS)
    assert networks.build("fcn_alex") == networks.build("fcn_alex_star")
    assert networks.build("fr_vgg_07") == networks.build("fr_vgg_0712")


# CaffeNet, VGG-16, ZF, and ResNet-50: torchvision's resnet50 has 25,557,032 numbers, of which
# 2,049,000 are the classifier's, and 53,120 the gains and offsets of its normalisations: folded,
# these are the convolutions' 26,560 biases.
TRUNKS = {"alex": 2_334_080, "vgg": 14_714_688, "zf": 3_726_464, "resnet": 23_481_472}
# The authors' caffemodels hold these (their bilinear filters are not parameters here):
# fcn8s-heavy-pascal 537 MB, VGG16_faster_rcnn_final 548 MB. Torchvision's fcn_resnet50 has
# 35,322,218 numbers, of which 2,365,205 are an auxiliary head's, and 27,072 more as above.
TOTALS = {
    **{"fcn_alex": 56_954_261, "fcn_vgg": 134_362_751, "fr_vgg_07": 137_078_239},
    "fcn_resnet": 35_322_218 - 2_365_205 - 27_072,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY_NAME)
def test_full_size_has_the_published_number_of_parameters(name):
    params = parameter_shapes(name, False)
    assert count(params["backbone"]) == TRUNKS[name.split("_")[1]]
    total = TOTALS.get(name.replace("_star", "").replace("_0712", "_07"))
    assert total is None or count(params) == total


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fc6"),
    [
        ("fcn_alex", (6, 6, 256, 4096)),
        ("fcn_vgg", (7, 7, 512, 4096)),
        ("fr_zf_07", (6, 6, 256, 4096)),
        ("fr_vgg_07", (7, 7, 512, 4096)),  # 25,088 numbers of a region
    ],
)
def test_full_size_layers_have_their_published_shapes(name, fc6):
    params = parameter_shapes(name, False)
    assert params["fc6"]["kernel"].shape == fc6
    assert params["fc7"]["kernel"].shape[-2:] == (4096, 4096)
    if name in SEGMENTERS:
        scores = {key: leaf["kernel"].shape for key, leaf in params.items() if "score" in key}
        expected = {"score_fr": (1, 1, 4096, 21)}
        if name == "fcn_vgg":
            expected |= {"score_stage4": (1, 1, 512, 21), "score_stage3": (1, 1, 256, 21)}
        assert scores == expected
        return
    assert params["cls_score"]["kernel"].shape == (4096, 21)
    assert params["bbox_pred"]["kernel"].shape == (4096, 84)
    assert params["rpn_cls_score"]["kernel"].shape[-1] == 18
    assert params["rpn_bbox_pred"]["kernel"].shape[-1] == 36


def test_what_is_said_of_each_is_the_papers():
    for name in EVERY_NAME:
        about = models.about(network_of(name, True, {}))
        task = models.SEGMENTATION if name in SEGMENTERS else models.DETECTION
        assert networks.TASKS[name] == about.task == task
        assert about.classes == datasets.CLASS_NAMES and about.background == 0
        assert (about.margin, about.max_steps) == ((3.0, 150) if about.detects else (0.0, 200))
    facts = [networks.facts(name) for name in EVERY_NAME]
    assert len({fact.title for fact in facts}) == len(EVERY_NAME)
    assert networks.facts("fcn_vgg_star").title == "FCN-VGG*"
    splits = [fact.split for fact in facts]
    assert splits == ["voc07_test" if name in DETECTORS else "seg11valid" for name in EVERY_NAME]
    proposals = [networks.facts("fr_vgg_07", miniature=small).attack_proposals for small in (0, 1)]
    assert proposals == [3000, 300]


def call(function, *arguments):
    return function(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize("miniature", [False, True])
@pytest.mark.parametrize("name", EVERY_NAME)
def test_scores_have_their_shapes_at_both_sizes(name, miniature):
    network = network_of(name, miniature, parameter_shapes(name, miniature))
    photograph = jax.ShapeDtypeStruct((128, 128, 3) if miniature else (500, 375, 3), jnp.float32)
    if name in SEGMENTERS:
        scores = jax.eval_shape(call, models.score_fn(network), photograph)
        assert scores.shape == (*photograph.shape[:2], 21)
    else:
        boxes = jax.ShapeDtypeStruct((7, 4), jnp.float32)
        scores = jax.eval_shape(call, models.score_fn(network), photograph, boxes)
        assert scores.shape == (7, 21)
    assert scores.dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY_NAME)
def test_a_miniature_is_the_same_module_with_other_numbers(name):
    full, small = (networks.build(name, miniature=flag) for flag in (False, True))
    assert type(full) is type(small) and type(full.backbone) is type(small.backbone)
    full, small = (parameter_shapes(name, flag) for flag in (False, True))
    if name in networks.BLACK_BOX:  # which has fewer blocks, too
        assert set(traverse_util.flatten_dict(small)) < set(traverse_util.flatten_dict(full))
    else:
        assert jax.tree.structure(full) == jax.tree.structure(small)
    assert count(small) < 0.02 * count(full)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY_NAME)
def test_training_with_batch_normalisation_leaves_the_same_network(name):
    module = networks.build(name, miniature=True, batch_norm=True)
    variables = jax.eval_shape(module.init, jax.random.key(0), IMAGE)
    assert variables["batch_stats"]
    folded = jax.eval_shape(layers.fold_batch_norm, variables["params"], variables["batch_stats"])
    store.check(folded, parameter_shapes(name, True))


def test_unknown_names_are_refused_with_the_known_ones():
    for function in (networks.build, networks.load):
        with pytest.raises(ValueError, match="unknown network 'fcn_unet'.*fcn_alex.*fr_resnet"):
            function("fcn_unet")


def test_a_checkpoint_comes_back(tmp_path):
    parameters = random_parameters("fcn_alex")
    store.save(tmp_path / "mine.safetensors", parameters, {})
    loaded = networks.load("fcn_alex", miniature=True, checkpoint=tmp_path / "mine.safetensors")
    assert (loaded.name, loaded.miniature) == ("fcn_alex", True)
    assert jax.tree.structure(loaded) == jax.tree.structure(
        network_of("fcn_alex", True, parameters)
    )
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded))
    jax.tree.map(np.testing.assert_array_equal, loaded.parameters, parameters)


def test_a_checkpoint_of_another_network_is_refused_with_a_list(tmp_path):
    path = tmp_path / "fcn_alex.safetensors"
    store.save(path, random_parameters("fcn_alex"), {})
    with pytest.raises(ValueError) as error:
        networks.load("fcn_vgg", miniature=True, checkpoint=path)
    for line in ("missing: backbone/conv1_1/kernel", "left over: backbone/conv1/kernel"):
        assert line in str(error.value)
    with pytest.raises(ValueError, match="other shape: fc6/kernel"):
        networks.load("fcn_alex", checkpoint=path)  # the full size


def test_a_missing_checkpoint_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no such checkpoint"):
        networks.load("fcn_alex", checkpoint=tmp_path / "none.safetensors")
    monkeypatch.setattr(zoo, "CHECKPOINTS", tmp_path)
    with pytest.raises(ValueError, match="no such checkpoint"):
        networks.load("fcn_alex", miniature=True)


def test_a_checkpoint_that_names_another_network_is_refused(tmp_path):
    path = tmp_path / "mine.safetensors"
    store.save(path, random_parameters("fcn_alex"), {"network": "fcn_alex_star"})
    with pytest.raises(ValueError, match="mine.safetensors holds fcn_alex_star, not fcn_alex"):
        networks.load("fcn_alex", miniature=True, checkpoint=path)


def test_full_size_without_weights_says_how_to_get_some():
    with pytest.raises(ValueError, match="fcn_vgg at full size needs weights") as error:
        networks.load("fcn_vgg")
    for way in ("--networks=fcn_vgg", "checkpoint=", "miniature=True", "random=True"):
        assert way in str(error.value)


def test_random_weights_are_those_of_their_seed(monkeypatch):
    # The real ones have half a gigabyte.
    dense = lambda: nn.Dense(5)  # noqa: E731
    small = zoo.ENTRIES["fcn_alex"]._replace(build=dense, miniature=dense)
    monkeypatch.setitem(zoo.ENTRIES, "fcn_alex", small)
    load = functools.partial(networks.load, "fcn_alex", random=True)
    first, again, third = (load(seed=seed) for seed in (3, 3, 4))
    kernels = [network.parameters["kernel"] for network in (first, again, third)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.abs(kernels[0] - kernels[2]).max() > 0
    assert not first.miniature
    assert set(load(miniature=True).parameters) == {"kernel", "bias"}  # not what ships


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY_NAME)
def test_a_trained_miniature_ships_with_its_record(name):
    network = networks.load(name, miniature=True)
    assert network.name == name and network.miniature
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(network))
    _, record = store.load(zoo.CHECKPOINTS / f"{name}.safetensors")
    assert record["network"] == name
    assert record["command"].startswith("python -m experiments.train")
    assert f"--network={name}" in record["command"].split()
    assert "=/" not in json.dumps(record)  # no path of the machine that trained it
    assert isinstance(record["seed"], int)
    assert record["splits"] and record["test_split"] not in record["splits"]
    assert 0 < record["score"] <= 100


def test_the_miniatures_are_small_together():
    files = sorted(zoo.CHECKPOINTS.glob("*"))
    shipped = [file.stem for file in files if file.suffix == ".safetensors"]
    assert shipped == sorted(EVERY_NAME)
    assert sum(file.stat().st_size for file in files) <= 16e6
