"""keras-hub's networks with random weights, as `adapters.from_keras` takes them.

Keras is imported, on its JAX backend, when a network is built: their names are known without it.
"""

import importlib.util
import os

from experiments.measure.foreign import CLASSES

PACKAGE = "keras_hub"
HALF = (0.5, 0.5, 0.5)


def _resnet(keras_hub, shape, *, small):
    sizes = {"stackwise_num_filters": [64, 128, 256, 512], "stackwise_num_blocks": [3, 4, 6, 3]}
    if small:
        sizes = {"stackwise_num_filters": [64, 16, 16, 16], "stackwise_num_blocks": [1] * 4}
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block" if small else "bottleneck_block",
        image_shape=shape,
        **sizes,
    )


def _deeplabv3(keras_hub, shape, *, small):
    backbone = keras_hub.models.DeepLabV3Backbone(
        image_encoder=_resnet(keras_hub, (None, None, shape[-1]), small=small),
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key="P4",
        upsampling_size=4,
        dilation_rates=[6, 12, 18],
    )
    return keras_hub.models.DeepLabV3ImageSegmenter(backbone, num_classes=len(CLASSES))


def _segformer(keras_hub, shape, *, small):
    sizes = {"hidden_dims": [32, 64, 160, 256], "layerwise_depths": [2] * 4}  # B0
    if small:
        sizes = {"hidden_dims": [8, 16, 24, 32], "layerwise_depths": [1] * 4}
    encoder = keras_hub.models.MiTBackbone(
        image_shape=shape,
        num_layers=4,
        layerwise_num_heads=[1, 1, 2, 2] if small else [1, 2, 5, 8],
        layerwise_sr_ratios=[8, 4, 2, 1],
        layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 2],
        max_drop_path_rate=0.1,
        **sizes,
    )
    filters = 16 if small else 256
    backbone = keras_hub.models.SegFormerBackbone(encoder, projection_filters=filters)
    return keras_hub.models.SegFormerImageSegmenter(backbone, num_classes=len(CLASSES))


def _retinanet(keras_hub, shape, *, small):
    backbone = keras_hub.models.RetinaNetBackbone(
        _resnet(keras_hub, shape, small=small),
        min_level=3,
        max_level=5 if small else 7,
        use_p5=False,
        image_shape=shape,
    )
    return keras_hub.models.RetinaNetObjectDetector(
        backbone, num_classes=len(CLASSES), activation="linear", bounding_box_format="xyxy"
    )


# By name, the builder, and the output that its scores are where it segments no image.
ARCHITECTURES = {
    "keras_deeplabv3": (_deeplabv3, None),
    "keras_segformer": (_segformer, None),
    "keras_retinanet": (_retinanet, "cls_logits"),
}


def lacking() -> str | None:
    """Return the package that is needed and not installed, or None."""
    return None if importlib.util.find_spec(PACKAGE) else PACKAGE


def build(name, *, size, small=False):
    """Return (model, arguments of `from_keras`).

    Args:
      name: one of `ARCHITECTURES`.
      size: pixels of its images' side.
      small: whether a smaller one of the same layers does.
    """
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras
    import keras_hub

    keras.utils.set_random_seed(0)
    builder, output = ARCHITECTURES[name]
    module = builder(keras_hub, (size, size, 3), small=small)
    scores = {"output": output} if output else {"classes": CLASSES}
    return module, {"mean": HALF, "std": HALF, **scores}
