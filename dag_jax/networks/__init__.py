"""The project's own networks: `load` one by name; it is a model of `dag_jax.models`."""

from dag_jax.networks.entry import PRECISIONS
from dag_jax.networks.network import DetectionNetwork, Network, SegmentationNetwork
from dag_jax.networks.yolo import YoloNetwork, load_darknet
from dag_jax.networks.zoo import (
    BLACK_BOX,
    ENTRIES,
    MINIATURES,
    NAMES,
    TASKS,
    build,
    facts,
    load,
)

__all__ = [
    "BLACK_BOX",
    "ENTRIES",
    "MINIATURES",
    "NAMES",
    "PRECISIONS",
    "TASKS",
    "DetectionNetwork",
    "Network",
    "SegmentationNetwork",
    "YoloNetwork",
    "build",
    "facts",
    "load",
    "load_darknet",
]
