"""What the README says to paste runs as it is pasted."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_python_of_the_readme_runs_as_pasted(cache, tmp_path):
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    script = tmp_path / "pasted.py"
    shared_cache = f"from dag_jax.datasets import opening\nopening.DEFAULT_CACHE = {str(cache)!r}\n"
    script.write_text(shared_cache + "\n".join(blocks))
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    pasted = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert pasted.returncode == 0, pasted.stderr
    assert len(blocks) >= 7
    assert "targets still active: " in pasted.stdout
    assert "scores are logits True" in pasted.stdout
    assert (tmp_path / "runs" / "mine" / "row.json").exists()
