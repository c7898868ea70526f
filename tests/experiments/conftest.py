"""Launches are run as their users run them: in a process of their own, from the project's root."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Folder of prepared datasets, shared by the tests of a worker."""
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="session")
def launch(cache):
    """Run `python -m experiments.<name>`; return the finished process.

    With `fails` it must end in an error; with `kill_at` it gets a signal once that file exists.
    """

    def run(name, *flags, fails=False, kill_at=None, kill_by=signal.SIGKILL):
        command = [sys.executable, "-m", f"experiments.{name}", *flags]
        without = ("attack_image", "convergence", "convert_weights", "fetch_weights", "full_size")
        if name not in without:  # these read no dataset
            command.append(f"--cache_dir={cache}")
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        options = {"cwd": ROOT, "env": environment, "text": True}
        if kill_at is not None:
            # It reads what is compiled, and leaves no half of a program to others.
            environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "1e9"
            # A shell's background jobs ignore Ctrl-C, and hand that down.
            listen = (
                "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
                "os.execv(sys.argv[1], sys.argv[1:])"
            )
            command = [sys.executable, "-c", listen, *command]
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL, **options)
            while not kill_at.exists():
                assert process.poll() is None, f"ended before it wrote {kill_at}"
                time.sleep(0.01)
            process.send_signal(kill_by)
            process.wait()
            return process
        process = subprocess.run(command, capture_output=True, timeout=600, **options)
        assert (process.returncode != 0) == fails, process.stdout + process.stderr
        return process

    return run
