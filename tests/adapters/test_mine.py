"""A user's own model on photographs, by the files and the command in the documentation."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from dag_jax import datasets, models

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = {
    re.search(r"import (torchvision|keras)|load_darknet", block)[0]: block
    for page in ("README.md", "docs/how_to/models.md")
    for block in re.findall(
        r'^```python title="mine\.py"\n(.*?)^```', (ROOT / page).read_text(), re.M | re.S
    )
}
COMMAND = re.search(
    r"^python (-m experiments\.table1 --models=mine:load .*?[^\\])$",
    (ROOT / "README.md").read_text(),
    re.M | re.S,
)[1]


def save_torchvision(folder, monkeypatch):
    """Put a file of random weights where torchvision looks before it fetches its own."""
    torch = pytest.importorskip("torch", reason="PyTorch, of the torch extra, is not installed")
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    torch.manual_seed(0)
    module = torchvision.models.get_model("lraspp_mobilenet_v3_large", weights_backbone=None)
    url = torchvision.models.get_model_weights("lraspp_mobilenet_v3_large").DEFAULT.url
    monkeypatch.setenv("TORCH_HOME", str(folder))
    (folder / "hub/checkpoints").mkdir(parents=True)
    torch.save(module.state_dict(), folder / "hub/checkpoints" / url.rpartition("/")[2])


def save_keras(folder, monkeypatch):
    keras = pytest.importorskip("keras", reason="Keras, of the keras extra, is not installed")
    keras.utils.set_random_seed(0)
    layers = [keras.Input((None, None, 3)), keras.layers.Conv2D(21, 3, padding="same")]
    keras.Sequential(layers).save(folder / "my_network.keras")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras
@pytest.mark.parametrize(
    ("kind", "save"), [("import torchvision", save_torchvision), ("import keras", save_keras)]
)
def test_a_file_of_the_documentation_attacks_ten_photographs(
    kind, save, shared, tmp_path, monkeypatch
):
    block = FILES[kind]
    assert len(block.rstrip().splitlines()) + len(COMMAND.splitlines()) <= 12
    save(tmp_path, monkeypatch)
    (tmp_path / "mine.py").write_text(block)
    command = COMMAND.replace("\\\n", " ").replace(
        "VOCdevkit", str(shared / "voc-mini" / "VOCdevkit")
    )
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "KERAS_BACKEND": "jax",
        "PYTHONPATH": f"{ROOT}:{tmp_path}",
    }
    flags = [*command.split(), "--max_steps=2", "--canvas=64", f"--cache_dir={tmp_path}/cache"]
    process = subprocess.run(
        [sys.executable, *flags, f"--workdir={tmp_path}/runs"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    (row,) = json.loads((tmp_path / "runs" / "table1.json").read_text())["rows"]
    assert row["network"] == "mine:load" and row["images"] == 10
    assert row["steps_median"] == 2 and len(row["classes"]) == 21


def test_the_documented_file_reads_what_darknet_publishes(shared, tmp_path, monkeypatch):
    for ending in "cfg", "weights":
        name = f"MobileNetV2-YOLOv3-Nano-voc.{ending}"
        (tmp_path / f"yolov4-tiny.{ending}").symlink_to(shared / "weights" / name)
    (tmp_path / "coco.names").write_text("\n".join(datasets.CLASS_NAMES[1:]) + "\n")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(FILES["load_darknet"], "mine.py", "exec"), names)
    about = models.about(names["load"]())
    assert about.detects and about.classes == datasets.CLASS_NAMES[1:]
