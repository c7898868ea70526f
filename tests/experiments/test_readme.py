"""What the README and the documentation say to paste runs as it is pasted.

The blocks of docs/how_to/models.md are run by tests/adapters.
"""

import ast
import pathlib
import re
import shlex

import jax
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from dag_jax import networks
from dag_jax.datasets import opening, rendering
from tests.experiments import small

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = ["README.md", "BUILD.md", *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]
TEXTS = {name: (ROOT / name).read_text() for name in sorted(PAGES)}
BLOCKS = {
    name: re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    for name, text in TEXTS.items()
    if name != "docs/how_to/models.md"
}
FRAMEWORKS = "torch", "keras"  # which may be absent; their blocks need no block before but imports
_COMMAND = re.compile(r"-m experiments\.([a-z]\w*)\b(.*)|make (table1)(?: ARGS=\"(.*?)\")?")
# What stands for something of the reader's.
_PLACEHOLDERS = {"$JOB_COMPLETION_INDEX": "0", "$p": "1", "=NAME": "=fcn_vgg"}


def framework_of(block):
    """Return the name of the framework that a block imports, or None."""
    return next((name for name in FRAMEWORKS if f"import {name}\n" in block), None)


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
        if framework_of(block):
            continue
        capsys.readouterr()
        run_block(block, page, names)
        *_, last = block.splitlines()
        if last.startswith("# "):  # what it prints; the number of steps is a machine's own
            *_, printed = capsys.readouterr().out.splitlines()
            assert re.sub(r"\d+ steps", "steps", printed) == re.sub(r"\d+ steps", "steps", last[2:])
    assert [path.name for path in desk.iterdir()] in ([], ["runs"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "block"),
    [
        pytest.param(page, block, id=f"{page}-{framework_of(block)}")
        for page, blocks in BLOCKS.items()
        for block in blocks
        if framework_of(block)
    ],
)
def test_a_module_of_another_framework_is_a_model(page, block, desk):
    name = framework_of(block)
    framework = pytest.importorskip(name, reason=f"the {name} extra is not installed")
    if name == "keras" and framework.backend.backend() != "jax":
        pytest.skip("KERAS_BACKEND is not jax")
    before = BLOCKS[page][: BLOCKS[page].index(block)]
    statements = [line for text in before for line in ast.parse(text).body]
    imports = [line for line in statements if isinstance(line, ast.Import | ast.ImportFrom)]
    names = {}
    for line in [ast.unparse(line) for line in imports]:
        if not framework_of(f"{line}\n"):
            run_block(line, page, names)
    run_block(block, page, names)
    assert len(names["mine"].classes) == 21


def code_of(text):
    """Return the code of a page, of its blocks and of its lines of text, a command a line."""
    fenced = re.findall(r"^```.*?\n(.*?)^```", text, re.M | re.S)
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    indented = re.findall(r"^    .*", text, re.M)
    inline = [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", text)]
    return "\n".join([*fenced, *indented, *inline])


def sources():
    """Return {name: text} of what shows commands: pages, the Makefile, docstrings of launches."""
    makefile = (ROOT / "Makefile").read_text()
    values = dict(re.findall(r"^(\w+) [:?]?= ?(.*)$", makefile, re.M))
    makefile = re.sub(r"\$\((\w+)\)", lambda name: values.get(name[1], ""), makefile)
    texts = {name: code_of(text) for name, text in TEXTS.items()} | {"Makefile": makefile}
    for path in ROOT.glob("experiments/[!_]*.py"):
        texts[f"experiments/{path.name}"] = ast.get_docstring(ast.parse(path.read_text()))
    return {name: re.sub(r"\s*\\\n\s*", " ", text) for name, text in texts.items()}


def commands():
    """Return {launch: [(source, flags), ...]} of every command that is shown."""
    listed = {}
    for name, text in sources().items():
        for launch, options, target, arguments in _COMMAND.findall(text):
            # Behind two spaces is prose; behind these characters, what a shell does next.
            options = re.split(r"\s{2}|\s\.\.\.|[#&;\"(]", (options or arguments).strip())[0]
            for placeholder, value in _PLACEHOLDERS.items():
                options = options.replace(placeholder, value)
            named_flags = [part for part in shlex.split(options) if part.startswith("--")]
            listed.setdefault(launch or target, []).append((name, named_flags))
    return listed


def is_model(name):
    """Return whether a network or a function has such a name."""
    return name in networks.NAMES or name in networks.ENTRIES or ":" in name


@pytest.mark.parametrize("launch", sorted(path.stem for path in ROOT.glob("experiments/[!_]*.py")))
def test_every_command_has_flags_and_names_that_there_are(launch, load_launch):
    with load_launch(launch):
        known = flags.FLAGS.flags_by_module_dict()
        for source, named_flags in commands()[launch]:
            if not named_flags or "--list" in named_flags:
                continue  # a launch that is named in passing; a list needs no other flag
            with flagsaver.flagsaver():
                assert flags.FLAGS([launch, *named_flags]) == [launch], (source, named_flags)
                values = {flag.name: flag.value for flag in known[f"experiments.{launch}"]}
                for flag in ("models", "networks", "black_boxes"):
                    assert all(map(is_model, values.get(flag) or [])), (source, named_flags)
                if values.get("dataset") == "scenes":
                    assert values.get("split") in (None, *rendering.SPLITS), (source, named_flags)


def test_every_target_of_make_that_is_named_is_there():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^(\w+):", makefile, re.M))
    shown = "\n".join(map(code_of, TEXTS.values()))
    named = set(re.findall(r"^\s*make ([a-z]\w+)", shown, re.M))
    assert {"table1", "test", "docs", "real"} <= named <= targets


def documented(page, launch):
    """Return the flags of the first command of a launch on a page."""
    return next(named_flags for source, named_flags in commands()[launch] if source == page)


@pytest.mark.slow
def test_documented_commands_run_one_after_the_other(call, desk, capsys):
    few = f"--models={small.SEGMENTER}", "--split=seg11valid", "--limit=2", "--max_steps=2"
    table = documented("docs/results/table1.md", "table1")
    call("table1", *table, *few, "--noaudit")
    call("convergence", *documented("docs/results/convergence.md", "convergence"))
    Image.new("RGB", (48, 40), (90, 120, 200)).save("photo.jpg")
    call(
        "attack_image",
        *documented("docs/how_to/own_photograph.md", "attack_image"),
        *few[:1],
        "--max_steps=2",
    )
    (run,) = [flag.removeprefix("--workdir=") for flag in table if flag.startswith("--workdir")]
    written = [f"{run}/report.html", "runs/convergence_100/convergence.md", "runs/attack_image"]
    assert [name for name in written if not (desk / name).exists()] == []
    assert "Streets" in capsys.readouterr().out


def test_table_1_of_the_readme_is_that_of_the_results():
    columns = ("network", "ORIG", "ADVR", "PERM", "images")
    rows = {}
    for page in ("docs/results/published.md", "docs/results/table1.md"):
        for table in re.findall(r"(?:^\|.*\n)+", TEXTS[page], re.M):
            head, _, *body = [
                [cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()
            ]
            if set(columns) <= set(head):
                rows |= {tuple(row[head.index(name)] for name in columns): page for row in body}
    section = TEXTS["README.md"].partition("## Table 1")[2]
    shown = re.findall(r"^\| (.*?) \|$", section.partition("\n## ")[0], re.M)[1:]
    shown = [
        tuple(line.replace(", miniature", "").split(" | ")) for line in shown if "--" not in line
    ]
    assert len(shown) == 11 and [row for row in shown if row not in rows] == []
