"""The networks by name, full size and miniature, and all that is said of each.

Eight are those of Table 1. The black box is two residual networks, which the paper does not have: a
perturbation can be tried on them that no network of their architecture had a part in.

A miniature is the same module: it differs in widths, in its canvas (strides, padding, the patch of
fc6), in its anchors and in its number of residual blocks. Full-size figures are those of Caffe's
deploy files, for the black box those of torchvision (ResNet-50) and, of the detector's head, of
detectron2's R50-DC5.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
from flax import linen as nn

from dag_jax.datasets.classes import CLASS_NAMES
from dag_jax.errors import UserError
from dag_jax.models import DETECTION, MARGINS, MAX_STEPS, SEGMENTATION
from dag_jax.networks import backbones
from dag_jax.networks.conversion import parameters_of
from dag_jax.networks.faster_rcnn import FasterRCNN
from dag_jax.networks.fcn import DilatedFcn, Fcn
from dag_jax.networks.network import DetectionNetwork, Facts, Network, SegmentationNetwork
from dag_jax.networks.resnet import ResNet
from dag_jax.weights import store

_TITLES = {  # of each task; the first four of a task are those of Table 1
    SEGMENTATION: {
        "fcn_alex": "FCN-Alex",
        "fcn_alex_star": "FCN-Alex*",
        "fcn_vgg": "FCN-VGG",
        "fcn_vgg_star": "FCN-VGG*",
        "fcn_resnet": "FCN-ResNet",
    },
    DETECTION: {
        "fr_zf_07": "FR-ZF-07",
        "fr_zf_0712": "FR-ZF-0712",
        "fr_vgg_07": "FR-VGG-07",
        "fr_vgg_0712": "FR-VGG-0712",
        "fr_resnet": "FR-ResNet",
    },
}
TASKS = {name: task for task, titles in _TITLES.items() for name in titles}
BLACK_BOX = ("fcn_resnet", "fr_resnet")
NAMES = tuple(name for name in TASKS if name not in BLACK_BOX)  # of Table 1
# The paper's test split of each task; scenes have the same names.
_SPLITS = {SEGMENTATION: "seg11valid", DETECTION: "voc07_test"}
# The paper keeps 3,000 proposals from an RPN that sees 600 x 1,000 pixels.
_ATTACK_PROPOSALS = {True: 300, False: 3000}  # miniature or not
PRECISIONS = ("float32", "bfloat16")
CHECKPOINTS = pathlib.Path(__file__).parent / "checkpoints"
_ANY_IMAGE = (128, 128, 3)  # parameters do not depend on the image's size


def facts(name: str, *, miniature: bool = False) -> Facts:
    """Return what is said of a network.

    Raises:
      ValueError: for an unknown name.
    """
    _check_name(name)
    task = TASKS[name]
    proposals = _ATTACK_PROPOSALS[miniature] if task == DETECTION else 0
    numbers = MARGINS[task], MAX_STEPS[task], proposals
    return Facts(_TITLES[task][name], CLASS_NAMES, _SPLITS[task], *numbers)


def _check_name(name):
    if name not in TASKS:
        raise UserError(f"unknown network {name!r}; the known ones are {', '.join(TASKS)}")


def build(name: str, *, miniature: bool = False, batch_norm: bool = False) -> nn.Module:
    """Return the module of a network, without parameters.

    Args:
      name: one of `NAMES` or of `BLACK_BOX`.
      miniature: whether to build the small one.
      batch_norm: whether to build it for training; `layers.fold_batch_norm` undoes it.

    Returns:
      An `Fcn`, a `DilatedFcn` or a `FasterRCNN`.

    Raises:
      ValueError: for an unknown name.
    """
    _check_name(name)
    return _BUILDERS[name](miniature, {"batch_norm": batch_norm})


def _fcn_alex(miniature, norm):
    if miniature:
        trunk = backbones.AlexNet((24, 64, 96, 96, 64), 2, first_padding=24, **norm)
        return Fcn(trunk, fc_width=128, fc_size=3, upsample_size=31, **norm)
    trunk = backbones.AlexNet(first_padding=100, **norm)
    return Fcn(trunk, fc_size=6, upsample_size=63, **norm)


def _fcn_vgg(miniature, norm):
    skips = ("stage4", "stage3")
    if miniature:
        trunk = backbones.Vgg16((8, 16, 32, 64, 64), first_padding=10, **norm)
        return Fcn(trunk, skips=skips, fc_width=128, fc_size=3, **norm)
    return Fcn(backbones.Vgg16(first_padding=100, **norm), skips=skips, **norm)


def _fcn_resnet(miniature, norm):
    if miniature:
        return DilatedFcn(ResNet(**_SMALL_RESNET, stride=8, **norm), fc_width=96, **norm)
    return DilatedFcn(ResNet(stride=8, **norm), **norm)


def _fr_zf(miniature, norm):
    if miniature:
        trunk = backbones.Zf((16, 64, 96, 96, 64), 1, **norm)
        return FasterRCNN(trunk, pool_size=6, **_SMALL_DETECTOR, **norm)
    # The authors' ZF trained with a dropout that did not scale, so half is missing in a test.
    half = {"fc_multiplier": 0.5}
    return FasterRCNN(backbones.Zf(**norm), rpn_width=256, pool_size=6, **half, **norm)


def _fr_vgg(miniature, norm):
    if miniature:
        trunk = backbones.Vgg16((8, 16, 32, 64, 64), pooled=(1, 2, 3), **norm)
        return FasterRCNN(trunk, **_SMALL_DETECTOR, **norm)
    return FasterRCNN(backbones.Vgg16(pooled=(1, 2, 3, 4), **norm), **norm)


def _fr_resnet(miniature, norm):
    if miniature:
        return FasterRCNN(ResNet(**_SMALL_RESNET, stride=8, **norm), **_SMALL_DETECTOR, **norm)
    return FasterRCNN(ResNet(stride=16, **norm), fc_width=1024, **norm)


_SMALL_RESNET = {"widths": (24, 64, 96, 128, 128), "blocks": (1, 2, 2, 1)}
_SMALL_DETECTOR = {
    "stride": 8,
    "anchor_sizes": (28, 48, 80),
    "rpn_width": 64,
    "fc_width": 128,
    "head_chunk": 512,
    "min_size": 8,
    "pre_nms": 600,
    "post_nms": 100,
    "resize": None,
}
_BUILDERS = {
    "fcn_alex": _fcn_alex,
    "fcn_alex_star": _fcn_alex,
    "fcn_vgg": _fcn_vgg,
    "fcn_vgg_star": _fcn_vgg,
    "fcn_resnet": _fcn_resnet,
    "fr_zf_07": _fr_zf,
    "fr_zf_0712": _fr_zf,
    "fr_vgg_07": _fr_vgg,
    "fr_vgg_0712": _fr_vgg,
    "fr_resnet": _fr_resnet,
}


def load(
    name: str,
    *,
    miniature: bool = False,
    checkpoint=None,
    random: bool = False,
    seed: int = 0,
    precision: str = "float32",
) -> Network:
    """Load a network.

    Args:
      name: one of `NAMES` or of `BLACK_BOX`.
      miniature: whether to load the small one, whose trained checkpoint ships with the package.
      checkpoint: path of the weights: our safetensors file, or the published file itself (of a
        detector that was published as two files, both).
      random: whether a network without a checkpoint gets random parameters.
      seed: of random parameters.
      precision: one of `PRECISIONS`, in which convolutions and fully connected layers multiply;
        the first one, which sees the image, and a detector's last ones are float32 in both, as are
        sums, scores, boxes and parameters.

    Returns:
      A `SegmentationNetwork` or a `DetectionNetwork`.

    Raises:
      ValueError: for an unknown name or precision, for a full-size network without weights, and for
        a checkpoint that is missing, damaged or of another network.
    """
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise UserError(f"unknown precision {precision!r}; the known ones are {known}")
    module = build(name, miniature=miniature)
    if precision != "float32":
        module = module.clone(backbone=module.backbone.clone(dtype=precision))
    init = functools.partial(module.init, jax.random.key(seed))
    image = jax.ShapeDtypeStruct(_ANY_IMAGE, jnp.float32)
    if checkpoint is None and miniature and not random:
        checkpoint = CHECKPOINTS / f"{name}.safetensors"
    if checkpoint is None and not random:
        raise UserError(
            f"{name} at full size needs weights: `python -m experiments.fetch_weights "
            f"--networks={name}` gets the published ones, and checkpoint= names the file. "
            "miniature=True is a trained small one, random=True has random weights"
        )
    if checkpoint is None:
        parameters = jax.jit(init)(jnp.zeros(_ANY_IMAGE))["params"]
    else:
        parameters, record = parameters_of(name, module, checkpoint)
        if record.get("network", name) != name:
            raise UserError(f"{checkpoint} holds {record['network']}, not {name}")
        if record.get("dense"):  # upsamplings of an FCN that are not bilinear
            module = module.clone(dense=tuple(record["dense"]))
            init = functools.partial(module.init, jax.random.key(seed))
        store.check(parameters, jax.eval_shape(init, image)["params"])
        parameters = jax.tree.map(jnp.asarray, parameters)
    kind = SegmentationNetwork if TASKS[name] == SEGMENTATION else DetectionNetwork
    return kind(name, module, parameters, miniature, facts(name, miniature=miniature))
