"""How fast the attack is on this machine, each figure beside its control.

    python -m experiments.benchmark                           all: 40 minutes without adapters
    python -m experiments.benchmark --parts=engine,kernels    two of the parts
    python -m experiments.benchmark --images=24 --few_images=8 --workdir=runs/benchmark_24
    pip install -e '.[torch,peers]'                           for the comparisons with PyTorch
    pip install -e '.[torchax,keras]' torchvision==0.27.1     for adapters; transformers, keras-hub,
                                                              segmentation_models_pytorch

Parts:
  engine     an iteration inside the engine's compiled loop; a bare call of value-and-gradient
  work       flops of an iteration; of forward and gradient alone; of every cell of an FCN's maps
  stream     images per second of attack_stream; of lockstep batches of as many slots
  device     the stream's part of the devices' matrix peak, their waiting, bytes, compiling
  layers     the same of each layer of an FCN
  torch      images per second, and an iteration; the same attack in PyTorch's eager mode
  peers      images per second; adversarial-library's own attack, on one core and on all
  adapters   an iteration on networks of PyTorch, Keras and Flax NNX; the framework's own
  precision  ADVR, steps and perceptibility in bfloat16, TF32 where there is; in float32
  kernels    layers in the form used here; in XLA's plain form
  scaling    an iteration against batch, image size and proposals: plots

A figure and its control run in one process and in turns. Each part has a process of its own. What
is measured does not depend on another part, but on what else the machine does at the time.

Results go to --workdir: benchmark.md, benchmark.json, plots, and a file for each part (parts/). The
same command goes on where a killed one stopped, and --parts adds to the parts that are there; a
folder with results of other settings, or of another device, is refused.
"""

import importlib
import json
import os
import tempfile

import jax
from absl import flags

from dag_jax import datasets, files, networks
from dag_jax.engine.method import Method
from dag_jax.errors import UserError
from dag_jax.progress import progress
from dag_jax.runs import attacks, rundir
from dag_jax.runs.attacks import Plan
from dag_jax.runs.subject import subject_of
from experiments.common import console, options
from experiments.measure import (
    adapted,
    child,
    curves,
    iterations,
    kernels,
    peak,
    precision,
    tables,
    throughput,
)

ENVIRONMENT = "environment"  # the --case that measures nothing
ONE_CORE = "peers_on_one_core"  # the --case that is half of a part
PARTS = (
    *("engine", "work", "stream", "device", "layers"),
    *("torch", "peers", "adapters", "precision", "kernels", "scaling"),
)
FCNS = ("fcn_vgg", "fcn_alex")  # those that are in PyTorch, too
# By platform, the number of lanes where the flag is not given, and precisions.
LANES = {"cpu": [1, 2, 4]}, [4, 16, 64]
FAST = {"cpu": ["float32"]}, networks.PRECISIONS  # a CPU's products in bfloat16 are slow


def parse_cases(cases):
    """Return (name, miniature) of each of --cases."""
    parts = [case.partition(":") for case in cases]
    for name, _, size in parts:
        if name not in networks.NAMES or size not in ("miniature", "full"):
            raise UserError(f"{name}:{size} is not <network>:miniature or <network>:full")
    return [(name, size == "miniature") for name, _, size in parts]


def parse_sizes(texts):
    """Return the numbers of --sizes."""
    least, most = options.SIDES
    return options.whole_numbers(texts, least=least, most=most)


FLAGS = flags.FLAGS
options.strings("parts", list(PARTS), "What to measure.")
options.strings(
    "cases",
    [
        *("fcn_vgg:miniature", "fcn_alex:miniature", "fr_vgg_07:miniature"),
        *("fcn_alex:full", "fcn_vgg:full"),
    ],
    "engine, work: <network>:miniature or <network>:full.",
    parse_cases,
)
options.integer(
    "size", 128, "Pixels of the image's side, where a plot has no other.", *options.SIDES
)
options.integer("iterations", 20, "engine: the most iterations of a run.", 2)
options.integer("pairs", 5, "Pairs of timings.")
options.integer("proposals", 128, "engine, work: boxes of a detector.")
options.strings("fcns", list(FCNS), "stream to precision: networks.")
options.integer("images", 100, "stream, torch: scenes to attack.")
options.integer("few_images", 16, "stream to precision: scenes to attack again and again.")
options.integer("turns", 4, "stream, torch: parts of a run between which both take turns.")
options.strings(
    "lanes",
    None,
    "Numbers of --slots to try. Default: 1,2,4 CPU; 4,16,64 others.",
    options.whole_numbers,
)
options.strings(
    "batches",
    ["1", "2", "4", "8", "16"],
    "Batches of PyTorch and of the plots.",
    options.whole_numbers,
)
options.integer("full_images", 12, "torch: images for full-size networks; 0 is none.", 0)
options.integer("full_steps", 4, "torch: their M_0, which all of them reach.")
options.integer(
    "iteration_size", 256, "torch: pixels of the side for one iteration.", *options.SIDES
)
options.strings("adapted", list(adapted.WAYS), "adapters: names of networks.")
options.integer("shrink", 1, "kernels: what to divide channels by.")
options.strings(
    "sizes",
    ["64", "128", "192", "256"],
    "scaling: pixels of the image's side.",
    parse_sizes,
)
options.strings(
    "counts",
    ["75", "150", "300", "600"],
    "scaling: numbers of proposals.",
    options.whole_numbers,
)
options.integer("repeats", 3, "scaling: timings of a point.")
flags.DEFINE_bool("miniature", False, "scaling: whether nothing is of full size.")
flags.DEFINE_bool("plots", True, "Whether to draw.")
options.define(
    __name__,
    *("max_steps", "slots", "seed", "cache_dir", "workdir"),
    max_steps=200,
    workdir="runs/benchmark",
)
flags.DEFINE_enum(
    "case",
    None,
    [*PARTS, ONE_CORE, ENVIRONMENT],
    "For the launch's own use: measure this part, print it.",
)


def load_scenes(limit):
    """Return scenes with masks, those of table1."""
    split = networks.facts(FLAGS.fcns[0]).split
    return datasets.load_examples(
        "scenes", split, cache_dir=FLAGS.cache_dir, limit=limit, with_mask=True
    )


def by_platform(value, defaults):
    """Return a flag's value, or the platform's default where the flag has none."""
    known, default = defaults
    return known.get(jax.devices()[0].platform, default) if value is None else value


def measure_cases(part):
    """Measure an iteration of each of --cases."""
    setting, rows = {"size": FLAGS.size, "proposals": FLAGS.proposals}, []
    for name, small in progress(parse_cases(FLAGS.cases), desc=part, position=1, leave=False):
        abstract = part == "work" and not small
        problem = iterations.problem(name, miniature=small, abstract=abstract, **setting)
        if part == "work":
            rows += iterations.work(problem)
        else:
            row = iterations.engine(problem, iterations=FLAGS.iterations, pairs=FLAGS.pairs)
            rows.append(row)
    return {"rows": rows}


def measure_scaling():
    """Measure an iteration of many sizes."""
    points = iterations.curves(
        lanes=options.whole_numbers(FLAGS.batches),
        sizes=parse_sizes(FLAGS.sizes),
        counts=options.whole_numbers(FLAGS.counts),
        repeats=FLAGS.repeats,
        miniature=FLAGS.miniature,
        size=FLAGS.size,
    )
    rows = [
        {"curve": curve, **point}
        for curve, curve_points in points.items()
        for point in curve_points
    ]
    return {"rows": rows, "points": points}


def measure_stream(slots, lanes, *, method, mesh):
    """Run the stream and lockstep batches, with the usual slots and with others."""
    scenes, rows, busy, speed = load_scenes(FLAGS.images), [], {}, {}
    for name in progress(FLAGS.fcns, desc="stream", position=1, leave=False):
        plan = Plan(
            subject_of(networks.load(name, miniature=True), scenes), method, seed=FLAGS.seed
        )
        inputs, title = list(attacks.attack_inputs(plan)), plan.subject.about.title
        row, busy[title] = throughput.measure(
            plan, inputs, lanes=slots, mesh=mesh, turns=FLAGS.turns
        )
        rows.append(row)
        few = inputs[: FLAGS.few_images]
        speed[title] = throughput.by_slots(plan, few, lanes=lanes, mesh=mesh)
    return {"rows": rows, "points": {"busy": busy, "slots": speed}}


def measure_device(lanes, *, method, mesh):
    """Run the stream in each precision and number of lanes, without programs compiled before."""
    scenes, rows = load_scenes(FLAGS.few_images), []
    cases = [(name, kind) for name in FLAGS.fcns for kind in by_platform(None, FAST)]
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        for name, kind in progress(cases, desc="device", position=1, leave=False):
            network = networks.load(name, miniature=True, precision=kind)
            plan = Plan(subject_of(network, scenes), method, seed=FLAGS.seed)
            rows += [
                throughput.on_device(plan, lanes=count, mesh=mesh, precision=kind)
                for count in lanes
            ]
    return {"rows": rows}


def against_pytorch(module, num_images, lanes, mesh, **more):
    """Run attacks in PyTorch and here, as a module of `experiments.measure` does."""
    module = importlib.import_module(f"experiments.measure.{module}")  # an optional dependency
    rows = module.measure(
        FLAGS.fcns,
        load_scenes(num_images),
        lanes=lanes,
        mesh=mesh,
        max_steps=FLAGS.max_steps,
        batch_sizes=options.whole_numbers(FLAGS.batches),
        seed=FLAGS.seed,
        **more,
    )
    return {"rows": rows}


def measure_torch(lanes, mesh):
    """Run the attack in PyTorch and here."""
    more = {
        "full_images": FLAGS.full_images,
        "full_steps": FLAGS.full_steps,
        "full_size": FLAGS.size,
        "iteration_size": FLAGS.iteration_size,
        "turns": FLAGS.turns,
        "pairs": FLAGS.pairs,
    }
    return against_pytorch("torch_comparison", FLAGS.images, lanes, mesh, **more)


def measure_peers(lanes, mesh):
    """Run adversarial-library's attack and ours."""
    return against_pytorch("peers", FLAGS.few_images, lanes, mesh, runs=FLAGS.pairs)


def measure_precision(slots, **options):
    """Attack networks of each precision."""
    scenes, rows = load_scenes(FLAGS.few_images), []
    for name in FLAGS.fcns:
        both = {
            kind: networks.load(name, miniature=True, precision=kind)
            for kind in precision.worth_measuring()
        }
        rows += precision.measure(both, scenes, slots=slots, seed=FLAGS.seed, **options)
    return {"rows": rows}


def measure(part):
    """Return a part's results: {"rows" of its table, "points" of its plots, if any}."""
    if part in ("engine", "work"):
        return measure_cases(part)
    if part == "kernels":
        return {"rows": kernels.measure(pairs=FLAGS.pairs, shrink=FLAGS.shrink)}
    if part == "scaling":
        return measure_scaling()
    if part == "adapters":
        setting = {"size": FLAGS.size, "steps": FLAGS.iterations, "pairs": FLAGS.pairs}
        return {"rows": adapted.measure(FLAGS.adapted, **setting)}
    if part == ONE_CORE:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    mesh, method = console.open_mesh(), Method(max_steps=FLAGS.max_steps)
    slots = FLAGS.slots or attacks.default_slots()
    lanes = by_platform(FLAGS.lanes and options.whole_numbers(FLAGS.lanes), LANES)
    if part == "precision":
        return measure_precision(slots, method=method, mesh=mesh)
    if part == "stream":
        return measure_stream(slots, lanes, method=method, mesh=mesh)
    if part == "device":
        return measure_device(lanes, method=method, mesh=mesh)
    if part == "layers":
        how = {"mesh": mesh, "size": FLAGS.size, "pairs": FLAGS.pairs}
        return {"rows": [row for name in FLAGS.fcns for row in peak.measure(name, **how)]}
    if part == "torch":
        return measure_torch(lanes, mesh)
    # A process that is pinned to a core stays so: this has one of its own, before the others.
    has_more = part == "peers" and jax.default_backend() == "cpu" and console.cores() > 1
    single = child.call("benchmark", ONE_CORE)["rows"] if has_more else []
    return {"rows": single + measure_peers(lanes, mesh)["rows"]}


def main(argv):
    """Measure each part in a process of its own, print the tables, write everything."""
    console.start(argv)

    # 1. Everything that can be wrong is read before any long work.
    console.check_names("parts", FLAGS.parts, PARTS)
    console.check_names("fcns", FLAGS.fcns, FCNS)
    console.check_names("adapted", FLAGS.adapted, adapted.WAYS)

    # 2. In a child: one part, or what runs here.
    if FLAGS.case:
        known = FLAGS.case == ENVIRONMENT
        print(json.dumps(child.environment() if known else measure(FLAGS.case)))
        return

    # 3. In the parent, which leaves the device alone: a part at a time; a finished one is kept.
    without = ("workdir", "cache_dir", "case", "parts", "plots")
    settings = options.settings(__name__, without)
    settings[ENVIRONMENT] = child.call("benchmark", ENVIRONMENT)
    workdir = rundir.claim(FLAGS.workdir, settings)
    finished = [part for part in PARTS if files.exists(workdir / "parts" / f"{part}.json")]
    parts = [part for part in PARTS if part in FLAGS.parts or part in finished]
    absent = {part: {"absent": tables.absent(part)} for part in parts if tables.absent(part)}
    measurable = [part for part in parts if part in finished or part not in absent]
    # PyTorch and JAX share an accelerator's memory, of which JAX would take most.
    options_of_child = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = dict(child.measured("benchmark", workdir / "parts", measurable, **options_of_child))
    contents = {part: done.get(part) or absent[part] for part in parts}

    # 4. Tables and plots.
    points = {}
    for content in contents.values():
        points |= content.get("points", {})
    plots = curves.draw(points, workdir) if FLAGS.plots else []
    text = tables.report(contents, settings[ENVIRONMENT], plots)
    files.write(workdir / "benchmark.md", text)
    files.write_json(workdir / "benchmark.json", {"settings": settings, "parts": contents})
    print(text)
    print(f"results: {workdir}/")


if __name__ == "__main__":
    console.run(main)
