"""torchvision's detectors against what torchvision itself computed, and their interface.

torchvision_detectors.npz is of torchvision 0.27.1 and PyTorch 2.12.1 in float64: for the arrays of
`random_checkpoint(name)`, in a network of one block a stage whose normalisation is frozen, without
an epsilon, as that of the published ones, and whose canvas is `RESIZE`, on `look()`. It holds the
scores of `BOXES`, or of each `EVERY`th anchor, every 4th row and column of the gradient of their
`total`, the first 200 proposals, and the detections, whose boxes are edges.
"""

import functools
import pathlib
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax import models, networks
from dag_jax.datasets.classes import COCO_NAMES
from dag_jax.networks import pyramid
from dag_jax.weights import convert
from tests.networks import test_torchvision

FASTER, RETINA = NAMES = ("fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn")
SIZE, RESIZE, EVERY = (48, 110), (232, 400), 1000
RECORDED = pathlib.Path(__file__).parent / "torchvision_detectors.npz"
WIDTH, FC_WIDTH = 24, 40
# Of three levels of the pyramid, over the border, of one pixel.
BOXES = np.float32(
    [
        *([0, 0, 109, 47], [3, 5, 60, 40], [20, 30, 45, 40], [80, 1, 109, 30], [7, 7, 7, 7]),
        *([50, 10, 58, 45], [-9, -9, 30, 30], [60, 20, 130, 60], [1.5, 2.5, 99.3, 31.2]),
    ]
)
# Of random weights, so that neither boxes nor probabilities are extreme.
SCALES = {
    **{"rpn.head.bbox_pred": 0.1, "rpn.head.cls_logits": 0.3},
    **{"roi_heads.box_predictor.cls_score": 0.2, "roi_heads.box_predictor.bbox_pred": 0.1},
    **{"head.classification_head.cls_logits": 0.08, "head.regression_head.bbox_reg": 0.05},
}
NAMED = [number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def look():
    return test_torchvision.look()[: SIZE[0], : SIZE[1]]


def names_and_shapes(name, *, width=256, fc_width=1024, deep=True):
    """The names of arrays in a published file, and what each is."""
    for key, shape in test_torchvision.names_and_shapes("fcn_resnet50"):
        is_frozen = key.startswith("backbone.") and not key.endswith("num_batches_tracked")
        if is_frozen and (deep or not re.search(r"layer\d\.[1-9]", key)):
            yield key.replace("backbone.", "backbone.body.", 1), shape
    retina = name == RETINA
    layers = {}
    for block, given in enumerate((256, 512, 1024, 2048)[retina:]):
        layers[f"backbone.fpn.inner_blocks.{block}"] = (width, given, 1, 1)
        layers[f"backbone.fpn.layer_blocks.{block}"] = (width, width, 3, 3)
    if retina:
        layers["backbone.fpn.extra_blocks.p6"] = (width, width, 3, 3)
        layers["backbone.fpn.extra_blocks.p7"] = (width, width, 3, 3)
        for kind, last, outputs in (
            ("classification_head", "cls_logits", 9 * 91),
            ("regression_head", "bbox_reg", 9 * 4),
        ):
            for place in (0, 2, 4, 6):
                layers[f"head.{kind}.conv.{place}"] = (width, width, 3, 3)
            layers[f"head.{kind}.{last}"] = (outputs, width, 3, 3)
    else:
        layers["rpn.head.conv"] = (width, width, 3, 3)
        layers["rpn.head.cls_logits"] = (3, width, 1, 1)
        layers["rpn.head.bbox_pred"] = (12, width, 1, 1)
        layers["roi_heads.box_head.fc6"] = (fc_width, 49 * width)
        layers["roi_heads.box_head.fc7"] = (fc_width, fc_width)
        layers["roi_heads.box_predictor.cls_score"] = (91, fc_width)
        layers["roi_heads.box_predictor.bbox_pred"] = (4 * 91, fc_width)
    for layer, shape in layers.items():
        yield f"{layer}.weight", shape
        yield f"{layer}.bias", shape[:1]


def random_checkpoint(name):
    """A state_dict of the small network, drawn anew from one seed."""
    rng, arrays = np.random.default_rng(zlib.crc32(name.encode())), {}
    for key, shape in names_and_shapes(name, width=WIDTH, fc_width=FC_WIDTH, deep=False):
        if len(shape) > 1:
            array = rng.standard_normal(shape, np.float32) * (2 / np.prod(shape[1:])) ** 0.5
        elif key.endswith(("running_var", "weight")):
            array = rng.uniform(0.3, 1.2, shape)
        else:
            array = rng.normal(0, 0.3, shape)
        arrays[key] = (array * SCALES.get(key.rpartition(".")[0], 1)).astype(np.float32)
        if re.search("cls_(score|logits).bias", key) and shape[0] % 91 == 0:
            # No training ever showed the network what has no name.
            unnamed = sorted(set(range(name == FASTER, 91)) - set(NAMED))
            arrays[key].reshape(-1, 91)[:, unnamed] = -30
    return arrays
