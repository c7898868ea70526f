"""The pages of the documentation, and the commands of launches that they show."""

import ast
import pathlib
import re
import shlex
import shutil
import subprocess
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", ROOT / "BUILD.md", *sorted(ROOT.glob("docs/**/*.md"))]
}
LAUNCHES = sorted(path.stem for path in ROOT.glob("experiments/[!_]*.py"))
_FENCED = re.compile(r"^```.*?\n(.*?)^```", re.M | re.S)
_LAUNCH = re.compile(r"-m experiments\.([a-z]\w*)\b(.*)")
_MAKE = re.compile(r"^ *make ([a-z]\w*(?: \w+=(?:\"[^\"]*\"|\S+))*)", re.M)
# What stands for something of the reader's, in flags.
_PLACEHOLDERS = {
    "$JOB_COMPLETION_INDEX": "0",
    "$p": "1",
    "=NAME": "=fcn_alex",
    "gs://BUCKET": "bucket",
}


class Command(NamedTuple):
    """A command of a launch."""

    source: str  # the page that shows it
    launch: str
    flags: tuple[str, ...]

    @property
    def values(self) -> dict[str, str]:
        """{name of a flag: its text}, in which no flag has a value of its own."""
        parts = [flag.removeprefix("--").partition("=") for flag in self.flags]
        return {name: value for name, _, value in parts}

    @property
    def workdir(self) -> str:
        """Where it writes."""
        default = {"fetch_weights": "weights", "train": f"train/{self.values.get('network')}"}
        return self.values.get("workdir", f"runs/{default.get(self.launch, self.launch)}")

    def with_flags(self, *flags):
        """Return the command with further flags, which replace those of the same names."""
        names = Command(self.source, self.launch, flags).values
        kept = [flag for flag in self.flags if flag[2:].partition("=")[0] not in names]
        return self._replace(flags=(*kept, *flags))


def blocks_of(text) -> str:
    """Return the blocks of code of a page, a command a line."""
    indented = re.findall(r"^    .*", _FENCED.sub("", text), re.M)
    return _joined("\n".join([*_FENCED.findall(text), *indented]))


def spans_of(text) -> str:
    """Return the code within the sentences of a page, a span a line."""
    spans = re.findall(r"`([^`]+)`", _FENCED.sub("", text))
    return "\n".join(span.replace("\n", " ") for span in spans)


def code_of(text) -> str:
    """Return all code of a page."""
    return f"{blocks_of(text)}\n{spans_of(text)}"


def _joined(text):
    return re.sub(r"\s*\\\n\s*", " ", text)


def recipe(*arguments) -> str:
    """Return what `make` would run, a command a line."""
    make = ["make", "--dry-run", "--always-make", *arguments]
    process = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True)
    return _joined(process.stdout)


def commands_in(source, code) -> list[Command]:
    """Return the commands of launches in code."""
    commands = []
    for launch, options in _LAUNCH.findall(code):
        # Behind two spaces is prose; behind these characters, what a shell does next.
        options = re.split(r"\s{2}|\s\.\.\.|[#&;\"(]", options.strip())[0]
        for placeholder, value in _PLACEHOLDERS.items():
            options = options.replace(placeholder, value)
        flags = tuple(part for part in shlex.split(options) if part.startswith("--"))
        commands.append(Command(source, launch, flags))
    return commands


def documented() -> list[Command]:
    """Return the commands of all pages, those of the recipes of `make` among them.

    In a sentence, a launch without flags is only named.
    """
    commands = []
    for page, text in TEXTS.items():
        commands += commands_in(page, blocks_of(text))
        commands += [command for command in commands_in(page, spans_of(text)) if command.flags]
        for target in _MAKE.findall(code_of(text)) if shutil.which("make") else ():
            commands += commands_in(page, recipe(*shlex.split(target)))
    return commands


def of_docstrings() -> list[Command]:
    """Return the commands in what launches say of themselves."""
    commands = []
    for launch in LAUNCHES:
        source = f"experiments/{launch}.py"
        text = ast.get_docstring(ast.parse((ROOT / source).read_text()))
        commands += commands_in(source, _joined(text))
    return commands
