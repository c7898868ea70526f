"""The networks that darknet's `.cfg` files describe.

A `.cfg` is text: sections of options, one section a layer. Layers refer to each other by their
index, 0 being the first after [net]; a reference below 0 counts back from the layer itself.

Bounds: a text has at most a MiB and a network `_MOST_LAYERS` layers; parsing takes a second and
50 MB.

Reference: https://github.com/AlexeyAB/darknet, src/parser.c.
"""

import dataclasses

from etils import epath

from dag_jax.errors import MissingError, UserError, reading

ACTIVATIONS = ("linear", "relu", "relu6", "leaky", "logistic", "mish", "swish")
_LONGEST_CFG = 1 << 20  # bytes; the longest that is published has a tenth of that
_MOST_LAYERS = 2000  # ten times the most that is published
_MOST_SOURCES = 100  # of one layer
_LARGEST = 2**31 - 1  # darknet's numbers are C's
_NAMES = {"network": "net", "conv": "convolutional", "max": "maxpool"}  # older ones of a section
# Options that change what a layer computes, with the value that does not. Those that are not listed
# are of training.
_UNSUPPORTED = {
    "net": {"letter_box": 0, "channels": 3},
    "convolutional": dict.fromkeys(
        ("antialiasing", "assisted_excitation", "binary", "deform", "dot", "flipped", "rotate")
        + ("share_index", "stretch", "stretch_sway", "sway", "xnor"),
        0,
    ),
    "shortcut": {"weights_type": "none"},
    "upsample": {"scale": 1},
    "maxpool": {"antialiasing": 0, "maxpool_depth": 0},
    "yolo": {"new_coords": 0},
    "region": {"coords": 4, "tree": "", "background": 0},
}


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution, with an activation after it; `padding` cells of zero on each side."""

    channels: int
    filters: int
    size: int
    stride: int
    padding: int
    groups: int
    dilation: int
    batch_norm: bool
    activation: str


@dataclasses.dataclass(frozen=True)
class Shortcut:
    """The sum of maps of one shape, with an activation after it."""

    sources: tuple[int, ...]
    activation: str


@dataclasses.dataclass(frozen=True)
class Route:
    """Maps joined along the channels; of each map all channels, or one of several equal parts."""

    sources: tuple[int, ...]
    parts: int = 1
    part: int = 0


@dataclasses.dataclass(frozen=True)
class Upsample:
    """Each cell `stride` times in both axes."""

    stride: int


@dataclasses.dataclass(frozen=True)
class MaxPool:
    """Maxima; of `padding` cells of minus infinity half, rounded down, are above and left."""

    size: int
    stride: int
    padding: int


@dataclasses.dataclass(frozen=True)
class Head:
    """A head: the map before it holds, for each anchor, x, y, w, h, object and the classes.

    Attributes:
      shape: cells (h, w) of the map.
      anchors: (width, height) of each, as a share of the network's image.
      classes: their number.
      scale: by how much a box's centre may leave its cell: scale_x_y.
      softmax: whether classes exclude each other, as in a [region]; else each is a sigmoid.
    """

    shape: tuple[int, int]
    anchors: tuple[tuple[float, float], ...]
    classes: int
    scale: float
    softmax: bool


Layer = Convolution | Shortcut | Route | Upsample | MaxPool | Head


@dataclasses.dataclass(frozen=True)
class Cfg:
    """A network as its `.cfg` describes it.

    Attributes:
      shape: pixels (height, width) of the image that it reads.
      layers: in order; sources are indices into them.
    """

    shape: tuple[int, int]
    layers: tuple[Layer, ...]

    @property
    def heads(self) -> tuple[Head, ...]:
        """The layers that predict boxes."""
        return tuple(layer for layer in self.layers if isinstance(layer, Head))

    @property
    def convolutions(self) -> dict[str, Convolution]:
        """The layers that have weights, by their names in a parameter tree."""
        return {
            f"conv{index}": layer
            for index, layer in enumerate(self.layers)
            if isinstance(layer, Convolution)
        }


def read_cfg(path) -> str:
    """Return the text of a `.cfg` file.

    Raises:
      UserError: where there is no such file, it cannot be read, or is no text.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise MissingError(f"{path}: no such .cfg file")
    with reading(path), path.open("rb") as file:
        contents = file.read(_LONGEST_CFG + 1)
    try:
        if len(contents) > _LONGEST_CFG or b"\0" in contents:
            raise ValueError
        return contents.decode()
    except ValueError:
        raise UserError(f"{path} is no .cfg file: that is a short text of [sections]") from None


def parse(text: str, name="the .cfg") -> Cfg:
    """Return the network that the text of a `.cfg` describes.

    Args:
      text: of `read_cfg`.
      name: of the file, for messages.

    Raises:
      UserError: naming the line, for a section, an option or an activation that is not known, for
        layers that do not fit each other, and for a network without a head.
    """
    sections = _sections(text, name)
    if not sections or sections[0].kind != "net":
        raise UserError(f"{name} has to begin with the section [net]")
    net, *following = sections
    shape = net.number("height"), net.number("width")
    layers: list[Layer] = []
    shapes: list[tuple[int, int, int]] = []  # h, w, channels of each layer's map
    for section in following:
        if section.kind not in _PARSERS:
            kinds = ", ".join(f"[{kind}]" for kind in _PARSERS)
            raise section.wrong(f"[{section.kind:.50}] is not known; known are {kinds}")
        before = [*shapes, (*shape, 3)]  # the last one is that of the layer before the first, too
        layer, map_shape = _PARSERS[section.kind](section, len(layers), before)
        if min(map_shape) < 1 or max(map_shape) > _LARGEST:
            raise section.wrong(f"its map has no cell, or too many: {map_shape}")
        if len(layers) == _MOST_LAYERS:
            raise section.wrong(f"there are more than {_MOST_LAYERS} layers")
        layers.append(layer)
        shapes.append(map_shape)
    cfg = Cfg(shape, tuple(layers))
    if not cfg.heads:
        raise UserError(f"{name} has neither a [yolo] nor a [region]: it is no detector's")
    counts = {head.classes for head in cfg.heads}
    if len(counts) > 1:
        raise UserError(f"{name} has heads of {sorted(counts)} classes; they must be of the same")
    return cfg


class _Section:
    """A section of a file. Errors in its options name the line."""

    def __init__(self, name, line, kind):
        self.name, self.line, self.kind, self.options = name, line, kind, {}

    def wrong(self, problem, option=None):
        line = self.options[option][0] if option in self.options else self.line
        return UserError(f"{self.name}, line {line}: {problem:.300}")

    def text(self, option, default=None):
        if option not in self.options and default is None:
            raise self.wrong(f"[{self.kind}] has no {option}")
        return self.options.get(option, (0, default))[1]

    def _values(self, option, default, kind):
        text = self.text(option, default)
        try:
            values = tuple(kind(part) for part in text.split(",") if part)
            if not all(abs(value) <= _LARGEST for value in values):  # nor NaN
                raise ValueError
        except ValueError:
            expected = "a whole number" if kind is int else "a number"
            expected += f" of at most {_LARGEST}"
            raise self.wrong(f"{option} is {text!r:.50}, not {expected}", option) from None
        return values

    def numbers(self, option, default=None, kind=int):
        return self._values(option, default, kind)

    def number(self, option, default=None, kind=int, minimum=1):
        values = self._values(option, None if default is None else str(default), kind)
        if len(values) != 1 or values[0] < minimum:
            text = self.text(option, default)
            raise self.wrong(f"{option} is {text!r:.50}; it is a number from {minimum} on", option)
        return values[0]

    def activation(self, default):
        name = self.text("activation", default)
        if name not in ACTIVATIONS:
            names = ", ".join(ACTIVATIONS)
            raise self.wrong(
                f"activation {name!r:.50} is not known; known are {names}", "activation"
            )
        return name

    def sources(self, option, place):
        """Return the indices of the layers that an option names, of the layer at a place."""
        named = self.numbers(option)
        if len(named) > _MOST_SOURCES:
            raise self.wrong(f"{option} names {len(named)} layers", option)
        sources = tuple(place + source if source < 0 else source for source in named)
        if not sources or not all(0 <= source < place for source in sources):
            raise self.wrong(
                f"{option} is {self.text(option)!r:.50}; each is the index of an earlier layer, "
                f"0 to {place - 1}, or -1 to -{place}",
                option,
            )
        return sources


def _sections(text, name):
    sections: list[_Section] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = "".join(line.split())  # darknet knows no spaces
        if not line or line[0] in "#;":
            continue
        if line[0] == "[":
            kind = line.strip("[]")
            sections.append(_Section(name, number, _NAMES.get(kind, kind)))
            continue
        option, sign, value = line.partition("=")
        if not sign or not sections:
            raise UserError(
                f"{name}, line {number}: {line!r:.50} is no option=value of a [section]"
            )
        sections[-1].options[option] = number, value
    for section in sections:
        for option, value in _UNSUPPORTED.get(section.kind, {}).items():
            value_text = section.text(option, str(value))
            if value_text != str(value):
                raise section.wrong(f"{option}={value_text:.50} is not supported", option)
    return sections


def _convolution(section, place, before):
    height, width, channels = before[place - 1]
    size, stride = section.number("size", 1), section.number("stride", 1)
    for axis in ("stride_x", "stride_y"):
        if section.number(axis, stride) != stride:
            raise section.wrong(f"{axis} differs from stride, which is not supported", axis)
    padding = section.number("padding", 0, minimum=0)
    if section.number("pad", 0, minimum=0):
        padding = size // 2
    groups, filters = section.number("groups", 1), section.number("filters")
    dilation = section.number("dilation", 1)
    if channels % groups or filters % groups:
        raise section.wrong(f"{channels} channels to {filters} are no {groups} groups", "groups")
    if stride > 1 and dilation > 1:
        raise section.wrong("a stride and a dilation are not supported together", "dilation")
    layer = Convolution(
        channels,
        filters,
        size,
        stride,
        padding * dilation,
        groups,
        dilation,
        section.number("batch_normalize", 0, minimum=0) > 0,
        section.activation("logistic"),
    )
    reach = dilation * (size - 1) + 1
    cells = ((side + 2 * layer.padding - reach) // stride + 1 for side in (height, width))
    return layer, (*cells, filters)


def _shortcut(section, place, before):
    sources = place - 1, *section.sources("from", place)
    shapes = {before[source] for source in sources}
    if len(shapes) > 1:
        raise section.wrong(f"maps of shapes {sorted(shapes)} have no sum", "from")
    return Shortcut(sources, section.activation("linear")), before[place - 1]


def _route(section, place, before):
    sources = section.sources("layers", place)
    parts, part = section.number("groups", 1), section.number("group_id", 0, minimum=0)
    if part >= parts or any(before[source][2] % parts for source in sources):
        raise section.wrong(f"group_id {part} is none of {parts} groups of equal size", "groups")
    if len({before[source][:2] for source in sources}) > 1:
        shapes = [before[source] for source in sources]
        raise section.wrong(f"maps of shapes {shapes} do not go together", "layers")
    channels = sum(before[source][2] for source in sources) // parts
    return Route(sources, parts, part), (*before[sources[0]][:2], channels)


def _dropout(section, place, before):
    if not place:
        raise section.wrong("[dropout] has nothing before it")
    return Route((place - 1,)), before[place - 1]


def _upsample(section, place, before):
    height, width, channels = before[place - 1]
    stride = section.number("stride", 2)
    return Upsample(stride), (height * stride, width * stride, channels)


def _maxpool(section, place, before):
    height, width, channels = before[place - 1]
    stride = section.number("stride", 1)
    size = section.number("size", stride)
    padding = section.number("padding", size - 1, minimum=0)
    cells = ((side + padding - size) // stride + 1 for side in (height, width))
    return MaxPool(size, stride, padding), (*cells, channels)


def _head(section, place, before):
    height, width, channels = before[place - 1]
    softmax = section.kind == "region"
    classes, number = section.number("classes"), section.number("num")
    pairs = section.numbers("anchors", kind=float)
    if len(pairs) < 2 * number or min(pairs) <= 0:
        raise section.wrong(f"anchors are no {number} pairs of a width and a height", "anchors")
    chosen = range(number)
    if not softmax:
        chosen = section.numbers("mask", ",".join(map(str, chosen)))
        if not chosen or not all(0 <= index < number for index in chosen):
            raise section.wrong(f"mask names anchors that are none of {number}", "mask")
    elif section.number("softmax", 0, minimum=0) == 0 or place == 0:
        raise section.wrong("a [region] without softmax=1 is not supported")
    if channels != len(chosen) * (5 + classes):
        raise section.wrong(
            f"{len(chosen)} anchors of {classes} classes need {len(chosen) * (5 + classes)} "
            f"channels, the layer before has {channels}"
        )
    # A [region] has its anchors in cells, a [yolo] in pixels of the network's image.
    across, down = (width, height) if softmax else before[-1][1::-1]
    anchors = tuple((pairs[2 * i] / across, pairs[2 * i + 1] / down) for i in chosen)
    scale = section.number("scale_x_y", 1.0, float, minimum=0)
    return Head((height, width), anchors, classes, scale, softmax), before[place - 1]


_PARSERS = {
    "convolutional": _convolution,
    "shortcut": _shortcut,
    "route": _route,
    "dropout": _dropout,
    "upsample": _upsample,
    "maxpool": _maxpool,
    "yolo": _head,
    "region": _head,
}
