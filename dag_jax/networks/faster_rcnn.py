"""Faster R-CNN as Caffe has it: proposals, pooled regions, two fully connected layers.

Shapes: `*B` no axis or one batch axis, `H W` pixels of the user's image, `h w` cells of the map,
`A` anchors of a cell, `N` boxes, `C` classes, `K` outputs.

Two frames occur. The user's is that of the image as it is given; the canvas is what the network
sees after resizing. Arguments and results are in the user's frame unless they say "canvas".

Reference: Ren, He, Girshick, Sun, Faster R-CNN, NIPS 2015; the py-faster-rcnn release.
"""

import fractions
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from dag_jax import detection
from dag_jax.errors import UserError
from dag_jax.networks import layers, operations, resizing
from dag_jax.networks.grids import pixels, poison
from dag_jax.networks.rows import map_rows


def _rounded_ratio(a, b):
    """Return a / b as cv2 rounds it, halves to even; of ints, or of i32[]."""
    if isinstance(a, int):
        return round(fractions.Fraction(a, b))
    quotient = operations.divide(a, b)
    remainder = a - quotient * b
    up = (2 * remainder > b) | ((2 * remainder == b) & (quotient & 1 == 1))
    return quotient + up.astype(jnp.int32)


class FasterRCNN(nn.Module):
    """A Faster R-CNN detector; the defaults are VGG-16's at full size.

    The methods are called by `module.apply(variables, ..., method="score")`. Those without `*B`
    in their shapes take one image; `vmap` them.

    Attributes:
      backbone: module from a mean-subtracted image to a dict whose "stage5" is the map to use.
      num_classes: C, background included.
      stride: canvas pixels between two cells of the map.
      anchor_sizes: sides of the square anchors in canvas pixels.
      rpn_width: channels of the proposal network.
      pool_size: bins along a region's side: 7 with VGG-16, 6 with ZF.
      fc_width: channels of fc6 and fc7.
      head_chunk: regions that the heads take at a time, which bounds their memory; see `heads`.
      fc_multiplier: factor of fc6 and fc7 when testing. The authors' ZF does not scale its dropout
        while training, so it needs 0.5.
      delta_means: mean that the box offsets were normalised by.
      delta_stds: their standard deviation. Published weights have both folded in, and
        `weights.convert` takes them out.
      min_size: shortest side of a proposal, in pixels of the user's image.
      pre_nms: proposals that enter suppression, the best ones.
      post_nms: proposals that `detect` classifies.
      resize: short side of the canvas, and the most that its long side may have; None for none.
      canvas_shape: pixels (height, width) of the array that the canvas lies in, at the top left,
        where images come with an `extent`; None is the image's own shape, for `resize` None.
      mean_rgb: mean of the training set in grey levels.
      batch_norm: as in `layers.Conv`, for the RPN's convolution, fc6 and fc7.
    """

    backbone: nn.Module
    num_classes: int = 21
    stride: int = 16
    anchor_sizes: tuple[int, ...] = (128, 256, 512)
    rpn_width: int = 512
    pool_size: int = 7
    fc_width: int = 4096
    head_chunk: int = 128
    fc_multiplier: float = 1.0
    delta_means: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    delta_stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)
    min_size: float = 16
    pre_nms: int = 6000
    post_nms: int = 300
    resize: tuple[int, int] | None = (600, 1000)
    canvas_shape: tuple[int, int] | None = None
    mean_rgb: tuple[float, float, float] = (122.7717, 115.9465, 102.9801)
    batch_norm: bool = False

    def setup(self):
        """Name the layers as Caffe does."""
        num_anchors = len(self.anchor_sizes) * len(detection.RATIOS)

        def linear(features, scale=0.1):
            return layers.Conv(features, 1, relu=False, scale=scale)

        def dense(features, gain):
            init = nn.initializers.variance_scaling(gain, "fan_in", "normal")
            return nn.Dense(features, kernel_init=init, precision=operations.EXACT)

        norm = {"batch_norm": self.batch_norm}
        self.rpn_conv = layers.Conv(self.rpn_width, padding=1, **norm)
        self.rpn_cls_score = linear(2 * num_anchors)
        self.rpn_bbox_pred = linear(4 * num_anchors)
        self.fc6 = layers.PatchDense(self.fc_width, self.pool_size, **norm)
        self.fc7 = layers.Conv(self.fc_width, 1, **norm)
        self.cls_score = dense(self.num_classes, 0.02)
        self.bbox_pred = dense(4 * self.num_classes, 0.002)

    def __call__(self, image):
        """Run every layer once, so that `init` makes all parameters; return `score`'s result."""
        features = self.features(image)
        self.rpn(features)
        height, width = self.canvas(image.shape)[0]
        return self.heads(features, jnp.float32([[0, 0, width - 1, height - 1]]))[0]

    def canvas(self, shape: tuple[int, ...], extent=None):
        """Return the canvas's pixels (height, width) and its pixels per pixel of the image.

        Args:
          shape: (*B, H, W, 3), the shape of an image.
          extent: i32[2], the rows and columns that are the image where padding follows them.

        Returns:
          Ints and a float, or i32[] and f32[] where there is an `extent`.
        """
        _, _, height, width = pixels(shape, extent)
        numerator, denominator = self._scale(height, width)
        sides = (_rounded_ratio(numerator * side, denominator) for side in (height, width))
        return tuple(sides), numerator / denominator

    def _scale(self, height, width):
        """Return the canvas's pixels per pixel of the image as a ratio of whole numbers."""
        if self.resize is None:
            return 1, 1
        short, long = self.resize
        if isinstance(height, int):
            shorter, longer = min(height, width), max(height, width)
            fits = _rounded_ratio(short * longer, shorter) <= long
            return (short, shorter) if fits else (long, longer)
        shorter, longer = jnp.minimum(height, width), jnp.maximum(height, width)
        fits = _rounded_ratio(short * longer, shorter) <= long
        return jnp.where(fits, short, long), jnp.where(fits, shorter, longer)

    def features(self, image, train: bool = False, extent=None):
        """Return the map that proposals and heads share.

        Args:
          image: f32[*B, H, W, 3], grey levels 0-255, RGB.
          train: whether batch normalisation, if the backbone has any, uses the batch's statistics.
          extent: i32[2], the rows and columns that are the image where padding follows them; the
            detector's outputs are then those for the image alone. None: all are.

        Returns:
          f32[*B, h, w, channels], of the backbone's dtype.

        Raises:
          ValueError: where `image` has not three channels, for an extent where the network resizes
            to no `canvas_shape`, and as `grids.pixels` says.
        """
        return self._map(image, train, extent).cells

    def _map(self, image, train=False, extent=None):
        """Return `features` as a `Map`."""
        if image.ndim < 3 or image.shape[-1] != 3:
            raise UserError(f"image has shape {image.shape}, expected [H, W, 3]")
        start = pixels(image.shape, extent)
        image = poison(start.cut(operations.subtract_mean(image, self.mean_rgb)), start)
        if self.resize is not None:
            shape, _ = self.canvas(image.shape, extent)
            extent_read = start.rows, start.columns
            ratios = (self._scale(*extent_read),) * 2
            start = start._replace(rows=shape[0], columns=shape[1])
            if extent is not None:
                if self.canvas_shape is None:
                    raise UserError("an extent needs a network with a canvas_shape")
                shape = self.canvas_shape
            image = start.cut(resizing.resize(image, shape, ratios=ratios, extent=extent_read))
            image = poison(image, start)  # the canvas of another bucket
        return self.shared(self.backbone(image, train, start))

    def shared(self, maps):
        """Return the `Map` that proposals and heads share, of those that the backbone gives."""
        return maps["stage5"]

    def rpn(self, features, train: bool = False):
        """Return the outputs of the region proposal network at each anchor.

        Args:
          features: f32[*B, h, w, channels].
          train: as in `features`.

        Returns:
          scores: f32[*B, h * w * A, 2], background and object, pre-softmax.
          deltas: f32[*B, h * w * A, 4], offsets.
        """
        x = self.rpn_conv(features, train)
        batch = features.shape[:-3]
        # Caffe's channels are the A background scores, then the A object scores; the offsets'
        # are four by four.
        scores = self.rpn_cls_score(x)
        scores = jnp.swapaxes(scores.reshape(*scores.shape[:-1], 2, -1), -1, -2)
        return scores.reshape(*batch, -1, 2), self.rpn_bbox_pred(x).reshape(*batch, -1, 4)

    def heads(self, features, boxes):
        """Classify regions, `head_chunk` at a time.

        The gradient with respect to `features` runs only the regions whose scores it depends on:
        in an attack, the active ones. See `rows.map_rows`.

        Args:
          features: f32[h, w, channels].
          boxes: f32[N, 4], canvas pixels.

        Returns:
          scores: f32[N, C], pre-softmax.
          deltas: f32[N, C, 4], offsets in units of `delta_stds`.
        """
        if boxes.shape[0] <= self.head_chunk:
            return self.classify(self.pool(features, boxes))
        module = self.clone(parent=None)

        def classify(shared, boxes):
            variables, windows = shared
            bins = {"size": module.pool_size, "scale": 1 / module.stride}
            pooled = detection.pool_windows(windows, boxes, **bins).astype(features.dtype)
            return module.apply(variables, pooled, method="classify")

        # In float32, regions that overlap add up their gradients.
        windows = detection.max_windows(features.astype(jnp.float32), size=self.pool_size)
        shared = self.variables, windows
        return map_rows(classify, shared, boxes, chunk=self.head_chunk)

    def pool(self, features, boxes):
        """Return what `classify` reads of each region, f32[N, P, P, channels]; see `heads`."""
        bins = {"size": self.pool_size, "scale": 1 / self.stride}
        # In float32, regions that overlap add up their gradients.
        pooled = detection.roi_max_pool(features.astype(jnp.float32), boxes, **bins)
        return pooled.astype(features.dtype)

    def classify(self, pooled, train: bool = False):
        """Classify pooled regions f32[N, P, P, channels]; the rest is as in `heads`."""
        x = self.fc_multiplier * self.fc6(pooled, train)
        count = pooled.shape[0]  # it may be 0
        x = (self.fc_multiplier * self.fc7(x, train)).reshape(count, self.fc_width)
        x = x.astype(jnp.float32)  # the last products are small
        return self.cls_score(x), self.bbox_pred(x).reshape(count, self.num_classes, 4)

    def anchors(self, shape: tuple[int, int]):
        """Return the anchors f32[h * w * A, 4] of a map of (h, w) cells, in canvas pixels."""
        cell = detection.generate_anchors(self.anchor_sizes, base=self.stride)
        return detection.tile_anchors(cell, shape, stride=self.stride)

    def select_proposals(
        self,
        rpn,
        map_shape: tuple[int, int],
        canvas,
        *,
        grid=None,
        nms_threshold: float,
        max_proposals: int,
        pre_nms: int | None = None,
    ):
        """Return the best boxes that the region proposal network finds in a map.

        Boxes are clipped to the canvas, those with a side below `min_size` dropped, and the best
        `pre_nms` go through suppression.

        Args:
          rpn: (scores, deltas) of `rpn`.
          map_shape: cells (h, w) of the map.
          canvas: of `canvas`.
          grid: the `Grid` of a map with padding, which has no anchors there.
          nms_threshold: largest IoU that two proposals may have.
          max_proposals: K.
          pre_nms: proposals that enter suppression, or None for the attribute.

        Returns:
          boxes: f32[K, 4], canvas pixels, by descending score, padded.
          scores: f32[K], probability of an object.
          valid: bool[K], False at the padding.
        """
        scores, deltas = jax.lax.stop_gradient(rpn)
        shape, factor = canvas
        boxes = detection.decode_boxes(jnp.asarray(self.anchors(map_shape)), deltas)
        boxes = detection.clip_boxes(boxes, shape)
        sides = boxes[:, 2:] - boxes[:, :2] + 1
        fit = jnp.all(sides >= self.min_size * factor, axis=1)
        if grid is not None:
            cells = grid.cut(jnp.ones((*map_shape, boxes.shape[0] // math.prod(map_shape))))
            fit &= cells.reshape(-1) > 0
        margin = jnp.where(fit, scores[:, 1] - scores[:, 0], -jnp.inf)
        margin, best = jax.lax.top_k(margin, min(pre_nms or self.pre_nms, margin.shape[0]))
        boxes, valid = boxes[best], fit[best]
        selected, valid = detection.nms(
            boxes, margin, threshold=nms_threshold, max_outputs=max_proposals, valid=valid
        )
        return boxes[selected], jax.nn.sigmoid(margin[selected]), valid

    def propose(
        self,
        image,
        extent=None,
        *,
        nms_threshold: float,
        max_proposals: int,
        pre_nms: int | None = None,
    ):
        """Propose boxes that may hold an object.

        The paper attacks the proposals at an IoU threshold of 0.9, up to 3,000 of them; `detect`
        uses 0.7 and `post_nms`. No gradient passes.

        Args:
          image: f32[H, W, 3], grey levels 0-255, RGB.
          extent: as in `features`.
          nms_threshold: largest IoU that two proposals may have.
          max_proposals: K.
          pre_nms: proposals that enter suppression, or None for the attribute.

        Returns:
          boxes: f32[K, 4], by descending score, padded.
          scores: f32[K], probability of an object.
          valid: bool[K], False at the padding.
        """
        features, grid = self._map(image, extent=extent)
        canvas = self.canvas(image.shape, extent)
        boxes, scores, valid = self.select_proposals(
            self.rpn(features),
            features.shape[:2],
            canvas,
            grid=grid,
            nms_threshold=nms_threshold,
            max_proposals=max_proposals,
            pre_nms=pre_nms,
        )
        return boxes / canvas[1], scores, valid

    def score(self, image, boxes, extent=None):
        """Score boxes: what an attack differentiates.

        Args:
          image: f32[H, W, 3], grey levels 0-255, RGB.
          boxes: f32[N, 4].
          extent: as in `features`.

        Returns:
          f32[N, C], pre-softmax.
        """
        factor = self.canvas(image.shape, extent)[1]
        return self.heads(self.features(image, extent=extent), boxes * factor)[0]

    def detect(
        self,
        image,
        extent=None,
        *,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.3,
        max_detections: int = 100,
    ):
        """Detect objects, as py-faster-rcnn's `test_net` does.

        Args:
          image: f32[H, W, 3], grey levels 0-255, RGB.
          extent: as in `features`.
          score_threshold: probability that a detection must exceed.
          nms_threshold: largest IoU that two detections of a class may have.
          max_detections: K.

        Returns:
          boxes: f32[K, 4], by descending score, padded.
          classes: i32[K], from 1.
          scores: f32[K], probability of the class.
          valid: bool[K], False at the padding.
        """
        features, grid = self._map(image, extent=extent)
        canvas = self.canvas(image.shape, extent)
        regions, _, region_valid = self.select_proposals(
            self.rpn(features),
            features.shape[:2],
            canvas,
            grid=grid,
            nms_threshold=0.7,
            max_proposals=self.post_nms,
        )
        scores, deltas = self.heads(features, regions)
        stds, means = (
            jnp.asarray(values, jnp.float32)[None, None, :]
            for values in (self.delta_stds, self.delta_means)
        )
        regions = regions / canvas[1]
        boxes = detection.decode_boxes(regions[:, None], deltas * stds + means)
        boxes = detection.clip_boxes(boxes, image.shape[:2] if extent is None else extent)
        # Class 0, background, is no detection.
        boxes, scores = jnp.swapaxes(boxes, 0, 1)[1:], jax.nn.softmax(scores).T[1:]
        boxes, classes, scores, valid = detection.nms_per_class(
            boxes,
            scores,
            threshold=nms_threshold,
            max_outputs=max_detections,
            valid=region_valid[None, :] & (scores > score_threshold),
        )
        return boxes, classes + 1, scores, valid
