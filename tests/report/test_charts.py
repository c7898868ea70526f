"""What the HTML report draws: histograms that hold every image, heat-maps that can be read."""

import json
import re

import numpy as np
import pytest

import dag_jax.report
from dag_jax.metrics import Interval
from dag_jax.report import charts
from dag_jax.runs import rundir
from dag_jax.runs.claims import Claim


def test_histograms_hold_every_image_with_targets(run):
    records = rundir.read(run[0] / "toy").records
    some = [record for record in records if record["status"] != "NO_TARGETS"]
    for chart in charts.histograms(some):
        counts = [int(re.search(r": (\d+) image", bar["text"])[1]) for bar in chart["bars"]]
        assert sum(counts) == len(some)
    assert charts.histograms([]) == []


def cell(added, network, score, clean=80.0, kind="cross-network", **more):
    about = {"added": added, "permuted": False, "split": "s", "network": network, "kind": kind}
    return about | {"images": 9, "score": score, "low": 1.0, "high": 2.0, "clean": clean, **more}


@pytest.mark.slow
def test_a_matrix_of_transfer_is_a_heat_map_that_says_more(tmp_path, show):
    cells = [cell([], "a", 80.0), cell(["a"], "a", 8.0, kind="white box"), cell(["a"], "b", None)]
    rundir.claim(tmp_path / "run", {"launch": "transfer"})
    claim = Claim("transfers", "b", Interval(-1.0, -2.0, 0.5), "not shown").as_json()
    content = json.dumps({"cells": cells, "findings": [claim]})
    (tmp_path / "run/transfer.json").write_text(content)
    page = show(dag_jax.report.write(tmp_path / "run"))
    page.get_by_text("8.0°").hover()
    said = page.locator(".readout")
    assert "10% of the clean score is left" in said.inner_text()
    page.locator(".heat").press("ArrowUp")
    assert "nothing added, a looks: 80.00%" in said.inner_text()
    page.locator(".heat").press("ArrowRight")
    assert said.inner_text().startswith("nothing added, a")  # there is no cell further on
    assert page.locator(".heat td.here").count() == 1
    assert "-1.00 [-2.00, 0.50]" in page.inner_text(".claims")
    (block,) = charts.transfer_blocks(cells)
    assert [source["name"] for source in block["sources"]] == ["none", "a"]


def contrast(colour, other):
    def luminance(colour):
        share = np.array(colour) / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    low, high = sorted((luminance(colour), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_on_the_heat_map_can_be_read_at_every_share():
    for share in np.linspace(-0.1, 1.2, 100):
        colour, text = charts._colour(share)
        pixel = [int(number) for number in re.findall(r"\d+", colour)]
        assert contrast(pixel, [255] * 3 if text == "#fff" else [0] * 3) >= 4.5
