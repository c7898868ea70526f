"""What an attack on full-size networks costs: seconds of an iteration, of compiling, and memory.

    python -m experiments.full_size --images=one.jpg,two.jpg
    python -m experiments.full_size --images=one.jpg --models=fr_vgg_07 --proposals=300
    python -m experiments.full_size --images=one.jpg --checkpoints=<folder of <network>.safetensors>

One case for each network and photograph, of a detector one for each number of --proposals too.
Without --checkpoints the weights are random: the work is the same, what the networks see means
nothing. A random detector's proposals are its anchors, as random offsets would throw nearly all
boxes out of the image. The targets are what the network itself says of the clean photograph: the
class of every pixel, or of every proposal at an NMS threshold of 0.9, background included.

Every target stays active by a margin that no label loses by, so that the figures are the upper
bound of the paper's attack, whose targets rest once they are fooled. A detector has a second row:
the same program from the clean photograph over and over, with every twentieth proposal active.
Iterations are timed one by one: each is a call of the compiled loop that makes one iteration.

Each case runs in a process of its own, so that the peak of the memory is that case's: on a CPU the
largest resident set of the process while the attack is compiled and runs, else the most that the
device's allocator held.

Results go to --workdir: full_size.md, full_size.json, and a file for each case (cases/). The same
command goes on where a killed one stopped; a folder with results of other settings, or of another
device, is refused.
"""

import hashlib
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image

from dag_jax import networks
from dag_jax.datasets import photographs
from dag_jax.errors import UserError
from dag_jax.networks import zoo
from dag_jax.progress import progress
from dag_jax.report import tables
from dag_jax.runs import evaluation, rundir
from experiments.common import console, options
from experiments.measure import child, cost

ENVIRONMENT = "environment"  # the --case that measures nothing


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


FLAGS = flags.FLAGS
flags.DEFINE_list("images", None, "Photographs: JPEG, PNG, anything that Pillow reads.")
flags.mark_flag_as_required("images")
flags.DEFINE_list("proposals", ["300", "3000"], "The most proposals of a detector, one case each.")
flags.DEFINE_string("fcn_size", "375x500", "HxW: scale to these pixels for an FCN; 0: as it is.")
flags.DEFINE_string("detector_size", "600x1000", "The same for a detector.")
flags.DEFINE_integer("steps", 20, "Iterations to time, which are the steps of the attack.", 1)
options.define(
    __name__,
    *("models", "checkpoints", "miniature", "seed", "workdir"),
    models=["fcn_vgg", "fr_vgg_07"],
    miniature=False,
    workdir="runs/full_size",
)
flags.DEFINE_string("case", None, "For the launch's own use: measure this case, print its rows.")
options.check(options.not_empty, "images")
options.check(options.whole_numbers, "proposals")
options.check(parse_size, "fcn_size", "detector_size")


def scale(pixels, size):
    """Return an image u8[H, W, 3] scaled to size (H, W), or as it is where that is None."""
    if size is None:
        return pixels
    return np.array(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))


def gib(name):
    """Return the text of a row's memory."""
    return lambda row: "-" if row[name] is None else f"{row[name]:.2f}"


def image_text(row):
    """Return the name and size of a row's image, and that which a detector gives it inside."""
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
    ("network", lambda row: evaluation.TITLES[row["network"]]),
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
    found = settings[ENVIRONMENT]
    on_cpu = rows[0]["peak_of"] == "process"
    random = None in settings["weights_sha256"].values()
    notes = [
        f"{kind.capitalize()}, {'random weights' if random else 'weights of checkpoints'}. Device: "
        f"{found['device']}; CPU cores: {found['cores']}; jax {found['versions']['jax']}, Python "
        f"{found['versions']['python']}.",
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
    console.check_names("models", FLAGS.models, networks.NAMES)
    sizes = {False: parse_size(FLAGS.fcn_size), True: parse_size(FLAGS.detector_size)}
    proposals = options.whole_numbers(FLAGS.proposals)
    images = [photographs.read_photograph(path) for path in FLAGS.images]
    checkpoints = {
        name: pathlib.Path(FLAGS.checkpoints or zoo.CHECKPOINTS) / f"{name}.safetensors"
        if FLAGS.miniature or FLAGS.checkpoints
        else None
        for name in FLAGS.models
    }
    for path in filter(None, checkpoints.values()):
        if not path.is_file():
            raise UserError(f"{path}: no such checkpoint file")
    cases = {}
    for name in FLAGS.models:
        for number, photograph in enumerate(images, start=1):
            for most in proposals if name.startswith("fr_") else [None]:
                case = f"{name}_image{number}" + (f"_{most}" if most else "")
                cases[case] = name, photograph, most

    def load(name):
        network = networks.load(name, miniature=FLAGS.miniature, checkpoint=checkpoints[name])
        if network.detects and checkpoints[name] is None:
            network.parameters["rpn_bbox_pred"] = jax.tree.map(
                jnp.zeros_like, network.parameters["rpn_bbox_pred"]
            )
        return network

    # 2. In a child: one case, or what runs here and whether the checkpoints do.
    if FLAGS.case == ENVIRONMENT:
        for name, path in checkpoints.items():
            if path:
                load(name)
        print(json.dumps(child.environment()))
        return
    if FLAGS.case:
        name, photograph, most = cases[FLAGS.case]
        network = load(name)
        rows = cost.measure(
            network,
            scale(photograph.pixels, sizes[network.detects]),
            pathlib.Path(photograph.name).stem,
            proposals=most,
            steps=FLAGS.steps,
            seed=FLAGS.seed,
            label=FLAGS.case,
        )
        print(json.dumps([{"image": photograph.name, **row} for row in rows]))
        return

    # 3. In the parent, which leaves the device alone: a case at a time; a finished one is kept.
    settings = options.settings(__name__, without=("workdir", "checkpoints", "case"))
    settings |= {
        "images": [photograph.name for photograph in images],
        "images_sha256": [photograph.sha256 for photograph in images],
        "weights_sha256": {
            name: path and hashlib.sha256(path.read_bytes()).hexdigest()
            for name, path in checkpoints.items()
        },
        ENVIRONMENT: child.call("full_size", ENVIRONMENT),
    }
    workdir = rundir.claim(FLAGS.workdir, settings)
    (workdir / "cases").mkdir(exist_ok=True)
    rows = []
    with progress(cases, unit="case") as bar:
        for case in bar:
            bar.set_description(case)
            path = workdir / "cases" / f"{case}.json"
            if not path.exists():
                rundir.write(path, json.dumps(child.call("full_size", case), indent=2) + "\n")
            of_case = json.loads(path.read_text())
            rows += of_case
            times = ", ".join(f"{seconds_text(row)} with {row['active']} active" for row in of_case)
            peak = gib("peak_gib")(of_case[-1])
            bar.write(f"{case}: seconds an iteration {times}; peak {peak} GiB", file=sys.stderr)

    # 4. The table.
    text = report(rows, settings)
    rundir.write(workdir / "full_size.md", text)
    content = {"settings": settings, "rows": rows}
    rundir.write(workdir / "full_size.json", json.dumps(content, indent=2) + "\n")
    print(text)
    print(f"results: {workdir}/")


if __name__ == "__main__":
    console.run(main)
