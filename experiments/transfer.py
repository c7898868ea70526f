r"""Transfer: what perturbations found for one model do to another.

    python -m experiments.table1 --split=seg11valid --limit=100 --workdir=runs/table1_one_split
    python -m experiments.transfer --run=runs/table1_one_split

    python -m experiments.transfer --run=runs/table1       FCNs and detectors on images of their own
    python -m experiments.transfer --run=runs/table1 --sums=fr_zf_07+fr_vgg_07 --black_boxes=
    python -m experiments.transfer --run=runs/table1 --black_boxes=fcn_resnet,my_module:load
    python -m experiments.transfer --run=runs/table1_paper --data_dir=VOCdevkit \
        --weights_dir=runs/weights --black_boxes=           full-size networks

Nothing is attacked here: the perturbations are those of table1 in --run, alone and summed, with and
without rows and columns shuffled. Each is added to its image in the image's own pixels, before any
scaling by a model. Rows are the added perturbations, columns the models; the first row of each
split has the clean images. A cell on the diagonal equals ADVR of Table 1, or the launch says that
it does not. The columns --black_boxes are models that no attack has seen.

A sum of models that were attacked on different splits cannot be made: attack all of them on one
split, as above, for sums across tasks. Without --sums such sums are left out.

Results go to --workdir: transfer.md (the tables, which of the paper's claims hold, and what the
audit of table1 found of the attacks), .csv, .tex, .json, transfer.png, report.html, and the cells,
each kept once it is made. Models that are added to --run later join them; a cell whose
perturbations were made anew is refused.
"""

import collections
import json
import time

from absl import app, flags

from dag_jax import datasets, files, models, networks, report
from dag_jax.engine.scoring import kind_of
from dag_jax.errors import UserError
from dag_jax.progress import progress
from dag_jax.report import audit as audit_report
from dag_jax.report import crosstable, heatmap, tables
from dag_jax.runs import audit, claims, failures, provenance, rundir, scores
from dag_jax.runs.matrix import Matrix
from dag_jax.runs.stored import Stored, default_sums
from experiments.common import console, inputs, options

FLAGS = flags.FLAGS
options.string("run", "runs/table1", "Folder of experiments.table1: where perturbations are.")
flags.DEFINE_list("black_boxes", list(networks.BLACK_BOX), "Models that look and no attack saw.")
flags.DEFINE_list(
    "sums", None, "Sums, as fcn_alex+fcn_vgg. Default: the paper's, those of --run's models."
)
options.define(
    __name__,
    *("models", "data_dir", "cache_dir", "weights_dir", "accept_version", "workdir"),
    models=None,
    workdir="runs/transfer",
)
options.integer("sets", 1000, "Sets of images drawn for the intervals.", 1, 10**6)
options.integer("seed", 0, "Seed of the bootstrap (--sets).", 0)
# What decides no cell: cells of other models and sums join those that are there.
UNRECORDED = (
    *("run", "models", "black_boxes", "sums", "sets", "seed"),
    *options.UNRECORDED,
)


def read_examples(settings, split, ids):
    """Read the images of a run, by the settings of its launch."""
    return datasets.load_examples(
        settings["dataset"],
        split,
        data_dir=FLAGS.data_dir,
        cache_dir=FLAGS.cache_dir,
        canvas=settings["canvas"],
        image_ids=ids,
    )


def parse_sums(stored):
    """Return the sums of --sums, tuples of names; without it, those that can be made."""
    if FLAGS.sums is None:
        return default_sums(stored.splits)
    sums = [tuple(text.split("+")) for text in FLAGS.sums if text]
    for members in sums:
        if len(set(members)) < 2 or len(set(members)) < len(members):
            raise app.UsageError(f"--sums: {'+'.join(members)} is not a sum of different models")
    return sums


def load_looking(stored) -> dict:
    """Return {name: (model, SHA-256 of its weights)} of the models to score.

    Raises:
      UserError: where a model's weights are not those that were attacked.
    """
    names = [*(FLAGS.models or stored.runs), *(name for name in FLAGS.black_boxes if name)]
    looking = {}
    for name in dict.fromkeys(names):
        model, weights = inputs.load_model(
            name,
            miniature=stored.settings["miniature"],
            precision=stored.settings["precision"],
        )
        if name in stored.runs and weights != stored.runs[name].manifest["weights_sha256"]:
            raise UserError(
                f"{name} has other weights than {stored.folder} was attacked with; --weights_dir "
                "names the folder of those"
            )
        looking[name] = model, weights
    return looking


def lookers_of(matrix) -> dict[str, claims.Looker]:
    """Return {name: `Looker`} of the models to score and of those that were attacked."""
    lookers = {
        name: claims.Looker(row["title"], row["task"]) for name, row in matrix.stored.rows.items()
    }
    for name, (model, _) in matrix.looking.items():
        about = models.about(model)
        architecture = getattr(model, "architecture", kind_of(model))
        lookers[name] = claims.Looker(about.title, about.task, architecture)
    counts = collections.Counter(looker.title for looker in lookers.values())
    return {
        name: looker._replace(title=f"{looker.title} ({name})")
        if counts[looker.title] > 1
        else looker
        for name, looker in lookers.items()
    }


def notes_of(workdir, matrix, lookers) -> list[str]:
    """Return notes on the method of the run, on the classes that cells compare, and on versions."""
    facts = []
    for name in matrix.looking:
        subjects = (matrix.subject(name, source) for source in matrix.sources)
        if subject := next(filter(None, subjects), None):
            facts.append(subject.facts() | {"title": lookers[name].title})
    versions = tables.version_notes(matrix.stored.rows.values(), rundir.accepted(workdir))
    attacked_by = tables.method_notes(matrix.stored.settings)
    return [*attacked_by, *tables.class_notes(facts), *versions]


def write(workdir, matrix, started):
    """Write and print the tables and the claims, and draw the heat-map."""
    stored, lookers = matrix.stored, lookers_of(matrix)
    sizes = {source: matrix.size(source) for source in progress(matrix.sources, desc="p")}
    cells = {
        (source, target): matrix.cell(target, source)
        for target in progress(list(matrix.looking), desc="scoring", unit="model")
        for source in matrix.sources
    }
    blocks = crosstable.blocks(cells, sizes, lookers)
    judged = claims.of_transfer(cells, lookers, matrix.cell)
    diagonal = crosstable.diagonal(cells, stored.rows)
    shown = crosstable.markdown(
        blocks,
        judged,
        heading=f"Transfer ({stored.settings['dataset']})",
        images=[len(stored.keys(source)) for source in matrix.sources],
        shuffles=scores.PERMUTATIONS,
        diagonal=diagonal,
        notes=notes_of(workdir, matrix, lookers),
    )
    audited = audit.stored_findings(stored.folder, list(stored.rows))
    section = audit_report.section(
        audited,
        {name: lookers[name].title for name in stored.rows},
        remedy=audit_report.table1_remedy(stored.folder),
    )
    text, lines = f"{shown}\n{section}", crosstable.records(cells, sizes, lookers)
    files.remove_drafts(workdir)
    files.write(workdir / "transfer.md", text)
    files.write(workdir / "transfer.csv", crosstable.as_csv(lines))
    files.write(workdir / "transfer.tex", crosstable.latex(blocks))
    content = {
        "run": str(stored.folder),
        "seed": FLAGS.seed,
        "sets": FLAGS.sets,
        "cells": lines,
        "diagonal": diagonal,
        "findings": [claim.as_json() for claim in judged],
        "audit": audit_report.as_json(audited),
    }
    files.write(workdir / "transfer.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    heatmap.draw(blocks, workdir / "transfer.png")
    print(text)
    page = report.write(workdir)
    print(f"{time.monotonic() - started:.0f} s; results: {workdir}/, to be looked at: {page}")


def main(argv):
    """Score each model on the images of each source, and write the tables."""
    process, processes = console.start_shared(argv)
    mesh = console.open_mesh()
    started = time.monotonic()

    # 1. Everything that can be wrong is read before anything is written.
    about = {"launch": "transfer", "settings": options.settings(__name__, UNRECORDED)}
    with failures.starting(FLAGS.workdir, about, process, processes):
        stored = Stored(FLAGS.run, read_examples)
        looking = load_looking(stored)
        sources = stored.sources(parse_sums(stored))
        sources += [source._replace(permuted=True) for source in sources if source.members]
        for split in dict.fromkeys(source.split for source in sources):
            stored.examples(split)
        matrix = Matrix(
            FLAGS.workdir, stored, sources, looking, seed=FLAGS.seed, num_sets=FLAGS.sets
        )
        matrix.check_shown()
    manifest = about | {
        "run": {"settings": stored.settings},
        "provenance": provenance.environment(),
    }
    workdir = rundir.claim(FLAGS.workdir, manifest, accept_version=FLAGS.accept_version)

    # 2. A process makes the cells of its own models and waits for no other; process 0 for all.
    notes = {name: failures.notes_of(workdir, name) for name in looking}
    errors, mine = [], list(looking)[process::processes]
    with failures.noted([notes[name] for name in mine], process):
        for name in mine:
            with failures.others_go_on(notes[name], name, process, errors):
                matrix.fill(name, mesh=mesh)
    if errors:
        raise UserError("; ".join(errors))
    if process:
        print(f"process {process} is done; process 0 writes the tables: {workdir}/")
        return
    failures.wait_until(
        lambda: all(map(matrix.is_complete, looking)),
        lambda: " and ".join(
            f"what {name} sees of process {number % processes}"
            for number, name in enumerate(looking)
            if not matrix.is_complete(name)
        ),
        lambda: failures.failures(failures.notes_of(workdir), *notes.values()),
    )

    # 3. The tables, the claims and the heat-map.
    write(workdir, matrix, started)


if __name__ == "__main__":
    console.run(main)
