import pytest

from experiments import rundir


def test_a_folder_belongs_to_one_run(tmp_path):
    folder = rundir.claim(tmp_path / "run", {"seed": 0, "splits": ("a", "b")})
    assert rundir.claim(folder, {"seed": 0, "splits": ["a", "b"]}) == folder
    with pytest.raises(ValueError, match=r"other settings \(margin, seed\)"):
        rundir.claim(folder, {"seed": 1, "splits": ["a", "b"], "margin": 3})
    assert '"seed": 0' in (folder / "settings.json").read_text()


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not empty"):
        rundir.claim(tmp_path, {"seed": 0})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_write_replaces_whole_files(tmp_path):
    path = tmp_path / "table.md"
    rundir.write(path, "old")
    rundir.write(path, "new")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.md"]
