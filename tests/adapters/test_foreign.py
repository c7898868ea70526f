"""Published architectures through both ways of `from_torch`, against PyTorch in float64.

Random weights. A package that is not installed skips its networks. All by hand, in an environment
with torch 2.12.1, torchvision 0.27.1, torchax 0.0.13, transformers 5.24 and
segmentation_models_pytorch 0.6:

    python -m pytest tests/adapters/test_foreign.py -n 0
"""

import functools
import importlib.util

import jax
import numpy as np
import pytest

import dag_jax
from dag_jax import adapters, detection, models
from dag_jax.metrics import Truths

torch = pytest.importorskip("torch", reason="PyTorch, of the torch extra, is not installed")
pytestmark = pytest.mark.slow

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
IMAGE = np.random.default_rng(0).uniform(0, 255, (64, 96, 3)).astype(np.float32)
CLASSES = tuple("abcde")


def package(name):
    return pytest.importorskip(name, reason=f"{name} is not installed")


def segmenter(name):
    segmentation = package("torchvision.models.segmentation")
    nothing = {"weights": None, "weights_backbone": None, "num_classes": len(CLASSES)}
    return getattr(segmentation, name)(**nothing), {"output": "out", "classes": CLASSES}


def segformer():
    transformers = package("transformers")
    config = transformers.SegformerConfig(num_labels=len(CLASSES))
    module = transformers.SegformerForSemanticSegmentation(config)
    return module, {"output": "logits", "classes": CLASSES}


def unet():
    library = package("segmentation_models_pytorch")
    return library.Unet("resnet18", encoder_weights=None, classes=5), {"classes": CLASSES}


def detr():
    transformers = package("transformers")
    backbone = transformers.ResNetConfig(
        depths=[1, 1, 1, 1], layer_type="basic", hidden_sizes=[16, 32, 64, 128], embedding_size=16
    )
    config = transformers.DetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        backbone=None,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_queries=20,
        num_labels=4,
    )
    return transformers.DetrForObjectDetection(config), {"output": ("pred_boxes", "logits")}


def retinanet():
    torchvision = package("torchvision")

    class Heads(torch.nn.Module):
        """What a RetinaNet says of each of its anchors, before any is left out."""

        def __init__(self):
            super().__init__()
            nothing = {"weights": None, "weights_backbone": None, "num_classes": len(CLASSES)}
            self.network = torchvision.models.detection.retinanet_resnet50_fpn(**nothing)

        def forward(self, x):
            network, sizes = self.network, [tuple(x.shape[2:])]
            images = torchvision.models.detection.image_list.ImageList(x, sizes)
            maps = list(network.backbone(x).values())
            heads = network.head(maps)
            (anchors,) = network.anchor_generator(images, maps)
            boxes = network.box_coder.decode_single(heads["bbox_regression"][0], anchors)
            return {"boxes": boxes[None], "logits": heads["cls_logits"]}

    return Heads(), {"output": ("boxes", "logits")}


BUILDERS = {
    name: functools.partial(segmenter, name)
    for name in ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50")
} | {"segformer": segformer, "unet": unet, "detr": detr, "retinanet": retinanet}


@pytest.fixture(scope="module", params=list(BUILDERS))
def built(request):
    torch.manual_seed(0)
    module, options = BUILDERS[request.param]()
    return module.eval(), options


@pytest.fixture(scope="module", params=["callback", "torchax"])
def adapted(request, built):
    if request.param == "torchax" and not importlib.util.find_spec("torchax"):
        pytest.skip("torchax is not installed")
    module, options = built
    return adapters.from_torch(module, **IMAGENET, **options, via=request.param)
