"""Cases of a launch in processes of their own: one's memory and threads are not another's."""

import json
import os
import platform
import subprocess
import sys

import jax

from dag_jax.runs import provenance
from experiments.common import console


def environment() -> dict:
    """Return what figures depend on beside the settings."""
    return provenance.environment() | {
        "devices": jax.device_count(),
        "cores": console.cores(),
        "machine": platform.machine(),
    }


def call(launch: str, case: str, **variables: str):
    """Return what a launch, called again for one case, prints as its last line, in JSON.

    Args:
      launch: name of the launch, which has a flag --case.
      case: what it is to do.
      **variables: environment variables of the child beside ours.

    Raises:
      RuntimeError: where the child fails; what it says itself stands above.
    """
    command = [sys.executable, "-m", f"experiments.{launch}", *sys.argv[1:], f"--case={case}"]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | variables)
    if process.returncode < 0:
        raise RuntimeError(
            f"{case}: its process was ended by signal {-process.returncode}; 9 is most often a "
            "system without memory left"
        )
    if process.returncode:
        raise RuntimeError(f"{case} failed (exit code {process.returncode}); its message is above")
    return json.loads(process.stdout.splitlines()[-1])
