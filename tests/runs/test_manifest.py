"""A folder belongs to one run, of one version unless another is accepted."""

import json

import pytest

from dag_jax import files
from dag_jax.errors import DamagedError, MissingError, UserError
from dag_jax.runs import manifest, rundir

VERSION = {"versions": {"jax": "0.10", "numpy": "2.1"}, "code": "ab", "device": "cpu"}


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_belongs_to_one_run(tmp_path):
    settings = {"seed": 0, "splits": ("a", "b"), "versions": {"jax": "0.10"}, "text": "x" * 100}
    folder = rundir.claim(tmp_path / "run", settings)
    assert rundir.claim(folder, settings | {"splits": ["a", "b"]}) == folder
    before = bytes_of(tmp_path)
    changed = settings | {"seed": 1, "margin": 3, "versions": {"jax": "0.12"}, "text": "y" * 100}
    with pytest.raises(UserError) as error:
        rundir.claim(folder, changed | {"splits": ["a"]}, accept_version=True)
    assert (
        "other settings (margin: now 3, there nothing; seed: now 1, there 0; splits.1: now "
        f'nothing, there "b"; text: now "{59 * "y"}, there "{59 * "x"}; versions.jax: now "0.12", '
        'there "0.10"); nothing was changed'
    ) in str(error.value)
    assert bytes_of(tmp_path) == before


def test_many_differences_are_counted(tmp_path):
    folder = rundir.claim(tmp_path / "run", {"keys": [*range(7)]})
    with pytest.raises(UserError, match=r"4\.\d+.*; and 2 more\)"):
        rundir.claim(folder, {"keys": [4.5] * 7})


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty"):
        rundir.claim(tmp_path, {"seed": 0})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_manifest_cut_short_is_written_again(tmp_path):
    (tmp_path / "manifest.json.tmp-0123abcd").write_text("{")
    assert rundir.claim(tmp_path, {"seed": 0}).exists()
    assert files.load_json(tmp_path / "manifest.json", digest=True) == {"seed": 0}


@pytest.mark.parametrize("text", ['{"seed":', '{"seed": 0}', '{"seed": 1, "sha256": "ab"}'])
def test_a_damaged_manifest_is_named_and_not_to_be_deleted(tmp_path, text):
    folder = rundir.claim(tmp_path / "run", {"seed": 0})
    (tmp_path / "run" / "manifest.json").write_text(text)
    with pytest.raises(DamagedError, match=r"manifest\.json is damaged .* Put it back") as error:
        rundir.claim(folder, {"seed": 0})
    assert "elete" not in str(error.value)


def test_another_version_is_refused_until_it_is_accepted(tmp_path):
    first = {"seed": 0, "provenance": VERSION}
    folder = rundir.claim(tmp_path / "run", first)
    now = VERSION | {"versions": {"jax": "0.12", "numpy": "2.1"}, "code": "cd"}
    before = bytes_of(tmp_path)
    with pytest.raises(UserError) as error:
        rundir.claim(folder, first | {"provenance": now})
    assert (
        'results of another version (code: now "cd", there "ab"; versions.jax: now "0.12", there '
        '"0.10"); nothing was changed there. --accept_version goes on'
    ) in str(error.value)
    assert bytes_of(tmp_path) == before and rundir.accepted(folder) == []
    rundir.claim(folder, first | {"provenance": now}, accept_version=True)
    assert rundir.accepted(folder) == [
        {
            "then": {"versions.jax": "0.10", "code": "ab"},
            "now": {"versions.jax": "0.12", "code": "cd"},
        }
    ]


def test_a_version_is_accepted_once_and_for_all(tmp_path):
    first = {"seed": 0, "provenance": VERSION}
    second, third = (first | {"provenance": VERSION | {"code": code}} for code in ("cd", "ef"))
    folder = rundir.claim(tmp_path / "run", first, accept_version=True)
    assert rundir.accepted(folder) == []
    for content in (second, third):
        rundir.claim(folder, content, accept_version=True)
    before = bytes_of(tmp_path)
    for content in (first, second, third):
        for accept in (False, True):
            rundir.claim(folder, content, accept_version=accept)
    assert bytes_of(tmp_path) == before
    assert [change["now"] for change in rundir.accepted(folder)] == [{"code": "cd"}, {"code": "ef"}]
    with pytest.raises(UserError, match=r'code: now "gh", there "ab"'):
        rundir.claim(folder, first | {"provenance": VERSION | {"code": "gh"}})


def test_a_version_that_lacks_an_entry_is_another(tmp_path):
    folder = rundir.claim(tmp_path / "run", {"provenance": VERSION})
    with pytest.raises(UserError, match="device: now nothing"):
        rundir.claim(folder, {"provenance": {k: VERSION[k] for k in ("versions", "code")}})
    rundir.claim(folder, {}, accept_version=True)
    assert rundir.accepted(folder)[0]["now"] == {}
    rundir.claim(folder, {})


def test_accepting_a_version_accepts_no_other_setting(tmp_path):
    folder = rundir.claim(tmp_path / "run", {"seed": 0, "provenance": VERSION})
    with pytest.raises(UserError, match=r"other settings \(seed: now 1, there 0\)"):
        rundir.claim(folder, {"seed": 1, "provenance": {"code": "cd"}}, accept_version=True)
    assert rundir.accepted(folder) == []


def test_a_manifest_is_for_people_too(tmp_path):
    folder = rundir.claim(tmp_path / "run", {"seed": 0, "provenance": VERSION})
    assert list(json.loads((folder / "manifest.json").read_text())) == [
        "seed",
        "provenance",
        "sha256",
    ]
    with pytest.raises(MissingError, match=r"manifest\.json: no such file"):
        rundir.accepted(tmp_path)


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match=r"file.* Not a directory \(a file lies where"):
            rundir.claim(path, {})


def test_folders_that_have_a_file(tmp_path):
    assert manifest.folders_in(tmp_path / "nothing", "row.json") == set()
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    for name in ("a", "c"):
        (tmp_path / name / "row.json").write_text("{}")
    (tmp_path / "row.json").write_text("{}")
    assert manifest.folders_in(tmp_path, "row.json") == {"a", "c"}
