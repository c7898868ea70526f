"""What every launch does first, and what it shows: devices, progress, tables."""

import os
import sys

import jax
from absl import app, logging
from tqdm import tqdm


def start(argv) -> None:
    """Set up a launch: float32 throughout, quiet logs, no stray arguments.

    Accelerators multiply in bfloat16 or TF32 by default, which changes the number of steps.
    """
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_default_matmul_precision", "highest")
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument(s): {' '.join(argv[1:])}")


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def open_mesh() -> jax.sharding.Mesh:
    """Return all devices of this process, a CPU being one for each core it may use.

    XLA shares out one small convolution badly between cores: two devices of a core each attacked
    the miniatures 2 to 3 times as fast as one of two cores. To be called before JAX does anything.
    """
    given = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not given and jax.config.jax_num_cpu_devices < 1:
        jax.config.update("jax_num_cpu_devices", cores())
    return jax.make_mesh((jax.local_device_count(),), ("images",), devices=jax.local_devices())


def progress(iterable=None, **options):
    """Return a progress bar: what, how many, how long left."""
    return tqdm(iterable, file=sys.stderr, mininterval=1.0, dynamic_ncols=True, **options)


def markdown(rows, columns):
    """Return rows as a Markdown table, padded so that it is also a table in a terminal.

    Args:
      rows: anything.
      columns: pairs (name, function of a row that returns its text).
    """
    cells = [[name for name, _ in columns]] + [[text(row) for _, text in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| "
        + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
