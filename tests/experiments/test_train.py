"""Training for a few updates: what it writes, and that a killed run goes on to the same end."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dag_jax import datasets, networks
from dag_jax.errors import DamagedError
from dag_jax.weights import store

FLAGS = (
    *("--network=fcn_alex", "--splits=seg11valid[:8]", "--test_split=seg11valid[:4]"),
    *("--batch_size=2", "--score_every=2", "--score_images=4"),
)


@pytest.fixture
def train(load_launch):
    with load_launch("train") as module:
        yield module


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_checkpoint(launch, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process = launch("train", *FLAGS, "--steps=4", f"--workdir={whole}")
    assert "mIoU" in process.stdout and f"checkpoint: {whole}" in process.stdout
    launch("train", *FLAGS, "--steps=4", f"--workdir={parts}", kill_at=parts / "state.safetensors")
    assert not (parts / "fcn_alex.safetensors").exists()
    process = launch("train", *FLAGS, "--steps=4", f"--workdir={parts}")
    assert "going on after 2 of 4 updates" in process.stderr
    first, record = store.load(whole / "fcn_alex.safetensors")
    second, _ = store.load(parts / "fcn_alex.safetensors")
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert record["splits"] == ["seg11valid[:8]"] and "--network=fcn_alex" in record["command"]
    assert record["test_images"] == 4 and 0 <= record["score"] <= 100
    points = [json.loads(line) for line in (whole / "curve.jsonl").read_text().splitlines()]
    assert [point["step"] for point in points] == [2, 4]
    assert (whole / "curve.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--batch_size=300",), "8 examples, --batch_size is 300"),
        (("--initial=nowhere.safetensors",), "nowhere.safetensors: no such"),
        (("--splits=voc99",), "scenes have no split 'voc99'"),
        (("--steps=1",), "--steps=1"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(refuse, tmp_path, flags, message):
    workdir = tmp_path / "run"
    assert message in refuse("train", *FLAGS, *flags, f"--workdir={workdir}")
    assert not workdir.exists()


def test_every_network_has_its_lists(train):
    assert tuple(train.SPLITS) == networks.NAMES + networks.BLACK_BOX


@pytest.mark.parametrize("name", ["fr_zf_07", "fr_vgg_07", "fr_resnet"])
@pytest.mark.parametrize("miniature", [True, False])
def test_a_cell_is_labelled_by_the_pixel_under_its_centre(train, name, miniature):
    module = networks.build(name, miniature=miniature)
    factor = module.canvas((128, 96, 3))[1]
    rows, columns = np.mgrid[:128, :96]
    cells = (int(128 * factor) // module.stride, int(96 * factor) // module.stride)
    for pixels in (rows, columns):
        labels = np.asarray(train.cell_labels(module, jnp.asarray(pixels[None], jnp.uint8), cells))
        for i, j in np.ndindex(cells):
            centre = np.floor((np.array([i, j]) + 0.5) * module.stride / factor).astype(int)
            assert labels[0, i, j] == pixels[tuple(centre)]
    beyond = train.cell_labels(module, jnp.asarray(rows[None], jnp.uint8), (cells[0] + 2, cells[1]))
    assert (np.asarray(beyond)[0, -1] == datasets.VOID).all()


def state_of(train, size):
    return train.TrainState(jnp.int32(3), {"a": jnp.arange(size, dtype=jnp.float32)}, {}, ())


def test_a_state_comes_back_as_it_was(train, tmp_path):
    train.save_state(tmp_path / "state", state_of(train, 4))
    same = train.restore_state(tmp_path / "state", state_of(train, 4))
    jax.tree.map(np.testing.assert_array_equal, same, state_of(train, 4))
    assert same.step.dtype == jnp.int32


def test_a_state_of_another_network_is_refused(train, tmp_path):
    train.save_state(tmp_path / "state", state_of(train, 4))
    with pytest.raises(ValueError, match="state of another network"):
        train.restore_state(tmp_path / "state", state_of(train, 5))


def test_a_damaged_state_is_named(train, tmp_path):
    train.save_state(tmp_path / "state", state_of(train, 4))
    content = (tmp_path / "state").read_bytes()
    (tmp_path / "state").write_bytes(content[:-1] + b"!")
    with pytest.raises(DamagedError, match="state is damaged"):
        train.restore_state(tmp_path / "state", state_of(train, 4))
