"""What a run depends on: a change of what is computed shows, a change of words does not."""

import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

import dag_jax
from dag_jax.runs import provenance

PACKAGE = pathlib.Path(dag_jax.__file__).parent


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A copy of some of the package's code, and the digest of it."""
    folder = tmp_path_factory.mktemp("copied") / "dag_jax"
    ignored = shutil.ignore_patterns("networks", "weights", "detection", "engine", "__pycache__")
    shutil.copytree(PACKAGE, folder, ignore=ignored)
    return folder, provenance.digest_of(folder)


@pytest.fixture
def changes(copied):
    """Return whether an edit of a file of the copy changes the digest."""
    folder, before = copied
    edited = {}

    def edit(name, pattern, replacement):
        path = folder / name
        edited[path] = path.read_text()
        text, count = re.subn(pattern, replacement, edited[path], count=1, flags=re.MULTILINE)
        assert count == 1, f"{name} has no {pattern}"
        path.write_text(text)
        return provenance.digest_of(folder) != before

    yield edit
    for path, text in edited.items():
        path.write_text(text)


def test_environment_says_what_runs_here():
    environment = provenance.environment()
    assert environment.keys() == {"versions", "code", "device", "platform", "matmul_precision"}
    assert environment["versions"]["jax"] == jax.__version__
    assert environment["versions"]["numpy"] == np.__version__
    assert environment["versions"].keys() == {"python", "jax", "jaxlib", "flax", "optax", "numpy"}
    assert environment["device"] == jax.devices()[0].device_kind
    assert json.loads(json.dumps(environment)) == environment


def test_the_code_that_runs_has_one_digest_wherever_it_lies(tmp_path):
    assert re.fullmatch("[0-9a-f]{12}", provenance.code_digest())
    assert provenance.code_digest() is provenance.code_digest()
    only_code = shutil.ignore_patterns("*.safetensors", "__pycache__")
    copy = shutil.copytree(PACKAGE, tmp_path / "other", ignore=only_code)
    assert provenance.digest_of(copy) == provenance.code_digest()


WORDS = {
    "a comment": ("metrics/segmentation.py", r"^import", "# A comment.\nimport"),
    "a docstring of a module": ("metrics/segmentation.py", r'\A"""', '"""Truly: '),
    "a docstring of a function": ("metrics/segmentation.py", r'^    """', '    """Truly: '),
    "no docstring": ("metrics/segmentation.py", r'\A"""(.|\n)*?"""\n', ""),
    "the layout of the text": ("metrics/segmentation.py", r"\n\n\ndef", "\n\n\n\n\ndef"),
    "the words of an error": ("runs/rundir.py", r'UserError\(f"', 'UserError(f"Alas: '),
    "the code of a report": ("report/tables.py", r"^def", "X = 3\n\n\ndef"),
    "a check of an audit": ("runs/audit_checks.py", r"^def", "X = 3\n\n\ndef"),
    "a hint of the disk": ("errors.py", r"make it writable", "be kind to it"),
}


@pytest.mark.slow
@pytest.mark.parametrize("edit", WORDS.values(), ids=WORDS)
def test_words_change_no_digest(changes, edit):
    assert not changes(*edit)


RESULTS = {
    "a constant": ("metrics/segmentation.py", r"255", "254"),
    "an order": (
        "runs/rundir.py",
        r"np\.rint\(np\.clip\(perturbed, 0, 255\)\)",
        "np.rint(perturbed)",
    ),
    "an operator": ("metrics/detection.py", r"total / 11", "total * 11"),
    "what is returned": ("metrics/segmentation.py", r"^    return .*", "    return 3"),
    "the kind of an error": ("runs/rundir.py", r"raise UserError", "raise KeyError"),
    "a text that is no error": ("datasets/classes.py", r'"aeroplane"', '"airplane"'),
}


@pytest.mark.parametrize("edit", RESULTS.values(), ids=RESULTS)
def test_what_computes_changes_the_digest(changes, edit):
    assert changes(*edit)


def test_a_new_module_counts_and_a_new_report_does_not(copied):
    folder, before = copied
    for name, counts in (("report/new.py", False), ("adapters.py", True)):
        (folder / name).write_text("X = 1\n")
        assert (provenance.digest_of(folder) != before) == counts
        (folder / name).unlink()


def test_what_is_left_out_is_there():
    for name in provenance.LEFT_OUT:
        assert (PACKAGE / name).exists(), name
