"""Weights of other frameworks as parameters of our networks.

The tables are in `layouts`; the shapes that come out are those of the module. A Caffe network reads
BGR less a mean, and ours does the same to its RGB image, so Caffe's first layer stays as it is.

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
from dag_jax.weights.layouts import LAYOUTS

_ANY_IMAGE = (128, 128, 3)  # parameters do not depend on the image's size
# What torchvision's networks subtract and divide by, of an RGB image from 0 to 1.
_TORCHVISION_MEAN = np.float32([0.485, 0.456, 0.406])
_TORCHVISION_STD = np.float32([0.229, 0.224, 0.225])
_NORM = "kernel", "bias", "running_mean", "running_var"
_EPSILON = np.float32(1e-5)  # what torch's normalisation adds to the variance


class Converted(NamedTuple):
    """What `convert` makes of a file.

    Attributes:
      parameters: nested dict of float32 arrays.
      layout: name of the layout in `LAYOUTS`.
      dense: upsamplings that are not bilinear; `module.clone(dense=dense)` has these parameters.
      partial: whether it is a classifier to start training from, without the layers of its own
        that the network has.
      left_out: what else the files hold, as an optimizer's state, by its first names.
    """

    parameters: dict
    layout: str
    dense: tuple[str, ...]
    partial: bool
    left_out: tuple[str, ...] = ()


def convert(
    module,
    sources: Sequence[Mapping],
    *,
    layout: str | None = None,
    offsets_folded: bool = True,
    part: str | None = None,
) -> Converted:
    """Turn the weights of files into parameters of a network.

    Box offsets: the authors' training code writes its files with the offsets' statistics folded
    into bbox_pred, where ours has them in `module.delta_means` and `delta_stds`. They are taken out
    of the weights, so the boxes are the same.

    torchvision's VGG-16 reads another range and mean than ours; both go into the first layer. That
    is exact inside the image; at the border, where a network pads with zeros, zero is another
    colour.

    A checkpoint of torch may hold more than the network, and have a prefix before the names of its
    layers: 'state_dict.module.', 'net.'. The part whose names fit a layout is taken.

    Args:
      module: an `Fcn` or a `FasterRCNN` without batch normalisation.
      sources: what `caffe.read` or `torch.read` return; several files are taken as one network.
      layout: a name of `LAYOUTS`, or None to tell by the names of the layers.
      offsets_folded: whether bbox_pred gives plain offsets; else those normalised by the module's
        statistics.
      part: the prefix of the network's names, such as 'ema.module', where several parts fit.

    Returns:
      Converted.

    Raises:
      UserError: for an unknown layout, for files that disagree, and with a list of what is
        missing, left over, of another shape or not finite.
    """
    if layout is not None and layout not in LAYOUTS:
        raise UserError(f"unknown layout {layout!r}; the known ones are {', '.join(LAYOUTS)}")
    parts = [_part(source, layout, part) for source in sources]
    left_out = tuple(dict.fromkeys(name for _, names in parts for name in names))
    layers = _merge([source for source, _ in parts])
    layout = layout or _layout_of(layers)
    layers = _join(layers, LAYOUTS[layout])
    expected, upsamplings = _expected(module)
    parameters, dense, problems = {}, [], []
    for name, arrays in layers.items():
        rule = next((r for r in LAYOUTS[layout].rules if re.fullmatch(r.pattern, name)), None)
        path = rule and rule.path and re.fullmatch(rule.pattern, name).expand(rule.path)
        if rule and not path:
            continue
        if path not in expected:
            shapes = ", ".join(str(array.shape) for array in arrays.values())
            problems.append(f"left over: {_title(name, arrays)} {shapes}")
            continue
        if path in parameters:
            problems.append(f"left over: {name}, as {path} is there already")
            continue
        parameters[path] = leaves = {}
        for part, shape in expected[path].items():
            if part not in arrays:
                if path not in upsamplings:
                    problems.append(f"missing: {part} of {name} {shape}")
                continue
            leaves[part] = _arrange(arrays[part], shape, rule.kind)
            if leaves[part] is None:
                problems.append(
                    f"other shape: {part} of {name} is {arrays[part].shape}, the network has "
                    f"{shape}"
                )
            elif not np.isfinite(leaves[part]).all():
                problems.append(f"not finite: {part} of {name}")
        problems += [
            f"left over: {part} of {name} {array.shape}"
            for part, array in arrays.items()
            if part not in expected[path]
        ]
        if any(array is None for array in leaves.values()) or not leaves:
            continue
        whole = leaves.keys() == expected[path].keys()
        if rule.kind == "offsets" and offsets_folded and whole:
            parameters[path] = _unfold_offsets(module, leaves)
        elif rule.kind == "torchvision" and whole:
            parameters[path] = _read_grey_levels(module, leaves)
        elif rule.kind == "upsample":
            if "kernel" not in leaves:
                problems.append(f"missing: kernel of {name}")
            elif _is_bilinear(leaves):
                parameters[path] = {}
            else:
                leaves.setdefault("bias", np.zeros(expected[path]["bias"], np.float32))
                dense.append(path)
    covered = re.compile(LAYOUTS[layout].covers)
    absent = [path for path in expected if path not in parameters]
    problems += [f"missing: {path}" for path in absent if covered.fullmatch(path)]
    if problems:
        raise UserError(
            f"the weights, read as {layout}, do not fit the network:\n  "
            + "\n  ".join(sorted(problems))
        )
    flat = {
        f"{path}/{part}": leaf
        for path, leaves in parameters.items()
        for part, leaf in leaves.items()
    }
    return Converted(
        traverse_util.unflatten_dict(flat, sep="/"),
        layout,
        tuple(name for name in upsamplings if name in dense),
        any(path not in upsamplings for path in absent),
        left_out,
    )


def _part(source, layout, part):
    """Return (the arrays of the network in a file, the first names of what else is in there)."""
    if any(isinstance(value, list) for value in source.values()):  # Caffe's, of a network alone
        return source, []
    # A part that torch.compile has compiled is the same.
    names = {name: re.sub(r"(?<=\.)_orig_mod\.", "", name) for name in source}
    prefix = _prefix(names.values(), layout) if part is None else f"{part.rstrip('.')}."
    chosen = {new: source[name] for name, new in names.items() if new.startswith(prefix)}
    if part is not None and not chosen:
        raise UserError(f"the file has no part {part!r}; it has {_firsts(names.values())}")
    if part is None and len(chosen) < len(names):
        # What lies beside the network in its container may belong to it.
        container = prefix.partition(".")[0] + "."
        if beside := [n for n in names.values() if n.startswith(container) and n not in chosen]:
            raise UserError(
                f"left over: {', '.join(beside[:8])}{', ...' * (len(beside) > 8)}, beside "
                f"{prefix}*: part={prefix[:-1]!r} leaves out what is not under that name"
            )
    unchosen = [name for name in names.values() if name not in chosen]
    return {name.removeprefix(prefix): array for name, array in chosen.items()}, _firsts(unchosen)


def _firsts(names):
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def _prefix(names, layout):
    """Return the prefix of the names that fit a layout: '', or names with a dot after each.

    Raises:
      UserError: where there are several.
    """
    layers = {name.rpartition(".")[0] for name in names}
    for candidate in [LAYOUTS[layout]] if layout else LAYOUTS.values():
        sign = re.compile(rf"((?:.*\.)?)(?:{candidate.sign})")
        prefixes = sorted({match[1] for match in map(sign.fullmatch, layers) if match})
        if "" in prefixes:
            return ""
        if len(prefixes) > 1:
            parts = " or ".join(prefix[:-1] for prefix in prefixes)
            raise UserError(f"the file holds several networks; choose one by part: {parts}")
        if prefixes:
            return prefixes[0]
    return ""


def _title(name, arrays):
    """Return what a layer is called; an array without a layer, such as a score, by its own name."""
    return name or ", ".join(arrays)


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
            earlier = merged.setdefault(name, arrays)
            if earlier is not arrays and (
                earlier.keys() != arrays.keys()
                or not all(np.array_equal(arrays[part], earlier[part]) for part in arrays)
            ):
                raise UserError(
                    f"layer {name} is not the same in two of the {len(sources)} files: they are "
                    "not of one network whose parts share their features"
                )
    return merged


def _join(layers, layout):
    """Return layers, with normalisations and PReLUs joined to those before them.

    Normalisation is folded into a kernel, and is else "scale" and "bias"; a PReLU is "slope".
    """
    joined, caffes = {}, set()
    for name, arrays in layers.items():
        arrays = {part: leaf for part, leaf in arrays.items() if part != "num_batches_tracked"}
        matches = ((re.fullmatch(pattern, name), target) for pattern, target in layout.joins)
        target = next((match.expand(target) for match, target in matches if match), None)
        if target is None:
            joined.setdefault(name, {}).update(arrays)
            continue
        layer = joined.setdefault(target, {})
        if arrays.keys() == {"kernel"}:
            layer["slope"] = arrays["kernel"]
            continue
        if "blob 2" in arrays or target in caffes:  # Caffe's BatchNorm, and the Scale after it
            arrays = _caffe_norm(name, arrays)
            caffes.add(target)
        _check_norm(name, arrays, layer)
        epsilons = (epsilon for pattern, epsilon in layout.epsilons if re.fullmatch(pattern, name))
        epsilon = np.float32(next(epsilons, _EPSILON))
        with np.errstate(all="ignore"):  # what is not finite is said in the end
            gain = arrays["kernel"] / np.sqrt(arrays["running_var"] + epsilon)
            shift = arrays["bias"] - arrays["running_mean"] * gain
            if "kernel" in layer:
                layer["kernel"] = layer["kernel"] * gain[:, None, None, None]
                layer["bias"] = layer.get("bias", 0) * gain + shift
            else:
                layer |= {"scale": gain, "bias": shift}
    return joined


def _check_norm(name, arrays, layer):
    """Raise UserError for arrays that are no batch normalisation, or not one of this layer."""
    if lacking := [part for part in _NORM if part not in arrays]:
        raise UserError(f"{name} is no batch normalisation: it has no {', '.join(lacking)}")
    shapes = {arrays[part].shape for part in _NORM} | {layer[p].shape for p in layer if p == "bias"}
    if len(shapes) > 1 or len(min(shapes)) != 1:
        raise UserError(f"{name} is no batch normalisation: its arrays are of {sorted(shapes)}")
    kernel = layer.get("kernel")
    if kernel is not None and (kernel.ndim != 4 or kernel.shape[:1] not in shapes):
        raise UserError(f"{name} has {min(shapes)} channels, the layer before has {kernel.shape}")


def _caffe_norm(name, arrays):
    """Return the blobs of a BatchNorm, or of the Scale after it, as torch names such arrays."""
    if lacking := {"kernel", "bias"} - arrays.keys():
        raise UserError(f"{name} is no BatchNorm or Scale: it has no {', '.join(lacking)}")
    first, second = arrays["kernel"].reshape(-1), arrays["bias"].reshape(-1)
    ones, zeros = np.ones_like(first), np.zeros_like(first)
    if "blob 2" not in arrays:
        still = ones - np.float32(_EPSILON)  # its root, with epsilon, is 1
        return {"kernel": first, "bias": second, "running_mean": zeros, "running_var": still}
    factor = arrays["blob 2"].reshape(-1)  # sums were stored, not means; 0: nothing was summed
    if factor.size != 1:
        raise UserError(f"{name} is no BatchNorm: its factor has {factor.size} values")
    scale = np.divide(1, factor, out=np.zeros_like(factor), where=factor != 0)
    statistics = {"running_mean": first * scale, "running_var": second * scale}
    return {"kernel": ones, "bias": zeros, **statistics}


def _layout_of(layers):
    """Return the name of the layout that a file's layers have."""
    for name, layout in LAYOUTS.items():
        if any(re.fullmatch(layout.sign, layer) for layer in layers):
            return name
    names = ", ".join(_title(*layer) for layer in list(layers.items())[:8])
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


def _arrange(array, shape, kind):
    """Return an array in the shape that is wanted, or None where it has another one."""
    array = array.astype(np.float32)
    if len(shape) == 1:
        vectors = (shape, (1, 1, 1, *shape))
        return array.reshape(shape) if array.shape in vectors else None
    if kind == "upsample":
        height, width, channels, features = shape
        if array.shape == (channels, 1, height, width) != (channels, features, height, width):
            # One filter for each channel, which Caffe has with group = channels.
            array = array * np.eye(channels, dtype=np.float32)[:, :, None, None]
        if array.shape != (channels, features, height, width):
            return None
        return np.ascontiguousarray(array.transpose(2, 3, 0, 1))
    *window, channels, features = shape  # no window: an inner product
    stored = (features, channels, *window)
    products = [(features, array.size // features), (1, 1, features, array.size // features)]
    shapes = {"patch": [stored, *products], "dense": products, "offsets": products}
    if array.shape not in shapes.get(kind, [stored]) or array.size != np.prod(shape):
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
    """Return whether an upsampling equals `operations.upsample`.

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
