import pytest

from dag_jax import files
from dag_jax.errors import DamagedError
from experiments.measure import child


def test_a_case_that_the_folder_has_is_not_measured_again(tmp_path):
    files.write_json(tmp_path / "mine%3Aload_1.json", {"rows": [1], "minutes": 0.5})
    assert list(child.measured("nothing", tmp_path, ["mine:load_1"])) == [
        ("mine:load_1", {"rows": [1], "minutes": 0.5})
    ]


def test_a_damaged_case_is_named(tmp_path):
    files.write_json(tmp_path / "a.json", {"rows": [1], "minutes": 0.5})
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(text.replace("0.5", "0.6"))
    with pytest.raises(DamagedError, match="a.json is damaged"):
        list(child.measured("nothing", tmp_path, ["a"]))


def test_a_child_that_fails_is_no_fault_of_its_parent(tmp_path, capfd):
    with pytest.raises(ValueError, match="b failed .exit code 1.; its message is above"):
        list(child.measured("nothing", tmp_path, ["b"]))
    assert "No module named experiments.nothing" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())
