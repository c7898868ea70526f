"""What every launch does first, and what it shows: processes, devices, progress, tables."""

import os
import pathlib
import sys
import time

import jax
from absl import app, flags, logging

from dag_jax.errors import UserError
from experiments.common import interruption

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder to keep compiled programs in: the next launch on such a machine starts at once.",
)
flags.DEFINE_bool(
    "distributed",
    False,
    "Find out, with jax.distributed, which of several processes this is that share the images out "
    "(where a launch does so): by itself on TPU, Slurm and Kubernetes, else by --coordinator, "
    "--processes and --process.",
)
flags.DEFINE_string("coordinator", None, "host:port of process 0, for --distributed.")
flags.DEFINE_integer(
    "processes", None, "Number of processes. Without --distributed they never meet.", 1
)
flags.DEFINE_integer("process", None, "This process's number, from 0.", 0)


def run(main) -> None:
    """Run a launch's main; what its user can mend is one line, and the exit code says it failed.

    Args:
      main: function of the arguments that absl leaves.
    """

    def guarded(argv):
        try:
            return main(argv)
        except KeyboardInterrupt:
            print("interrupted: what was written stays, the same command goes on", file=sys.stderr)
            interruption.leave(130)  # 128 + SIGINT, as shells have it
        except app.UsageError as error:  # absl would print all of the help first
            sys.exit(f"error: {error}\n(--help lists the flags)")
        except (ValueError, OSError) as error:
            if FLAGS.verbosity > 0:
                raise
            sys.exit(f"error: {error}\n(--verbosity=1 shows where it came from)")

    interruption.listen()
    app.run(guarded)


def start(argv) -> tuple[int, int]:
    """Set up a launch: float32 throughout, quiet logs, no stray arguments, other processes.

    Accelerators multiply in bfloat16 or TF32 by default, which changes the number of steps.

    Returns:
      (number of this process, number of processes), which share images out.

    Raises:
      app.UsageError: for a stray argument, or flags of processes that are incomplete.
    """
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument(s): {' '.join(argv[1:])}")
    jax.config.update("jax_default_matmul_precision", "highest")
    if FLAGS.compilation_cache:
        if "://" not in FLAGS.compilation_cache:
            pathlib.Path(FLAGS.compilation_cache).mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", FLAGS.compilation_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    numbers = [FLAGS.process, FLAGS.processes]
    given = [value is not None for value in numbers]
    by_hand = FLAGS.coordinator is not None
    if any(given) != all(given) or (by_hand and not (all(given) and FLAGS.distributed)):
        raise app.UsageError(
            "--process and --processes go together; --coordinator goes with both and --distributed"
        )
    if all(given) and FLAGS.process >= FLAGS.processes:
        raise app.UsageError(f"--process={FLAGS.process} of --processes={FLAGS.processes}")
    if not FLAGS.distributed:
        return (FLAGS.process, FLAGS.processes) if all(given) else (0, 1)
    _one_device_a_core()
    jax.distributed.initialize(FLAGS.coordinator, FLAGS.processes, FLAGS.process)
    found = jax.process_index(), jax.process_count()
    # They know who they are. From here on nothing connects them: one that dies harms no other.
    jax.distributed.shutdown()
    return found


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


def wait_until(ready, what, failed) -> None:
    """Wait for other processes, by what they write; nothing else connects them.

    Args:
      ready: function that returns whether it is there.
      what: text of what is waited for.
      failed: function that returns what other processes say went wrong, a list of texts.

    Raises:
      ValueError: where another process failed.
    """
    said = time.monotonic()
    while not ready():
        if texts := failed():
            raise UserError("; ".join(texts))
        time.sleep(0.2)
        if time.monotonic() - said > 30:
            said = time.monotonic()
            print(f"waiting for {what}", file=sys.stderr)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def _one_device_a_core():
    given = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not given and jax.config.jax_num_cpu_devices < 1:
        jax.config.update("jax_num_cpu_devices", cores())


def open_mesh() -> jax.sharding.Mesh:
    """Return all devices of this process, a CPU being one for each core it may use.

    XLA shares out one small convolution badly between cores: two devices of a core each attacked
    the miniatures 2 to 3 times as fast as one of two cores. To be called before JAX does anything.
    """
    _one_device_a_core()
    return jax.sharding.Mesh(jax.local_devices(), ("images",))
