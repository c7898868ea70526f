"""`make figures` makes pictures of the documentation. Its launches are run by test_commands."""

import pathlib
import shlex
import shutil

import pytest

from tests.experiments import pages


@pytest.fixture(scope="module")
def lines():
    """What `make figures` would run, a list of words each."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    text = pages.recipe("figures", "RUNS=made", "FIGURES=pictures", "ARGS=")
    return [shlex.split(line) for line in text.splitlines()]


def test_pictures_lie_where_launches_write(lines):
    commands = pages.commands_in("Makefile", "\n".join(map(shlex.join, lines)))
    folders = {command.workdir for command in commands}
    assert len(folders) == 10  # nine of launches that draw or attack, one of weights
    pictures = [word for words in lines if words[0] == "cp" for word in words[1:-1]]
    assert {picture.rpartition("/")[0] for picture in pictures} <= folders


def test_what_is_made_are_pictures_of_the_documentation(lines):
    made = set()
    for words in lines:
        if words[0] == "cp":
            *sources, target = words[1:]
            names = [target] if not target.endswith("/") else [target + s for s in sources]
            made |= {pathlib.PurePath(name).name for name in names}
    assert len(made) == 8 and made <= {path.name for path in (pages.ROOT / "docs").rglob("*.png")}
