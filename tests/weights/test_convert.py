"""Names and arrays of layers; networks/test_caffe_parity.py compares whole networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax import networks
from dag_jax.errors import UserError
from dag_jax.networks import backbones
from dag_jax.networks.faster_rcnn import FasterRCNN
from dag_jax.networks.fcn import Fcn
from dag_jax.weights import convert, store

IMAGE = jax.ShapeDtypeStruct((128, 128, 3), jnp.float32)
TRUNK = backbones.Vgg16((2, 3, 4, 5, 6), first_padding=100)
VGG8 = Fcn(TRUNK, skips=("stage4", "stage3"), fc_width=4)
ALEX = Fcn(
    backbones.AlexNet((2, 4, 6, 8, 4), first_padding=100), fc_width=4, fc_size=6, upsample_size=63
)
DETECTOR = FasterRCNN(backbones.Zf((2, 3, 4, 5, 6)), rpn_width=4, fc_width=4, pool_size=6)
VGG_NAMES = {"score_stage4": "score_pool4", "score_stage3": "score_pool3"}
UPSCORES = {"upscore2": (4, 2), "upscore_pool4": (4, 2), "upscore8": (16, 8)}


def random_tree(module, rng):
    tree = jax.eval_shape(module.init, jax.random.key(0), IMAGE)["params"]
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), tree)


def bilinear(size, classes=21):
    line = 1 - np.abs(np.arange(size) - (size // 2 if size % 2 else size / 2 - 0.5)) / (
        (size + 1) // 2
    )
    return np.float32(np.outer(line, line)[None, None] * np.eye(classes)[:, :, None, None])


@pytest.fixture
def fcn8s(rng, caffe_blobs):
    tree = random_tree(VGG8, rng)
    blobs = caffe_blobs(tree, VGG_NAMES)
    return tree, blobs | {name: [bilinear(size)] for name, (size, _) in UPSCORES.items()}


def assert_same(tree, expected):
    store.check(tree, expected)
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


def test_fcn8s_of_caffe(fcn8s):
    tree, blobs = fcn8s
    converted = convert.convert(VGG8, [blobs])
    assert_same(converted.parameters, tree)
    assert converted[1:] == ("caffe_fcn", (), False, ())
    kernel = blobs["conv2_1"][0]
    assert kernel.shape == (3, 2, 3, 3)
    assert converted.parameters["backbone"]["conv2_1"]["kernel"][0, 2, 1, 0] == kernel[0, 1, 0, 2]


def test_older_names_and_shapes_are_the_same_network(fcn8s):
    tree, blobs = fcn8s
    names = {"score_fr": "score-fr", "score_pool4": "score-pool4", "score_pool3": "score-pool3"}
    names |= {"upscore2": "score2", "upscore_pool4": "score4", "upscore8": "upsample"}
    older = {}
    for name, (weights, *bias) in blobs.items():
        if name in ("fc6", "fc7"):  # inner products
            weights = weights.reshape(1, 1, len(weights), -1)
        older[names.get(name, name)] = [weights, *(b.reshape(1, 1, 1, -1) for b in bias)]
    older["score2"].append(np.zeros((1, 1, 1, 21), np.float32))  # its bias was never learned
    assert_same(convert.convert(VGG8, [older]).parameters, tree)


def test_grouped_convolutions_and_inner_products_by_hand(rng, caffe_blobs):
    tree = random_tree(ALEX, rng)
    blobs = caffe_blobs(tree) | {"upscore": [bilinear(63)]}
    assert blobs["conv2"][0].shape == (4, 1, 5, 5)  # 2 groups
    flat = blobs["fc6"][0].reshape(4, -1)
    assert flat[3, 2 * 36 + 5 * 6 + 1] == tree["fc6"]["kernel"][5, 1, 2, 3]
    blobs["fc6"][0] = flat
    assert_same(convert.convert(ALEX, [blobs]).parameters, tree)


def test_upsamplings_that_are_not_bilinear_are_kept(fcn8s, rng):
    tree, blobs = fcn8s
    learned = bilinear(16) + 0.01 * rng.standard_normal((21, 21, 16, 16)).astype(np.float32)
    bias = rng.standard_normal(21).astype(np.float32)
    blobs |= {"upscore8": [learned], "upscore2": [bilinear(4), bias]}
    converted = convert.convert(VGG8, [blobs])
    assert converted.dense == ("upscore_stage4", "upscore")
    module = VGG8.clone(dense=converted.dense)
    store.check(
        converted.parameters, jax.eval_shape(module.init, jax.random.key(0), IMAGE)["params"]
    )
    upsampling = converted.parameters["upscore"]
    np.testing.assert_array_equal(upsampling["kernel"].transpose(2, 3, 0, 1), learned)
    np.testing.assert_array_equal(upsampling["bias"], np.zeros(21))
    np.testing.assert_array_equal(converted.parameters["upscore_stage4"]["bias"], bias)
    # One filter for each channel, as group = 21 has it.
    single = {"upscore8": [learned[range(21), range(21)][:, None]]}
    kernel = convert.convert(VGG8, [blobs | single]).parameters["upscore"]["kernel"]
    np.testing.assert_array_equal(kernel[:, :, 3, 3], learned[3, 3])
    assert not kernel[:, :, 3, 4].any()
    assert not convert.convert(
        VGG8, [blobs | {"upscore8": [bilinear(16)[range(21), range(21)][:, None]]}]
    ).parameters.keys() & {"upscore"}


def test_caffes_own_filler_is_not_bilinear_for_an_odd_kernel(rng, caffe_blobs):
    """It centres 63 pixels at 31.5 where FCN's surgery.py has 31."""
    line = 1 - np.abs(np.arange(63) / 32 - 63 / 64)
    filler = np.float32(np.outer(line, line)[None, None] * np.eye(21)[:, :, None, None])
    blobs = caffe_blobs(random_tree(ALEX, rng)) | {"upscore": [filler]}
    assert convert.convert(ALEX, [blobs]).dense == ("upscore",)


@pytest.mark.parametrize("folded", [True, False])
def test_box_offsets(rng, caffe_blobs, folded):
    tree = random_tree(DETECTOR, rng)
    module = DETECTOR.clone(delta_means=(0.1, 0.2, 0.3, 0.4))
    blobs = caffe_blobs(tree, {"rpn_conv": "rpn_conv1"})
    converted = convert.convert(module, [blobs], offsets_folded=folded)
    assert converted.layout == "py_faster_rcnn"
    box_layer, (weights, bias) = converted.parameters["bbox_pred"], blobs["bbox_pred"]
    if not folded:
        assert_same(converted.parameters, tree)
        return
    x = rng.standard_normal(4).astype(np.float32)
    offsets = (x @ box_layer["kernel"] + box_layer["bias"]).reshape(21, 4)
    theirs = (weights @ x + bias).reshape(21, 4)
    np.testing.assert_allclose(
        offsets * module.delta_stds + module.delta_means, theirs, rtol=1e-5, atol=1e-6
    )
    assert_same(converted.parameters | {"bbox_pred": tree["bbox_pred"]}, tree)


def matlab_pair(blobs):
    names = {"rpn_conv": "conv_proposal1", "rpn_cls_score": "proposal_cls_score"}
    names["rpn_bbox_pred"] = "proposal_bbox_pred"
    trunk = {name: blobs[name] for name in blobs if name.startswith("conv")}
    heads = {name: blobs[name] for name in ("fc6", "fc7", "cls_score", "bbox_pred")}
    proposals = {published: blobs[name] for name, published in names.items()}
    return trunk | proposals, trunk | heads


def test_the_matlab_pair_is_one_network(rng, caffe_blobs):
    tree = random_tree(DETECTOR, rng)
    pair = matlab_pair(caffe_blobs(tree))
    for sources in (pair, pair[::-1]):
        converted = convert.convert(DETECTOR, sources, offsets_folded=False)
        assert converted.layout == "matlab_faster_rcnn"
        assert_same(converted.parameters, tree)
    with pytest.raises(ValueError, match="(?s)missing: bbox_pred.*missing: fc7"):
        convert.convert(DETECTOR, pair[:1])


def test_a_pair_that_shares_no_features_is_refused(rng, caffe_blobs):
    proposals, detection = matlab_pair(caffe_blobs(random_tree(DETECTOR, rng)))
    detection = detection | {"conv2": [detection["conv2"][0] + 1, detection["conv2"][1]]}
    with pytest.raises(ValueError, match="layer conv2 is not the same in two of the 2 files"):
        convert.convert(DETECTOR, [proposals, detection])


@pytest.mark.slow
@pytest.mark.parametrize("module", [VGG8, ALEX, DETECTOR])
def test_imagenet_classifiers_of_caffe_give_a_start(rng, caffe_blobs, module):
    tree = random_tree(module, rng)
    trunk = {name: tree[name] for name in ("backbone", "fc6", "fc7")}
    blobs = caffe_blobs(trunk)
    for name in ("fc6", "fc7"):
        blobs[name][0] = blobs[name][0].reshape(1, 1, 4, -1)
    blobs["fc8"] = [np.zeros((1, 1, 1000, 4), np.float32), np.zeros((1, 1, 1, 1000), np.float32)]
    converted = convert.convert(module, [blobs])
    assert_same(converted.parameters, trunk)
    assert converted.partial and converted.layout == "caffe_imagenet"
    del blobs["conv2" if "conv2" in blobs else "conv2_2"]
    with pytest.raises(ValueError, match="missing: backbone/conv2"):
        convert.convert(module, [blobs])


def torchvision_vgg16(tree):
    """State dict of torchvision's VGG-16 in narrow."""
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    state = {}
    for place, name in zip(places, tree["backbone"], strict=True):
        leaves = tree["backbone"][name]
        state[f"features.{place}.weight"] = leaves["kernel"].transpose(3, 2, 0, 1)
        state[f"features.{place}.bias"] = leaves["bias"]
    for place, name in ((0, "fc6"), (3, "fc7")):
        kernel = tree[name]["kernel"].transpose(3, 2, 0, 1)
        state[f"classifier.{place}.weight"] = kernel.reshape(len(kernel), -1)
        state[f"classifier.{place}.bias"] = tree[name]["bias"]
    state["classifier.6.weight"] = np.zeros((1000, 4), np.float32)
    state["classifier.6.bias"] = np.zeros(1000, np.float32)
    return state


PREFIXES = ["", "module.", "state_dict.", "net.", "model_state_dict.", "backbone.", "model."]
PREFIXES += ["_orig_mod.", "state_dict.module._orig_mod.", "epochs.3.net."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_torchvisions_vgg16_reads_the_same_image(rng, prefix):
    tree = random_tree(VGG8, rng)
    tree = {name: tree[name] for name in ("backbone", "fc6", "fc7")}
    state = {prefix + name: leaf for name, leaf in torchvision_vgg16(tree).items()}
    converted = convert.convert(VGG8, [state])
    assert converted.partial and converted.layout == "torchvision_vgg16"
    first = converted.parameters["backbone"].pop("conv1_1")
    assert_same(
        converted.parameters["backbone"],
        {name: leaf for name, leaf in tree["backbone"].items() if name != "conv1_1"},
    )
    assert_same(converted.parameters["fc6"], tree["fc6"])
    # A patch of 3 x 3 pixels, inside the image.
    image = rng.uniform(0, 255, (3, 3, 3))
    theirs = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    ours = (image - VGG8.mean_rgb)[..., ::-1]
    expected, actual = (
        np.einsum("hwi,hwio->o", patch, layer["kernel"]) + layer["bias"]
        for patch, layer in ((theirs, tree["backbone"]["conv1_1"]), (ours, first))
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_the_network_of_a_training_checkpoint_is_taken(rng):
    tree = random_tree(VGG8, rng)
    state = torchvision_vgg16({name: tree[name] for name in ("backbone", "fc6", "fc7")})
    alone = convert.convert(VGG8, [state]).parameters
    score = np.float32(71.5)
    whole = {f"state_dict.module.{name}": leaf for name, leaf in state.items()}
    whole |= {f"optimizer.state.{i}.momentum_buffer": leaf for i, leaf in enumerate(state.values())}
    whole["best_acc1"] = score
    converted = convert.convert(VGG8, [whole])
    assert_same(converted.parameters, alone)
    assert converted.left_out == ("optimizer", "best_acc1")

    compiled = {f"_orig_mod.{name}": leaf for name, leaf in state.items()} | {"best_acc1": score}
    compiled["_orig_mod.classifier._orig_mod.0.bias"] = compiled.pop("_orig_mod.classifier.0.bias")
    converted = convert.convert(VGG8, [compiled])
    assert_same(converted.parameters, alone)
    assert converted.left_out == ("best_acc1",)

    # Beside the network, in the same container, may lie what it needs.
    with pytest.raises(UserError, match=r"left over: best_acc1 \(\)$"):
        convert.convert(VGG8, [state | {"best_acc1": score}])
    whole["state_dict.loss.weight"] = np.ones(21, np.float32)
    with pytest.raises(UserError, match="state_dict.loss.weight, beside state_dict.module.*part='"):
        convert.convert(VGG8, [whole])
    assert_same(convert.convert(VGG8, [whole], part="state_dict.module").parameters, alone)


def test_of_several_networks_one_is_chosen(rng):
    tree = random_tree(VGG8, rng)
    state = torchvision_vgg16({name: tree[name] for name in ("backbone", "fc6", "fc7")})
    both = {f"model.{name}": leaf for name, leaf in state.items()}
    both |= {f"ema.module.{name}": 2 * leaf for name, leaf in state.items()}
    with pytest.raises(UserError, match="choose one by part: ema.module or model"):
        convert.convert(VGG8, [both])
    kernels = [
        convert.convert(VGG8, [both], part=part).parameters["fc6"]["kernel"]
        for part in ("model", "ema.module.")
    ]
    np.testing.assert_array_equal(2 * kernels[0], kernels[1])
    with pytest.raises(UserError, match=r"no part 'net'; it has \['model', 'ema'\]"):
        convert.convert(VGG8, [both], part="net")


def test_a_layer_without_a_bias_is_said_to_miss_it(rng, caffe_blobs):
    blobs = caffe_blobs(random_tree(DETECTOR, rng), {"rpn_conv": "rpn_conv1"})
    with pytest.raises(UserError, match=r"missing: bias of bbox_pred \(84,\)"):
        convert.convert(DETECTOR, [blobs | {"bbox_pred": blobs["bbox_pred"][:1]}])
    tree = random_tree(VGG8, rng)
    state = torchvision_vgg16({name: tree[name] for name in ("backbone", "fc6", "fc7")})
    del state["features.0.bias"]
    with pytest.raises(UserError, match=r"missing: bias of features.0 \(2,\)"):
        convert.convert(VGG8, [state])


FIVE, SIX = np.ones(5, np.float32), np.ones(6, np.float32)
NORM = {"weight": FIVE, "bias": FIVE, "running_mean": FIVE, "running_var": FIVE}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"bn1." + part: NORM[part] for part in ("weight", "bias")}, "has no running_mean, runn"),
        ({f"bn1.{part}": leaf for part, leaf in (NORM | {"bias": SIX}).items()}, "arrays are of"),
        ({f"bn1.{part}": leaf[:, None] for part, leaf in NORM.items()}, "no batch normalisation"),
        ({f"bn1.{part}": SIX for part in NORM}, r"has \(6,\) channels, the layer before has \(5,"),
    ],
)
def test_a_normalisation_that_is_none_is_refused(arrays, message):
    block = "backbone.layer4.0."
    state = {f"{block}conv1.weight": np.ones((5, 3, 1, 1), np.float32)}
    state |= {block + name: leaf for name, leaf in arrays.items()}
    with pytest.raises(UserError, match=f"layer4.0.bn1 .*{message}"):
        convert.convert(VGG8, [state], layout="torchvision_fcn")


@pytest.mark.parametrize(
    ("blobs", "message"),
    [
        ([FIVE, FIVE, SIX], "its factor has 6 values"),
        ([FIVE, SIX, FIVE[:1]], "its arrays are of"),
        ([FIVE, FIVE, FIVE[:1], FIVE], None),
    ],
)
def test_a_batch_norm_of_caffe_that_is_none_is_refused(blobs, message):
    layers = {"conv1": [np.ones((5, 3, 1, 1), np.float32)], "bn_conv1": blobs}
    with pytest.raises(UserError, match=message):
        convert.convert(VGG8, [layers], layout="py_rfcn")


def test_what_does_not_fit_is_listed(fcn8s):
    _, blobs = fcn8s
    blobs = dict(blobs)
    blobs["fc8"] = [np.zeros((3, 2), np.float32)]
    blobs["conv3_1"] = [blobs["conv3_1"][0][:, :2], blobs["conv3_1"][1]]
    blobs["conv3_2"] = [blobs["conv3_2"][0]]
    blobs["score_fr"] = [*blobs["score_fr"], np.zeros(1, np.float32)]
    blobs["fc7"] = [blobs["fc7"][0] * np.nan, blobs["fc7"][1]]
    blobs["upscore8"] = [bilinear(16, 20)]
    del blobs["score_pool3"], blobs["upscore2"]
    with pytest.raises(ValueError) as error:
        convert.convert(VGG8, [blobs])
    assert str(error.value).splitlines() == [
        "the weights, read as caffe_fcn, do not fit the network:",
        "  left over: blob 2 of score_fr (1,)",
        "  left over: fc8 (3, 2)",
        "  missing: bias of conv3_2 (4,)",
        "  missing: score_stage3",
        "  missing: upscore_stage4",
        "  not finite: kernel of fc7",
        "  other shape: kernel of conv3_1 is (4, 2, 3, 3), the network has (3, 3, 3, 4)",
        "  other shape: kernel of upscore8 is (20, 20, 16, 16), the network has (16, 16, 21, 21)",
    ]


def test_weights_of_another_network_are_refused(rng, caffe_blobs):
    blobs = caffe_blobs(random_tree(DETECTOR, rng), {"rpn_conv": "rpn_conv1"})
    with pytest.raises(ValueError, match="(?s)left over: rpn_conv1.*missing: backbone/conv1_1"):
        convert.convert(VGG8, [blobs])
    with pytest.raises(ValueError, match="of no known layout .*their layers are conv9, fc9"):
        convert.convert(VGG8, [{"conv9": [np.zeros(1)], "fc9": [np.zeros(1)]}])
    with pytest.raises(ValueError, match="unknown layout 'keras'; .*caffe_fcn"):
        convert.convert(VGG8, [blobs], layout="keras")


def test_torchvisions_alexnet_is_not_caffenet():
    state = {"features.0.weight": np.zeros((64, 3, 11, 11)), "features.10.bias": np.zeros(256)}
    with pytest.raises(ValueError, match="of no known layout"):
        convert.convert(networks.build("fcn_alex"), [state])


def test_two_layers_for_one_of_ours_are_refused(fcn8s):
    _, blobs = fcn8s
    with pytest.raises(ValueError, match="left over: score-fr, as score_fr is there already"):
        convert.convert(VGG8, [blobs | {"score-fr": blobs["score_fr"]}])


def test_a_checkpoint_with_its_own_upsamplings_loads(tmp_path, fcn8s, monkeypatch):
    tree, blobs = fcn8s
    converted = convert.convert(VGG8, [blobs | {"upscore2": [2 * bilinear(4)]}])
    path = tmp_path / "fcn.safetensors"
    store.save(path, converted.parameters, {"network": "fcn_vgg", "dense": converted.dense})
    monkeypatch.setattr(networks.zoo, "build", lambda name, *, miniature: VGG8)
    network = networks.load("fcn_vgg", checkpoint=path)
    assert network.module == VGG8.clone(dense=("upscore_stage4",))
    assert_same(network.parameters, converted.parameters)
