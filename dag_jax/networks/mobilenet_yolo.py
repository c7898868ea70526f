"""dog-qiuqiu's MobileNetV2-YOLOs: their layers, as their `.cfg` files have them.

Reference: https://github.com/dog-qiuqiu/MobileNet-Yolo; Sandler et al., MobileNetV2, CVPR 2018.
"""

from dag_jax.datasets.classes import CLASS_NAMES, COCO_NAMES
from dag_jax.models import DETECTION
from dag_jax.networks import conversion, yolo
from dag_jax.networks.darknet import Darknet
from dag_jax.networks.entry import Entry
from dag_jax.weights import darknet_cfg

# (channels, stride) of each block at full width; a block widens sixfold what it reads.
_BLOCKS = (
    *((12, 2), (12, 1), (16, 2), (16, 1), (16, 1), (32, 2), (32, 1), (32, 1), (32, 1)),
    *((48, 1), (48, 1), (48, 1), (80, 2), (80, 1), (80, 1)),
)
NANO = (288, 96, 384), (80, 288, 192, 288)  # channels of what the two heads see
FASTEST = (144, 48, 144), (40, 96, 48, 96)
VOC_ANCHORS = "26,48, 67,84, 72,175, 189,126, 137,236, 265,259"
COCO_ANCHORS = "12,18, 37,49, 52,132, 115,74, 119,199, 243,238"


def cfg(heads, classes: int, anchors: str, *, width: float = 1.0) -> darknet_cfg.Cfg:
    """Return the layers of a network.

    Args:
      heads: `NANO` or `FASTEST`.
      classes: their number.
      anchors: six pairs of a width and a height in pixels.
      width: factor of the trunk's channels.
    """
    lines = ["[net]", "width=320", "height=320"]

    def add(kind, **options):
        lines.append(f"[{kind}]")
        lines.extend(f"{name}={value}" for name, value in options.items())

    def convolve(filters, activation="relu", size=1, norm=1, **options):
        shape = {"filters": filters, "size": size, "pad": 1, "batch_normalize": norm}
        add("convolutional", **shape, activation=activation, **options)

    channels = int(16 * width)
    convolve(channels, size=3, stride=2)
    convolve(channels, size=3, groups=channels)
    channels //= 2
    convolve(channels, "linear")
    for filters, stride in _BLOCKS:
        filters, wide = int(filters * width), 6 * channels
        convolve(wide)
        convolve(wide, size=3, stride=stride, groups=wide)
        convolve(filters, "linear")
        if filters == channels:
            add("shortcut", **{"from": -4}, activation="linear")
        channels = filters
    for size, back in ((3, -2), (5, -4)):
        add("maxpool", size=size, stride=1)
        add("route", layers=back)
    add("maxpool", size=9, stride=1)
    add("route", layers="-1,-3,-5,-6")
    (first, *widths), fine = heads
    outputs = {"filters": 3 * (5 + classes), "activation": "linear", "norm": 0}
    common = {"anchors": anchors, "num": 6, "classes": classes}
    convolve(first)
    convolve(first, size=3, groups=first)
    for filters in widths:
        convolve(filters)
    convolve(**outputs)
    add("yolo", mask="3,4,5", scale_x_y=1.1, **common)
    add("route", layers=64)  # the first convolution of the head
    add("upsample", stride=2)
    add("route", layers="-1,47")  # what the first block at stride 32 widens
    convolve(fine[0])
    convolve(fine[1])
    convolve(fine[1], size=3, groups=fine[1])
    for filters in fine[2:]:
        convolve(filters)
    convolve(**outputs)
    add("yolo", mask="0,1,2", scale_x_y=1.05, **common)
    return darknet_cfg.parse("\n".join(lines))


def _entry(title, score, heads, classes, anchors, **options):
    def build():
        return Darknet(cfg(heads, len(classes), anchors, **options))

    return Entry(
        title,
        DETECTION,
        "voc07_test",
        "dog-qiuqiu, MobileNet-Yolo, 2020",
        build,
        read=conversion.read_darknet,
        size="320 x 320 pixels",
        score=score,
        classes=classes,
        precisions=("float32",),
        margin=yolo.MARGIN,
        kind=yolo.YoloNetwork,
    )


_VOC = CLASS_NAMES[1:], VOC_ANCHORS  # YOLO has no background
_COCO = COCO_NAMES, COCO_ANCHORS

ENTRIES = {
    "yolov3_nano_voc": _entry("YOLOv3-Nano", "mAP 65.27 on VOC2007 test", NANO, *_VOC),
    "yolo_fastest_voc": _entry(
        "YOLO-Fastest", "mAP 46.55 on VOC2007 test", FASTEST, *_VOC, width=0.5
    ),
    "yolov3_nano_coco": _entry("YOLOv3-Nano-COCO", "mAP 30.13 at IoU 0.5 on COCO", NANO, *_COCO),
}
