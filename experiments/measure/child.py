"""Cases of a launch in processes of their own, which share neither memory nor threads."""

import json
import os
import platform
import subprocess
import sys
import time

import jax

from dag_jax import files
from dag_jax.errors import UserError
from dag_jax.progress import progress
from dag_jax.runs import provenance, rundir
from experiments.common import console


def environment() -> dict:
    """Return the versions and devices that figures depend on besides the settings."""
    return provenance.environment() | {
        "devices": jax.device_count(),
        "cores": console.cores(),
        "machine": platform.machine(),
    }


def call(launch: str, case: str, **variables: str):
    """Run a launch for one case, and return the JSON of the last line that it prints.

    Args:
      launch: name of the launch, which has a flag --case.
      case: what it is to do.
      **variables: environment variables of the child beside ours.

    Raises:
      SystemExit: with the child's exit code, where it fails; it has said why.
      UserError: where a signal ends it.
    """
    command = [sys.executable, "-m", f"experiments.{launch}", *sys.argv[1:], f"--case={case}"]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | variables)
    if process.returncode < 0:
        raise UserError(
            f"{case}: its process was ended by signal {-process.returncode}; 9 is most often a "
            "system without memory left"
        )
    if process.returncode:
        sys.exit(process.returncode)
    return json.loads(process.stdout.splitlines()[-1])


def measured(launch: str, folder, cases, **variables: str):
    """Measure cases in turn, each in a process of its own; those that a folder has are kept.

    Args:
      launch: as in `call`; for a case it prints a dict.
      folder: where a file for each case lies.
      cases: as in `call`.
      **variables: as in `call`.

    Yields:
      (case, its dict, with the "minutes" that it took).
    """
    files.make_folder(folder)
    with progress(cases, unit="case") as bar:
        for case in bar:
            bar.set_description(case)
            path = folder / f"{rundir.folder_name(case)}.json"
            if not files.exists(path):
                started = time.monotonic()
                try:
                    content = call(launch, case, **variables)
                except SystemExit as end:
                    text = f"{case} failed (exit code {end.code}); its message is above"
                    raise UserError(text) from end
                minutes = round((time.monotonic() - started) / 60, 2)
                files.write_json(path, content | {"minutes": minutes})
            content = files.load_json(path, digest=True)
            bar.write(f"{case}: {content['minutes']} minutes", file=sys.stderr)
            yield case, content
