"""The start and the end of every launch: flags, processes, devices, errors in one line."""

import contextlib
import os
import platform
import re
import sys

import jax
from absl import app, flags, logging

from dag_jax import files
from dag_jax.errors import UserError, optional_import
from experiments.common import options

with optional_import("experiments"):
    from tqdm import tqdm

_NEEDED = re.compile(r"--(\w+)=None: Flag --\1 must have a value other than None\.")


def _address(text):
    if not re.fullmatch(r"\S+:\d{1,5}", text):
        raise UserError("must be host:port")


FLAGS = flags.FLAGS
COMPILED = "~/.cache/dag_jax/compiled"
_NONE_KEPT = "none"
_MOST_COMPILED = 2 * 10**9  # bytes; JAX deletes what was not used for longest
options.string(
    "compilation_cache",
    None,
    "Folder to keep compiled programs in, for the next launch on such a machine, at most 2 GB; "
    f"{_NONE_KEPT}: none. By default one for this kind of machine in {COMPILED}.",
)
flags.DEFINE_bool(
    "distributed",
    False,
    "Find out, with jax.distributed, which of several processes this is that share the images out "
    "(where a launch does so): by itself on TPU, Slurm and Kubernetes, else by --coordinator, "
    "--processes and --process.",
)
options.string("coordinator", None, "host:port of process 0, for --distributed.", _address)
options.integer("processes", None, "Number of processes. Without --distributed they never meet.")
options.integer("process", None, "This process's number, from 0.", 0)


class _Help(app.HelpFlag):
    """--help, which also lists the flags of every launch and exits with 0."""

    def __init__(self):
        super().__init__()
        self.allow_override = True

    def parse(self, arg):
        if self._parse(arg):
            print(sys.modules["__main__"].__doc__)
            for title, module in (("Flags", sys.argv[0]), ("Flags of every launch", __name__)):
                listed = FLAGS.module_help(module).strip().partition("\n")[2]  # after its path
                print(f"{title}:\n\n{listed}\n")
            sys.exit(0)


app.define_help_flags()
flags.DEFINE_flag(_Help())


def run(main) -> None:
    """Run a launch's main and exit: with 0, or with one line that says what to mend.

    A `UserError` gives that line and exit code 1; a wrong flag gives a line and exit code 2. Any
    other exception is a fault of the program, and shows its traceback.

    Args:
      main: function of the arguments that are no flags.
    """

    def guarded(argv):
        with _in_one_line():
            return main(argv)

    def parse(argv):
        with _in_one_line():
            try:
                return FLAGS(argv)
            except ValueError as error:  # of --noflag=value, and of a --flagfile that is no text
                raise flags.Error(str(error)) from error

    app.run(guarded, flags_parser=parse)


@contextlib.contextmanager
def _in_one_line():
    try:
        yield
    except (app.UsageError, flags.Error) as error:  # absl would print all of the help
        text = "; ".join(line.removeprefix("flag ") for line in str(error).splitlines())
        text = _NEEDED.sub(r"--\1 is needed", text)
        print(f"error: {text}\n(--help lists the flags)", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        sys.exit(f"error: {error}")


def start(argv) -> None:
    """Set up a launch that is one process: float32 throughout, quiet logs, no stray arguments.

    Accelerators multiply in bfloat16 or TF32 by default, which changes the number of steps.

    Raises:
      app.UsageError: for a stray argument, or flags of several processes.
      UserError: where a folder cannot be made.
    """
    if FLAGS.distributed or FLAGS.processes not in (None, 1):
        raise app.UsageError("this launch shares nothing out: it is one process")
    start_shared(argv)


def start_shared(argv) -> tuple[int, int]:
    """Set up a launch as `start` does, which several processes may share.

    Returns:
      (number of this process, number of processes).

    Raises:
      app.UsageError: for a stray argument, or flags of processes that are incomplete.
      UserError: where the processes do not find each other, or a folder cannot be made.
    """
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument(s): {' '.join(argv[1:])}")
    jax.config.update("jax_default_matmul_precision", "highest")
    _keep_compiled()
    is_given = [value is not None for value in (FLAGS.process, FLAGS.processes)]
    by_hand = FLAGS.coordinator is not None
    if any(is_given) != all(is_given) or (by_hand and not (all(is_given) and FLAGS.distributed)):
        raise app.UsageError(
            "--process and --processes go together; --coordinator goes with both and --distributed"
        )
    if all(is_given) and FLAGS.process >= FLAGS.processes:
        raise app.UsageError(f"--process={FLAGS.process} of --processes={FLAGS.processes}")
    if not FLAGS.distributed:
        return (FLAGS.process, FLAGS.processes) if all(is_given) else (0, 1)
    _one_device_a_core()
    try:
        jax.distributed.initialize(FLAGS.coordinator, FLAGS.processes, FLAGS.process)
    except (ValueError, RuntimeError) as error:  # nothing tells them who they are, or none answers
        raise UserError(f"--distributed: {error}") from error
    numbers = jax.process_index(), jax.process_count()
    # They know who they are. From here on nothing connects them: one that dies harms no other.
    jax.distributed.shutdown()
    return numbers


def _keep_compiled():
    """Let JAX keep compiled programs in --compilation_cache, unless JAX's own settings differ."""
    by_default = FLAGS.compilation_cache is None
    if by_default and jax.config.jax_compilation_cache_dir:  # of the environment
        return
    path = f"{COMPILED}/{_kind_of_machine()}" if by_default else FLAGS.compilation_cache
    if path == _NONE_KEPT:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    folder = files.open_folder(path).expanduser()
    try:
        files.make_folder(folder)
    except UserError as error:
        if not by_default:
            raise
        say(f"no compiled programs are kept: {error}")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _MOST_COMPILED)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if by_default:
        megabytes = round(sum(file.stat().length for file in folder.iterdir()) / 1e6)
        say(f"compiled programs: {path}, {megabytes} MB (--compilation_cache={_NONE_KEPT}: none)")


def _kind_of_machine() -> str:
    """Return the processor and its features; a program compiled for a CPU runs only on these."""
    features = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}_{files.sha256(features)[:8]}"


def check_names(flag, names, known) -> None:
    """Check a list of names that a flag gives.

    Raises:
      app.UsageError: where there is none, or one that is not known.
    """
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise app.UsageError(
            f"--{flag}: unknown {', '.join(unknown) or 'nothing'}; known: {', '.join(known)}"
        )


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def _one_device_a_core():
    is_given = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not is_given and jax.config.jax_num_cpu_devices < 1:
        jax.config.update("jax_num_cpu_devices", cores())


def open_mesh() -> jax.sharding.Mesh:
    """Return all devices of this process, a CPU being one for each core it may use.

    XLA shares out one small convolution badly between cores: two devices of a core each attacked
    the miniatures 2 to 3 times as fast as one of two cores. To be called before JAX does anything.
    """
    _one_device_a_core()
    return jax.sharding.Mesh(jax.local_devices(), ("images",))


def say(text) -> None:
    """Print a line on stderr, among the progress bars."""
    tqdm.write(text, file=sys.stderr)


def machine() -> str:
    """Return the kind of device and the number of cores that a launch runs on."""
    return f"{jax.local_devices()[0].device_kind}, {cores()} cores"
