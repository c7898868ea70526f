"""Fully convolutional networks for segmentation: FCN-32s and FCN-8s, and one on a dilated trunk.

Shapes: `*B` no axis or one batch axis, `H W` pixels, `C` classes.

Reference: Long, Shelhamer and Darrell, CVPR 2015; Caffe's fcn-alexnet-pascal and
fcn8s-heavy-pascal, whose crop offsets follow from the geometry here; torchvision's fcn_resnet50.
"""

from flax import linen as nn

from dag_jax.errors import UserError
from dag_jax.networks import layers, operations, resizing
from dag_jax.networks.grids import pixels, poison

# FCN's own mean of PASCAL VOC in grey levels (not VGG's 123.68, 116.779, 103.939).
MEAN_RGB = (122.67891434, 116.66876762, 104.00698793)
IMAGENET_MEAN_RGB = (123.675, 116.28, 103.53)  # as torchvision rounds it


def _trunk_maps(fcn, image, train, start):
    """Return the maps of an FCN's trunk; `start` is the image's grid."""
    less_mean = start.cut(operations.subtract_mean(image, fcn.mean_rgb))
    return fcn.backbone(poison(less_mean, start), train, start)


class Fcn(nn.Module):
    """An FCN on any trunk, with as many skips as it is given.

    Attributes:
      backbone: a trunk of `backbones` whose "stage5" is pooled.
      skips: stages whose maps refine the scores, from coarse to fine: () is FCN-32s,
        ("stage4", "stage3") is FCN-8s.
      fc_width: channels of fc6 and fc7.
      fc_size: cells of fc6's kernel side.
      upsample_size: pixels of the last filter's side; 0 gives twice its stride.
      num_classes: classes with background.
      dense: upsamplings that have a kernel of their own: "upscore" for the last one,
        "upscore_stage4" for the one before that skip. The others are bilinear, as in the files
        that the authors publish, and have no parameters.
      mean_rgb: mean of the training set in grey levels.
      batch_norm: as in `layers.Conv`.
    """

    backbone: nn.Module
    skips: tuple[str, ...] = ()
    fc_width: int = 4096
    fc_size: int = 7
    upsample_size: int = 0
    num_classes: int = 21
    dense: tuple[str, ...] = ()
    mean_rgb: tuple[float, float, float] = MEAN_RGB
    batch_norm: bool = False

    @nn.compact
    def __call__(self, image, train: bool = False, extent=None):
        """Score every pixel.

        Args:
          image: f32[*B, H, W, 3], RGB grey levels 0-255.
          train: whether batch normalisation uses the batch's statistics.
          extent: i32[2], the rows and columns that are the image where padding follows them; its
            scores are then those of the image alone, and zero in the padding. None: all are.

        Returns:
          f32[*B, H, W, C], pre-softmax.

        Raises:
          ValueError: where the image is smaller than the network can see, for an unknown name in
            `dense`, and as `grids.pixels` says of an extent.
        """
        if unknown := set(self.dense) - set(self.upsamplings()):
            raise UserError(f"dense has {sorted(unknown)}, there are {self.upsamplings()}")
        start = pixels(image.shape, extent)
        maps = _trunk_maps(self, image, train, start)
        x, grid = maps["stage5"]
        x = layers.PatchDense(self.fc_width, self.fc_size, batch_norm=self.batch_norm, name="fc6")(
            x, train
        )
        grid = grid.convolved(self.fc_size)
        x = layers.Conv(self.fc_width, 1, batch_norm=self.batch_norm, name="fc7")(x, train)
        x = grid.cut(self._score("score_fr", x))
        for stage in self.skips:
            # Caffe upsamples by 2 without a crop and crops the skip to fit.
            shape = tuple(2 * n + 2 for n in x.shape[-3:-1])
            x = self._upsample(f"upscore_{stage}", x, shape, 2, 4, 0)
            grid = grid.upsampled(4, 2)
            skip, skip_grid = maps[stage]
            offset = skip_grid.offset(grid)
            if offset < 0:
                raise UserError(
                    f"{stage} would be read from cell {offset}: fc_size {self.fc_size} is too "
                    "small for this skip"
                )
            rows, columns = (slice(offset, offset + extent) for extent in x.shape[-3:-1])
            skip = self._score(f"score_{stage}", skip[..., rows, columns, :])
            # With 100 pixels of padding the skip is always long enough; a miniature's may end
            # earlier than what it refines, beyond the image's own end.
            grid = skip_grid.cropped(offset, grid)
            x = grid.cut(x[..., : skip.shape[-3], : skip.shape[-2], :] + skip)
        stride = int(grid.stride)
        size = self.upsample_size or 2 * stride
        offset = grid.upsampled(size, stride).offset(start)
        x = self._upsample("upscore", x, image.shape[-3:-1], stride, size, offset)
        return start.cut(x)

    def upsamplings(self) -> tuple[str, ...]:
        """Return the names that `dense` may have."""
        return (*(f"upscore_{stage}" for stage in self.skips), "upscore")

    def _upsample(self, name, x, shape, stride, size, offset):
        if name in self.dense:
            return layers.Upsample(size, stride, name=name)(x, shape, offset)
        return operations.upsample(x, shape, stride=stride, kernel_size=size, offset=offset)

    def _score(self, name, x):
        return layers.Conv(self.num_classes, 1, relu=False, scale=0.1, name=name)(x)


class DilatedFcn(nn.Module):
    """An FCN on a trunk whose last map is fine enough to need no skips: torchvision's.

    Attributes:
      backbone: a trunk whose "stage5" has few pixels between two cells.
      fc_width: channels of the convolution before the scores.
      num_classes: classes with background.
      mean_rgb: mean of the training set in grey levels.
      batch_norm: as in `layers.Conv`.
    """

    backbone: nn.Module
    fc_width: int = 512
    num_classes: int = 21
    mean_rgb: tuple[float, float, float] = IMAGENET_MEAN_RGB
    batch_norm: bool = False

    @nn.compact
    def __call__(self, image, train: bool = False, extent=None):
        """Score every pixel, as `Fcn` does.

        Scores of cells become those of pixels bilinearly, the border continued: PyTorch's
        interpolate without align_corners.
        """
        start = pixels(image.shape, extent)
        x, grid = _trunk_maps(self, image, train, start)["stage5"]
        layer = layers.Conv(self.fc_width, padding=1, batch_norm=self.batch_norm, name="fc6")
        x = layers.Conv(self.num_classes, 1, relu=False, scale=0.1, name="score")(layer(x, train))
        sides = (start.rows, grid.rows), (start.columns, grid.columns)
        x = resizing.resize(x, image.shape[-3:-1], ratios=sides, extent=(grid.rows, grid.columns))
        return start.cut(x)
