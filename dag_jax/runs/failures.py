"""Notes of failures in one of several processes, for process 0, which waits for the others.

Nothing connects the processes but files. Each part of the work has a folder of notes, where a
process that fails writes the reason. Process 0, which waits for the parts, reads the notes:

    with starting(workdir, about, process, processes):
        ...  # what the parts depend on
    folders = {name: notes_of(workdir, name) for name in names}
    with noted(folders.values(), process):
        for name in names:
            with others_go_on(folders[name], name, process, errors):
                ...
                wait_until(is_there, waiting, lambda: failures(notes_of(workdir), folders[name]))

Nobody waits for process 0, so it writes no notes. A process that is killed leaves no note either:
process 0 waits until it is started again.
"""

import contextlib
import re
import sys
import time
import traceback

from dag_jax import files
from dag_jax.errors import UserError
from dag_jax.runs import rundir
from dag_jax.runs.manifest import FAILED, may_become

_NOTE = re.compile(r"(\d+)\.txt")
_POLL = 0.2  # seconds between two looks at what others have written
_TOLD = 30.0  # seconds between two lines on what is waited for


class OthersFailed(UserError):
    """The parts that this process waits for will not come: another process has failed."""


def notes_of(workdir, name=None):
    """Return the folder of notes of a part of the work, or of what comes before all parts."""
    folder = files.open_folder(workdir) / FAILED
    return folder if name is None else folder / rundir.folder_name(name)


def failures(*folders) -> list[str]:
    """Return the texts of the notes in some folders, by number of the process."""
    texts = []
    for process, path in [note for folder in folders for note in _notes(folder)]:
        try:
            text = path.read_text()
        except FileNotFoundError:  # its process tries again
            continue
        except (OSError, UnicodeDecodeError):
            text = ""
        reason = text.strip() or f"it failed, and {path} does not say why"
        texts.append(f"process {process}: {reason}")
    return texts


@contextlib.contextmanager
def others_go_on(folder, title, process, errors):
    """Write a note if a part fails, and go on with the next part.

    An error that is no `UserError` is a fault of the program: its traceback is printed, too.

    Args:
      folder: of the part's notes.
      title: the part's title in messages.
      process: this process's number.
      errors: list that gets a text, for the end of the launch.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        errors.append(f"{title}: {_reason(error)}")
        _note(folder, process, error)


@contextlib.contextmanager
def starting(workdir, about, process, processes):
    """Write a note if this process ends before the folder of its run is claimed.

    Its notes of earlier launches are removed, unless the folder holds something else than this run.

    Args:
      workdir: the folder, which need not be there.
      about: entries of the run's manifest, which need not be written yet.
      process: this process's number.
      processes: their number.
    """
    folder = notes_of(workdir)
    if may_become(folder.parent, about):
        parts = [name for name in files.names_in(folder) if not _number_of(name)]
        forget([folder, *(folder / name for name in parts)], process, processes)
        with noted([folder], process):
            yield
    else:
        yield


@contextlib.contextmanager
def noted(folders, process):
    """Write a note for every part if this process ends before it is done with them."""
    try:
        yield
    except BaseException as error:
        for folder in folders:
            _note(folder, process, error)
        raise


def forget(folders, process, processes) -> None:
    """Remove this process's notes of earlier launches.

    Process 0 also removes the notes of processes that this launch does not have.

    Args:
      folders: of the notes of the parts.
      process: this process's number.
      processes: their number.
    """
    for folder in folders:
        for number, path in _notes(folder, unfinished=True):
            if number == process or (process == 0 and number >= processes):
                files.remove(path)


def wait_until(ready, waiting, failed) -> None:
    """Wait for other processes until their results are there.

    Args:
      ready: function that returns whether the results are there.
      waiting: function that returns a text for the user: what is missing, of which process.
      failed: function that returns the texts of `failures`.

    Raises:
      OthersFailed: where `failed` returns texts.
    """
    last_message = time.monotonic()
    while not ready():
        if texts := failed():
            raise OthersFailed("; ".join(texts))
        time.sleep(_POLL)
        if time.monotonic() - last_message > _TOLD:
            last_message = time.monotonic()
            print(f"waiting for {waiting()}", file=sys.stderr)


def images_of(missing: dict[int, int]) -> str:
    """Return {process: number of missing images} as the text that `wait_until` prints."""
    counts = [
        f"{count} image{'s' * (count != 1)} of process {process}"
        for process, count in sorted(missing.items())
        if count
    ]
    return " and ".join(counts) or "nothing"


def _notes(folder, *, unfinished=False):
    """Return [(process, path)] of notes; with `unfinished` also of half-written ones."""
    notes = []
    for name in files.names_in(folder):
        number = _number_of(name)
        if number and (unfinished or not files.TEMPORARY.fullmatch(name)):
            notes.append((int(number), folder / name))
    return sorted(notes)


def _number_of(name):
    """Return the process number in a note's file name, as text; None for another file."""
    temporary = files.TEMPORARY.fullmatch(name)
    note = _NOTE.fullmatch(temporary[1] if temporary else name)
    return note and note[1]


def _note(folder, process, error):
    if process == 0 or isinstance(error, OthersFailed):
        return
    try:
        files.make_folder(folder)
        files.write(folder / f"{process}.txt", _reason(error))
    except Exception as unwritten:  # the error itself is what counts
        print(f"other processes do not know that this one failed: {unwritten}", file=sys.stderr)


def _reason(error):
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
