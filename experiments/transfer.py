r"""Transfer: what perturbations found for one network do to another.

    python -m experiments.table1 --split=seg11valid --limit=100 --workdir=runs/table1_one_split
    python -m experiments.transfer --run=runs/table1_one_split

    python -m experiments.transfer --run=runs/table1       FCNs and detectors on images of their own
    python -m experiments.transfer --run=runs/table1 --sums=fr_zf_07+fr_vgg_07 --black_boxes=
    python -m experiments.transfer --run=runs/table1_paper --data_dir=VOCdevkit \
        --checkpoints=runs/weights --black_boxes=           full-size networks

Nothing is attacked: the perturbations are those that table1 left in --run, alone and summed, as
they are and with rows and columns shuffled. Each is added to its image in the image's own pixels,
whatever a network does to the image then. Rows are what is added, columns are networks that look;
the first row of each split is the clean image. A cell on the diagonal is ADVR of Table 1 again, or
the launch says that it is not. The columns --black_boxes are networks that no attack has seen.

A sum of networks that were attacked on different splits cannot be made: attack all of them on one
split, as above, for sums across tasks. Without --sums such sums are left out.

Results go to --workdir: transfer.md (the tables, which of the paper's claims hold, and what the
audit of table1 found of the attacks), .csv, .tex, .json, transfer.png, and the cells, each kept
once it is made. Networks that are added to --run later join them; a cell whose perturbations were
made anew is refused.
"""

import json
import time

from absl import app, flags

from dag_jax import networks
from dag_jax.errors import UserError
from dag_jax.progress import progress
from dag_jax.report import crosstable, heatmap
from dag_jax.runs import audit, claims, evaluation, provenance, rundir
from dag_jax.runs.failures import failures, forget, noted, others_go_on, wait_until
from dag_jax.runs.matrix import Matrix
from dag_jax.runs.stored import Stored, check_shown, default_sums
from experiments.common import console, options

FLAGS = flags.FLAGS
flags.DEFINE_string("run", "runs/table1", "Folder of experiments.table1: where perturbations are.")
flags.DEFINE_list("networks", None, "Networks that look. Default: all of --run.")
flags.DEFINE_list(
    "black_boxes", list(networks.BLACK_BOX), "Networks that look and were not attacked."
)
flags.DEFINE_list(
    "sums", None, "Sums, as fcn_alex+fcn_vgg. Default: the paper's, those of --run's networks."
)
options.define(__name__, "data_dir", "cache_dir", "checkpoints", "workdir", workdir="runs/transfer")
flags.DEFINE_integer("sets", 1000, "Sets of images drawn for the intervals.", 1)
flags.DEFINE_integer("seed", 0, "Seed of the bootstrap (--sets).", 0, options.LARGEST)
options.check(options.not_empty, "run", "networks")
# What decides no cell: cells of other networks and sums join those that are there.
UNRECORDED = (
    *("run", "networks", "black_boxes", "sums", "sets", "seed"),
    *options.UNRECORDED,
)


def parse_sums(stored):
    """Return the sums of --sums, tuples of names; without it, those that can be made."""
    if FLAGS.sums is None:
        return default_sums(stored.splits)
    sums = [tuple(text.split("+")) for text in FLAGS.sums if text]
    for members in sums:
        if len(set(members)) < 2 or len(set(members)) < len(members):
            raise app.UsageError(f"--sums: {'+'.join(members)} is not a sum of different networks")
    return sums


def write(workdir, matrix, targets, started):
    """Write and print the tables and the claims, and draw the heat-map."""
    sizes = {source: matrix.size(source) for source in progress(matrix.sources, desc="p")}
    cells = {
        (source, target): matrix.cell(target, source)
        for target in progress(list(targets), desc="scoring", unit="network")
        for source in matrix.sources
    }
    blocks = crosstable.blocks(cells, sizes)
    found = claims.of_transfer(cells, matrix.cell)
    diagonal = crosstable.diagonal(cells, matrix.stored.rows)
    audited, section = audit.of_table1(matrix.stored.folder, list(matrix.stored.rows))
    text = f"{crosstable.markdown(blocks, diagonal, found, matrix.stored)}\n{section}"
    rundir.write(workdir / "transfer.md", text)
    rundir.write(workdir / "transfer.csv", crosstable.csv_of(cells, sizes))
    rundir.write(workdir / "transfer.tex", crosstable.latex(blocks))
    content = {
        "run": str(matrix.stored.folder),
        "seed": FLAGS.seed,
        "sets": FLAGS.sets,
        "cells": crosstable.records(cells, sizes),
        "diagonal": diagonal,
        "findings": [claim.as_json() for claim in found],
        "audit": audit.as_json(audited),
    }
    rundir.write(workdir / "transfer.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    heatmap.draw(blocks, workdir / "transfer.png")
    print(text)
    print(f"{time.monotonic() - started:.0f} s; results: {workdir}/")


def main(argv):
    """Let each network look at what each source makes of the images."""
    process, processes = console.start(argv)
    mesh = console.open_mesh()
    started = time.monotonic()
    stored = Stored(FLAGS.run, data_dir=FLAGS.data_dir, cache_dir=FLAGS.cache_dir)
    wanted = list(dict.fromkeys((FLAGS.networks or list(stored.runs)) + FLAGS.black_boxes))
    wanted = [name for name in wanted if name]
    console.check_names("networks, --black_boxes", wanted, networks.NAMES + networks.BLACK_BOX)
    loaded = {name: stored.network(name, FLAGS.checkpoints) for name in wanted}
    sources = stored.sources(parse_sums(stored))
    sources += [source._replace(permuted=True) for source in sources if source.members]
    for split in dict.fromkeys(source.split for source in sources):
        stored.examples(split)
    check_shown(stored, loaded, sources)
    manifest = {
        "launch": "transfer",
        "settings": options.settings(__name__, UNRECORDED),
        "run": {"settings": stored.settings},
        "units": {"scores": "percent"},
        **provenance.environment(),
    }
    workdir = rundir.claim(FLAGS.workdir, manifest)
    matrix = Matrix(workdir, stored, sources, seed=FLAGS.seed, num_sets=FLAGS.sets)

    # A process makes the cells of its own networks and waits for no other; process 0 for all.
    notes = {name: workdir / "cells" / name / "failed" for name in loaded}
    forget(notes.values(), process, processes)
    errors = []
    own = list(loaded)[process::processes]
    with noted([notes[name] for name in own], process):
        for name in own:
            with others_go_on(notes[name], evaluation.TITLES[name], process, errors):
                matrix.fill(*loaded[name], mesh=mesh)
    if errors:
        raise UserError("; ".join(errors))
    if process:
        print(f"process {process} is done; process 0 writes the tables: {workdir}/")
        return

    def waiting():
        return " and ".join(
            f"what {evaluation.TITLES[name]} sees, of process {index % processes}"
            for index, name in enumerate(loaded)
            if not matrix.is_there(name)
        )

    wait_until(
        lambda: all(matrix.is_there(name) for name in loaded),
        waiting,
        lambda: [text for folder in notes.values() for text in failures(folder)],
    )
    write(workdir, matrix, loaded, started)


if __name__ == "__main__":
    console.run(main)
