"""The networks by name, and the facts about each: one entry of `ENTRIES` a network.

Eight are those of Table 1. The black box is two residual networks, which the paper does not have.
Perturbations of the eight are tried on them; none was made with a network of their architecture.

A miniature is the same module: it differs in widths, in its canvas (strides, padding, the patch of
fc6), in its anchors and in its number of residual blocks. Full-size figures are those of Caffe's
deploy files, for the black box those of torchvision (ResNet-50) and, of the detector's head, of
detectron2's R50-DC5.

The others are networks of other authors, whose weights are free to use, and torchvision's; their
entries lie beside them. They are what is published: none has a miniature.

Where the weights of a network are published, and under which licence, `weights.published` says.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
from flax import linen as nn

from dag_jax.errors import UserError
from dag_jax.models import DETECTION, MARGINS, MAX_STEPS, SEGMENTATION
from dag_jax.networks import (
    backbones,
    conversion,
    espnetv2,
    fpn_faster_rcnn,
    mobilenet_yolo,
    retinanet,
    torchvision,
)
from dag_jax.networks.entry import Entry
from dag_jax.networks.faster_rcnn import FasterRCNN
from dag_jax.networks.fcn import DilatedFcn, Fcn
from dag_jax.networks.network import DetectionNetwork, Facts, Network, SegmentationNetwork
from dag_jax.networks.resnet import ResNet
from dag_jax.networks.rfcn import RFCN
from dag_jax.weights import store

CHECKPOINTS = pathlib.Path(__file__).parent / "checkpoints"
_KINDS = {SEGMENTATION: SegmentationNetwork, DETECTION: DetectionNetwork}
_ANY_IMAGE = (128, 128, 3)  # parameters do not depend on the image's size


def _fcn_alex(**norm):
    trunk = backbones.AlexNet(first_padding=100, **norm)
    return Fcn(trunk, fc_size=6, upsample_size=63, **norm)


def _small_fcn_alex(**norm):
    trunk = backbones.AlexNet((24, 64, 96, 96, 64), 2, first_padding=24, **norm)
    return Fcn(trunk, fc_width=128, fc_size=3, upsample_size=31, **norm)


_SKIPS = ("stage4", "stage3")


def _fcn_vgg(**norm):
    return Fcn(backbones.Vgg16(first_padding=100, **norm), skips=_SKIPS, **norm)


def _small_fcn_vgg(**norm):
    trunk = backbones.Vgg16((8, 16, 32, 64, 64), first_padding=10, **norm)
    return Fcn(trunk, skips=_SKIPS, fc_width=128, fc_size=3, **norm)


_SMALL_RESNET = {"widths": (24, 64, 96, 128, 128), "blocks": (1, 2, 2, 1)}


def _fcn_resnet(**norm):
    return DilatedFcn(ResNet(stride=8, **norm), **norm)


def _small_fcn_resnet(**norm):
    return DilatedFcn(ResNet(**_SMALL_RESNET, stride=8, **norm), fc_width=96, **norm)


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


def _fr_zf(**norm):
    # The authors' ZF trained with a dropout that did not scale, so half is missing in a test.
    half = {"fc_multiplier": 0.5}
    return FasterRCNN(backbones.Zf(**norm), rpn_width=256, pool_size=6, **half, **norm)


def _small_fr_zf(**norm):
    trunk = backbones.Zf((16, 64, 96, 96, 64), 1, **norm)
    return FasterRCNN(trunk, pool_size=6, **_SMALL_DETECTOR, **norm)


def _fr_vgg(**norm):
    return FasterRCNN(backbones.Vgg16(pooled=(1, 2, 3, 4), **norm), **norm)


def _small_fr_vgg(**norm):
    trunk = backbones.Vgg16((8, 16, 32, 64, 64), pooled=(1, 2, 3), **norm)
    return FasterRCNN(trunk, **_SMALL_DETECTOR, **norm)


def _fr_resnet(**norm):
    return FasterRCNN(ResNet(stride=16, **norm), fc_width=1024, **norm)


def _small_fr_resnet(**norm):
    return FasterRCNN(ResNet(**_SMALL_RESNET, stride=8, **norm), **_SMALL_DETECTOR, **norm)


# The paper's test split of each task; scenes have the same names.
_FCN = functools.partial(
    Entry,
    task=SEGMENTATION,
    split="seg11valid",
    paper="Long, Shelhamer and Darrell, CVPR 2015",
)
_FASTER_RCNN = functools.partial(
    Entry,
    task=DETECTION,
    split="voc07_test",
    paper="Ren, He, Girshick and Sun, NIPS 2015",
    size="600 pixels the short side, at most 1,000 the long one",
    # The paper keeps 3,000 proposals from an RPN that sees 600 x 1,000 pixels.
    proposals=(3000, 300),
)
_RESNET = "He, Zhang, Ren and Sun, CVPR 2016"
_MIOU, _MAP = "mIoU {} on VOC2011 seg11valid", "mAP {} on VOC2007 test"  # of the paper's Table 1


ENTRIES = {
    "fcn_alex": _FCN(
        "FCN-Alex", build=_fcn_alex, miniature=_small_fcn_alex, score=_MIOU.format(48.04)
    ),
    "fcn_alex_star": _FCN(
        "FCN-Alex*", build=_fcn_alex, miniature=_small_fcn_alex, score=_MIOU.format(48.92)
    ),
    "fcn_vgg": _FCN("FCN-VGG", build=_fcn_vgg, miniature=_small_fcn_vgg, score=_MIOU.format(65.49)),
    "fcn_vgg_star": _FCN(
        "FCN-VGG*", build=_fcn_vgg, miniature=_small_fcn_vgg, score=_MIOU.format(67.09)
    ),
    "fcn_resnet": _FCN("FCN-ResNet", paper=_RESNET, build=_fcn_resnet, miniature=_small_fcn_resnet),
    "fr_zf_07": _FASTER_RCNN(
        "FR-ZF-07", build=_fr_zf, miniature=_small_fr_zf, score=_MAP.format("58.70")
    ),
    "fr_zf_0712": _FASTER_RCNN(
        "FR-ZF-0712", build=_fr_zf, miniature=_small_fr_zf, score=_MAP.format(61.07)
    ),
    "fr_vgg_07": _FASTER_RCNN(
        "FR-VGG-07", build=_fr_vgg, miniature=_small_fr_vgg, score=_MAP.format(69.14)
    ),
    "fr_vgg_0712": _FASTER_RCNN(
        "FR-VGG-0712", build=_fr_vgg, miniature=_small_fr_vgg, score=_MAP.format(72.07)
    ),
    "fr_resnet": _FASTER_RCNN(
        "FR-ResNet", paper=_RESNET, build=_fr_resnet, miniature=_small_fr_resnet
    ),
    "rfcn_resnet50": _FASTER_RCNN(
        "R-FCN-ResNet-50",
        paper="Dai, Li, He and Sun, NIPS 2016",
        build=lambda: RFCN(ResNet(stride=16, caffe=True)),
        score=_MAP.format(77.6),
        precisions=("float32",),
    ),
    **espnetv2.ENTRIES,
    **mobilenet_yolo.ENTRIES,
    **torchvision.ENTRIES,
    **fpn_faster_rcnn.ENTRIES,
    **retinanet.ENTRIES,
}
TASKS = {name: entry.task for name, entry in ENTRIES.items()}
BLACK_BOX = ("fcn_resnet", "fr_resnet")
MINIATURES = tuple(name for name, entry in ENTRIES.items() if entry.miniature)
NAMES = tuple(name for name in MINIATURES if name not in BLACK_BOX)  # of Table 1


def _entry(name, miniature=False):
    if name not in ENTRIES:
        raise UserError(f"unknown network {name!r}; the known ones are {', '.join(ENTRIES)}")
    if miniature and name not in MINIATURES:
        raise UserError(
            f"{name} has no miniature; those that have are {', '.join(MINIATURES)}. With "
            "miniature=False it is the published network"
        )
    return ENTRIES[name]


def facts(name: str, *, miniature: bool = False) -> Facts:
    """Return the facts about a network that tables and attacks need.

    Raises:
      ValueError: for an unknown name, and for a miniature that does not exist.
    """
    entry = _entry(name, miniature)
    margin = MARGINS[entry.task] if entry.margin is None else entry.margin
    numbers = margin, MAX_STEPS[entry.task], entry.proposals[miniature]
    return Facts(entry.title, entry.classes, entry.split, *numbers)


def build(name: str, *, miniature: bool = False, batch_norm: bool = False) -> nn.Module:
    """Return the module of a network, without parameters.

    Args:
      name: one of `ENTRIES`.
      miniature: whether to build the small one.
      batch_norm: whether to build it for training; `layers.fold_batch_norm` undoes it.

    Raises:
      ValueError: for an unknown name, a miniature that does not exist, and a network that cannot
        be trained here.
    """
    entry = _entry(name, miniature)
    if batch_norm and name not in MINIATURES:
        raise UserError(f"{name} cannot be trained here, only {', '.join(MINIATURES)}")
    function = entry.miniature if miniature else entry.build
    return function(batch_norm=True) if batch_norm else function()


def convert(name: str, sources, output, *, miniature: bool = False, **options) -> dict:
    """Convert published files of a network to one checkpoint of ours.

    Args:
      name: one of `ENTRIES`.
      sources: paths of the files.
      output: the checkpoint, which must not exist yet.
      miniature: whether they are of the small network.
      **options: as of `conversion.read_network`.

    Returns:
      The checkpoint's record.

    Raises:
      UserError: as `build` and `conversion.convert_files` say.
    """
    module = build(name, miniature=miniature)
    read = functools.partial(ENTRIES[name].read, **options)
    return conversion.convert_files(name, module, sources, output, read=read)


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
      name: one of `ENTRIES`.
      miniature: whether to load the small one, whose trained checkpoint ships with the package.
      checkpoint: path of the weights: our safetensors file, or the published file itself (of a
        detector that was published as two files, both).
      random: whether a network without a checkpoint gets random parameters.
      seed: of random parameters.
      precision: one of `PRECISIONS`, in which convolutions and fully connected layers multiply;
        the first one, which sees the image, and a detector's last ones are float32 in all, as are
        sums, scores, boxes and parameters. "float32" is JAX's default precision, which is lower on
        accelerators: launches raise it. "tf32" is TF32 on NVIDIA GPUs that have it, three products
        of bfloat16 on TPUs, and float32 elsewhere; maps between layers stay float32.

    Returns:
      A `SegmentationNetwork` or a `DetectionNetwork`.

    Raises:
      ValueError: for an unknown name or precision, for a miniature that does not exist, for a
        full-size network without weights, and for a checkpoint that is missing, damaged or of
        another network.
    """
    entry = _entry(name, miniature)
    if precision not in entry.precisions:
        precisions = ", ".join(entry.precisions)
        raise UserError(
            f"unknown precision {precision!r} of {name}; the known ones are {precisions}"
        )
    module = build(name, miniature=miniature)
    if precision == "bfloat16":
        module = module.clone(backbone=module.backbone.clone(dtype=precision))
    if checkpoint is None and miniature and not random:
        checkpoint = CHECKPOINTS / f"{name}.safetensors"
    if checkpoint is None and not random:
        small = "miniature=True is a trained small one, " * bool(entry.miniature)
        raise UserError(
            f"{name} at full size needs weights: `python -m experiments.fetch_weights "
            f"--networks={name}` gets the published ones, and checkpoint= names the file. "
            f"{small}random=True has random weights"
        )
    if checkpoint is None:
        init = functools.partial(module.init, jax.random.key(seed))
        parameters = jax.jit(init)(jnp.zeros(_ANY_IMAGE))["params"]
    else:
        module, parameters, record = entry.read(name, module, checkpoint)
        if record.get("network", name) != name:
            raise UserError(f"{checkpoint} holds {record['network']}, not {name}")
        image = jax.ShapeDtypeStruct(_ANY_IMAGE, jnp.float32)
        shapes = jax.eval_shape(module.init, jax.random.key(seed), image)["params"]
        store.check(parameters, shapes)
        parameters = jax.tree.map(jnp.asarray, parameters)
    kind = entry.kind or _KINDS[entry.task]
    return kind(name, module, parameters, miniature, facts(name, miniature=miniature), precision)
