"""Weights of other frameworks as parameters of our networks.

A layout is one table from a layer's name in the file to its path in our tree and to what has to be
done to its arrays; the shapes that come out are those of the module. A Caffe network reads BGR
less a mean, and ours does the same to its RGB image, so Caffe's first layer stays as it is.

Caffe stores a convolution as [O, I / groups, H, W], an inner product as [O, C H W] and older files
add axes of length 1; torch stores the same. Ours are [H, W, I / groups, O] and [I, O].
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dag_jax.errors import UserError

_ANY_IMAGE = (128, 128, 3)  # parameters do not depend on the image's size
# What torchvision's networks subtract and divide by, of an RGB image from 0 to 1.
_TORCHVISION_MEAN = np.float32([0.485, 0.456, 0.406])
_TORCHVISION_STD = np.float32([0.229, 0.224, 0.225])


class Rule(NamedTuple):
    """One line of a layout.

    Attributes:
      pattern: of a layer's whole name in the file.
      path: of the layer in our tree, with the pattern's groups; None: none of our layers.
      kind: what its arrays are: "conv", a convolution; "patch", a convolution or an inner product
        over a patch; "dense", an inner product; "offsets", one that gives box offsets;
        "upsample", a deconvolution; "torchvision", the convolution of an RGB image.
    """

    pattern: str
    path: str | None
    kind: str = ""


class Layout(NamedTuple):
    """How a kind of file names its layers.

    Attributes:
      sign: pattern of the name of a layer that only this layout has.
      rules: the table; the first rule that fits counts.
      covers: pattern of the layers of ours that such a file has to give.
    """

    sign: str
    rules: tuple[Rule, ...]
    covers: str = ".*"


_TRUNK = Rule(r"conv[1-5](_[1-3])?", r"backbone/\g<0>", "conv")
_FC = Rule(r"(fc[67])(-conv)?", r"\1", "patch")
_CLASSIFIER = r"backbone/.*|fc6|fc7"
_TORCH = r"(?:module\.|state_dict\.|model\.)*"
_VGG16_STAGES = {  # torchvision's positions of VGG-16's convolutions
    **{2: "conv1_2", 5: "conv2_1", 7: "conv2_2", 10: "conv3_1", 12: "conv3_2", 14: "conv3_3"},
    **{17: "conv4_1", 19: "conv4_2", 21: "conv4_3", 24: "conv5_1", 26: "conv5_2", 28: "conv5_3"},
}

LAYOUTS = {
    # fcn.berkeleyvision.org; the alternatives are names of the older files (V1 layers).
    "caffe_fcn": Layout(
        r"score_fr|score-fr|score59",
        (
            _TRUNK,
            _FC,
            Rule(r"score_fr|score-fr|score59", "score_fr", "conv"),
            Rule(r"score[_-]pool([34])", r"score_stage\1", "conv"),
            Rule(r"upscore2|score2", "upscore_stage4", "upsample"),
            Rule(r"upscore_pool4|score4|upsample-fused-16", "upscore_stage3", "upsample"),
            Rule(r"upscore8?|upsample", "upscore", "upsample"),
        ),
    ),
    # The MATLAB release of Faster R-CNN, proposal_final and detection_final. Its channels are those
    # of py-faster-rcnn: background scores of all anchors, then their object scores; offsets four by
    # four; anchors ratio by ratio, then size by size.
    "matlab_faster_rcnn": Layout(
        r"proposal_cls_score",
        (
            _TRUNK,
            Rule(r"conv_proposal1", "rpn_conv", "conv"),
            Rule(r"proposal_(cls_score|bbox_pred)", r"rpn_\1", "conv"),
            _FC,
            Rule(r"cls_score", "cls_score", "dense"),
            Rule(r"bbox_pred", "bbox_pred", "offsets"),
        ),
    ),
    "py_faster_rcnn": Layout(
        r"rpn_cls_score",
        (
            _TRUNK,
            Rule(r"rpn_conv1|rpn_conv/3x3", "rpn_conv", "conv"),
            Rule(r"rpn_cls_score|rpn_bbox_pred", r"\g<0>", "conv"),
            _FC,
            Rule(r"cls_score", "cls_score", "dense"),
            Rule(r"bbox_pred", "bbox_pred", "offsets"),
        ),
    ),
    # Classifiers of ImageNet: VGG-16, CaffeNet, ZF.
    "caffe_imagenet": Layout(r"fc8.*", (_TRUNK, _FC, Rule(r"fc8.*", None)), _CLASSIFIER),
    # torchvision's AlexNet is not here: it is another network than CaffeNet (64 first channels, no
    # groups, no normalisation).
    "torchvision_vgg16": Layout(
        _TORCH + r"features\.28",
        (
            Rule(_TORCH + r"features\.0", "backbone/conv1_1", "torchvision"),
            *(
                Rule(_TORCH + rf"features\.{place}", f"backbone/{name}", "conv")
                for place, name in _VGG16_STAGES.items()
            ),
            Rule(_TORCH + r"classifier\.0", "fc6", "patch"),
            Rule(_TORCH + r"classifier\.3", "fc7", "patch"),
            Rule(_TORCH + r"classifier\.6", None),
        ),
        _CLASSIFIER,
    ),
}


class Converted(NamedTuple):
    """What `convert` makes of a file.

    Attributes:
      parameters: nested dict of float32 arrays.
      layout: name of the layout in `LAYOUTS`.
      dense: upsamplings that are not bilinear; `module.clone(dense=dense)` has these parameters.
      partial: whether it is a classifier to start training from, without the layers of its own
        that the network has.
    """

    parameters: dict
    layout: str
    dense: tuple[str, ...]
    partial: bool


def convert(
    module, sources: Sequence[Mapping], *, layout: str | None = None, offsets_folded: bool = True
) -> Converted:
    """Turn the weights of files into parameters of a network.

    Box offsets: the authors' training code writes its files with the offsets' statistics folded
    into bbox_pred, where ours has them in `module.delta_means` and `delta_stds`. They are taken out
    of the weights, so the boxes are the same.

    torchvision's VGG-16 reads another range and mean than ours; both go into the first layer. That
    is exact inside the image; at the border, where a network pads with zeros, zero is another
    colour.

    Args:
      module: an `Fcn` or a `FasterRCNN` without batch normalisation.
      sources: what `caffe.read` or `torch.read` return; several files are taken as one network.
      layout: a name of `LAYOUTS`, or None to tell by the names of the layers.
      offsets_folded: whether bbox_pred gives plain offsets; else those normalised by the module's
        statistics.

    Returns:
      Converted.

    Raises:
      UserError: for an unknown layout, for files that disagree, and with a list of what is
        missing, left over, of another shape or not finite.
    """
    layers = _merge(sources)
    layout = layout or _tell(layers)
    if layout not in LAYOUTS:
        raise UserError(f"unknown layout {layout!r}; the known ones are {', '.join(LAYOUTS)}")
    expected, upsamplings = _expected(module)
    given, dense, problems = {}, [], []
    for name, arrays in layers.items():
        rule = next((r for r in LAYOUTS[layout].rules if re.fullmatch(r.pattern, name)), None)
        path = rule and rule.path and re.fullmatch(rule.pattern, name).expand(rule.path)
        if rule and not path:
            continue
        if path not in expected:
            shapes = ", ".join(str(array.shape) for array in arrays.values())
            problems.append(f"left over: {name} {shapes}")
            continue
        if path in given:
            problems.append(f"left over: {name}, as {path} is there already")
            continue
        given[path] = found = {}
        for part, wanted in expected[path].items():
            if part not in arrays:
                if path not in upsamplings:
                    problems.append(f"missing: {part} of {name} {wanted}")
                continue
            found[part] = _arrange(arrays[part], wanted, rule.kind)
            if found[part] is None:
                problems.append(
                    f"other shape: {part} of {name} is {arrays[part].shape}, the network has "
                    f"{wanted}"
                )
            elif not np.isfinite(found[part]).all():
                problems.append(f"not finite: {part} of {name}")
        problems += [
            f"left over: {part} of {name} {array.shape}"
            for part, array in arrays.items()
            if part not in expected[path]
        ]
        if any(array is None for array in found.values()) or not found:
            continue
        if rule.kind == "offsets" and offsets_folded:
            given[path] = _unfold_offsets(module, found)
        elif rule.kind == "torchvision":
            given[path] = _read_grey_levels(module, found)
        elif rule.kind == "upsample":
            if "kernel" not in found:
                problems.append(f"missing: kernel of {name}")
            elif _is_bilinear(found):
                given[path] = {}
            else:
                found.setdefault("bias", np.zeros(expected[path]["bias"], np.float32))
                dense.append(path)
    covered = re.compile(LAYOUTS[layout].covers)
    absent = [path for path in expected if path not in given]
    problems += [f"missing: {path}" for path in absent if covered.fullmatch(path)]
    if problems:
        raise UserError(
            f"the weights, read as {layout}, do not fit the network:\n  "
            + "\n  ".join(sorted(problems))
        )
    flat = {
        f"{path}/{part}": leaf for path, leaves in given.items() for part, leaf in leaves.items()
    }
    return Converted(
        traverse_util.unflatten_dict(flat, sep="/"),
        layout,
        tuple(name for name in upsamplings if name in dense),
        any(path not in upsamplings for path in absent),
    )


def _merge(sources):
    """Return one dict of layer to its arrays, by "kernel", "bias" or a number, of all sources."""
    merged = {}
    for source in sources:
        layers = {}
        for name, value in source.items():
            if isinstance(value, list):  # Caffe: the blobs of a layer
                layers[name] = {
                    ("kernel", "bias")[i] if i < 2 else f"blob {i}": np.asarray(blob)
                    for i, blob in enumerate(value)
                }
            else:
                layer, _, part = name.rpartition(".")
                part = "kernel" if part == "weight" else part
                layers.setdefault(layer, {})[part] = np.asarray(value)
        for name, arrays in layers.items():
            other = merged.setdefault(name, arrays)
            if other is not arrays and (
                other.keys() != arrays.keys()
                or not all(np.array_equal(arrays[part], other[part]) for part in arrays)
            ):
                raise UserError(
                    f"layer {name} is not the same in two of the {len(sources)} files: they are "
                    "not of one network whose parts share their features"
                )
    return merged


def _tell(layers):
    """Return the name of the layout that a file's layers have."""
    for name, layout in LAYOUTS.items():
        if any(re.fullmatch(layout.sign, layer) for layer in layers):
            return name
    names = ", ".join(list(layers)[:8])
    raise UserError(
        f"the weights are of no known layout ({', '.join(LAYOUTS)}); their layers are {names}"
        + (", ..." if len(layers) > 8 else "")
    )


@functools.lru_cache(maxsize=8)
def _expected(module):
    """Return {path of a layer: {part: shape}} of a module, and which of the paths upsample."""
    upsamplings = ()
    if hasattr(module, "upsamplings"):
        upsamplings = module.upsamplings()
        module = module.clone(dense=upsamplings)
    image = jax.ShapeDtypeStruct(_ANY_IMAGE, jnp.float32)
    tree = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    expected = {}
    for (*path, part), leaf in traverse_util.flatten_dict(tree).items():
        expected.setdefault("/".join(path), {})[part] = leaf.shape
    return expected, upsamplings


def _arrange(array, wanted, kind):
    """Return an array in the shape that is wanted, or None where it has another one."""
    array = array.astype(np.float32)
    if len(wanted) == 1:
        vectors = (wanted, (1, 1, 1, *wanted))
        return array.reshape(wanted) if array.shape in vectors else None
    if kind == "upsample":
        height, width, channels, features = wanted
        if array.shape == (channels, 1, height, width) != (channels, features, height, width):
            # One filter for each channel, which Caffe has with group = channels.
            array = array * np.eye(channels, dtype=np.float32)[:, :, None, None]
        if array.shape != (channels, features, height, width):
            return None
        return np.ascontiguousarray(array.transpose(2, 3, 0, 1))
    *window, channels, features = wanted  # no window: an inner product
    stored = (features, channels, *window)
    products = [(features, array.size // features), (1, 1, features, array.size // features)]
    shapes = {"patch": [stored, *products], "dense": products, "offsets": products}
    if array.shape not in shapes.get(kind, [stored]) or array.size != np.prod(wanted):
        return None
    array = array.reshape(stored)
    return np.ascontiguousarray(array.transpose(*range(2, array.ndim), 1, 0))


def _unfold_offsets(module, arrays):
    """Normalise the offsets that bbox_pred gives, class by class."""
    repeats = arrays["bias"].size // 4
    means = np.tile(np.float32(module.delta_means), repeats)
    stds = np.tile(np.float32(module.delta_stds), repeats)
    return {"kernel": arrays["kernel"] / stds, "bias": (arrays["bias"] - means) / stds}


def _read_grey_levels(module, arrays):
    """Make a layer of a normalised RGB image read our BGR less the module's mean."""
    kernel = arrays["kernel"] / (255 * _TORCHVISION_STD)[:, None]
    shift = np.float32(module.mean_rgb) - 255 * _TORCHVISION_MEAN
    return {
        "kernel": np.ascontiguousarray(kernel[:, :, ::-1]),
        "bias": arrays["bias"] + np.einsum("hwio,i->o", kernel, shift),
    }


def _is_bilinear(arrays):
    """Tell whether an upsampling is what `operations.upsample` does.

    That is the kernel of FCN's surgery.py. Caffe's own filler centres a kernel of odd size half a
    pixel further.
    """
    size, _, channels, _ = arrays["kernel"].shape
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    line = 1 - np.abs(np.arange(size) - centre) / factor
    bilinear = np.outer(line, line)[:, :, None, None] * np.eye(channels)
    return np.allclose(arrays["kernel"], bilinear, rtol=0, atol=1e-6) and not np.any(
        arrays.get("bias", 0)
    )
