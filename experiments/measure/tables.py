"""The benchmark's report: a table for each part, with its control."""

import importlib.util

from dag_jax.report import tables

# What a part needs: its module, its name, and the extra that brings it.
NEEDS = {
    "torch": ("torch", "PyTorch", "torch"),
    "peers": ("adv_lib", "adversarial-library", "peers"),
}


def absent(part) -> str | None:
    """Return why a part is left out and what to install, or None."""
    if part not in NEEDS:
        return None
    module, name, extra = NEEDS[part]
    if importlib.util.find_spec(module) is None:
        return f"{name} is not installed (pip install -e '.[{extra}]')"
    return None


def _number(name, form=".3g", scale=1):
    """Return the function of a row that formats one of its numbers, '-' where there is none."""

    def text(row):
        return "-" if row.get(name) is None else f"{row[name] * scale:{form}}"

    return text


def _percent(name):
    return _number(name, ".0%")


def _range(row):
    if "range" not in row:
        return "-"
    low, high = row["range"]
    return f"{low:.2f} to {high:.2f}"


def _steps(row):
    return "-" if "steps" not in row else "{:g}, {:g}".format(*row["steps"])


def _finished(row):
    return "{:.0%}, {:.0%}".format(*row["finished"])


def _agreement(row):
    """Return the agreement of both attacks as text: of their steps, or of one step's change."""
    if "difference" in row:
        return f"{row['difference']:.1e} grey levels"
    return f"{row['same_steps']:.0%} the same, most {row['most_apart']} apart"


_CASE = ("case", lambda row: row["case"])
_RANGE = ("range", _range)
COLUMNS = {
    "engine": (
        _CASE,
        ("engine ms", _number("engine_ms", ".2f")),
        ("bare ms", _number("bare_ms", ".2f")),
        ("engine / bare", _number("ratio", ".3f")),
        _RANGE,
        ("iterations", _number("iterations", "d")),
        ("pairs", _number("pairs", "d")),
    ),
    "work": (
        _CASE,
        ("of", lambda row: row["iteration"]),
        ("GFLOP", _number("flops", ".4g", 1e-9)),
        ("control", lambda row: row["control"]),
        ("its GFLOP", _number("control_flops", ".4g", 1e-9)),
        ("ratio", _number("ratio", ".4f")),
    ),
    "stream": (
        _CASE,
        ("stream images/s", _number("stream")),
        ("lockstep images/s", _number("lockstep")),
        ("gain", _number("gain", ".3f")),
        _RANGE,
        ("best gain", _number("best", ".3f")),
        ("share", _percent("share")),
        ("busy", _percent("busy")),
        ("iterations", _number("iterations", "g")),
        ("steps", _agreement),
    ),
    "device": (
        _CASE,
        ("precision", lambda row: row["precision"]),
        ("slots", _number("slots", "d")),
        ("images/s", _number("rate")),
        ("of the peak", _percent("utilisation")),
        ("peak GFLOP/s", _number("peak", ".0f", 1e-9)),
        ("idle", _number("idle", ".1%")),
        ("host ms an image", _number("host_ms")),
        ("MiB a slot", _number("slot_mib")),
        ("compile s", _number("compile_seconds")),
    ),
    "layers": (
        _CASE,
        ("part", lambda row: row["part"]),
        ("ms", _number("ms")),
        ("of the time", _percent("time")),
        ("MFLOP", _number("flops", ".4g", 1e-6)),
        ("of the peak", _percent("peak")),
        ("pairs", _number("pairs", "d")),
    ),
    "torch": (
        _CASE,
        ("unit", lambda row: row["unit"]),
        ("ours", _number("ours")),
        ("PyTorch", _number("torch")),
        ("times as fast", _number("ratio", ".2f")),
        _RANGE,
        ("M_0", _number("max_steps", "d")),
        ("slots", _number("slots", "d")),
        ("batch", _number("batch", "d")),
        ("median steps", _steps),
        ("agreement", _agreement),
    ),
    "peers": (
        _CASE,
        ("cores", _number("cores", "d")),
        ("steps are", lambda row: row["method"]),
        ("ours", _number("ours")),
        ("adversarial-library", _number("peer")),
        ("times as fast", _number("ratio", ".2f")),
        _RANGE,
        ("pairs", _number("pairs", "d")),
        ("slots", _number("slots", "d")),
        ("batch", _number("batch", "d")),
        ("median steps", _steps),
        ("finished", _finished),
    ),
    "adapters": (
        _CASE,
        ("via", lambda row: row["via"]),
        ("ours ms", _number("engine_ms", ".1f")),
        ("its own ms", _number("bare_ms", ".1f")),
        ("ours / its own", _number("ratio", ".2f")),
        _RANGE,
        ("iterations", _number("iterations", "d")),
        ("pairs", _number("pairs", "d")),
    ),
    "precision": (
        _CASE,
        ("ORIG", _number("orig", ".2f")),
        ("ADVR", _number("advr", ".2f")),
        ("steps", _number("steps", "g")),
        ("apart", _number("steps_apart", "g")),
        ("p x1000", _number("perceptibility", ".2f", 1000)),
        ("fooled float", _percent("fooled_float")),
        ("s an image", _number("seconds")),
    ),
    "kernels": (
        _CASE,
        ("plain ms", _number("plain_ms")),
        ("ours ms", _number("ours_ms")),
        ("plain / ours", _number("ratio")),
        _RANGE,
        ("difference", _number("difference", ".1e")),
        ("pairs", _number("pairs", "d")),
    ),
    "scaling": (
        ("curve", lambda row: row["curve"]),
        ("network", lambda row: row["network"]),
        ("px", _number("size", "d")),
        ("proposals", _number("proposals", "d")),
        ("batch", _number("lanes", "d")),
        ("ms", _number("seconds", ".4g", 1000)),
        ("GFLOP", _number("flops", ".4g", 1e-9)),
        ("temporaries MiB", _number("temporaries_mib", ".4g")),
    ),
}
TITLES = {
    "engine": "Engine: an iteration of the attack against a bare gradient",
    "work": "Work: flops by the compiler's account",
    "stream": "Stream: refilled slots against lockstep batches",
    "device": "Device: the stream's part of the matrix peak, and waiting",
    "layers": "Layers: an iteration's parts against the matrix peak",
    "torch": "PyTorch: the same attack in its eager mode",
    "peers": "Peers: adversarial-library's own attack",
    "adapters": "Adapters: networks of PyTorch, Keras and Flax NNX against themselves",
    "precision": "Precision: the same weights in bfloat16 and float32",
    "kernels": "Kernels: layers as they are here against XLA's plain form",
    "scaling": "Scaling: an iteration against batch, image size and proposals",
}
NOTES = {
    "engine": "Milliseconds of an iteration: inside the engine's compiled loop, and of a jitted "
    "value-and-gradient of the same loss that Python calls. Aim: 1.05 where an iteration takes "
    "100 ms or more.",
    "work": "Nothing is run. The control is the network's forward pass and the gradient of the "
    "margins with respect to the image; of an FCN also an iteration that computes every cell of "
    "its padded maps. A loop's body counts once, on both sides.",
    "stream": "Both attack all images to completion on the same devices, with the same slots. gain "
    "and its share of the best: of the whole runs; range: of the turns they took. best gain: slots "
    "x the sum of each batch's longest iterations / the sum of all iterations. busy: share of "
    "slot-iterations with an image under way, until the input ended. Aims: share 85%, busy 90%.",
    "device": "The stream attacks all images to completion, targets computed meanwhile. of the "
    "peak: flops a second of the layers' products, forward and backward, while the devices worked, "
    "against a large product of matrices in that precision on all devices (median of some before "
    "and after). idle: share of the time that the devices waited between chunks; host ms: the same "
    "for each image. MiB a slot: by the compiler's account of a chunk, without weights. compile s: "
    "of the chunk, lowering included, from no cache.",
    "layers": "All devices at once, each with an image: an iteration inside the engine's loop, and "
    "value and gradient of each layer in a loop of its own, in turns with a product of matrices. "
    "MFLOP: of the layers' products, forward and backward.",
    "torch": "Images per second to completion, each side with the number of images at a time that "
    "suits it best; ratio: of the whole runs, range: of the turns. PyTorch's batch shrinks as "
    "images finish and is not refilled. Full-size networks have random weights, attack what they "
    "see themselves, and all images run to the last step. An iteration alone is the median of "
    "pairs, on one image. agreement: of the steps image by image, or of one step's change. Aim: "
    "1.5.",
    "peers": "Images per second until 99% of each image's pixels are wrong, each side with the "
    "number of images at a time that suits it best; ratio: median of pairs of whole runs. Same "
    "weights, images, labels and loss (the best other class); theirs has the paper's steps. A CPU "
    "has rows of one core, too, by CPU seconds. Behind a comma: theirs. Aims on one core, "
    "the paper's steps: 1.5 FCN-Alex, 1.2 FCN-VGG; clipped: 4.",
    "adapters": "Milliseconds of an iteration: inside the engine's compiled loop, where PyTorch is "
    "called back or compiled into JAX; of the framework's own forward pass and gradient, in "
    "PyTorch's eager mode, of Keras and NNX compiled. Random weights; every target stays active.",
    "precision": "mIoU in percent of the clean (ORIG) and adversarial images (ADVR), each network "
    "on its own. steps: median; apart: median distance from the first row's, image by image; p: "
    "mean perceptibility; s an image: from one finished image to the next, its targets, PNG and "
    "record included.",
    "kernels": "Milliseconds of value and gradient with respect to the map; the gradient of the "
    "last one is that inside a compiled loop, where XLA's form is slow. difference: the largest of "
    "both, relative to the largest value.",
    "scaling": "One compiled iteration on one device, with all targets active. temporaries: by the "
    "compiler's account, without arguments.",
}


def report(parts: dict, environment: dict, plots) -> str:
    """Return benchmark.md.

    Args:
      parts: of each part {"rows", "minutes"}, or {"absent": why it was left out}.
      environment: from `child.environment`.
      plots: names of PNGs.
    """
    versions = environment["versions"]
    lines = [
        "# Benchmark",
        f"Device: {environment['device']}; CPU cores: {environment['cores']}; jax "
        f"{versions['jax']}, Python {versions['python']}. A figure and its control ran in turns in "
        "one process; figures are medians of the pairs, beside their range.",
    ]
    for part, content in parts.items():
        lines.append(f"## {TITLES[part]}")
        if "absent" in content:
            lines.append(f"Left out: {content['absent']}.")
            continue
        lines += [NOTES[part], tables.markdown(content["rows"], COLUMNS[part])]
    lines += [f"![{name}]({name})" for name in plots]
    return "\n\n".join(lines) + "\n"
