"""What an attack on full-size networks costs: seconds of an iteration, of compiling, and memory.

    python -m experiments.full_size --images=one.jpg,two.jpg
    python -m experiments.full_size --images=one.jpg --models=fr_vgg_07 --proposals=300
    python -m experiments.full_size --images=one.jpg --weights_dir=<folder of weights>
    python -m experiments.full_size --images=one.jpg --models=my_package.my_module:load

There is a case for each model and photograph. A detector has one for each number of --proposals, or
one with its own number if its `propose` takes no `max_proposals`. Without --weights_dir the
networks' weights are random: the work is the same, the predictions mean nothing. A random
detector's proposals are its anchors, as random offsets would move nearly all boxes out of the
image. The labels are the model's own predictions on the clean photograph: the class of every pixel,
or of every candidate, background included.

The margin is so large that every target stays active. The figures are thus an upper bound for the
paper's attack, whose targets rest once they are fooled. A detector has a second row: the same
program, always from the clean photograph, with every twentieth proposal active. Iterations are
timed one by one: each is a call of the compiled loop that makes one iteration.

Each case runs in a process of its own, so that the memory's peak is that case's. On a CPU it is the
largest resident set of the process while the attack is compiled and runs, else the most that the
device's allocator held.

Results go to --workdir: full_size.md, full_size.json, and a file for each case (cases/). The same
command goes on where a killed one stopped; a folder with results of other settings, or of another
device, is refused.
"""

import functools
import inspect
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image

from dag_jax import files, models, networks
from dag_jax.datasets import photographs
from dag_jax.errors import UserError
from dag_jax.report import tables
from dag_jax.runs import rundir
from experiments.common import console, inputs, options
from experiments.measure import child, cost

ENVIRONMENT = "environment"  # the --case that measures nothing
CASE = re.compile(r"(.+)_image([1-9]\d{0,8})(?:_(\d{1,9}))?")  # model, photograph, proposals


def parse_size(text):
    """Return (H, W) of a flag's text, or None where photographs stay as they are."""
    if text == "0":
        return None
    match = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text)
    if not match:
        raise UserError("must be HxW in pixels, such as 375x500, or 0")
    size = tuple(map(int, match.groups()))
    least, most = photographs.MIN_SIDE, options.SIDES[1]
    if min(size) < least or max(size) > most:
        raise UserError(f"a network takes {least} to {most} pixels a side")
    return size


def check_case(text):
    """Raise UserError for a --case that is none."""
    if text != ENVIRONMENT and not CASE.fullmatch(text):
        raise UserError("is for the launch's own use")


FLAGS = flags.FLAGS
options.strings("images", None, "Photographs: JPEG, PNG, anything that Pillow reads.")
flags.mark_flag_as_required("images")
options.strings(
    "proposals",
    ["300", "3000"],
    "The most proposals of a detector, one case each.",
    options.whole_numbers,
)
options.string(
    "segmenter_size",
    "375x500",
    "HxW: scale to these pixels for a segmenter; 0: as it is.",
    parse_size,
)
options.string("detector_size", "600x1000", "The same for a detector.", parse_size)
options.integer("steps", 20, "Iterations to time, which are the steps of the attack.")
options.define(
    __name__,
    *("models", "weights_dir", "miniature", "precision", "seed", "workdir"),
    models=["fcn_vgg", "fr_vgg_07"],
    miniature=False,
    workdir="runs/full_size",
)
options.string(
    "case",
    None,
    "For the launch's own use: measure this case, print its rows.",
    check_case,
)


def is_random(name):
    """Return whether a model has random weights: a full-size network without a checkpoint."""
    small = FLAGS.miniature and name in networks.MINIATURES
    return not (":" in name or small or FLAGS.weights_dir)


def load(name):
    """Return (model, SHA-256 of its weights, None if they are random)."""
    if not is_random(name):
        return inputs.load_model(name)
    network = networks.load(name, random=True, precision=FLAGS.precision)
    if models.about(network).detects:
        offsets = jax.tree.map(jnp.zeros_like, network.parameters["rpn_bbox_pred"])
        network.parameters["rpn_bbox_pred"] = offsets
    return network, None


def facts_of(name):
    """Return what the cases of a model depend on, as JSON can hold it."""
    if is_random(name):
        model, sha256 = jax.eval_shape(functools.partial(networks.load, name, random=True)), None
    else:
        model, sha256 = load(name)
    detects = models.about(model).detects
    chosen = detects and "max_proposals" in inspect.signature(model.propose).parameters
    return {"detects": detects, "chosen_proposals": chosen, "weights_sha256": sha256}


def measure(case, images):
    """Return the rows of a case, a name of `main`'s, as a dict that JSON can hold."""
    name, number, most = CASE.fullmatch(case).groups()
    if int(number) > len(images):
        raise UserError(f"--case={case} of {len(images)} of --images")
    photograph, (model, _) = images[int(number) - 1], load(name)
    size = FLAGS.detector_size if models.about(model).detects else FLAGS.segmenter_size
    rows = cost.measure(
        model,
        scale(photograph.pixels, parse_size(size)),
        pathlib.Path(photograph.name).stem,
        proposals=most and int(most),
        steps=FLAGS.steps,
        seed=FLAGS.seed,
        label=case,
    )
    return {"rows": [{"network": name, "image": photograph.name, **row} for row in rows]}


def scale(pixels, size):
    """Return an image u8[H, W, 3] scaled to size (H, W), or as it is where that is None."""
    if size is None:
        return pixels
    return np.array(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))


def gib(name):
    """Return the text of a row's memory."""
    return lambda row: "-" if row[name] is None else f"{row[name]:.2f}"


def image_text(row):
    """Return the name and size of a row's image, and the size that a detector scales it to."""
    text = f"{row['image']} {'x'.join(map(str, row['size']))}"
    inside = row["canvas"]
    return text if inside in (None, row["size"]) else f"{text} ({'x'.join(map(str, inside))})"


def seconds_text(row):
    """Return the median and range of a row's iterations."""
    seconds = row["iteration_seconds"]
    if not seconds:
        return "-"
    median = row["iteration_seconds_median"]
    return f"{median:.3g} ({min(seconds):.3g} to {max(seconds):.3g})"


def left_text(row):
    """Return the targets active by the paper's rule, on the clean image and after the last step."""
    if row["active_last"] is None:
        return "-"
    return f"{row['active_clean']} to {row['active_last']}"


def largest_text(row):
    """Return the largest value of r."""
    if row["largest"] is None:
        return "-"
    return f"{row['largest']:.1f}" if row["perturbation_finite"] else "not finite"


COLUMNS = (
    ("network", lambda row: row["title"]),
    ("image", image_text),
    ("proposals", lambda row: str(row["proposals"] or "-")),
    ("targets", lambda row: str(row["targets"])),
    ("active", lambda row: str(row["active"])),
    ("trace s", lambda row: f"{row['trace_seconds']:.1f}"),
    ("compile s", lambda row: f"{row['compile_seconds']:.1f}"),
    ("iterations", lambda row: str(row["iterations"])),
    ("iteration s", seconds_text),
    ("arguments", gib("arguments_gib")),
    ("outputs", gib("outputs_gib")),
    ("temporaries", gib("temporaries_gib")),
    ("peak before", gib("peak_before_gib")),
    ("held", gib("held_gib")),
    ("peak", gib("peak_gib")),
    ("margin 0", left_text),
    ("largest", largest_text),
)


def report(rows, settings):
    """Return full_size.md."""
    kind = "miniatures" if settings["miniature"] else "full-size networks"
    environment = settings[ENVIRONMENT]
    versions = environment["versions"]
    on_cpu = rows[0]["peak_of"] == "process"
    random = None in settings["weights_sha256"].values()
    notes = [
        f"{kind.capitalize()}, {'random weights' if random else 'weights of checkpoints'}. Device: "
        f"{environment['device']}; CPU cores: {environment['cores']}; jax {versions['jax']}, "
        f"Python {versions['python']}.",
        "active: targets whose gradient is taken; by a margin that no label loses by, these are "
        "all. The second row of a detector: the same program with every twentieth target active.",
        "iteration s: median (range), one iteration a call of the compiled loop. image: its "
        "height x width, and in brackets those that the detector scales it to.",
        "Memory in GiB. arguments (the weights in use among them), outputs, temporaries: the "
        "compiler's account of the loop. Measured, of the " + rows[0]["peak_of"] + ": peak before, "
        "while weights were made or read and the clean image predicted; held, after that; peak, "
        "while the attack was compiled and ran"
        + ("." if on_cpu else ", or before, where that was more."),
        "margin 0: targets active by the paper's rule, on the clean image and after the last step. "
        "largest: of r, in grey levels.",
    ]
    text = "\n".join(f"{note}  " for note in notes)
    return f"# Cost of an attack ({kind})\n\n{text}\n\n{tables.markdown(rows, COLUMNS)}\n"


def main(argv):
    """Measure each case in a process of its own, print the table, write everything."""
    console.start(argv)
    # A compilation that another run left would be no compilation.
    jax.config.update("jax_enable_compilation_cache", False)

    # 1. Everything that can be wrong is read before any long work.
    proposals = options.whole_numbers(FLAGS.proposals)
    images = [photographs.read_photograph(path) for path in FLAGS.images]

    # 2. In a child: one case, or what runs here and which models.
    if FLAGS.case == ENVIRONMENT:
        facts = {name: facts_of(name) for name in FLAGS.models}
        print(json.dumps([child.environment(), facts]))
        return
    if FLAGS.case:
        print(json.dumps(measure(FLAGS.case, images)))
        return

    # 3. In the parent, which leaves the device alone: a case at a time; a finished one is kept.
    environment, facts = child.call("full_size", ENVIRONMENT)
    settings = options.settings(__name__, without=("workdir", "weights_dir", "case"))
    settings |= {
        "images": [photograph.name for photograph in images],
        "images_sha256": [photograph.sha256 for photograph in images],
        "weights_sha256": {name: facts[name]["weights_sha256"] for name in facts},
        ENVIRONMENT: environment,
    }
    workdir = rundir.claim(FLAGS.workdir, settings)
    cases = [
        f"{name}_image{number}" + (f"_{most}" if most else "")
        for name in facts
        for number in range(1, len(images) + 1)
        for most in (proposals if facts[name]["chosen_proposals"] else [None])
    ]
    rows = []
    for case, content in child.measured("full_size", workdir / "cases", cases):
        times = ", ".join(
            f"{seconds_text(row)} with {row['active']} active" for row in content["rows"]
        )
        peak = gib("peak_gib")(content["rows"][-1])
        console.say(f"{case}: seconds an iteration {times}; peak {peak} GiB")
        rows += content["rows"]

    # 4. The table.
    text = report(rows, settings)
    files.write(workdir / "full_size.md", text)
    files.write_json(workdir / "full_size.json", {"settings": settings, "rows": rows})
    print(text)
    print(f"results: {workdir}/")


if __name__ == "__main__":
    console.run(main)
