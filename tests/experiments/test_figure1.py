"""Figure 1 on two images."""

import json

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow  # it compiles whole networks


def test_draws_one_perturbation_of_two_networks(launch, tmp_path):
    workdir = tmp_path / "run"
    flags = ("--models=fcn_alex,fr_zf_07", "--limit=2", "--max_steps=3")
    process = launch("figure1", *flags, f"--workdir={workdir}")
    row = json.loads((workdir / "figure1.json").read_text())
    assert f"results: {workdir}" in process.stdout
    assert row["largest_change"] == int(row["largest_change"]) > 0
    if row["lacks"]:
        assert "no image of 2 has everything" in process.stdout
    with Image.open(workdir / "adversarial.png") as image:
        saved = np.asarray(image)
    assert saved.shape == (128, 128, 3) and saved.dtype == np.uint8
    with Image.open(workdir / "figure1.png") as image:
        assert image.width > 1000


def test_two_detectors_are_no_figure(refuse, tmp_path):
    workdir = tmp_path / "run"
    flags = ("--models=fr_zf_07,fr_vgg_07", f"--workdir={workdir}")
    assert "the first must segment, the second detect" in refuse("figure1", *flags)
    assert not workdir.exists()
