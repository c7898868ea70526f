"""Detection geometry without a network: boxes, anchors, suppression, pooling, assignment."""

from dag_jax.detection.anchors import RATIOS, centred_anchors, generate_anchors, tile_anchors
from dag_jax.detection.assign import (
    AnchorTargets,
    RegionTargets,
    anchor_targets,
    jitter_boxes,
    region_targets,
)
from dag_jax.detection.boxes import (
    boxes_from_centres,
    boxes_from_edges,
    boxes_to_edges,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    iou,
    scale_boxes,
)
from dag_jax.detection.nms import nms, nms_per_class
from dag_jax.detection.ps_roi import ps_roi_vote
from dag_jax.detection.roi_align import pyramid_levels, roi_align
from dag_jax.detection.roi_pool import max_windows, pool_windows, roi_max_pool

__all__ = [
    "RATIOS",
    "AnchorTargets",
    "RegionTargets",
    "anchor_targets",
    "boxes_from_centres",
    "boxes_from_edges",
    "boxes_to_edges",
    "centred_anchors",
    "clip_boxes",
    "decode_boxes",
    "encode_boxes",
    "generate_anchors",
    "iou",
    "jitter_boxes",
    "max_windows",
    "nms",
    "nms_per_class",
    "pool_windows",
    "ps_roi_vote",
    "pyramid_levels",
    "region_targets",
    "roi_align",
    "roi_max_pool",
    "scale_boxes",
    "tile_anchors",
]
