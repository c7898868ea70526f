"""The networks by name, full size and miniature, and how the engine calls them.

Eight are those of Table 1. The black box is two residual networks, which the paper does not have: a
perturbation can be tried on them that no network of their architecture had a part in.

Shapes: `H W` pixels of the user's image, `N` boxes, `K` outputs, `C` classes.

A miniature is the same module: it differs in widths, in its canvas (strides, padding, the patch of
fc6), in its anchors and in its number of residual blocks. Full-size figures are those of Caffe's
deploy files, for the black box those of torchvision (ResNet-50) and, of the detector's head, of
detectron2's R50-DC5.
"""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
from flax import linen as nn

from dag_jax.errors import UserError
from dag_jax.networks import backbones
from dag_jax.networks.faster_rcnn import FasterRCNN
from dag_jax.networks.fcn import DilatedFcn, Fcn
from dag_jax.networks.resnet import ResNet
from dag_jax.weights import store

NAMES = (  # of Table 1
    "fcn_alex",
    "fcn_alex_star",
    "fcn_vgg",
    "fcn_vgg_star",
    "fr_zf_07",
    "fr_zf_0712",
    "fr_vgg_07",
    "fr_vgg_0712",
)
BLACK_BOX = ("fcn_resnet", "fr_resnet")  # beside them
PRECISIONS = ("float32", "bfloat16")
CHECKPOINTS = pathlib.Path(__file__).parent / "checkpoints"
_BUCKET = 125  # pixels: a quarter of the longest side that VOC's images have
_ANY_IMAGE = (128, 128, 3)  # parameters do not depend on the image's size


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["parameters"],
    meta_fields=["name", "module", "miniature"],
)
@dataclasses.dataclass(frozen=True)
class Network:
    """A network ready to use: what it is, and its parameters (the leaves of the pytree)."""

    name: str
    module: nn.Module
    parameters: dict
    miniature: bool

    @property
    def detects(self) -> bool:
        """Whether it is a detector; else it segments."""
        return isinstance(self.module, FasterRCNN)


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
    if name not in NAMES + BLACK_BOX:
        known = ", ".join(NAMES + BLACK_BOX)
        raise UserError(f"unknown network {name!r}; the known ones are {known}")
    norm = {"batch_norm": batch_norm}
    small_detector = {
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
    detector_small = small_detector if miniature else {}
    if name.startswith("fcn_alex"):
        if miniature:
            trunk = backbones.AlexNet((24, 64, 96, 96, 64), 2, first_padding=24, **norm)
        else:
            trunk = backbones.AlexNet(first_padding=100, **norm)
        small = {"fc_width": 128, "fc_size": 3, "upsample_size": 31}
        options = small if miniature else {"fc_size": 6, "upsample_size": 63}
        return Fcn(trunk, **options, **norm)
    if name.startswith("fcn_vgg"):
        if miniature:
            trunk = backbones.Vgg16((8, 16, 32, 64, 64), first_padding=10, **norm)
        else:
            trunk = backbones.Vgg16(first_padding=100, **norm)
        options = {"fc_width": 128, "fc_size": 3} if miniature else {}
        return Fcn(trunk, skips=("stage4", "stage3"), **options, **norm)
    if name.startswith("fr_zf"):
        trunk = backbones.Zf((16, 64, 96, 96, 64), 1, **norm) if miniature else backbones.Zf(**norm)
        # The authors' ZF trained with a dropout that did not scale, so half is missing in a test.
        multiplier = 1.0 if miniature else 0.5
        options = {"rpn_width": 256, "pool_size": 6, "fc_multiplier": multiplier}
        return FasterRCNN(trunk, **{**options, **detector_small}, **norm)
    if name in BLACK_BOX:
        small = {"widths": (24, 64, 96, 128, 128), "blocks": (1, 2, 2, 1)} if miniature else {}
        if name == "fcn_resnet":
            width = {"fc_width": 96} if miniature else {}
            return DilatedFcn(ResNet(**small, stride=8, **norm), **width, **norm)
        trunk = ResNet(**small, stride=8 if miniature else 16, **norm)
        return FasterRCNN(trunk, **{"fc_width": 1024, **detector_small}, **norm)
    widths, pooled = ((8, 16, 32, 64, 64), (1, 2, 3)) if miniature else (None, (1, 2, 3, 4))
    widths = {"widths": widths} if widths else {}
    return FasterRCNN(backbones.Vgg16(pooled=pooled, **widths, **norm), **detector_small, **norm)


def load(
    name: str,
    *,
    miniature: bool = False,
    checkpoint=None,
    seed: int = 0,
    precision: str = "float32",
) -> Network:
    """Load a network.

    Args:
      name: one of `NAMES` or of `BLACK_BOX`.
      miniature: whether to load the small one, whose trained checkpoint ships with the package.
      checkpoint: path of a safetensors file of ours to read instead.
      seed: of the random parameters that a full-size network has without a checkpoint.
      precision: one of `PRECISIONS`, in which convolutions and fully connected layers multiply;
        the first one, which sees the image, and a detector's last ones are float32 in both, as are
        sums, scores, boxes and parameters.

    Returns:
      Network.

    Raises:
      ValueError: for an unknown name or precision, and for a checkpoint that is missing, damaged
        or of another network.
    """
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise UserError(f"unknown precision {precision!r}; the known ones are {known}")
    module = build(name, miniature=miniature)
    if precision != "float32":
        module = module.clone(backbone=module.backbone.clone(dtype=precision))
    init = functools.partial(module.init, jax.random.key(seed))
    image = jax.ShapeDtypeStruct(_ANY_IMAGE, jnp.float32)
    if checkpoint is None and miniature:
        checkpoint = CHECKPOINTS / f"{name}.safetensors"
    if checkpoint is None:
        parameters = jax.jit(init)(jnp.zeros(_ANY_IMAGE))["params"]
    else:
        parameters, record = store.load(checkpoint)
        if record.get("network", name) != name:
            raise UserError(f"{checkpoint} holds {record['network']}, not {name}")
        if record.get("dense"):  # upsamplings of an FCN that are not bilinear
            module = module.clone(dense=tuple(record["dense"]))
            init = functools.partial(module.init, jax.random.key(seed))
        store.check(parameters, jax.eval_shape(init, image)["params"])
        parameters = jax.tree.map(jnp.asarray, parameters)
    return Network(name, module, parameters, miniature)


def unnamed(network: Network) -> Network:
    """Return a network without its name, which the tree's structure holds.

    What is compiled for one then serves every network of its architecture: `fcn_vgg_star` costs no
    compilation after `fcn_vgg`. `score_fn` does this itself; a function of yours that takes a
    `Network` and is jitted may want it.
    """
    return dataclasses.replace(network, name="")


@functools.lru_cache(maxsize=1024)
def _check_size(module, shape):
    """Let a network say, without computing anything, whether it can see an image of a shape."""
    jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((*shape, 3), jnp.float32))


def bucket(network: Network, shape: tuple[int, ...]):
    """Return the few shapes by which images of any size go through a network.

    An image is padded, below and on the right, to the bucket's shape, and its own size goes along
    as the last argument of `score_fn`, `predict` and `propose`:

        network, (height, width) = bucket(network, image.shape)
        labels = predict(network, np.pad(image, ...), np.int32(image.shape[:2]))

    Layers take the padding for what lies outside the image, so that it changes neither scores nor
    gradients, which are zero there.

    Args:
      network: from `load`.
      shape: (H, W, ...) of an image.

    Returns:
      (Network, (H', W')): the network to use, and the shape to pad the image to. Images are of one
      bucket where both are the same: a detector of another bucket gives NaN where the image's
      canvas does not fit into its own.

    Raises:
      ValueError: where the image is smaller than the network can see.
    """

    def raised(sides, step):
        return tuple(-(-side // step) * step for side in sides)

    height, width = shape[:2]
    if not network.detects and min(height, width) < _BUCKET:
        _check_size(network.module, (height, width))
    if not network.detects or network.module.resize is None:
        return network, raised((height, width), _BUCKET)
    (canvas, _), long = network.module.canvas((height, width, 3)), network.module.resize[1]
    module = network.module.clone(canvas_shape=raised(canvas, long // 5))
    # Only the canvas costs: images of any shape share one.
    return dataclasses.replace(network, module=module), raised((height, width), 4 * _BUCKET)


def _apply(network, *arguments, method=None, **options):
    return network.module.apply(
        {"params": network.parameters}, *arguments, method=method, **options
    )


def _score_pixels(network, image, extent=None):
    return _apply(network, image, extent=extent)


def _score_boxes(network, image, boxes, extent=None):
    return _apply(network, image, boxes, extent, method="score")


def _score_fixed_boxes(network, boxes, image, extent=None):
    return _score_boxes(network, image, boxes, extent)


def score_fn(network: Network, boxes=None):
    """Return the callable by which a network meets the engine.

    It is a pytree: its parameters are traced by `jax.jit`, not baked in.

    Args:
      network: from `load`.
      boxes: f32[N, 4] of a detector, in the user's pixels; None leaves them to the caller.

    Returns:
      For an FCN image f32[H, W, 3] -> f32[H, W, C]; for a detector image -> f32[N, C], or
      (image, boxes) -> f32[N, C] where `boxes` is None. Scores are pre-softmax. Each takes an
      `extent` i32[2] as one argument more, for an image with padding: see `bucket`.

    Raises:
      ValueError: where an FCN is given boxes, or boxes are not [N, 4].
    """
    if not network.detects:
        if boxes is not None:
            raise UserError(f"{network.name} segments: it takes no boxes")
        return jax.tree_util.Partial(_score_pixels, unnamed(network))
    if boxes is None:
        return jax.tree_util.Partial(_score_boxes, unnamed(network))
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise UserError(f"boxes have shape {boxes.shape}; they must be [N, 4]")
    return jax.tree_util.Partial(_score_fixed_boxes, unnamed(network), boxes)


def bucket_score_fn(score_fn, shape: tuple[int, ...]):
    """Do what `bucket` does with a network to what `score_fn` made of it.

    It is what `dag_jax.attack_stream` takes as `bucket` for images of many sizes.

    Args:
      score_fn: from `score_fn`.
      shape: (H, W, ...) of an image.

    Returns:
      (what scores an image of that bucket and takes its extent as a last argument, (H', W')).

    Raises:
      ValueError: as `bucket` says.
    """
    network, *rest = score_fn.args
    network, shape = bucket(network, shape)
    return jax.tree_util.Partial(score_fn.func, network, *rest), shape


def predict(network: Network, image, extent=None):
    """Run a whole network, as an evaluation does.

    Args:
      network: from `load`.
      image: f32[H, W, 3], RGB grey levels.
      extent: i32[2], the rows and columns that are the image where padding follows; see `bucket`.

    Returns:
      Labels i32[H, W] of an FCN; of a detector (boxes f32[K, 4], classes i32[K], scores f32[K],
      valid bool[K]), padded, after its own proposals, box regression and suppression.
    """
    if network.detects:
        return _apply(network, image, extent, method="detect")
    return jnp.argmax(_apply(network, image, extent=extent), axis=-1).astype(jnp.int32)


def propose(network: Network, image, extent=None, *, nms_threshold: float, max_proposals: int):
    """Return a detector's proposals: the paper attacks those at a threshold of 0.9.

    Args:
      network: a detector from `load`.
      image: f32[H, W, 3], RGB grey levels.
      extent: as in `predict`.
      nms_threshold: IoU above which the lower of two proposals goes.
      max_proposals: K.

    Returns:
      (boxes f32[K, 4] in the user's pixels, scores f32[K] of being an object, valid bool[K]).

    Raises:
      ValueError: where the network is an FCN.
    """
    if not network.detects:
        raise UserError(f"{network.name} segments: it has no proposals")
    return _apply(
        network,
        image,
        extent,
        nms_threshold=nms_threshold,
        max_proposals=max_proposals,
        method="propose",
    )
