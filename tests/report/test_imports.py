"""Imports point down, and matplotlib is for those who draw."""

import pathlib
import re
import subprocess
import sys

import pytest

import dag_jax

IMPORTS = """
import sys, pkgutil, importlib
import dag_jax, dag_jax.runs, dag_jax.datasets.drawings
for module in pkgutil.iter_modules(dag_jax.runs.__path__):
    importlib.import_module(f"dag_jax.runs.{module.name}")
for name in ("audit", "claims", "crosstable", "findings", "tables"):
    importlib.import_module(f"dag_jax.report.{name}")
print("matplotlib" in sys.modules)
import dag_jax.report.figures
print("matplotlib" in sys.modules, "matplotlib.pyplot" in sys.modules)
"""


@pytest.mark.slow
def test_only_those_who_draw_import_matplotlib_and_nobody_pyplot():
    command = [sys.executable, "-c", IMPORTS]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.stdout.split() == ["False", "True", "False"], process.stderr


def test_nothing_below_the_reports_imports_them():
    package = pathlib.Path(dag_jax.__file__).parent
    files = [path for path in package.rglob("*.py") if path.parent.name != "report"]
    importing = re.compile(r"^\s*(from|import) dag_jax\.report|^\s*from dag_jax import.*\breport\b")
    upwards = [
        path.name for path in files if any(map(importing.match, path.read_text().splitlines()))
    ]
    assert len(files) > 50 and upwards == []
