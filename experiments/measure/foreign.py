"""Published architectures of PyTorch with random weights, as `adapters.from_torch` takes them.

Each imports its package when it is built: their names are known without any.
"""

import functools
import importlib.util

CLASSES = tuple("abcde")
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def _segmenter(name, *, small):
    del small
    from torchvision.models import segmentation

    nothing = {"weights": None, "weights_backbone": None, "num_classes": len(CLASSES)}
    return getattr(segmentation, name)(**nothing), {"output": "out", "classes": CLASSES}


def _segformer(*, small):
    del small
    import transformers

    config = transformers.SegformerConfig(num_labels=len(CLASSES))  # B0
    module = transformers.SegformerForSemanticSegmentation(config)
    return module, {"output": "logits", "classes": CLASSES}


def _unet(*, small):
    import segmentation_models_pytorch

    encoder = "resnet18" if small else "resnet34"
    module = segmentation_models_pytorch.Unet(encoder, encoder_weights=None, classes=len(CLASSES))
    return module, {"classes": CLASSES}


def _detr(*, small):
    import transformers

    # DETR-R50 but for its backbone's batch normalisation, which is transformers' own.
    backbone, sizes = {}, {}
    if small:
        backbone = {"depths": [1] * 4, "hidden_sizes": [16, 32, 64, 128], "embedding_size": 16}
        backbone["layer_type"] = "basic"
        sizes = {f"{part}_ffn_dim": 128 for part in ("encoder", "decoder")}
        sizes |= {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "num_queries": 20}
    config = transformers.DetrConfig(
        backbone_config=transformers.ResNetConfig(**backbone),
        use_timm_backbone=False,
        backbone=None,
        num_labels=len(CLASSES) - 1,
        **sizes,
    )
    module = transformers.DetrForObjectDetection(config)
    return module, {"output": ("pred_boxes", "logits")}


def _retinanet(*, small):
    del small
    import torch
    from torchvision.models import detection

    class Heads(torch.nn.Module):
        """What a RetinaNet says of each of its anchors, before any is left out."""

        def __init__(self):
            super().__init__()
            nothing = {"weights": None, "weights_backbone": None, "num_classes": len(CLASSES)}
            self.network = detection.retinanet_resnet50_fpn(**nothing)

        def forward(self, x):
            network, sizes = self.network, [tuple(x.shape[2:])]
            images = detection.image_list.ImageList(x, sizes)
            maps = list(network.backbone(x).values())
            heads = network.head(maps)
            (anchors,) = network.anchor_generator(images, maps)
            boxes = network.box_coder.decode_single(heads["bbox_regression"][0], anchors)
            return {"boxes": boxes[None], "logits": heads["cls_logits"]}

    return Heads(), {"output": ("boxes", "logits")}


# By name, the package that an architecture needs, its builder, and whether the image fades in it,
# layer by layer, but for batch normalisations that have seen some noise.
ARCHITECTURES = {
    **{
        name: ("torchvision", functools.partial(_segmenter, name), True)
        for name in ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50")
    },
    "segformer": ("transformers", _segformer, False),
    "unet": ("segmentation_models_pytorch", _unet, True),
    "detr": ("transformers", _detr, False),
    "retinanet": ("torchvision", _retinanet, False),
}


def lacking(name) -> str | None:
    """Return the package that an architecture needs and that is not installed, or None."""
    package = ARCHITECTURES[name][0]
    return None if importlib.util.find_spec(package) else package


def build(name, *, small=False):
    """Return (module in evaluation mode, arguments of `from_torch` but mean, std and via).

    Args:
      name: one of `ARCHITECTURES`.
      small: whether a smaller one of the same layers does.
    """
    import torch

    torch.manual_seed(0)
    _, builder, fades = ARCHITECTURES[name]
    module, options = builder(small=small)
    if fades:
        _normalise(module)
    return module.eval(), options


def _normalise(module):
    """Give batch normalisations the statistics of noise."""
    import torch

    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None  # the average of all batches
    with torch.no_grad():
        for _ in range(2):
            module.train()(torch.randn(4, 3, 64, 96))
