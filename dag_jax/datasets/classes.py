"""The classes of VOC, COCO and Cityscapes, by index, and the colours that VOC's kit gives them."""

import numpy as np
from jaxtyping import UInt8

from dag_jax.metrics.segmentation import VOID as VOID

VOID_COLOUR = (224, 224, 192)  # RGB, of these pixels
CLASS_NAMES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
# The objects of COCO that have boxes, in the order of their numbers there.
COCO_NAMES = tuple(
    (
        "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, "
        "fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, "
        "elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, "
        "skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, "
        "tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, "
        "sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, "
        "potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, "
        "cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, "
        "teddy bear, hair drier, toothbrush"
    ).split(", ")
)
# Of Cityscapes, in the order of its train ids: the 19 that it scores.
CITYSCAPES_NAMES = tuple(
    (
        "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, "
        "terrain, sky, person, rider, car, truck, bus, train, motorcycle, bicycle"
    ).split(", ")
)
# Those that small VOC folders are made of; scores on photographs are given for these, too.
FREQUENT = ("background", "cat", "cow", "dog", "horse", "person", "sheep")


def palette(num_classes: int) -> UInt8[np.ndarray, "{num_classes} 3"]:
    """Return a colour for each class, those of the VOC kit: u8[num_classes, 3] RGB.

    Bits 0, 1 and 2 of an index are the highest bits of red, green and blue, bits 3, 4 and 5 the
    next ones, and so on: all colours differ. The first is black.

    Reference: VOClabelcolormap.m of the PASCAL VOC development kit.
    """
    index = np.arange(num_classes)[:, None]
    colours = np.zeros((num_classes, 3), np.uint8)
    for bit in range(8):
        colours |= (((index >> (3 * bit + np.arange(3))) & 1) << (7 - bit)).astype(np.uint8)
    return colours
