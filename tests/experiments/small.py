"""What launches are tested on: three models of nobody's framework, and scenes that they see.

The same images, shapes and steps in every file: what one compiles is there for the others.
"""

import contextlib
import pathlib

SEGMENTER, TWO_STAGE, SIGMOID = (
    f"tests.toy_models:{name}" for name in ("segmenter", "two_stage", "sigmoid")
)
TITLES = {SEGMENTER: "Streets", TWO_STAGE: "TwoStage", SIGMOID: "One-Stage"}
SPLIT = "voc07_test"
SCENES = "scene_08_000002", "scene_08_000003"  # all three find something, and lose it
# As many lanes whatever the number of images: one compiled shape.
STEPS = f"--split={SPLIT}", "--max_steps=6", "--step_size=3", "--slots=1"


def folder(name) -> str:
    """Return the name of a model's folder."""
    return name.replace(":", "%3A")


def everything(path, *, without=("timings",)):
    """Return {name: bytes} of the files of a folder, but those that no two runs agree on."""
    names = {file.relative_to(path): file for file in pathlib.Path(path).rglob("*")}
    return {
        str(name): file.read_bytes()
        for name, file in names.items()
        if file.is_file() and not set(name.parts) & set(without)
    }


def written(path):
    """Return {name: when it was written} of the files of a folder, which others may write now."""
    times = {}
    for file in pathlib.Path(path).rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a file's draft, which has its name by now
            if file.is_file():
                times[str(file.relative_to(path))] = file.stat().st_mtime_ns
    return times
