"""A network of the zoo, ready to use: `Segmenter` or `Detector` of `dag_jax.models`.

Shapes: `H W` pixels of the user's image, `N` boxes, `K` outputs, `C` classes.
"""

import contextlib
import dataclasses
import functools
import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from dag_jax.errors import UserError
from dag_jax.metrics import Detections
from dag_jax.models import Candidates
from dag_jax.networks.grids import pixels

ATTACK_NMS = 0.9  # the paper's: proposals of an attack are denser than those of an evaluation
BUCKET = 125  # pixels: a quarter of the longest side that VOC's images have


class Facts(NamedTuple):
    """The facts about a network that its layers do not hold.

    Attributes:
      title: its name in tables.
      classes: names of its classes by index.
      split: the split that it is tested on.
      margin: logits by which a label must have lost before its target rests.
      max_steps: the paper's M_0.
      attack_proposals: the most proposals of a detector that are attacked.
    """

    title: str
    classes: tuple[str, ...]
    split: str
    margin: float
    max_steps: int
    attack_proposals: int = 0


class _Static:
    """The static part of a network, compared without its name and title.

    A program compiled for one network thus serves every other of the same architecture:
    `fcn_vgg_star` costs no compilation after `fcn_vgg`.
    """

    def __init__(self, name, module, miniature, facts, precision):
        self.name, self.module, self.miniature, self.facts = name, module, miniature, facts
        self.precision = precision

    def _compiled(self):
        facts = self.facts.classes, self.facts.attack_proposals
        return self.module, self.miniature, *facts, self.precision

    def __eq__(self, other):
        return isinstance(other, _Static) and self._compiled() == other._compiled()

    def __hash__(self):
        return hash(self._compiled())


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network and its parameters, which are the leaves of the pytree.

    Where it multiplies in bfloat16, its module says so too; TF32 is `precision` alone.
    """

    name: str
    module: nn.Module
    parameters: dict
    miniature: bool
    facts: Facts
    precision: str = "float32"  # one of `entry.PRECISIONS`

    @property
    def title(self) -> str:
        """Its name in tables."""
        return self.facts.title

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of its classes by index."""
        return self.facts.classes

    @property
    def split(self) -> str:
        """The split that it is tested on."""
        return self.facts.split

    @property
    def margin(self) -> float:
        """Logits by which a label must have lost before its target rests."""
        return self.facts.margin

    @property
    def max_steps(self) -> int:
        """The most steps of an image."""
        return self.facts.max_steps

    @property
    def architecture(self):
        """What networks share that differ in training alone, or in the size of their input."""
        module = self.module.clone(size=None) if hasattr(self.module, "size") else self.module
        return module, self.classes

    def _apply(self, *arguments, method=None, **options):
        variables = {"params": self.parameters}
        in_tf32 = jax.default_matmul_precision("tensorfloat32")
        with in_tf32 if self.precision == "tf32" else contextlib.nullcontext():
            return self.module.apply(variables, *arguments, method=method, **options)


def _flatten(network):
    facts = network.miniature, network.facts, network.precision
    return (network.parameters,), _Static(network.name, network.module, *facts)


def register(kind: type[Network]) -> type[Network]:
    """Make a kind of `Network` a pytree whose leaves are its parameters."""

    def unflatten(static, leaves):
        facts = static.miniature, static.facts, static.precision
        return kind(static.name, static.module, leaves[0], *facts)

    jax.tree_util.register_pytree_node(kind, _flatten, unflatten)
    return kind


def compiled(method, static=()):
    """Return a method of a network as one compiled program.

    A plain call would else compile each operation by itself. An `extent` whose values are known is
    checked before, as inside the program they are not known.

    Args:
      method: function of a network, an image and more, with an argument `extent`.
      static: names of arguments that are no arrays.

    Raises:
      ValueError: for an extent that `grids.pixels` refuses.
    """
    jitted, signature = jax.jit(method, static_argnames=static), inspect.signature(method)

    @functools.wraps(method)
    def call(network, image, *arguments, **options):
        bound = signature.bind(network, image, *arguments, **options)
        pixels(jnp.shape(image), bound.arguments.get("extent"))
        return jitted(network, image, *arguments, **options)

    return call


@register
class SegmentationNetwork(Network):
    """An FCN, or another network that scores pixels: a `Segmenter`."""

    @compiled
    def scores(self, image, extent=None):
        """Return the pre-softmax scores of each pixel.

        Args:
          image: f32[H, W, 3], RGB grey levels.
          extent: i32[2], the image's rows and columns if padding follows them; see `bucket`.

        Returns:
          f32[H, W, C].
        """
        return self._apply(image, extent=extent)

    @compiled
    def predict(self, image, extent=None):
        """Return the class of each pixel, i32[H, W]; arguments as of `scores`."""
        return jnp.argmax(self.scores(image, extent), axis=-1).astype(jnp.int32)

    def bucket(self, shape: tuple[int, ...]):
        """Return the network and the padded shape for an image's size; there are few such shapes.

        Pad the image, below and on the right, to that shape, and give its own size as the last
        argument of each method.

        Args:
          shape: (H, W, ...) of an image.

        Returns:
          (Network, (H', W')): the network to use, and the shape to pad the image to.

        Raises:
          ValueError: where the image is smaller than the network can see.
        """
        height, width = shape[:2]
        if hasattr(self.module, "size"):  # which every image is scaled to: they share one shape
            return self, raised((height, width), 4 * BUCKET)
        if hasattr(self.module, "canvas_shape"):  # only the canvas costs
            canvas = raised(self.module.canvas(height, width), self.module.short_side // 5)
            module = self.module.clone(canvas_shape=canvas)
            network = dataclasses.replace(self, module=module)
            return network, raised((height, width), 4 * BUCKET)
        if min(height, width) < BUCKET:
            _check_size(self.module, (height, width))
        return self, raised((height, width), BUCKET)


@register
class DetectionNetwork(Network):
    """A Faster R-CNN: a `Detector`, whose candidates' handles are their boxes."""

    @functools.partial(compiled, static=("max_proposals",))
    def propose(self, image, extent=None, *, nms_threshold=ATTACK_NMS, max_proposals=None):
        """Return the proposals that the paper attacks.

        Args:
          image: f32[H, W, 3], RGB grey levels.
          extent: i32[2], the image's rows and columns if padding follows them; see `bucket`.
          nms_threshold: IoU above which the lower-scoring of two proposals is dropped. The
            evaluation has its own threshold, which is lower.
          max_proposals: N; None is the network's own number.

        Returns:
          `Candidates` with N boxes in the user's pixels, by falling score of being an object.
        """
        boxes, _, valid = self._apply(
            image,
            extent,
            nms_threshold=nms_threshold,
            max_proposals=max_proposals or self.facts.attack_proposals,
            method="propose",
        )
        return Candidates(boxes, boxes, valid)

    @compiled
    def scores(self, image, boxes, extent=None):
        """Return the pre-softmax scores of boxes.

        Args:
          image: f32[H, W, 3], RGB grey levels.
          boxes: f32[N, 4] in the user's pixels.
          extent: as in `propose`.

        Returns:
          f32[N, C].

        Raises:
          ValueError: where boxes are not [N, 4].
        """
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise UserError(f"boxes have shape {boxes.shape}; they must be [N, 4]")
        return self._apply(image, boxes, extent, method="score")

    @compiled
    def detect(self, image, extent=None) -> Detections:
        """Run the whole network, as an evaluation does; arguments as of `propose`.

        Returns:
          `Detections` of K rows, padded: the result of proposals, box regression and suppression.
        """
        boxes, classes, scores, valid = self._apply(image, extent, method="detect")
        return Detections(boxes, classes, scores, valid)

    def bucket(self, shape: tuple[int, ...]):
        """Return the network and the padded shape, as `SegmentationNetwork.bucket` does.

        Images share a bucket if both results are equal. A network gives NaN for an image of another
        bucket, whose canvas does not fit into its own.

        Args:
          shape: (H, W, ...) of an image.

        Returns:
          (Network, (H', W')).
        """
        height, width = shape[:2]
        if self.module.resize is None:
            return self, raised((height, width), BUCKET)
        canvas, _ = self.module.canvas((height, width, 3))
        module = self.module.clone(canvas_shape=raised(canvas, self._canvas_step()))
        # Only the canvas costs: images of any shape share one.
        return dataclasses.replace(self, module=module), raised((height, width), 4 * BUCKET)

    def _canvas_step(self):
        """Return the step between the canvas sides of two buckets, in pixels."""
        return self.module.resize[1] // 5


def raised(sides, step: int) -> tuple[int, ...]:
    """Return sides, each rounded up to a multiple of `step`."""
    return tuple(-(-side // step) * step for side in sides)


@functools.lru_cache(maxsize=1024)
def _check_size(module, shape):
    """Raise the network's error for an image that it cannot see, without computing anything."""
    jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((*shape, 3), jnp.float32))
