"""What is installed: dag_jax alone, which needs nothing of the launches."""

import importlib.util
import pathlib
import re
import subprocess
import sys
import zipfile

import pytest

import dag_jax

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without a network."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed, so no wheel can be built here")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory"]
    subprocess.run([*command, str(folder)], cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.iterdir()
    return path


@pytest.mark.slow
def test_the_wheel_holds_dag_jax_alone(wheel):
    version = f"dag_jax-{dag_jax.__version__}"
    assert wheel.name == f"{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} == {"dag_jax", f"{version}.dist-info"}


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_dag_jax(wheel):
    listed = ["git", "ls-files", "dag_jax"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not files:
        pytest.skip("no git checkout, so nothing says which files belong to the project")
    with zipfile.ZipFile(wheel) as archive:
        assert set(files) <= set(archive.namelist())


@pytest.mark.slow
def test_the_wheel_is_imported_where_no_checkout_is(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "import dag_jax; print(dag_jax.__file__); print(dag_jax.networks.NAMES[0])"
    (tmp_path / "empty").mkdir()
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {code}",
        ],
        cwd=tmp_path / "empty",
        capture_output=True,
        text=True,
        check=True,
    )
    path, name = process.stdout.split()
    assert path.startswith(str(tmp_path)) and name == "fcn_alex"


def test_nothing_installed_imports_launches_or_their_flags():
    for path in sorted((ROOT / "dag_jax").rglob("*.py")):
        found = re.search(r"^\s*(from|import) (absl|experiments)\b.*", path.read_text(), re.M)
        assert not found, f"{path}: {found[0]}"
