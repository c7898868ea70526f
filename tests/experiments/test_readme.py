"""What the README and the documentation say to paste runs as it is pasted.

Commands are run by test_commands, the blocks of docs/how_to/models.md by tests/adapters.
"""

import re

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from dag_jax import networks
from dag_jax.datasets import opening, rendering
from tests.experiments import pages

BLOCKS = {
    name: re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    for name, text in pages.TEXTS.items()
    if name != "docs/how_to/models.md"
}


def run_block(block, page, names):
    """Run a block of a page, which adds to the names, under the settings that users have."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(block, page, "exec"), names)


@pytest.fixture
def desk(cache, tmp_path, monkeypatch):
    """An empty folder to paste in, with the datasets of all tests at hand."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opening, "DEFAULT_CACHE", str(cache))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", [name for name, blocks in BLOCKS.items() if blocks])
def test_the_python_of_a_page_runs_as_pasted(page, desk, capsys):
    names = {"__name__": "__main__"}
    for block in BLOCKS[page]:
        capsys.readouterr()
        run_block(block, page, names)
        *_, last = block.splitlines()
        if last.startswith("# "):  # what it prints; the number of steps is a machine's own
            *_, printed = capsys.readouterr().out.splitlines()
            assert re.sub(r"\d+ steps", "steps", printed) == re.sub(r"\d+ steps", "steps", last[2:])
    assert [path.name for path in desk.iterdir()] in ([], ["runs"])


def is_model(name):
    """Return whether a network or a function has such a name."""
    return name in networks.NAMES or name in networks.ENTRIES or ":" in name


@pytest.mark.parametrize("launch", pages.LAUNCHES)
def test_every_command_has_flags_and_names_that_there_are(launch, load_launch):
    commands = [*pages.documented(), *pages.of_docstrings()]
    commands = [command for command in commands if command.launch == launch]
    assert commands
    with load_launch(launch):
        known = flags.FLAGS.flags_by_module_dict()
        for command in commands:
            if not command.flags or "--list" in command.flags:
                continue  # a list needs no other flag
            with flagsaver.flagsaver():
                assert flags.FLAGS([launch, *command.flags]) == [launch], command
                values = {flag.name: flag.value for flag in known[f"experiments.{launch}"]}
                for flag in ("models", "networks", "black_boxes"):
                    assert all(map(is_model, values.get(flag) or [])), command
                if values.get("dataset") == "scenes":
                    assert values.get("split") in (None, *rendering.SPLITS), command


def test_every_target_of_make_that_is_named_is_there():
    targets = set(re.findall(r"^(\w+):", (pages.ROOT / "Makefile").read_text(), re.M))
    shown = "\n".join(map(pages.code_of, pages.TEXTS.values()))
    named = set(re.findall(r"^\s*make ([a-z]\w+)", shown, re.M))
    assert {"table1", "test", "docs", "real"} <= named <= targets


def test_table_1_of_the_readme_is_that_of_the_results():
    columns = ("network", "ORIG", "ADVR", "PERM", "images")
    rows = {}
    for page in ("docs/results/published.md", "docs/results/table1.md"):
        for table in re.findall(r"(?:^\|.*\n)+", pages.TEXTS[page], re.M):
            head, _, *body = [
                [cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()
            ]
            if set(columns) <= set(head):
                rows |= {tuple(row[head.index(name)] for name in columns): page for row in body}
    section = pages.TEXTS["README.md"].partition("## Table 1")[2]
    shown = re.findall(r"^\| (.*?) \|$", section.partition("\n## ")[0], re.M)[1:]
    shown = [
        tuple(line.replace(", miniature", "").split(" | ")) for line in shown if "--" not in line
    ]
    assert len(shown) == 10 and [row for row in shown if row not in rows] == []
