"""The tutorials: notebooks without outputs, whose code compiles and names what there is.

Nothing of them is executed here: the documentation's build does that.
"""

import ast
import importlib
import json
import pathlib
import re

import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "docs" / "tutorials"
NAMES = (
    "first_attack",
    "your_own_network",
    "a_detector",
    "many_images",
    "is_it_robust",
    "transfer",
)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\(([^)#:]+)")  # to a file: an address has a colon


def load(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text("utf-8"))


def texts(name, kind):
    cells = load(name)["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def code_of(name):
    """The code of a notebook: its cells, and the blocks in its text."""
    blocks = [block for text in texts(name, "markdown") for block in BLOCK.findall(text)]
    return texts(name, "code") + blocks


def uses(trees):
    """Every dotted name of dag_jax that some code uses, as a list of its parts."""
    known = {}  # a name in the code: the dotted name that it stands for
    nodes = [node for tree in trees for node in ast.walk(tree)]
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "dag_jax":
                    known[alias.asname or alias.name] = alias.name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dag_jax"):
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for name in known.values():
        yield name.split(".")
    for node in nodes:
        parts = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in known:
            yield [*known[node.id].split("."), *parts]


def missing(parts):
    """What is not there, or not public, in a dotted name; None where all is."""
    place, path = importlib.import_module(parts[0]), parts[0]
    for part in parts[1:]:
        public = getattr(place, "__all__", None)
        if part.startswith("_") and part != "__version__":
            return f"{path}.{part} is private"
        if not hasattr(place, part) or (public is not None and part not in public):
            return f"{path} has no public {part}"
        place, path = getattr(place, part), f"{path}.{part}"
    return None


def test_all_notebooks_are_known():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_notebook(name):
    notebook = load(name)
    assert notebook["nbformat"] == 4 and notebook["nbformat_minor"] >= 5
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    first = notebook["cells"][0]
    assert first["cell_type"] == "markdown" and "".join(first["source"]).startswith("# ")
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        assert cell["source"] and isinstance(cell["metadata"], dict)


@pytest.mark.parametrize("name", NAMES)
def test_it_has_no_outputs(name):
    for cell in load(name)["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.parametrize("name", NAMES)
def test_its_code_compiles(name):
    for number, code in enumerate(code_of(name)):
        compile(code, f"{name}, block {number}", "exec")


@pytest.mark.parametrize("name", NAMES)
def test_it_uses_public_names_that_exist(name):
    trees = [ast.parse(code) for code in code_of(name)]
    problems = {missing(parts) for parts in uses(trees)} - {None}
    assert not problems


@pytest.mark.parametrize("name", NAMES)
def test_its_links_lead_somewhere(name):
    for text in texts(name, "markdown"):
        for link in LINK.findall(text):
            assert (FOLDER / link).exists(), link


def test_what_is_missing_or_private_is_noticed():
    code = "import dag_jax\nfrom dag_jax import runs\ndag_jax.metrics.nothing(1)\nruns.rundir.read"
    problems = {missing(parts) for parts in uses([ast.parse(code)])} - {None}
    metrics, runs = "dag_jax.metrics has no public nothing", "dag_jax.runs has no public rundir"
    assert problems == {metrics, runs}
