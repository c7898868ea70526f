"""Every reader on inputs without number: each ends with success or one clear error.

    python -m tests.fuzz --minutes=10
    python -m tests.fuzz --minutes=1 --readers="torch zip,caffe" --seed=1
    python -m tests.fuzz --readers=caffe --seed=0 --number=1234    # one input, with its traceback

Inputs are small valid files, damaged (`mutations`). A fault is any other exception, a crash, an
endless loop, or more time or memory than a reader's bound. What an input is depends on the seed,
the reader's name and its number alone. Inputs that find faults are kept in --folder. Exit code 1
where there were any.
"""

import collections
import pathlib
import sys
import tempfile
import time
import warnings

from absl import app, flags

from tests.fuzz import children, datasets, runs, weights

FLAGS = flags.FLAGS
flags.DEFINE_float("minutes", 1.0, "How long.")
flags.DEFINE_integer("seed", 0, "Of the inputs.")
flags.DEFINE_list("readers", [], "Which; all by default.")
flags.DEFINE_integer("number", None, "Only this input, in this process.")
flags.DEFINE_string("folder", "runs/fuzz", "Where inputs that find faults are kept.")
_BATCH_SECONDS = 2.0
_FIRST = 100  # inputs of a reader's first batch
_SHOWN = 3  # faults of one kind of one reader that are kept


def all_readers() -> list[children.Reader]:
    """Return all readers."""
    return [*weights.readers(), *datasets.readers(), *runs.readers()]


def keep(reader, seed, number, fault, text):
    """Write an input that finds a fault, and what is said of it; returns its path."""
    folder = pathlib.Path(FLAGS.folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{reader.name.replace(' ', '_')}-{seed}-{number}"
    path.write_bytes(children.make(reader, seed, number))
    path.with_suffix(".txt").write_text(f"{reader.name}: {fault}\n{text}\n")
    return path


def table(chosen, counts, faults) -> str:
    """Return what became of the inputs of each reader."""
    lines = [
        f"{'reader':24} {'inputs':>9} {'read':>9} {'refused':>9} {'faults':>7} {'a second':>9}"
    ]
    for name in [reader.name for reader in chosen] + ["all"]:
        count = counts[name]
        inputs = count["read"] + count["refused"] + faults[name]
        rate = inputs / max(count["seconds"], 1e-9)
        lines.append(
            f"{name:24} {inputs:9,} {count['read']:9,} {count['refused']:9,} {faults[name]:7,} "
            f"{rate:9.0f}"
        )
    return "\n".join(lines)


def main(argv):
    """Read inputs until the time is over."""
    if argv[1:]:
        raise app.UsageError(f"unknown {argv[1:]}")
    known = {reader.name: reader for reader in all_readers()}
    if unknown := set(FLAGS.readers) - set(known):
        raise app.UsageError(f"--readers: unknown {sorted(unknown)}; known: {', '.join(known)}")
    chosen = [known[name] for name in FLAGS.readers or known]
    if FLAGS.number is not None:
        with tempfile.TemporaryDirectory() as folder:
            for reader in chosen:
                data = children.make(reader, FLAGS.seed, FLAGS.number)
                print(reader.name, *children.check(reader, pathlib.Path(folder), data), sep="\n")
        return
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # children use no JAX
    counts, faults, kinds = collections.defaultdict(collections.Counter), collections.Counter(), {}
    following, size = dict.fromkeys(known, 0), dict.fromkeys(known, _FIRST)
    end, last_message = time.monotonic() + 60 * FLAGS.minutes, time.monotonic()
    while time.monotonic() < end:
        # The reader that has had the least time.
        reader = min(chosen, key=lambda reader: counts[reader.name]["seconds"])
        start, first = time.monotonic(), following[reader.name]
        batch_counts, new, following[reader.name] = children.batch(
            reader, FLAGS.seed, first, size[reader.name]
        )
        seconds = time.monotonic() - start
        size[reader.name] = int(min(size[reader.name] * _BATCH_SECONDS / seconds, 5000)) + 1
        for name in (reader.name, "all"):
            counts[name].update(batch_counts | {"seconds": seconds})
            faults[name] += len(new)
        for number, fault, text in new:
            where = text.strip().splitlines()[-3:-1]  # the line that raised it
            kind = reader.name, fault, *where
            kinds[kind] = kinds.get(kind, 0) + 1
            if kinds[kind] <= _SHOWN:
                path = keep(reader, FLAGS.seed, number, fault, text)
                print(f"FAULT {reader.name} {number}: {fault}; {path}", file=sys.stderr)
        if time.monotonic() - last_message > 30:
            last_message = time.monotonic()
            minutes_left = (end - last_message) / 60
            inputs = counts["all"]["read"] + counts["all"]["refused"]
            print(
                f"{inputs:,} inputs, {faults['all']} faults, {minutes_left:.1f} min left",
                file=sys.stderr,
            )
    print(table(chosen, counts, faults))
    if faults["all"]:
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
