"""What goes wrong in one of several processes, for the others that wait for its part.

Nothing connects the processes: each writes down what failed, in a folder of the network.
"""

import contextlib

from dag_jax import files
from dag_jax.runs import evaluation, rundir


def failures(folder) -> list[str]:
    """Return what processes say that failed."""
    return [(folder / name).read_text() for name in sorted(files.names_in(folder))]


@contextlib.contextmanager
def others_go_on(workdir, name, process, errors):
    """Write down what goes wrong with a network, for other processes too, and go on."""
    try:
        yield
    except ValueError as error:
        trouble = workdir / name / "failed"
        if not failures(trouble):
            files.make_folder(trouble)
            rundir.write(trouble / f"{process}.txt", f"process {process}: {error}")
        errors.append(f"{evaluation.TITLES[name]}: {error}")


def forget(workdir, names, process, processes):
    """Remove what this process wrote of some networks in an earlier launch, before it tries again.

    Process 0 also removes what processes wrote that this launch does not have.
    """
    for name in names:
        trouble = workdir / name / "failed"
        for note in files.names_in(trouble):
            number = int(note.removesuffix(".txt"))
            if number == process or (process == 0 and number >= processes):
                files.remove(trouble / note)
