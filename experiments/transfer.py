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
import sys
import time

from absl import app, flags

from dag_jax import networks
from dag_jax.errors import UserError
from dag_jax.progress import progress
from dag_jax.report import audit as audit_report
from dag_jax.report import crosstable, heatmap
from dag_jax.runs import audit, claims, evaluation, provenance, rundir, scores
from dag_jax.runs.failures import failures, forget, others_go_on
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
flags.DEFINE_integer("seed", 0, "Seed of the bootstrap (--sets).")
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


def lookers_of(networks_loaded, stored):
    """Return {name: `claims.Looker`} of the networks that look and of those that were attacked."""
    names = dict.fromkeys([*networks_loaded, *stored.runs])
    return {
        name: claims.Looker(
            evaluation.TITLES[name],
            "detection" if name.startswith("fr_") else "segmentation",
            networks.build(name),
        )
        for name in names
    }


def write(workdir, matrix, targets, started):
    """Write and print the tables and the claims, and draw the heat-map."""
    stored = matrix.stored
    lookers = lookers_of(targets, stored)
    sizes = {source: matrix.size(source) for source in progress(matrix.sources, desc="p")}
    cells = {
        (source, target): matrix.cell(target, source)
        for target in progress(list(targets), desc="scoring", unit="network")
        for source in matrix.sources
    }
    blocks = crosstable.blocks(cells, sizes, lookers)
    judged = claims.of_transfer(cells, lookers, matrix.cell)
    diagonal = crosstable.diagonal(cells, stored.rows)
    audited = audit.kept(stored.folder, list(stored.rows))
    section = audit_report.section(
        audited,
        {name: lookers[name].title for name in stored.rows},
        remedy=f"`python -m experiments.table1 --workdir={stored.folder}`, with the flags and the "
        "version of the launch that made it,",
    )
    size = "miniatures" if stored.settings["miniature"] else "full-size networks"
    tables = crosstable.markdown(
        blocks,
        judged,
        heading=f"Transfer ({size}, {stored.settings['dataset']})",
        images=[len(run.keys) for run in stored.runs.values()],
        shuffles=scores.PERMUTATIONS,
        diagonal=diagonal,
    )
    text = f"{tables}\n{section}"
    lines = crosstable.records(cells, sizes, lookers)
    rundir.write(workdir / "transfer.md", text)
    rundir.write(workdir / "transfer.csv", crosstable.as_csv(lines))
    rundir.write(workdir / "transfer.tex", crosstable.latex(blocks))
    content = {
        "run": str(stored.folder),
        "seed": FLAGS.seed,
        "sets": FLAGS.sets,
        "cells": lines,
        "diagonal": diagonal,
        "findings": [claim.as_json() for claim in judged],
        "audit": audit_report.as_json(audited),
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
        "settings": rundir.settings_of(FLAGS, sys.argv[0], without=UNRECORDED),
        "run": {"settings": stored.settings},
        "units": {"scores": "percent"},
        **provenance.environment(),
    }
    workdir = rundir.claim(FLAGS.workdir, manifest)
    matrix = Matrix(workdir, stored, sources, seed=FLAGS.seed, num_sets=FLAGS.sets)

    # A process makes the cells of its own networks and waits for no other; process 0 for all.
    forget(workdir / "cells", loaded, process, processes)
    errors = []
    for name in list(loaded)[process::processes]:
        with others_go_on(workdir / "cells", name, process, errors):
            matrix.fill(*loaded[name], mesh=mesh)
    if errors:
        raise UserError("; ".join(errors))
    if process:
        print(f"process {process} is done; process 0 writes the tables: {workdir}/")
        return
    console.wait_until(
        lambda: all(matrix.is_there(name) for name in loaded),
        "the other processes' networks",
        lambda: [text for name in loaded for text in failures(workdir / "cells" / name / "failed")],
    )
    write(workdir, matrix, loaded, started)


if __name__ == "__main__":
    console.run(main)
