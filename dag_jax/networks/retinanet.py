"""RetinaNet, as torchvision has it: a `Detector` of anchors with a sigmoid for each class.

At the size that it was trained for it has 200,000 anchors of 80 classes, whose scores would take
128 MB, twice. So the candidates of an attack are the anchors that a detection can come from: of
each level the best 1,000 of the clean image, by their best class: at most 5,000, which is 3.2 MB.
`detect` itself looks at no other anchor of an image, as torchvision does: the best 1,000 pairs of
an anchor and a class of a level lie at no more than 1,000 anchors. What is below them may wake up
later; `attack_rounds`, which proposes again on what it has made, finds it.

As of the YOLOs, each candidate is attacked for each class that the image has, whatever the clean
image says of it, until it is below the threshold of a detection.

Shapes: `H W` pixels of the user's image, `h w` cells of a map, `A` anchors of all levels, `N`
candidates, `C` classes, `K` detections.

Reference: Lin, Goyal, Girshick, He, Dollár, Focal Loss for Dense Object Detection, ICCV 2017;
https://github.com/pytorch/vision, torchvision.models.detection.retinanet_resnet50_fpn.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from dag_jax import detection
from dag_jax.datasets.classes import COCO_NAMES
from dag_jax.models import DETECTION, Candidates
from dag_jax.networks import layers, operations
from dag_jax.networks.entry import Entry
from dag_jax.networks.network import compiled, register
from dag_jax.networks.pyramid import Pyramid, PyramidDetector, PyramidNetwork, best_pairs

MARGIN = 0.0  # logits; what is below the threshold of a detection is none
_THRESHOLD = math.log(0.05 / 0.95)  # logit of a detection
_DEPTH = 4  # convolutions of each head
_SIZES = tuple(
    tuple(int(side * 2 ** (part / 3)) for part in range(3)) for side in (32, 64, 128, 256, 512)
)


class RetinaNet(PyramidDetector):
    """A RetinaNet.

    Attributes:
      most: anchors of a level that are candidates, and pairs of an anchor and a class that enter
        suppression, the best ones.
      others: as of `PyramidDetector`.
    """

    pyramid: Pyramid = Pyramid(stages=("stage3", "stage4", "stage5"), convolutions=2)
    anchor_sizes: tuple[tuple[int, ...], ...] = _SIZES
    most: int = 1000

    def setup(self):
        """Make the two heads, which all levels share."""
        width, count = self.pyramid.features, self._anchors_of_a_cell()
        self.cls_conv = [layers.Conv(width, padding=1) for _ in range(_DEPTH)]
        self.box_conv = [layers.Conv(width, padding=1) for _ in range(_DEPTH)]
        self.cls_logits = layers.Conv(count * self.outputs, padding=1, relu=False, scale=0.1)
        self.bbox_reg = layers.Conv(4 * count, padding=1, relu=False, scale=0.1)

    def __call__(self, image):
        """Run every layer once, so that `init` makes all parameters; return the logits."""
        levels = self.levels(image)
        self.offsets(levels[-1])
        return jnp.concatenate([self.logits(level) for level in levels])

    def logits(self, level):
        """Return f32[h * w * anchors, outputs] of a `Map`."""
        return _head(self.cls_conv, self.cls_logits, level).reshape(-1, self.outputs)

    def offsets(self, level):
        """Return f32[h * w * anchors, 4] of a `Map`."""
        return _head(self.box_conv, self.bbox_reg, level).reshape(-1, 4)

    def best(self, levels, canvas):
        """Return the best anchors of each level, by their best class.

        Returns:
          List of (boxes f32[K, 4] in canvas pixels, logits f32[K, C], indices i32[K] among all
          levels' anchors, valid bool[K]).
        """
        parts, first = [], 0
        rows = zip(levels, self.anchors(levels), self.present(levels), strict=True)
        for level, anchors, present in rows:
            logits = self.logits(level)[:, jnp.array(self.columns)]
            height = jnp.where(present, logits.max(axis=1), -jnp.inf)
            _, best = lax.top_k(height, min(self.most, height.shape[0]))
            boxes = self.decode(anchors[best], self.offsets(level)[best], canvas)
            grid, count = level.grid, self._anchors_of_a_cell()
            places = _moved(best, level.cells.shape[1] * count, grid.columns * count)
            indices = jnp.where(present[best], first + places, 0)
            parts.append((boxes, logits[best], indices, present[best]))
            first += grid.rows * grid.columns * count
        return parts

    def _anchors_of_a_cell(self):
        return 3 * len(self.anchor_sizes[0])

    def propose(self, image, extent=None):
        """Return the candidates: (boxes f32[N, 4] in the user's pixels, i32[N], valid bool[N])."""
        levels, canvas = self.levels(image, extent), self.canvas(image.shape, extent)
        parts = zip(*self.best(levels, canvas), strict=True)
        boxes, _, indices, valid = lax.stop_gradient([jnp.concatenate(part) for part in parts])
        shape = image.shape[:2] if extent is None else extent
        return self.to_image(boxes, canvas, shape), indices, valid

    def score(self, image, indices, extent=None):
        """Return the logits f32[N, C] of anchors, by their indices among those of the image."""
        levels, count = self.levels(image, extent), self._anchors_of_a_cell()
        rows, first, start = jnp.zeros_like(indices), 0, 0
        for x, grid in levels:
            places = _moved(indices - first, grid.columns * count, x.shape[1] * count)
            rows = jnp.where(indices >= first, start + places, rows)
            first += grid.rows * grid.columns * count
            start += x.shape[0] * x.shape[1] * count
        logits = jnp.concatenate([self.logits(level) for level in levels])
        return logits[rows][:, jnp.array(self.columns)]

    def detect(self, image, extent=None):
        """Detect objects, as torchvision does; arguments and results as of `FasterRCNN.detect`."""
        levels, canvas = self.levels(image, extent), self.canvas(image.shape, extent)
        parts = []
        for boxes, logits, _, valid in self.best(levels, canvas):
            valid = valid[:, None] & (logits > _THRESHOLD)
            logits, rows, classes, valid = best_pairs(logits, valid, self.most)
            parts.append((boxes[rows], logits, classes, valid))
        boxes, logits, classes, valid = (jnp.concatenate(part) for part in zip(*parts, strict=True))
        selected, valid = detection.nms(
            boxes, logits, threshold=0.5, max_outputs=300, valid=valid, groups=classes
        )
        shape = image.shape[:2] if extent is None else extent
        boxes = self.to_image(boxes[selected], canvas, shape)
        return boxes, classes[selected], jax.nn.sigmoid(logits[selected]), valid


def _moved(places, width, new_width):
    """Return places in rows of `width` as those in rows of `new_width`, an int or i32[] each."""
    places = jnp.maximum(places, 0)
    row = operations.divide(places, width)
    return places + row * (new_width - width)


def _head(convolutions, last, level):
    x, grid = level
    for convolution in convolutions:
        x = grid.cut(convolution(x))
    return last(x)


@register
class RetinaNetwork(PyramidNetwork):
    """A RetinaNet; its candidates' handles are the indices of anchors.

    They count level by level, from the finest, then row by row, cell by cell, and anchor by anchor,
    where the image has cells: padding changes no index.
    """

    @compiled
    def propose(self, image, extent=None):
        """Return the best anchors of each level.

        Args:
          image: f32[H, W, 3], RGB grey levels.
          extent: i32[2], the rows and columns that are the image where padding follows; see
            `bucket`.

        Returns:
          `Candidates` with the boxes that the anchors have on this image, N of them.
        """
        return Candidates(*self._apply(image, extent, method="propose"))

    @compiled
    def scores(self, image, handle, extent=None):
        """Return the logits of detections.

        Args:
          image: f32[H, W, 3], RGB grey levels.
          handle: i32[N], indices of anchors.
          extent: as in `propose`.

        Returns:
          f32[N, C, 2], of each class the logit and that of the threshold.
        """
        logits = self._apply(image, handle, extent, method="score")
        return jnp.stack([logits, jnp.full_like(logits, _THRESHOLD)], axis=-1)


ENTRIES = {
    "retinanet_resnet50_fpn": Entry(
        "RetinaNet-ResNet-50",
        DETECTION,
        "voc07_test",
        "Lin, Goyal, Girshick, He and Dollár, ICCV 2017",
        RetinaNet,
        size="800 pixels the short side, at most 1,333 the long one",
        score="mAP 36.4 on COCO val2017",
        classes=COCO_NAMES,
        precisions=("float32",),
        margin=MARGIN,
        kind=RetinaNetwork,
    ),
}
