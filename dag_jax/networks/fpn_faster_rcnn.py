"""Faster R-CNN on a feature pyramid, as torchvision has it.

Shapes: `H W` pixels of the user's image, `h w` cells of a map, `A` anchors of all levels, `N`
boxes, `C` classes, `K` outputs.

Reference: Ren, He, Girshick, Sun, Faster R-CNN, NIPS 2015; Lin et al., Feature Pyramid Networks,
CVPR 2017; He et al., Mask R-CNN, ICCV 2017 (RoIAlign); https://github.com/pytorch/vision,
torchvision.models.detection.fasterrcnn_resnet50_fpn.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from dag_jax import detection
from dag_jax.datasets.classes import COCO_NAMES
from dag_jax.models import DETECTION
from dag_jax.networks import layers
from dag_jax.networks.entry import Entry
from dag_jax.networks.pyramid import (
    COCO_COLUMNS,
    PyramidDetector,
    PyramidNetwork,
    best_pairs,
)
from dag_jax.networks.rows import map_rows

_POOL_SIZE = 7  # bins along a region's side
_STDS = (0.1, 0.1, 0.2, 0.2)  # of the box offsets
_PAIRS = 3000  # of a region and a class, the best ones, that enter suppression; torchvision: all


class FpnFasterRCNN(PyramidDetector):
    """A Faster R-CNN detector, called as `faster_rcnn.FasterRCNN` is.

    Attributes:
      columns: as of `PyramidDetector`, with background, output 0, first.
      fc_width: channels of fc6 and fc7.
      head_chunk: regions that the heads take at a time, which bounds their memory.
      pre_nms: proposals of a level that enter suppression, the best ones.
      post_nms: proposals that `detect` classifies.
      others: as of `PyramidDetector`.
    """

    columns: tuple[int, ...] = (0, *COCO_COLUMNS)
    fc_width: int = 1024
    head_chunk: int = 128
    pre_nms: int = 1000
    post_nms: int = 1000

    def setup(self):
        """Name the layers as `FasterRCNN` does."""
        self.rpn_conv = layers.Conv(self.pyramid.features, padding=1)
        self.rpn_cls_score = layers.Conv(3, 1, relu=False, scale=0.1)
        self.rpn_bbox_pred = layers.Conv(12, 1, relu=False, scale=0.1)
        self.fc6 = layers.PatchDense(self.fc_width, _POOL_SIZE)
        self.fc7 = layers.Conv(self.fc_width, 1)
        self.cls_score = nn.Dense(self.outputs)
        self.bbox_pred = nn.Dense(4 * self.outputs)

    def __call__(self, image):
        """Run every layer once, so that `init` makes all parameters; return `score`'s result."""
        levels = self.levels(image)
        self.rpn(levels[-1].cells)
        return self.heads(levels, jnp.float32([[0, 0, 31, 31]]))[0]

    def rpn(self, features):
        """Return the logit of an object f32[h * w * 3] and offsets at each anchor of a map."""
        x = self.rpn_conv(features)
        return self.rpn_cls_score(x).reshape(-1), self.rpn_bbox_pred(x).reshape(-1, 4)

    def heads(self, levels, boxes):
        """Classify regions, `head_chunk` at a time; see `FasterRCNN.heads`.

        Args:
          levels: of `levels`.
          boxes: f32[N, 4], canvas pixels.

        Returns:
          scores: f32[N, outputs], pre-softmax.
          offsets: f32[N, outputs, 4], in units of `_STDS`.
        """
        maps = [level.cells for level in levels[:-1]]  # the coarsest is for proposals alone
        cells = jnp.float32([[level.grid.rows, level.grid.columns] for level in levels[:-1]])
        scales = tuple(1 / level.grid.stride for level in levels[:-1])
        if boxes.shape[0] <= self.head_chunk:
            return self.classify(_pool(maps, cells, boxes, scales))
        module = self.clone(parent=None)

        def classify(shared, boxes):
            variables, maps, cells = shared
            pooled = _pool(maps, cells, boxes, scales)
            return module.apply(variables, pooled, method="classify")

        return map_rows(classify, (self.variables, maps, cells), boxes, chunk=self.head_chunk)

    def classify(self, pooled):
        """Classify pooled regions f32[N, P, P, channels]; the rest is as in `heads`."""
        count = pooled.shape[0]
        x = self.fc7(self.fc6(pooled)).reshape(count, self.fc_width)
        return self.cls_score(x), self.bbox_pred(x).reshape(count, self.outputs, 4)

    def select_proposals(self, levels, canvas, *, nms_threshold, max_proposals):
        """Return the best boxes that the region proposal network finds on a pyramid.

        The best `pre_nms` of each level go through suppression, each level alone.

        Args:
          levels: of `levels`.
          canvas: of `canvas`.
          nms_threshold: largest IoU that two proposals of a level may have.
          max_proposals: K.

        Returns:
          boxes: f32[K, 4], canvas pixels, by descending score, padded.
          scores: f32[K], probability of an object.
          valid: bool[K], False at the padding.
        """
        parts = []
        rows = zip(levels, self.anchors(levels), self.present(levels), strict=True)
        for number, (level, anchors, present) in enumerate(rows):
            logits, offsets = lax.stop_gradient(self.rpn(level.cells))
            logits = jnp.where(present, logits, -jnp.inf)
            logits, best = lax.top_k(logits, min(self.pre_nms, logits.shape[0]))
            boxes = self.decode(anchors[best], offsets[best], canvas)
            parts.append((boxes, logits, present[best], jnp.full(best.shape, number)))
        boxes, logits, valid, groups = (jnp.concatenate(part) for part in zip(*parts, strict=True))
        selected, valid = detection.nms(
            boxes,
            logits,
            threshold=nms_threshold,
            max_outputs=max_proposals,
            valid=valid & _wide(boxes, 1e-3),
            groups=groups,
        )
        return boxes[selected], jax.nn.sigmoid(logits[selected]), valid

    def propose(self, image, extent=None, *, nms_threshold, max_proposals: int):
        """Propose boxes that may hold an object; no gradient passes.

        Args:
          image: f32[H, W, 3], grey levels 0-255, RGB.
          extent: as in `levels`.
          nms_threshold: as in `select_proposals`; `detect` uses 0.7 and `post_nms`.
          max_proposals: K.

        Returns:
          As `select_proposals`, boxes in the user's pixels.
        """
        levels, canvas = self.levels(image, extent), self.canvas(image.shape, extent)
        limits = {"nms_threshold": nms_threshold, "max_proposals": max_proposals}
        boxes, scores, valid = self.select_proposals(levels, canvas, **limits)
        shape = image.shape[:2] if extent is None else extent
        return self.to_image(boxes, canvas, shape), scores, valid

    def score(self, image, boxes, extent=None):
        """Score boxes: what an attack differentiates.

        Args:
          image: f32[H, W, 3], grey levels 0-255, RGB.
          boxes: f32[N, 4].
          extent: as in `levels`.

        Returns:
          f32[N, C], pre-softmax, of the classes of `columns`.
        """
        boxes = self.to_canvas(boxes, self.canvas(image.shape, extent))
        return self.heads(self.levels(image, extent), boxes)[0][:, jnp.array(self.columns)]

    def detect(self, image, extent=None):
        """Detect objects, as torchvision does.

        Args:
          image: f32[H, W, 3], grey levels 0-255, RGB.
          extent: as in `levels`.

        Returns:
          boxes: f32[K, 4], by descending score, padded.
          classes: i32[K], from 1.
          scores: f32[K], probability of the class among all outputs.
          valid: bool[K], False at the padding.
        """
        levels, canvas = self.levels(image, extent), self.canvas(image.shape, extent)
        limits = {"nms_threshold": 0.7, "max_proposals": self.post_nms}
        regions, _, region_valid = self.select_proposals(levels, canvas, **limits)
        scores, offsets = self.heads(levels, regions)
        objects = jnp.array(self.columns[1:])
        scores = jax.nn.softmax(scores)[:, objects]
        valid = region_valid[:, None] & (scores > 0.05)
        scores, rows, classes, valid = best_pairs(scores, valid, _PAIRS)
        offsets = offsets[rows, objects[classes]] * jnp.float32(_STDS)[None]
        boxes = self.decode(regions[rows], offsets, canvas)
        selected, valid = detection.nms(
            boxes,
            scores,
            threshold=0.5,
            max_outputs=100,
            valid=valid & _wide(boxes, 1e-2),
            groups=classes,
        )
        shape = image.shape[:2] if extent is None else extent
        boxes = self.to_image(boxes[selected], canvas, shape)
        return boxes, classes[selected] + 1, scores[selected], valid


def _pool(maps, cells, boxes, scales):
    """Return f32[N, P, P, channels] of regions in canvas pixels; `cells` f32[L, 2]."""
    levels = detection.pyramid_levels(boxes, len(maps))
    cells = cells.astype(jnp.int32)
    return detection.roi_align(maps, boxes, levels, cells, size=_POOL_SIZE, scales=scales)


def _wide(boxes, pixels):
    """Return which boxes have sides of at least so many pixels."""
    return jnp.all(boxes[:, 2:] - boxes[:, :2] + 1 >= pixels, axis=1)


ENTRIES = {
    "fasterrcnn_resnet50_fpn": Entry(
        "FR-ResNet-50-FPN",
        DETECTION,
        "voc07_test",
        "Ren, He, Girshick and Sun, NIPS 2015; Lin et al., CVPR 2017",
        FpnFasterRCNN,
        size="800 pixels the short side, at most 1,333 the long one",
        score="mAP 37.0 on COCO val2017",
        classes=("background", *COCO_NAMES),
        precisions=("float32",),
        proposals=(3000, 0),
        kind=PyramidNetwork,
    ),
}
