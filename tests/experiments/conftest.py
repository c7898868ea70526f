"""Launches are run as their users run them: in a process of their own, from the project's root.

What a launch refuses needs no process: `refuse` calls its main.

Importing what they need takes longer than what most of them do, so that is done once: each process
is forked from one that has imported JAX and not used it, and runs `python -m experiments.NAME`.
"""

import contextlib
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import pytest
from absl import app, flags
from absl.testing import flagsaver

from dag_jax.errors import UserError
from experiments.common import console

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCHER = """
import json, os, runpy, signal, sys
import flax.linen, jax, matplotlib.figure, optax, dag_jax
from jax._src import lru_cache
from dag_jax.runs import evaluation
from dag_jax.report import figures
from experiments.common import options

lru_cache.LRUCache._evict_if_needed = lambda *args, **options: None  # as in tests/conftest.py

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        for number, name in enumerate((os.devnull, job["stdout"], job["stderr"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
        signal.alarm(600)
        # A shell's background jobs ignore Ctrl-C, and hand that down.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = [job["module"], *job["flags"]]
        if job["module"].endswith(".py"):
            runpy.run_path(job["module"], run_name="__main__")
        else:
            runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
def launcher():
    """The process that launches are forked from."""
    # A launch compiles dozens of trifles, most of which the next one has, too.
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", LAUNCHER], cwd=ROOT, env=environment, **pipes)
    with process:
        yield process
        process.stdin.close()


def as_in_a_shell(returncode):
    """Return the exit code that a shell has for what `subprocess` returns; signals are 128 more."""
    return returncode if returncode >= 0 else 128 - returncode


@pytest.fixture(scope="session")
def launch(cache, launcher, tmp_path_factory):
    """Run `python -m experiments.<name>`, or a file of that path; return the finished process.

    With `fails` it must end in an error; with `kill_at` it gets a signal once that file exists.
    """

    outputs = tmp_path_factory.mktemp("outputs")

    def run(name, *flags, fails=False, kill_at=None, kill_by=signal.SIGKILL):
        module = str(name) if isinstance(name, pathlib.Path) else f"experiments.{name}"
        command = [sys.executable, "-m", module, *flags]
        without = ("attack_image", "convergence", "convert_weights", "fetch_weights", "full_size")
        if isinstance(name, str) and name not in without:  # these read no dataset
            command.append(f"--cache_dir={cache}")
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        options = {"cwd": ROOT, "env": environment, "text": True}
        paths = {stream: outputs / stream for stream in ("stdout", "stderr")}
        for path in paths.values():
            path.unlink(missing_ok=True)
        if kill_at is not None:
            # It reads what is compiled, and leaves no half of a program to others.
            environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "1e9"
            # A shell's background jobs ignore Ctrl-C, and hand that down.
            listen = (
                "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
                "os.execv(sys.argv[1], sys.argv[1:])"
            )
            command = [sys.executable, "-c", listen, *command]
            with paths["stderr"].open("w") as stderr:
                process = subprocess.Popen(command, stderr=stderr, **options)
            while not kill_at.exists():
                assert process.poll() is None, f"no {kill_at}: {paths['stderr'].read_text()}"
                time.sleep(0.01)
            process.send_signal(kill_by)
            returncode = as_in_a_shell(process.wait())
            return subprocess.CompletedProcess(
                command, returncode, stderr=paths["stderr"].read_text()
            )
        job = {"module": module, "flags": command[3:]}
        job |= {stream: str(path) for stream, path in paths.items()}
        launcher.stdin.write(json.dumps(job) + "\n")
        launcher.stdin.flush()
        returncode = as_in_a_shell(int(launcher.stdout.readline()))
        texts = {stream: path.read_text() for stream, path in paths.items()}
        assert (returncode != 0) == fails, texts["stdout"] + texts["stderr"]
        return subprocess.CompletedProcess(command, returncode, **texts)

    return run


@contextlib.contextmanager
def imported(name):
    """A launch as if it were the only one: absl has one set of flags for all that are imported."""
    known = flags.FLAGS.flags_by_module_dict()
    for module in [name for name in known if name.startswith("experiments.")]:
        for flag in [] if module == console.__name__ else list(known[module]):
            delattr(flags.FLAGS, flag.name)
    sys.modules.pop(f"experiments.{name}", None)
    module = importlib.import_module(f"experiments.{name}")
    values = flagsaver.save_flag_values()
    try:
        yield module
    finally:  # flags that libraries have defined meanwhile stay
        flagsaver.restore_flag_values(flagsaver.save_flag_values() | values)


@pytest.fixture
def load_launch():
    """The context of a launch's module, as if it were the only one."""
    return imported


@pytest.fixture
def call(cache):
    """Call a launch's main in this process, where it shares what is compiled with other tests."""
    precision = jax.config.jax_default_matmul_precision

    def run(name, *given):
        with imported(name) as module:
            if "cache_dir" in flags.FLAGS:
                given = (*given, f"--cache_dir={cache}")
            module.main(flags.FLAGS([name, *given]))

    yield run
    jax.config.update("jax_default_matmul_precision", precision)


@pytest.fixture
def refuse(call):
    """Call a launch's main with flags that it must refuse; return what it says to its user."""

    def run(name, *given):
        with pytest.raises((UserError, app.UsageError, flags.Error)) as caught:
            call(name, *given)
        return str(caught.value)

    return run
