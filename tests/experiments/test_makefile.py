"""`make figures` makes pictures of the documentation, by flags that its launches take."""

import pathlib
import shlex
import shutil
import subprocess

import pytest
from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def commands():
    """What `make figures` would run, a list of words each."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    make = [
        "make",
        "--dry-run",
        "--always-make",
        "figures",
        "RUNS=made",
        "FIGURES=pictures",
        "ARGS=",
    ]
    text = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [shlex.split(line) for line in text.replace("\\\n", " ").splitlines()]


def test_launches_take_the_flags_and_pictures_lie_where_they_write(commands, load_launch):
    folders = set()
    for words in commands:
        if words[1:2] == ["-m"] and words[2].startswith("experiments."):
            launch = words[2].removeprefix("experiments.")
            with load_launch(launch):
                flags.FLAGS([launch, *words[3:]])
                folders.add(flags.FLAGS.workdir)
                assert not launch.startswith(("transfer", "convergence")) or (
                    flags.FLAGS.run in folders
                )
    assert len(folders) == 10  # nine of launches that draw or attack, one of weights
    sources = [word for words in commands if words[0] == "cp" for word in words[1:-1]]
    assert {source.rpartition("/")[0] for source in sources} <= folders


def test_what_is_made_are_pictures_of_the_documentation(commands):
    made = set()
    for words in commands:
        if words[0] == "cp":
            *sources, target = words[1:]
            names = [target] if not target.endswith("/") else [target + s for s in sources]
            made |= {pathlib.PurePath(name).name for name in names}
    assert len(made) == 8 and made <= {path.name for path in (ROOT / "docs").rglob("*.png")}
