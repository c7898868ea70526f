"""Imports point down; what draws or prepares datasets is imported when that is done."""

import pathlib
import re
import subprocess
import sys

import pytest

import dag_jax

IMPORTS = """
import sys, pkgutil, importlib
import dag_jax.runs, dag_jax.report, dag_jax.datasets.drawings, experiments.table1
for package in (dag_jax.runs, dag_jax.report):
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
print({"matplotlib", "scipy", "tensorflow_datasets"} & sys.modules.keys())
dag_jax.report.lineplot.panels(1, "a")
print("matplotlib" in sys.modules, "matplotlib.pyplot" in sys.modules)
"""


@pytest.mark.slow
def test_what_draws_is_imported_when_something_is_drawn_and_never_pyplot():
    command = [sys.executable, "-c", IMPORTS]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.stdout.split() == ["set()", "True", "False"], process.stderr


def test_nothing_below_the_reports_imports_them():
    package = pathlib.Path(dag_jax.__file__).parent
    files = [path for path in package.rglob("*.py") if path.parent.name != "report"]
    importing = re.compile(r"^\s*(from|import) dag_jax\.report|^\s*from dag_jax import.*\breport\b")
    upwards = [
        path.name for path in files if any(map(importing.match, path.read_text().splitlines()))
    ]
    assert len(files) > 50 and upwards == []
