"""What a run lacks, and why: files that cannot be read, attacks that broke off, rows not made."""

import urllib.parse

from dag_jax.engine.algorithm import Status
from dag_jax.runs import failures, rundir
from dag_jax.runs.dataset import ROW

_MOST_NAMED = 20  # images of one failure; the gallery has all
_WHY = {
    Status.ZERO_GRADIENT.name: (
        "targets were left and no pixel moved them, for the gradient was zero",
        "take rounding, argmax and stopped gradients out of the model; attack logits, no saturated "
        "probabilities",
    ),
    Status.NON_FINITE.name: (
        "a score or a gradient was no finite number",
        "--precision=float32, or a smaller --step_size",
    ),
}


def of_row(row, records) -> list[dict]:
    """Return what went wrong with images: {"count", "why", "remedy", "names", "files", "more"}.

    Args:
      row: of the table.
      records: from `runs.rundir.Run`, of all images that are done.

    Returns:
      An entry for each kind of failure that there is. "names" are of images in the gallery; "files"
      could not be read, and say why; "more" are not named.
    """
    kinds = []
    if row.get("skipped"):
        remedy = "mend the files, or remove them from the split"
        why, named = "the file could not be read: left out", row.get("skipped_files", [])
        kinds.append(_kind(row["skipped"], why, remedy, files=named))
    for status, (why, remedy) in _WHY.items():
        names = [record["key"] for record in records if record["status"] == status]
        if names:
            kinds.append(_kind(len(names), why, remedy, names=names[:_MOST_NAMED]))
    return kinds


def _kind(count, why, remedy, *, names=(), files=()):
    kind = {"count": count, "why": why, "remedy": remedy, "names": list(names)}
    return kind | {"files": list(files), "more": count - len(names) - len(files)}


def of_run(home, rows) -> list[str]:
    """Return a sentence for each row that has no scores, and for each process that failed.

    Args:
      home: the run's folder.
      rows: {name: row} of its table, which are not looked for.
    """
    texts, notes = [], [failures.notes_of(home)]
    for folder in sorted(
        rundir.folders_in(home, rundir.MANIFEST) - set(map(rundir.folder_name, rows))
    ):
        manifest = rundir.load_manifest(home / folder)
        if manifest.get("format") == rundir.FORMAT and not (home / folder / ROW).exists():
            count = len(rundir.read(home / folder).keys)
            name = urllib.parse.unquote(folder)
            texts.append(
                f"{manifest['title']} ({name}) has no scores; {count} "
                f"image{'s are' if count != 1 else ' is'} finished. The launch said why when it "
                "ended; the same command goes on with the next image."
            )
            notes.append(failures.notes_of(home, name))
    return texts + failures.failures(*notes)
