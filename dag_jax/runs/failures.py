"""What goes wrong in one of several processes, for the others that wait for its part.

Nothing connects the processes: of each part of the work that has a folder of notes, a process
writes down there that it failed, and why. Process 0, which waits for those parts, reads them:

    with starting(workdir, about, process, processes):
        ...  # what the parts depend on
    folders = {name: notes_of(workdir, name) for name in names}
    with noted(folders.values(), process):
        for name in names:
            with others_go_on(folders[name], name, process, errors):
                ...
                wait_until(is_there, waiting, lambda: failures(notes_of(workdir), folders[name]))

For process 0 nobody waits, and it writes nothing down. A process that is killed leaves no note: it
is waited for until it is started again.
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
    """What this process waits for will not come; who failed has written it down."""


def notes_of(workdir, name=None):
    """Return the folder of the notes of a part of the work; of what comes before all parts."""
    folder = files.open_folder(workdir) / FAILED
    return folder if name is None else folder / rundir.folder_name(name)


def failures(*folders) -> list[str]:
    """Return what processes say of their failures, by number; a note may be unreadable."""
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
    """Write down what goes wrong with a part, and go on with the next.

    What is no `UserError` is a fault of the program: its traceback is printed, too.

    Args:
      folder: of the part's notes.
      title: what the part is called.
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
    """Write down what ends this process before the folder of its run is claimed.

    What it wrote in earlier launches is removed. Of a folder that holds something else nothing is.

    Args:
      workdir: the folder, which need not be there.
      about: entries that the manifest of the run has, or will have.
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
    """Write down, for every part, what ends this process before it is done with them."""
    try:
        yield
    except BaseException as error:
        for folder in folders:
            _note(folder, process, error)
        raise


def forget(folders, process, processes) -> None:
    """Remove what this process wrote in an earlier launch, before it tries again.

    Process 0 also removes what processes wrote that this launch does not have.

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
    """Wait for other processes, by what they write.

    Args:
      ready: function that returns whether it is there.
      waiting: function that returns a text of what is waited for, of which process.
      failed: function that returns the texts of `failures`.

    Raises:
      OthersFailed: where there are such texts.
    """
    told = time.monotonic()
    while not ready():
        if texts := failed():
            raise OthersFailed("; ".join(texts))
        time.sleep(_POLL)
        if time.monotonic() - told > _TOLD:
            told = time.monotonic()
            print(f"waiting for {waiting()}", file=sys.stderr)


def images_of(missing: dict[int, int]) -> str:
    """Return {process: images that it has still to make} as `wait_until` tells it."""
    counts = [
        f"{count} image{'s' * (count != 1)} of process {process}"
        for process, count in sorted(missing.items())
        if count
    ]
    return " and ".join(counts) or "nothing"


def _notes(folder, *, unfinished=False):
    """Return [(process, path)] of notes, or of those too at which a process was killed."""
    notes = []
    for name in files.names_in(folder):
        number = _number_of(name)
        if number and (unfinished or not files.TEMPORARY.fullmatch(name)):
            notes.append((int(number), folder / name))
    return sorted(notes)


def _number_of(name):
    """Return the number of the process whose note a file is, a text; None if it is none."""
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
