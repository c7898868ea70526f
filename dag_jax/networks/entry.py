"""The facts about a network besides its layers; `zoo` lists the entries of all."""

from collections.abc import Callable
from typing import NamedTuple

from flax import linen as nn

from dag_jax.datasets.classes import CLASS_NAMES
from dag_jax.networks import conversion
from dag_jax.networks.network import Network

PRECISIONS = ("float32", "tf32", "bfloat16")


class Entry(NamedTuple):
    """The facts about a network.

    Attributes:
      title: what tables call it.
      task: SEGMENTATION or DETECTION.
      split: the split that it is tested on.
      paper: the authors and the place of the paper that describes it.
      build: function that returns the full-size module; `batch_norm=True` builds it for training
        where there is a miniature.
      miniature: as `build`, of the small one, whose trained checkpoint ships; None: there is none.
      read: function as `conversion.read_network`, of files that hold its weights.
      size: the image's size in its layers.
      score: the published score of its weights, in percent, and on which images.
      classes: names of its classes by index.
      precisions: of `PRECISIONS`, those that it can multiply in.
      proposals: the most proposals of a detector that are attacked, full size and miniature.
      margin: logits by which a label must have lost before its target rests; None: its task's.
      kind: its class, a `Network`; None: that of its task.
    """

    title: str
    task: str
    split: str
    paper: str
    build: Callable[..., nn.Module]
    miniature: Callable[..., nn.Module] | None = None
    read: Callable = conversion.read_network
    size: str = "its own"
    score: str = "none"
    classes: tuple[str, ...] = CLASS_NAMES
    precisions: tuple[str, ...] = PRECISIONS
    proposals: tuple[int, int] = (0, 0)
    margin: float | None = None
    kind: type[Network] | None = None
