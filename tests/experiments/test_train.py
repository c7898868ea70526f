"""Training for a few updates: what it writes, and that a killed run goes on to the same end."""

import json

import jax
import numpy as np
import pytest

from dag_jax.weights import store

FLAGS = ("--network=fcn_alex", "--batch_size=2", "--score_every=2", "--score_images=2")


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_checkpoint(launch, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process = launch("train", *FLAGS, "--steps=6", f"--workdir={whole}")
    assert "mIoU" in process.stdout and f"checkpoint: {whole}" in process.stdout
    launch("train", *FLAGS, "--steps=6", f"--workdir={parts}", kill_at=parts / "state.msgpack")
    assert not (parts / "fcn_alex.safetensors").exists()
    process = launch("train", *FLAGS, "--steps=6", f"--workdir={parts}")
    assert "going on after" in process.stderr
    first, record = store.load(whole / "fcn_alex.safetensors")
    second, _ = store.load(parts / "fcn_alex.safetensors")
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert record["splits"] == ["fcn_train"] and "--network=fcn_alex" in record["command"]
    assert record["test_images"] == 200 and 0 <= record["score"] <= 100
    points = [json.loads(line) for line in (whole / "curve.jsonl").read_text().splitlines()]
    assert [point["step"] for point in points] == [2, 4, 6]
    assert (whole / "curve.png").stat().st_size > 5_000
    process = launch("train", *FLAGS, "--steps=6", "--seed=1", f"--workdir={parts}", fails=True)
    assert "other settings (seed)" in process.stderr
