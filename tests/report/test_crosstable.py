"""Tables and a picture of a matrix, on made-up cells."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from dag_jax.report import crosstable, heatmap
from dag_jax.runs.matrix import Cell
from dag_jax.runs.stored import Source

FCNS, DETECTORS = ("fcn_alex", "fcn_vgg"), ("fr_zf_07", "fr_vgg_07")
WITHIN, ACROSS = ["Within detection", "Within segmentation"], ["Across tasks"]


def table(found_for, targets, cell):
    """Return cells of clean images and of each network's perturbation, and their sizes."""
    sources = [Source("val"), *(Source("val", (name,)) for name in found_for)]
    cells = {(source, target): cell for source in sources for target in targets}
    return cells, dict.fromkeys(sources, 0.0123)


CELL = Cell(np.linspace(40, 60, 51), np.full(51, 80.0), ("a", "b"))
NOTHING = Cell(np.full(51, np.nan), np.full(51, np.nan), ())


@pytest.mark.parametrize(
    ("found_for", "targets", "titles"),
    [
        (FCNS, FCNS, WITHIN[1:]),
        (DETECTORS, DETECTORS, WITHIN[:1]),
        (FCNS, DETECTORS, ACROSS),
        (FCNS + DETECTORS, FCNS, WITHIN[1:] + ACROSS),
        (FCNS, FCNS + DETECTORS, WITHIN[1:] + ACROSS),
        (FCNS + DETECTORS, FCNS + DETECTORS, WITHIN + ACROSS),
    ],
)
def test_tables_are_of_the_tasks_of_rows_and_columns(found_for, targets, titles):
    blocks = crosstable.blocks(*table(found_for, targets, CELL))
    assert [block.title for block in blocks] == titles
    assert set(blocks[-1].targets) <= set(targets)


@pytest.mark.parametrize("cell", [CELL, NOTHING])
def test_a_matrix_across_tasks_alone_is_drawn(tmp_path, cell):
    blocks = crosstable.blocks(*table(FCNS, DETECTORS, cell))
    heatmap.draw(blocks, tmp_path / "transfer.png")
    with Image.open(tmp_path / "transfer.png") as image:
        assert min(image.size) > 150


def test_cells_have_intervals():
    cells, sizes = table(FCNS, DETECTORS[:1], CELL)
    lines = list(csv.DictReader(io.StringIO(crosstable.csv_of(cells, sizes))))
    first = {"network": "fr_zf_07", "kind": "clean", "images": "2", "perceptibility": "0.0123"}
    assert len(lines) == 3 and lines[0].items() >= first.items()
    score, low, high = (float(lines[0][name]) for name in ("score", "low", "high"))
    assert (score, high) == (40, 40) and 20 < low < 21  # the sets all score more


def test_cells_without_a_score_are_json():
    cells, sizes = table(FCNS, FCNS, NOTHING)
    assert crosstable.records(cells, sizes) == []
    assert crosstable.csv_of(cells, sizes).startswith("added,permuted,split,network,kind")
    cells, sizes = table(FCNS, FCNS, NOTHING._replace(keys=("a",)))
    records = crosstable.records(cells, sizes)
    assert records[0]["score"] is None and records[0]["clean"] is None
    assert json.loads(json.dumps(records, allow_nan=False)) == records
