"""RT-DETR detaches where its queries look, half-way inside; making a model of it says so.

Random weights. By hand, in an environment with torch and transformers 5.24.
"""

import numpy as np
import pytest

from dag_jax import adapters

torch = pytest.importorskip("torch", reason="PyTorch, of the torch extra, is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.slow


def rt_detr():
    """Return a small RT-DETR whose layers do not let the image fade."""
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 64, 128],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        backbone=None,
        encoder_hidden_dim=32,
        encoder_in_channels=[32, 64, 128],
        encoder_ffn_dim=64,
        encoder_attention_heads=4,
        d_model=32,
        num_queries=30,
        decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=64,
        decoder_attention_heads=4,
        decoder_layers=3,
        num_labels=4,
        num_denoising=0,
    )
    module = transformers.RTDetrForObjectDetection(config)
    for part in module.modules():
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(part.weight)
    for parameter in module.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, 0, parameter.shape[1] ** -0.5)
        elif not parameter.any():
            torch.nn.init.normal_(parameter, 0, 0.1)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(part.weight)
            part.momentum = None  # the average of all batches
    with torch.no_grad():
        for _ in range(2):
            module.train()(torch.randn(2, 3, 224, 288))
    return module.eval()


def test_what_is_detached_inside_is_said():
    torch.manual_seed(4)
    plain = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    with pytest.warns(UserWarning, match="output 'logits' of RTDetr.* off by .*detach, no_grad"):
        function = adapters.from_torch(rt_detr(), **plain, output=("pred_boxes", "logits"))
    boxes, logits = function(np.full((64, 64, 3), 128, np.float32))
    assert boxes.shape == (30, 4) and logits.shape == (30, 4)
