"""How a launch ends: in a line and an exit code, or with the traceback of a fault."""

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

from experiments.common import console

ROOT = pathlib.Path(__file__).resolve().parents[3]
# A launch that does what --do says.
LAUNCH = '''"""A launch of a test."""

import signal

from absl import app, flags

from dag_jax.errors import UserError
from experiments.common import console, options

FLAGS = flags.FLAGS
flags.DEFINE_string("do", None, "What to do.", required=True)
options.define(__name__, "limit", "workdir")


def main(argv):
    console.start_shared(argv)
    if FLAGS.do == "interrupt":
        signal.raise_signal(signal.SIGINT)
    errors = {
        "mend": UserError("it is damaged; delete it"),
        "usage": app.UsageError("--do is nothing of that"),
        "fault": ValueError("this must not be"),
        "full": OSError(28, "No space left"),
    }
    if FLAGS.do in errors:
        raise errors[FLAGS.do]
    print("done")


console.run(main)
'''
HINT = "\n(--help lists the flags)\n"


@pytest.fixture
def end(launch, tmp_path):
    """Run the launch; return (exit code, output, errors)."""
    path = tmp_path / "made_up.py"
    path.write_text(LAUNCH)

    def run(*flags, fails=True):
        process = launch(path, *flags, fails=fails)
        return process.returncode, process.stdout, process.stderr

    return run


def test_what_succeeds_says_so(end):
    assert end("--do=nothing", fails=False) == (0, "done\n", "")


def test_what_the_user_can_mend_is_one_line(end):
    assert end("--do=mend") == (1, "", "error: it is damaged; delete it\n")


def test_a_wrong_use_is_one_line_and_a_hint(end):
    assert end("--do=usage") == (2, "", f"error: --do is nothing of that{HINT}")


def test_a_stray_argument_is_a_wrong_use(refuse):
    assert refuse("fetch_weights", "limit=3") == "unexpected argument(s): limit=3"


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--do=nothing", "--limit=-1"), "--limit=-1: -1 is not an integer in the range"),
        (("--do=nothing", "--nodistributed=1"), "--nodistributed=1 does not take an argument"),
        (("--do=nothing", "--no_such"), "Unknown command line flag 'no_such'"),
        (("--limit=3",), "--do is needed"),
        (("--workdir=",), "--do is needed; --workdir=: must not be empty"),
    ],
)
def test_a_bad_flag_is_one_line_and_a_hint(end, flags, text):
    code, output, errors = end(*flags)
    assert (code, output) == (2, "") and errors.startswith(f"error: {text}")
    assert errors.count("\n") == 2 and errors.endswith(HINT)


@pytest.mark.parametrize("fault", ["fault", "full"])
def test_a_fault_of_the_program_shows_its_traceback(end, fault):
    code, _, errors = end(f"--do={fault}")
    assert code == 1 and errors.startswith("Traceback") and "raise errors[FLAGS.do]" in errors


def test_help_lists_a_launch_s_flags_and_every_launch_s(end):
    code, output, errors = end("--help", fails=False)
    assert (code, errors) == (0, "") and output.startswith("A launch of a test.")
    launch_help, _, shared = output.partition("Flags of every launch:")
    assert (
        "--do: What to do." in launch_help
        and "--limit:" in launch_help
        and "made_up.py" not in launch_help
    )
    for flag in ("--[no]distributed:", "--process:", "--processes:", "--compilation_cache:"):
        assert flag in shared and flag not in launch_help


def test_an_interrupted_launch_says_that_nothing_is_lost(end):
    line = "interrupted: what is finished is kept; the same command goes on\n"
    assert end("--do=interrupt") == (130, "", line)


LOSING = "import gc; gc.callbacks.append(lambda *_: signal.raise_signal(2)); gc.collect()"


@pytest.mark.parametrize("interrupt", ["raise KeyboardInterrupt", LOSING])
def test_an_interruption_is_heard_in_imports_and_where_python_would_lose_it(interrupt):
    code = f"import experiments, signal; signal.signal(2, signal.default_int_handler); {interrupt}"
    shell = f"{sys.executable} -c '{code}'; echo $?"
    process = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, cwd=ROOT)
    assert process.stdout == "130\n"
    assert process.stderr.startswith("interrupted: ") and process.stderr.count("\n") == 1


def test_names_are_checked_against_those_that_are_known():
    console.check_names("models", ["a"], ["a", "b"])
    for names, text in ((["c"], "unknown c; known: a, b"), ([], "unknown nothing")):
        with pytest.raises(console.app.UsageError, match=text):
            console.check_names("models", names, ["a", "b"])


@pytest.mark.parametrize("flag", ["--process=1", "--processes=2", "--coordinator=localhost:1"])
def test_a_flag_of_processes_without_its_partner_is_refused(refuse, flag):
    assert "--process and --processes go together" in refuse("table1", flag)


def test_a_process_beyond_their_number_is_refused(refuse):
    text = refuse("table1", "--process=2", "--processes=2")
    assert text == "--process=2 of --processes=2"


@pytest.mark.parametrize("arguments", [["--distributed"], ["--process=0", "--processes=2"]])
def test_a_launch_that_shares_nothing_out_is_one_process(refuse, arguments):
    assert "it is one process" in refuse("fetch_weights", *arguments)


def test_processes_that_nothing_tells_who_they_are_say_so(end):
    code, _, errors = end("--do=nothing", "--distributed")
    assert code == 1 and errors.startswith("error: --distributed: ")


COMPILES = """
import functools
import jax, jax.numpy as jnp

layers = [jax.nn.softmax, jnp.sort, jnp.cumsum] * 20
jax.jit(lambda x: functools.reduce(lambda x, layer: layer(x), layers, x))(jnp.ones((30, 30)))
"""


@pytest.mark.slow
def test_compiled_programs_are_kept_for_the_next_launch(tmp_path):
    path = tmp_path / "made_up.py"
    path.write_text(LAUNCH.replace('    print("done")', textwrap.indent(COMPILES, "    ")))
    unset = "JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def run(*flags, home=tmp_path):
        return subprocess.run(
            [sys.executable, str(path), "--do=nothing", *flags],
            env=environment | {"HOME": str(home)},
            capture_output=True,
            text=True,
            check=True,
        ).stderr

    cache = tmp_path / ".cache" / "dag_jax" / "compiled"
    run("--compilation_cache=none")
    assert not cache.exists()
    first = run()
    (folder,) = cache.iterdir()
    assert first.startswith(f"compiled programs: {console.COMPILED}/{folder.name}, 0 MB (")
    names = {file.name for file in folder.iterdir()}
    assert any(name.startswith("jit__lambda") for name in names)
    run()
    assert {file.name for file in folder.iterdir()} == names
    (tmp_path / "file").write_text("no folder")
    assert run(home=tmp_path / "file").startswith("no compiled programs are kept: ")
