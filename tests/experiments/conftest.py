"""Launches are run as their users run them: in a process of their own, from the project's root.

What a launch refuses needs no process: `refuse` calls its main.

Importing what they need takes longer than what most of them do, so that is done once: each process
is forked from one that has imported JAX and not used it, and runs `python -m experiments.NAME`.
"""

import contextlib
import importlib
import io
import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import filelock
import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from dag_jax import datasets, files
from experiments.common import console
from tests.experiments import desk, small

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
    if "wait" in job:
        print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
        continue
    if "ended" in job:
        look = os.WEXITED | os.WNOHANG | os.WNOWAIT
        print(int(os.waitid(os.P_PID, job["ended"], look) is not None), flush=True)
        continue
    child = os.fork()
    if not child:
        for number, name in enumerate((os.devnull, job["stdout"], job["stderr"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
        signal.alarm(600)
        # A shell's background jobs ignore Ctrl-C, and hand that down.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if job["doomed"]:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
        sys.argv = [job["module"], *job["flags"]]
        if job["module"].endswith(".py"):
            runpy.run_path(job["module"], run_name="__main__")
        else:
            runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
        sys.exit()
    print(child, flush=True)
"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark as slow what starts launches, or reads what one has made."""
    for item in items:
        if {"launcher", "documented"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def launcher():
    """The process that launches are forked from."""
    # A launch compiles dozens of trifles, most of which the next one has, too.
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", LAUNCHER], cwd=ROOT, env=environment, **pipes)

    def ask(job):
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    with process:
        yield ask
        process.stdin.close()


class Launched:
    """A launch that was started: `kill` it, `wait` for it."""

    def __init__(self, ask, module, flags, outputs, *, doomed):
        self._ask, self.command = ask, [sys.executable, "-m", module, *flags]
        self._paths = {stream: outputs / stream for stream in ("stdout", "stderr")}
        job = {stream: str(path) for stream, path in self._paths.items()}
        self._pid = ask(job | {"module": module, "flags": flags, "doomed": doomed})

    def kill(self, number=signal.SIGKILL):
        """Send a signal; it has not been waited for, so nobody else has its number."""
        os.kill(self._pid, number)

    def ended(self):
        """Return whether it has ended, without waiting."""
        return bool(self._ask({"ended": self._pid}))

    def wait(self):
        """Return the finished process; its exit code is a shell's, signals being 128 more."""
        code = self._ask({"wait": self._pid})
        texts = {stream: path.read_text() for stream, path in self._paths.items()}
        return subprocess.CompletedProcess(self.command, code if code >= 0 else 128 - code, **texts)


@pytest.fixture(scope="session")
def start(cache, launcher, tmp_path_factory):
    """Start `python -m experiments.<name>`, or a file of that path.

    One that is `doomed` reads what is compiled, and leaves no half of a program to others.
    """

    def run(name, *flags, doomed=False):
        module = str(name) if isinstance(name, pathlib.Path) else f"experiments.{name}"
        without = ("attack_image", "convergence", "convert_weights", "fetch_weights", "full_size")
        if isinstance(name, str) and name not in without:  # these read no dataset
            flags = (*flags, f"--cache_dir={cache}")
        outputs = tmp_path_factory.mktemp("outputs")
        return Launched(launcher, module, list(map(str, flags)), outputs, doomed=doomed)

    return run


@pytest.fixture(scope="session")
def launch(start):
    """Start a launch and return the finished process.

    With `fails` it must end in an error; with `kill_at` it gets a signal once that file exists.
    """

    def run(name, *flags, fails=False, kill_at=None, kill_by=signal.SIGKILL):
        launched = start(name, *flags, doomed=kill_at is not None)
        if kill_at is not None:
            while not (kill_at.exists() or launched.ended()):
                time.sleep(0.01)
            launched.kill(kill_by)
        process = launched.wait()
        failed = process.returncode != 0
        assert failed == (fails or kill_at is not None), process.stdout + process.stderr
        return process

    return run


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Make what several workers read once: a function of (name, function that makes it).

    The function gets a folder, and returns what pickle can store.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make(name, function):
        result = shared / f"{name}.pickle"
        with filelock.FileLock(shared / f"{name}.lock"):
            if not result.exists():
                made = function(shared / name)
                result.write_bytes(pickle.dumps(made))
        return pickle.loads(result.read_bytes())

    return make


@pytest.fixture(scope="session")
def toys(launch, once):
    """Table 1 of all models of `small`, audited: (folder, flags, process). Only to be read."""

    def make(folder):
        workdir = folder / "table1"
        flags = (f"--models={','.join(small.TITLES)}", f"--image_ids={','.join(small.SCENES)}")
        flags = (*flags, *small.STEPS, f"--workdir={workdir}")
        return workdir, flags, launch("table1", *flags)

    return once("toys", make)


@pytest.fixture(scope="session")
def scenes(cache):
    """The images of `small`, a `datasets.ExampleSet`."""
    return datasets.load_examples("scenes", small.SPLIT, cache_dir=cache, image_ids=small.SCENES)


def forget_flags():
    """Remove the flags of all launches: absl has one set for all that are imported."""
    known = flags.FLAGS.flags_by_module_dict()
    for module in [name for name in known if name.startswith("experiments.")]:
        for flag in [] if module == console.__name__ else list(known[module]):
            delattr(flags.FLAGS, flag.name)


@contextlib.contextmanager
def imported(name):
    """A launch as if it were the only one."""
    forget_flags()
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


@pytest.fixture(scope="session")
def call(cache):
    """Call a launch's main in this process, where it shares what is compiled with other tests."""

    def run(name, *arguments):
        precision = jax.config.jax_default_matmul_precision
        try:
            with imported(name) as module, pytest.MonkeyPatch.context() as patch:
                if "cache_dir" in flags.FLAGS:
                    arguments = (*arguments, f"--cache_dir={cache}")
                # Launches that measure start themselves again.
                patch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
                patch.setenv("PYTHONPATH", str(ROOT))
                module.main(flags.FLAGS([name, *arguments]))
        finally:
            jax.config.update("jax_default_matmul_precision", precision)

    return run


class Documented(NamedTuple):
    """What a command of the documentation has done."""

    workdir: pathlib.Path
    printed: str  # on stdout and stderr


@pytest.fixture(scope="session")
def folder_of_reader(cache, once):
    """The folder in which commands of the documentation are run, see `desk`."""

    def make(folder):
        desk.lay_out(folder, cache, ROOT.parent / "shared")
        return folder

    return once("desk", make)


@pytest.fixture(scope="session")
def documented(call, once, folder_of_reader):
    """Run a command of `desk.commands`, and those it needs, once for all tests."""

    def run(command):
        if desk.needs_shared(command) and not (folder_of_reader / "VOCdevkit").is_dir():
            pytest.skip("no photographs or weights in a folder named shared beside the project")
        for earlier in desk.needed(command):
            run(earlier)

        def make(_):
            printed = io.StringIO()
            with (
                contextlib.chdir(folder_of_reader),
                contextlib.redirect_stdout(printed),
                contextlib.redirect_stderr(printed),
            ):
                call(command.launch, *command.flags)
            return Documented(folder_of_reader / command.workdir, printed.getvalue())

        return once(f"desk-{files.sha256(repr(command))}", make)

    return run


@pytest.fixture
def refuse(call):
    """Call a launch's main with flags that it must refuse; return what it says to its user.

    That is a line (or a list of `lines`), with an exit code of 1 or 2, and the folder is as it was.
    """

    def run(name, *arguments, lines=1):
        folders = [flag.partition("=")[2] for flag in arguments if flag.startswith("--workdir=")]
        before = [small.everything(folder, without=()) for folder in folders]
        stderr = io.StringIO()
        with contextlib.redirect_stderr(stderr), pytest.raises(SystemExit) as ended:
            with console._in_one_line():
                call(name, *arguments)
        if ended.value.code == 2:
            shown = stderr.getvalue()
            # A dataset that no test has prepared yet is, with a bar.
            text, _, hint = shown[max(shown.find("error: "), 0) :].partition("\n")
            assert hint == "(--help lists the flags)\n"
        else:  # Python prints it, and the code is 1
            text = ended.value.code
        assert text.startswith("error: ") and text.count("\n") < lines, text
        assert before == [small.everything(folder, without=()) for folder in folders]
        return text.removeprefix("error: ")

    return run
