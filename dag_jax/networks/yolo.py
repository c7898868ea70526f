r"""YOLO: a `Detector` from any network of darknet's with [yolo] or [region] heads.

An image is stretched to the network's own size whatever its shape, as darknet and OpenCV do by
default: as cv2.resize does it bilinearly, but for the rounding to whole grey levels. It is RGB, and
divided by 255.

Each anchor of each cell may hold an object: p = sigmoid(o) q, of its score o of an object and its
probability q = sigmoid(c) of each class (of a [region] q = softmax(c), whose logit is c less the
log of the sum over the others). The object is detected where p is above a threshold. The attack is
on the logit of p, to be pushed below the logit of that threshold:

    logit(p) = -log(exp(-o) + exp(-c) + exp(-o - c))

The threshold is the one that detections have, darknet's for mAP: what a higher one leaves is still
detected, and all of it counts. With that, the paper's own rule is enough: every anchor, the classes
that the image has, margin 0. On 30 photographs of a training list, attacked rounded,

    python -m experiments.table1 --nominiature --models=yolov3_nano_voc,yolo_fastest_voc \
        --weights_dir=<files> --dataset=voc --data_dir=<VOCdevkit> --rounded \
        --split=voc2012_main_train --limit=30

gives YOLOv3-Nano ORIG 72.35, ADVR and its PNGs 0.00, PERM 72.59, p 2.2e-3, 23 steps, and
YOLO-Fastest 49.13, 0.00, 48.56, 2.2e-3, 21 steps; no image is unfinished. Without --rounded ADVR is
0.00 at p 1.8e-3, the PNGs are at 12.91 and 5.05. Tried on 30 others of the list (Nano, ORIG 80.3 to
80.6): detections above 0.01, targets above 0.05 left ADVR 49, targets above 0.02 left 30; all
classes for targets, or those that are detected, left as little as the image's and took 4 to 9 steps
more; at a threshold of 0.01 ADVR is 0 as well. A margin of 1 takes 1 to 3 steps more and gains
nothing.
The networks were trained on VOC's trainval, which presumably holds these photographs.

Shapes: `H W` pixels of the user's image, `N` anchors of all cells, `C` classes, `K` detections.

Reference: Redmon and Farhadi, YOLOv3, 2018; https://github.com/AlexeyAB/darknet.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import lax

from dag_jax import detection
from dag_jax.errors import UserError
from dag_jax.metrics import Detections
from dag_jax.models import DETECTION, MAX_STEPS, Candidates
from dag_jax.networks import resizing
from dag_jax.networks.darknet import Darknet
from dag_jax.networks.network import BUCKET, Facts, Network, compiled, raised, register
from dag_jax.weights import darknet, darknet_cfg

MARGIN = 0.0  # logits
THRESHOLD = 0.005  # of a detection: darknet's for mAP
NMS_THRESHOLD = 0.45  # darknet's
_ENTER = 300  # anchors of a class that enter suppression, the best ones; darknet takes all
_MOST = 200  # detections of an image


@register
class YoloNetwork(Network):
    """A YOLO; its candidates' handles are the indices of anchors.

    N counts head by head, in the order of the layers, then row by row, cell by cell, and anchor by
    anchor.
    """

    def _see(self, image, extent):
        """Return the outputs of the heads, f32[N, 5 + C]."""
        shape = self.module.cfg.shape
        read = image.shape[:2] if extent is None else extent
        if extent is not None or image.shape[:2] != shape:
            ratios = tuple(zip(shape, read, strict=True))
            image = resizing.resize(image, shape, ratios=ratios, extent=read)
        maps = self._apply(image / 255)
        width = 5 + self.module.cfg.heads[0].classes
        return jnp.concatenate([each.reshape(-1, width) for each in maps])

    def _logits(self, rows):
        """Return f32[N, C], the logits of each class at each anchor."""
        starts = np.cumsum([0, *map(_rows_of, self.module.cfg.heads)])
        parts = []
        for head, first, last in zip(self.module.cfg.heads, starts[:-1], starts[1:], strict=True):
            classes = rows[first:last, 5:]
            if head.softmax:
                classes = _softmax_logits(classes)
            parts.append(classes)
        objects, classes = rows[:, 4:5], jnp.concatenate(parts)
        objects = jnp.broadcast_to(objects, classes.shape)
        return -jax.nn.logsumexp(jnp.stack([-objects, -classes, -objects - classes]), axis=0)

    def _boxes(self, rows, shape):
        """Return f32[N, 4], the left, top, right and lower edges in pixels of an image's shape."""
        cells, anchors, scales = _anchors(self.module.cfg.heads)
        centres = cells[:, :2] + scales * (jax.nn.sigmoid(rows[:, :2]) - 0.5)
        centres = (centres + 0.5) / cells[:, 2:]
        halves = anchors * jnp.exp(rows[:, 2:4]) / 2
        boxes = jnp.concatenate([centres - halves, centres + halves], axis=1)
        sides = jnp.asarray(shape, jnp.float32)[::-1]
        return boxes * jnp.tile(sides, 2)[None]

    @compiled
    def propose(self, image, extent=None):
        """Return every anchor as a candidate.

        Args:
          image: f32[H, W, 3], RGB grey levels.
          extent: i32[2], the rows and columns that are the image where padding follows; see
            `bucket`.

        Returns:
          `Candidates` with the boxes that the anchors have on this image, N of them.
        """
        shape = image.shape[:2] if extent is None else extent
        boxes = _inside(self._boxes(lax.stop_gradient(self._see(image, extent)), shape), shape)
        return Candidates(boxes, jnp.arange(len(boxes)), jnp.ones(len(boxes), bool))

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
        logits = self._logits(self._see(image, extent))[handle]
        threshold = jnp.full_like(logits, _logit(THRESHOLD))
        return jnp.stack([logits, threshold], axis=-1)

    @compiled
    def detect(self, image, extent=None) -> Detections:
        """Run the whole network; arguments as of `propose`.

        Returns:
          `Detections` of K rows, padded, after the suppression of each class.
        """
        shape = image.shape[:2] if extent is None else extent
        rows = self._see(image, extent)
        logits = self._logits(rows).T
        logits, best = lax.top_k(logits, min(_ENTER, logits.shape[1]))
        edges = self._boxes(rows, shape)[best]
        # Suppression measures boxes by their edges: of boxes with inclusive corners the last pixel
        # is one before the edge.
        corners = jnp.float32([0, 0, 1, 1])[None, None]
        boxes, classes, scores, valid = detection.nms_per_class(
            edges - corners,
            logits,
            threshold=NMS_THRESHOLD,
            max_outputs=_MOST,
            valid=logits > _logit(THRESHOLD),
        )
        return Detections(
            _inside(boxes + corners[0], shape), classes, jax.nn.sigmoid(scores), valid
        )

    def bucket(self, shape: tuple[int, ...]):
        """Return the few shapes by which images of any size go through the network.

        An image is padded, below and on the right, to the bucket's shape, and its own size goes
        along as the last argument of each method. The network itself sees one size.

        Args:
          shape: (H, W, ...) of an image.

        Returns:
          (YoloNetwork, (H', W')).
        """
        return self, raised(shape[:2], 4 * BUCKET)


def load_darknet(cfg, weights, classes: Sequence[str], *, title: str | None = None) -> YoloNetwork:
    """Load any YOLO of darknet's, as its authors publish it.

    Args:
      cfg: path of the `.cfg`.
      weights: path of the `.weights`.
      classes: names of its classes, in the order of its .names file.
      title: what tables call it; None is the name of the `.cfg`.

    Raises:
      UserError: where a file does not exist, cannot be read or does not fit the other, and for
        another number of classes.
    """
    name = epath.Path(cfg).name
    module = Darknet(darknet_cfg.parse(darknet_cfg.read_cfg(cfg), name))
    count = module.cfg.heads[0].classes
    if len(classes) != count:
        raise UserError(f"{name} has {count} classes, and {len(classes)} names are given")
    parameters = jax.tree.map(jnp.asarray, darknet.fold(darknet.read(weights, module.cfg)))
    stem = name.removesuffix(".cfg")
    facts = Facts(title or stem, tuple(classes), "", MARGIN, MAX_STEPS[DETECTION])
    return YoloNetwork(stem, module, parameters, False, facts)


def _logit(probability):
    return math.log(probability / (1 - probability))


def _softmax_logits(scores):
    """Return log(q / (1 - q)) of q = softmax(scores) of f32[N, C]."""
    count = scores.shape[1]
    rival_scores = jnp.where(np.eye(count, dtype=bool)[None], -jnp.inf, scores[:, None, :])
    return scores - jax.nn.logsumexp(rival_scores, axis=-1)


def _inside(boxes, shape):
    """Clip edges to an image, as corners: darknet takes the edges of a box for VOC's corners.

    That is how its labels were made: width = xmax - xmin.
    """
    return detection.clip_boxes(boxes, shape)


def _rows_of(head):
    return math.prod(head.shape) * len(head.anchors)


@functools.lru_cache(maxsize=32)
def _anchors(heads):
    """Return (each anchor's column, row, columns and rows f32[N, 4], size f32[N, 2], scale)."""
    parts = []
    for head in heads:
        (height, width), count = head.shape, len(head.anchors)
        row, column, anchor = np.mgrid[:height, :width, :count].reshape(3, -1)
        sides = np.broadcast_to([width, height], (len(row), 2))
        cells = np.stack([column, row], axis=1)
        scale = np.full((len(row), 1), head.scale)
        parts.append(np.hstack([cells, sides, np.array(head.anchors)[anchor], scale]))
    table = np.concatenate(parts).astype(np.float32)
    return table[:, :4], table[:, 4:6], table[:, 6:]
