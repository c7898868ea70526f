"""What is installed: dag_jax alone, which needs nothing of the launches."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dag_jax

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without a network."""
    for module in ("hatchling", "hatch_fancy_pypi_readme"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed, so no wheel can be built here")
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
def test_pictures_and_links_of_the_long_description_have_whole_addresses(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        text = re.sub("^```.*?^```", "", archive.read(name).decode(), flags=re.M | re.S)
    link = r"\]\(([^)\s]+)\)|^\[[^]]+\]: +(\S+)|\b(?:src|href)=\"([^\"]+)\""
    addresses = ["".join(groups) for groups in re.findall(link, text, re.M)]
    assert all(address.startswith(("https://", "#")) for address in addresses), addresses
    release = f"dag-jax/dag-jax/(?:blob/)?v{re.escape(dag_jax.__version__)}/"
    here = rf"https://(?:raw\.githubusercontent|github)\.com/{release}([^#]+)"
    paths = [match[1] for match in map(re.compile(here).match, addresses) if match]
    assert paths and all((ROOT / path).is_file() for path in paths)
    assert any(path.endswith(".png") for path in paths)


# Hides the modules that `pip install dag-jax` does not bring: sys.argv names them.
BASE = """
import sys

class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Lacking())
"""
USE = """
import jax.numpy as jnp, numpy as np
import dag_jax
from dag_jax import adapters, datasets, networks, runs
from dag_jax.datasets import rendering

print(dag_jax.__file__)
image, mask, _ = rendering.render(np.random.default_rng(0))
bright_or_dark = lambda image: jnp.stack([image.mean(axis=-1), 255 - image.mean(axis=-1)], axis=-1)
dark = dag_jax.make_targets(np.ones((8, 8), np.int32), np.zeros((8, 8), np.int32))
print(dag_jax.attack(bright_or_dark, np.full((8, 8, 3), 120.0), dark).summary())
network = networks.load("fcn_alex", miniature=True)
labels = dag_jax.permute_labels(dag_jax.image_key(0, "a"), mask, num_classes=21)
targets = dag_jax.make_targets(mask, labels)
print(dag_jax.attack(network.scores, image, targets, dag_jax.Method(max_steps=3)).summary())
for what in (
    lambda: datasets.load_examples("scenes", "seg11valid"),
    lambda: runs.attack_dataset(network, datasets.ExampleSet([
        {"image_id": "a", "image": image, "mask": mask}], network.classes), folder="run"),
    lambda: dag_jax.report,
    lambda: adapters.from_torch(None, mean=(0, 0, 0), std=(1, 1, 1)),
):
    try:
        what()
    except dag_jax.UserError as error:
        print(error)
"""


def lacking():
    """Return the modules here that `pip install dag-jax` does not bring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    brought, pending = set(), [Requirement(text) for text in project["dependencies"]]
    while pending:
        requirement = pending.pop()
        for extra in ("", *requirement.extras):
            name = canonicalize_name(requirement.name)
            if (name, extra) not in brought:
                brought.add((name, extra))
                for needed in map(Requirement, metadata.requires(name) or ()):
                    if not needed.marker or needed.marker.evaluate({"extra": extra}):
                        pending.append(needed)
    names = {name for name, _ in brought} | {"dag-jax"}
    return [
        module
        for module, packages in metadata.packages_distributions().items()
        if not names & set(map(canonicalize_name, packages))
    ]


@pytest.mark.slow
def test_the_engine_and_the_miniatures_need_the_base_alone(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    modules = lacking()
    assert {"PIL", "jinja2", "matplotlib", "tensorflow_datasets", "tqdm"} <= set(modules)
    (tmp_path / "empty").mkdir()
    process = subprocess.run(
        [sys.executable, "-c", BASE + USE, *modules],
        cwd=tmp_path / "empty",
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site"), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    lines = process.stdout.splitlines()
    assert process.returncode == 0, process.stderr
    assert lines[0].startswith(str(tmp_path))
    assert lines[1].startswith("FOOLED after ")
    assert lines[2].startswith("MAX_STEPS after 3 steps")
    remedies = [line.partition(" is not installed, and this needs it: ")[2] for line in lines[3:]]
    assert remedies == [
        f"pip install 'dag-jax[{extra}]'" for extra in ("data", "data", "experiments", "torch")
    ]


def test_a_launch_says_what_it_lacks():
    code = f"{BASE}\nimport experiments.table1"
    command = [sys.executable, "-c", code, "tqdm", "PIL"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr == (
        "error: launches need PIL, too: pip install --editable '.[experiments]'\n"
    )


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.+)$", citation, re.M) == [dag_jax.__version__]


def test_nothing_installed_imports_launches_or_their_flags():
    for path in sorted((ROOT / "dag_jax").rglob("*.py")):
        match = re.search(r"^\s*(from|import) (absl|experiments)\b.*", path.read_text(), re.M)
        assert not match, f"{path}: {match[0]}"
