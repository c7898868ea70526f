"""R-FCN: a detector whose regions only average a map of scores, part by part.

Shapes: `h w` cells of the map, `N` boxes, `C` classes, `P` bins along a region's side.

Reference: Dai, Li, He, Sun, R-FCN, NIPS 2016; the py-R-FCN release.
"""

import jax.numpy as jnp

from dag_jax import detection
from dag_jax.networks import layers
from dag_jax.networks.faster_rcnn import FasterRCNN
from dag_jax.networks.grids import Map
from dag_jax.networks.rows import map_rows


class RFCN(FasterRCNN):
    """An R-FCN detector; the defaults are ResNet-50's at full size.

    It proposes on the backbone's "stage4". Each of a region's P x P parts has a map of its own for
    every class, computed of "stage5" once for the image; a region's score is the parts' mean. All
    classes share a region's box offsets, which weights as published give plainly.

    Attributes:
      new_width: channels of the convolution that the maps come from.
      others: as of `FasterRCNN`, whose fc6 and fc7 it has not.
    """

    delta_stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    new_width: int = 1024

    def setup(self):
        """Name the layers as Caffe does."""
        super().setup()
        bins = self.pool_size**2
        self.conv_new = layers.Conv(self.new_width, 1)
        self.rfcn_cls = layers.Conv(self.num_classes * bins, 1, relu=False, scale=0.1)
        self.rfcn_bbox = layers.Conv(8 * bins, 1, relu=False, scale=0.01)

    def shared(self, maps):
        """Return "stage4", the parts' maps and a map of ones where the image is, as one `Map`."""
        x, grid = maps["stage5"]
        x = self.conv_new(x)
        # The offsets of background come first, and are not used.
        offsets = self.rfcn_bbox(x)[..., 4 * self.pool_size**2 :]
        inside = grid.cut(jnp.ones((*x.shape[:-1], 1)))
        parts = (maps["stage4"].cells, self.rfcn_cls(x), offsets, inside)
        return Map(jnp.concatenate(parts, axis=-1), grid)

    def rpn(self, features, train: bool = False):
        """Do what `FasterRCNN.rpn` does."""
        return super().rpn(features[..., : self.backbone.widths[3]], train)

    def heads(self, features, boxes):
        """Do what `FasterRCNN.heads` does: f32[N, C] and f32[N, C, 4]."""
        bins = {"size": self.pool_size, "scale": 1 / self.stride}
        inside = features[..., -1]
        cells = jnp.stack([inside[:, 0].sum(), inside[0].sum()])

        def vote(shared, boxes):
            maps, cells = shared
            return detection.ps_roi_vote(maps, boxes, cells.astype(jnp.int32), **bins)

        shared = features[..., self.backbone.widths[3] : -1], cells
        votes = map_rows(vote, shared, boxes, chunk=self.head_chunk)
        scores, offsets = votes[:, : self.num_classes], votes[:, None, self.num_classes :]
        return scores, jnp.broadcast_to(offsets, (*scores.shape, 4))
