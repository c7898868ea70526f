"""A user's own PyTorch model on photographs, by the file and the command in the documentation."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_documented_file_attacks_ten_photographs(shared, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch, of the torch extra, is not installed")
    text = (ROOT / "docs/how_to/models.md").read_text()
    written = r'^```python title="mine\.py"\n(.*?)^```.*?^python (-m experiments\.table1 [^\n]*)'
    block, command = re.search(written, text, re.M | re.S).groups()
    assert len(block.rstrip().splitlines()) + 1 <= 12
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 8, stride=8), torch.nn.Conv2d(8, 21, 1))
    torch.save(module, tmp_path / "my_network.pt")
    (tmp_path / "mine.py").write_text(block)
    command = command.replace("VOCdevkit", str(shared / "voc-mini" / "VOCdevkit"))
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{tmp_path}"}
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
    assert row["network"] == "mine:load" and row["title"] == "Sequential" and row["images"] == 10
    assert row["steps_median"] == 2 and len(row["classes"]) == 21
