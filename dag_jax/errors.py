"""What a user can mend, and whose fault it is: the input's, a file's, or the disk's.

Launches print a `UserError` as one line. Any other exception is a fault of the program, and shows
its traceback.
"""

import contextlib
import errno
import os
import sys

_HINTS = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room within the quota",
    errno.EFBIG: "raise the limit on the size of a file",
    errno.EROFS: "make it writable",
    errno.EACCES: "this user lacks the permission",
    errno.EPERM: "this user lacks the permission",
    errno.ENOENT: "its folder is not there",
    errno.ENOTDIR: "a file lies where a folder should be",
    errno.ENOMEM: "free some memory",
    errno.EMFILE: "raise the limit on open files, `ulimit -n`",
    errno.ENFILE: "the whole machine has too many files open",
}


class UserError(ValueError):
    """What was given, or lies on disk, cannot be used; the message says what would be right."""


class MissingError(UserError):
    """There is no such file."""


class DamagedError(UserError):
    """A file does not hold what was written to it.

    Args:
      path: the file.
      reason: how that is known.
      remedy: a sentence on what to do; by default that deleting it helps.
    """

    def __init__(self, path, reason, remedy=None):
        remedy = remedy or "Delete that file: the same command then makes anew what was in it"
        super().__init__(f"{path} is damaged ({reason!s:.200}). {remedy}")
        self.path, self.reason = path, str(reason)


class MissingPackageError(UserError, ImportError):
    """A package is not installed that an extra of this one brings.

    Args:
      package: its name, as it is imported.
      extra: the optional set of packages that it belongs to.
    """

    def __init__(self, package, extra):
        install = f"pip install 'dag-jax[{extra}]'"
        super().__init__(f"{package} is not installed, and this needs it: {install}")
        self.name = package


class StorageError(UserError, OSError):
    """The disk, the memory or the connection fails, and no file is known to be damaged.

    Args:
      number: the system's of the reason, which is the attribute `errno`.
      text: the message.
    """

    def __init__(self, number, text):
        super().__init__(text)
        self.errno = number


@contextlib.contextmanager
def optional_import(extra):
    """Name the extra that brings a missing package. The block holds the imports of that package.

        with optional_import("data"):
            from PIL import Image

    Args:
      extra: one of the optional sets of packages in pyproject.toml.

    Raises:
      MissingPackageError: naming the package and what installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        parent = sys.modules.get(package)
        if not package or getattr(parent, "__file__", None):  # it is there, and lacks a part
            raise
        # Of a namespace, such as google, each part is a package.
        raise MissingPackageError(error.name if parent else package, extra) from error


@contextlib.contextmanager
def reading(path):
    """Turn any error of the block into one that says: the file at `path` cannot be read now.

    The block only fetches bytes, so that no error can come from what they hold.

    Raises:
      MissingError, StorageError.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such file") from error
    except Exception as error:  # a bucket's client has errors of its own
        problem = "cannot be read now, and nothing is known to be wrong with it"
        raise _storage_error(path, problem, error) from error


@contextlib.contextmanager
def parsing(path):
    """Turn any error of the block into one that says: the file at `path` is damaged.

    Errors of a `reading` block within pass as they are.

    Raises:
      DamagedError; StorageError where the memory does not last.
    """
    try:
        yield
    except (StorageError, MissingError):
        raise
    except MemoryError:
        with reading(path):
            raise
    except Exception as error:  # readers' exceptions differ by what is damaged
        raise DamagedError(path, error) from error


@contextlib.contextmanager
def writing(path):
    """Turn any error of the block into one that says: `path` cannot be written.

    Raises:
      StorageError.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, OSError | MemoryError) and "://" not in os.fspath(path):
            raise  # a bucket's client has errors of its own, a local disk none
        raise _storage_error(path, "cannot be written", error) from error


def _storage_error(path, problem, error):
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    reason = getattr(error, "strerror", None) or str(error)
    if number == errno.ENOMEM:
        reason = os.strerror(number)
    hint = f" ({_HINTS[number]})" if number in _HINTS else ""
    text = f"{path} {problem}: {reason or type(error).__name__}{hint}"
    return StorageError(number or errno.EIO, text)
