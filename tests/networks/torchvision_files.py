"""Checkpoints as torchvision names them, with random numbers, and an image to look at."""

import re
import zlib

import numpy as np

# MobileNetV3's Table 1: kernel, expanded, features, squeezed to (0: not).
ROWS = (
    *((3, 16, 16, 0), (3, 64, 24, 0), (3, 72, 24, 0), (5, 72, 40, 24), (5, 120, 40, 32)),
    *((5, 120, 40, 32), (3, 240, 80, 0), (3, 200, 80, 0), (3, 184, 80, 0), (3, 184, 80, 0)),
    *((3, 480, 112, 120), (3, 672, 112, 168), (5, 672, 160, 168), (5, 960, 160, 240)),
    (5, 960, 160, 240),
)


def look(height, width):
    """An image: smooth colours, edges and noise, in grey levels."""
    row, column = np.mgrid[:height, :width] / 96
    waves = [np.sin(9 * column + 3 * row), np.cos(7 * row), np.sign(np.sin(15 * row * column))]
    noise = np.random.default_rng(0).uniform(-20, 20, (height, width, 3))
    return np.clip(128 + 90 * np.stack(waves, -1) + noise, 0, 255).astype(np.float32)


def conv(name, out, inputs, size=1, bias=False):
    yield f"{name}.weight", (out, inputs, size, size)
    if bias:
        yield f"{name}.bias", (out,)


def norm(name, count):
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (count,)
    yield f"{name}.num_batches_tracked", ()


def both(first, second, out, inputs, size=1):
    yield from conv(first, out, inputs, size)
    yield from norm(second, out)


def pair(name, *numbers):
    yield from both(f"{name}.0", f"{name}.1", *numbers)


def resnet(prefix, blocks, stem=64):
    """Names and shapes of a residual trunk."""
    yield from both(f"{prefix}.conv1", f"{prefix}.bn1", stem, 3, 7)
    inputs = stem
    for layer, count in enumerate(blocks, start=1):
        width = stem // 2 * 2**layer
        for block in range(count):
            path = f"{prefix}.layer{layer}.{block}"
            for number, size in enumerate((1, 3, 1), start=1):
                out = width * (4 if number == 3 else 1)
                source = inputs if number == 1 else width
                yield from both(f"{path}.conv{number}", f"{path}.bn{number}", out, source, size)
            if not block:
                yield from pair(f"{path}.downsample", 4 * width, inputs)
            inputs = 4 * width


def segmenter(name):
    """Names and shapes of a segmenter: layer by layer, and what each is."""
    if "resnet" in name:
        yield from resnet("backbone", (3, 4, 23 if "101" in name else 6, 3))
        inputs, auxiliary = 2048, 1024
    else:
        yield from pair("backbone.0", 16, 3, 3)
        inputs, auxiliary = 16, 40
        for number, (size, wide, out, squeezed) in enumerate(ROWS, start=1):
            path, place = f"backbone.{number}.block", 0
            if wide != inputs:
                yield from pair(f"{path}.0", wide, inputs)
                place = 1
            yield from pair(f"{path}.{place}", wide, 1, size)
            if squeezed:
                place += 1
                yield from conv(f"{path}.{place}.fc1", squeezed, wide, bias=True)
                yield from conv(f"{path}.{place}.fc2", wide, squeezed, bias=True)
            yield from pair(f"{path}.{place + 1}", out, wide)
            inputs = out
        yield from pair("backbone.16", 960, 160)
        inputs = 960
    if "lraspp" in name:
        yield from pair("classifier.cbr", 128, 960)
        yield from conv("classifier.scale.1", 128, 960)
        yield from conv("classifier.low_classifier", 21, 40, bias=True)
        yield from conv("classifier.high_classifier", 21, 128, bias=True)
        return
    if "fcn" in name:
        yield from pair("classifier", inputs // 4, inputs, 3)
        yield from conv("classifier.4", 21, inputs // 4, bias=True)
    else:
        for view, size in enumerate((1, 3, 3, 3)):
            yield from pair(f"classifier.0.convs.{view}", 256, inputs, size)
        yield from both("classifier.0.convs.4.1", "classifier.0.convs.4.2", 256, inputs)
        yield from pair("classifier.0.project", 256, 5 * 256)
        yield from both("classifier.1", "classifier.2", 256, 256, 3)
        yield from conv("classifier.4", 21, 256, bias=True)
    yield from pair("aux_classifier", auxiliary // 4, auxiliary, 3)
    yield from conv("aux_classifier.4", 21, auxiliary // 4, bias=True)


def detector(name, *, blocks=(3, 4, 6, 3), stem=64, width=256, fc_width=1024, outputs=91):
    """Names and shapes of a detector; a smaller one has fewer blocks and channels."""
    for key, shape in resnet("backbone.body", blocks, stem):
        if not key.endswith("num_batches_tracked"):  # its normalisation is frozen
            yield key, shape
    retina = name.startswith("retinanet")
    for kind in ("inner", "layer"):
        for block in range(4 - retina):
            inputs = stem * 2 ** (block + 2 + retina)
            size = (1, inputs) if kind == "inner" else (3, width)
            path = f"backbone.fpn.{kind}_blocks.{block}.0"
            yield from conv(path, width, size[1], size[0], bias=True)
    if retina:
        for block in ("p6", "p7"):
            yield from conv(f"backbone.fpn.extra_blocks.{block}", width, width, 3, bias=True)
        heads = ("classification", "cls_logits", 9 * outputs), ("regression", "bbox_reg", 36)
        for kind, last, features in heads:
            for number in range(4):
                yield from conv(f"head.{kind}_head.conv.{number}.0", width, width, 3, bias=True)
            yield from conv(f"head.{kind}_head.{last}", features, width, 3, bias=True)
        return
    yield from conv("rpn.head.conv.0.0", width, width, 3, bias=True)
    yield from conv("rpn.head.cls_logits", 3, width, bias=True)
    yield from conv("rpn.head.bbox_pred", 12, width, bias=True)
    for name, out, inputs in (
        ("box_head.fc6", fc_width, 49 * width),
        ("box_head.fc7", fc_width, fc_width),
        ("box_predictor.cls_score", outputs, fc_width),
        ("box_predictor.bbox_pred", 4 * outputs, fc_width),
    ):
        yield f"roi_heads.{name}.weight", (out, inputs)
        yield f"roi_heads.{name}.bias", (out,)


def old_names(arrays):
    """Return a detector's arrays by the names that older files have, the published ones too."""
    renamed = {}
    for key, array in arrays.items():
        key = re.sub(r"(_blocks\.\d)\.0", r"\1", key).replace("rpn.head.conv.0.0", "rpn.head.conv")
        key = re.sub(r"(_head\.conv)\.(\d)\.0", lambda m: f"{m[1]}.{2 * int(m[2])}", key)
        renamed[key] = array
    return renamed


# Of random weights, so that neither boxes nor probabilities are extreme.
SCALES = {
    **{"rpn.head.bbox_pred": 0.03, "rpn.head.cls_logits": 0.2},
    **{"roi_heads.box_predictor.cls_score": 0.15, "roi_heads.box_predictor.bbox_pred": 0.1},
    **{"head.classification_head.cls_logits": 0.08, "head.regression_head.bbox_reg": 0.05},
}


def drawn(name, names_and_shapes):
    """A state_dict, drawn anew from one seed."""
    rng, arrays = np.random.default_rng(zlib.crc32(name.encode())), {}
    for key, shape in names_and_shapes:
        if not shape:
            arrays[key] = np.array(7)
            continue
        if len(shape) in (2, 4):
            array = rng.standard_normal(shape, np.float32) * (2 / np.prod(shape[1:])) ** 0.5
        elif key.endswith(("running_var", "weight")):
            array = rng.uniform(0.3, 1.2, shape)
        else:
            array = rng.normal(0, 0.3, shape)
        arrays[key] = (array * SCALES.get(key.rpartition(".")[0], 1)).astype(np.float32)
    return arrays
