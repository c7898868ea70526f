"""What lacks is said in one line; the rest of `errors` is tested by who reads and writes."""

import importlib

import pytest

from dag_jax.errors import MissingPackageError, UserError, optional_import


def test_a_missing_package_is_named_with_what_installs_it():
    with pytest.raises(MissingPackageError) as caught, optional_import("data"):
        importlib.import_module("a_package_of_nobody.part")
    assert str(caught.value) == (
        "a_package_of_nobody is not installed, and this needs it: pip install 'dag-jax[data]'"
    )
    assert caught.value.name == "a_package_of_nobody"
    assert isinstance(caught.value, UserError) and isinstance(caught.value, ImportError)


def test_a_missing_part_of_a_namespace_is_a_package(tmp_path, monkeypatch):
    (tmp_path / "namespace_of_nobody" / "present").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("namespace_of_nobody.present")
    with pytest.raises(MissingPackageError, match="^namespace_of_nobody.absent is not installed"):
        with optional_import("data"):
            importlib.import_module("namespace_of_nobody.absent")


@pytest.mark.parametrize("name", ["dag_jax.a_module_of_nobody", "json.a_module_of_nobody"])
def test_a_module_that_lacks_in_what_is_installed_is_a_fault(name):
    with pytest.raises(ModuleNotFoundError), optional_import("data"):
        importlib.import_module(name)


def test_another_error_of_an_import_is_left_as_it_is():
    with pytest.raises(ImportError, match="cannot import name") as caught, optional_import("data"):
        from json import nothing_of_this_name  # noqa: F401
    assert not isinstance(caught.value, MissingPackageError)
