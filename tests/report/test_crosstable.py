"""Tables and a picture of a matrix, on made-up cells."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from dag_jax.report import crosstable, heatmap, lineplot
from dag_jax.runs.claims import Looker
from dag_jax.runs.matrix import Cell
from dag_jax.runs.stored import Source

SEGMENTERS, DETECTORS = ("a", "b_c"), ("x", "y")
LOOKERS = {name: Looker(f"Seg {name}*", "segmentation", name) for name in SEGMENTERS}
LOOKERS |= {name: Looker(f"Det {name}", "detection", name) for name in DETECTORS}
WITHIN, ACROSS = ["Within detection", "Within segmentation"], ["Across tasks"]


def matrix(found_for, targets, cell, splits=("val",)):
    """Return cells of clean images and of each network's perturbation, and their sizes."""
    sources = [Source(split, members) for split in splits for members in [(), *found_for]]
    cells = {(source, target): cell for source in sources for target in targets}
    return cells, dict.fromkeys(sources, 0.0123)


def alone(names):
    return [(name,) for name in names]


CELL = Cell(np.linspace(40, 60, 51), np.full(51, 80.0), ("a", "b"))
NOTHING = Cell(np.full(51, np.nan), np.full(51, np.nan), ())


@pytest.mark.parametrize(
    ("found_for", "targets", "titles"),
    [
        (SEGMENTERS, SEGMENTERS, WITHIN[1:]),
        (DETECTORS, DETECTORS, WITHIN[:1]),
        (SEGMENTERS, DETECTORS, ACROSS),
        (SEGMENTERS + DETECTORS, SEGMENTERS, WITHIN[1:] + ACROSS),
        (SEGMENTERS, SEGMENTERS + DETECTORS, WITHIN[1:] + ACROSS),
        (SEGMENTERS + DETECTORS, SEGMENTERS + DETECTORS, WITHIN + ACROSS),
    ],
)
def test_tables_are_of_the_tasks_of_rows_and_columns(found_for, targets, titles):
    blocks = crosstable.blocks(*matrix(alone(found_for), targets, CELL), LOOKERS)
    assert [block.title for block in blocks] == titles
    assert set(blocks[-1].targets) <= set(targets)


def test_clean_images_come_first_then_members_then_sums_then_what_is_permuted():
    cells, sizes = matrix([("a", "b_c"), ("a",)], ("a",), CELL)
    permuted = {(source._replace(permuted=True), target) for source, target in cells}
    cells |= dict.fromkeys(permuted - {(Source("val", permuted=True), "a")}, CELL)
    (block,) = crosstable.blocks(cells, sizes, LOOKERS)
    assert list(block.sources.values()) == [
        *("none", "Seg a*", "Seg a* + Seg b_c*"),
        *("Seg a*, permuted", "Seg a* + Seg b_c*, permuted"),
    ]


def test_rows_of_several_splits_say_theirs():
    cells, sizes = matrix(alone("a"), ("a",), CELL, splits=("val", "test"))
    (block,) = crosstable.blocks(cells, sizes, LOOKERS)
    titles = ["none (val)", "none (test)", "Seg a* (val)", "Seg a* (test)"]
    assert list(block.sources.values()) == titles


def report(cell, diagonal):
    cells, sizes = matrix(alone(SEGMENTERS), SEGMENTERS, cell)
    blocks = crosstable.blocks(cells, sizes, LOOKERS)
    how = {"heading": "Transfer (made up)", "images": [3, 2, 3], "shuffles": 4}
    return crosstable.markdown(blocks, [], diagonal=diagonal, **how)


def rows_of(text):
    """Return the cells of the first table, its rule left out."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_the_report_has_the_scores_and_marks_white_boxes():
    text = report(CELL, {"a": [40.0, 40.0], "b_c": [None, 1.0]})
    assert text.startswith("# Transfer (made up)\n") and "added to 2 or 3 images" in text
    assert "mean over 4 shuffles" in text
    assert "The diagonal equals ADVR of Table 1 (1 cells)" in text
    assert rows_of(text)[2] == ["Seg a*", "12.3", "40.00°", "40.00"]


def test_a_diagonal_that_differs_is_said_and_cells_without_images_are_dashes():
    text = report(NOTHING, {"a": [40.0, 40.25]})
    assert "The diagonal differs from Table 1 by up to 0.25.\n" in text
    assert rows_of(text)[1] == ["none", "12.3", "-", "-"]


def test_the_diagonal_is_of_networks_that_see_their_own():
    cells, _ = matrix(alone(SEGMENTERS), ("a",), CELL)
    assert crosstable.diagonal(cells, {"a": {"advr": 39.5}}) == {"a": [40.0, 39.5]}


def test_latex_is_bold_at_white_boxes_and_escapes_titles():
    (block,) = crosstable.blocks(*matrix(alone(SEGMENTERS), SEGMENTERS, CELL), LOOKERS)
    lines = crosstable.latex([block]).splitlines()
    assert lines[1] == r"\begin{tabular}{lrr}"
    assert r"added & Seg a$^*$ & Seg b\_c$^*$ \\" in lines
    assert r"Seg b\_c$^*$ & 40.00 & \textbf{40.00} \\" in lines


@pytest.mark.parametrize("cell", [CELL, NOTHING])
def test_a_matrix_across_tasks_alone_is_drawn(tmp_path, cell):
    blocks = crosstable.blocks(*matrix(alone(SEGMENTERS), DETECTORS, cell), LOOKERS)
    heatmap.draw(blocks, tmp_path / "transfer.png")
    with Image.open(tmp_path / "transfer.png") as image:
        assert image.width == 2 * 832 and image.height > 150


def test_one_matrix_is_drawn_that_of_all_tasks(monkeypatch):
    drawn = []
    monkeypatch.setattr(lineplot, "save", lambda figure, path: drawn.append(figure))
    names = SEGMENTERS + DETECTORS
    heatmap.draw(crosstable.blocks(*matrix(alone(names), names, CELL), LOOKERS), "a.png")
    matrix_axes, scale = drawn[0].axes
    assert matrix_axes.get_title(loc="right").startswith("Across tasks: ")
    titles = [label.get_text() for label in matrix_axes.get_yticklabels()]
    assert titles == ["none", "Seg a*", "Seg b_c*", "Det x", "Det y"]
    numbers = [text.get_text() for text in matrix_axes.texts]
    assert len(numbers) == 5 * 4 and numbers.count("40.0°") == 4  # the diagonal
    assert "left of the clean score" in scale.get_xlabel() and "percent" in scale.get_xlabel()


def test_cells_have_intervals():
    lines = crosstable.records(*matrix(alone(SEGMENTERS), DETECTORS[:1], CELL), LOOKERS)
    lines = list(csv.DictReader(io.StringIO(crosstable.as_csv(lines))))
    first = {"network": "x", "kind": "clean", "images": "2", "perceptibility": "0.0123"}
    assert len(lines) == 3 and lines[0].items() >= first.items()
    score, low, high = (float(lines[0][name]) for name in ("score", "low", "high"))
    assert (score, high) == (40, 40) and 20 < low < 21  # the sets all score more


def test_cells_without_a_score_are_json():
    assert crosstable.records(*matrix(alone(SEGMENTERS), SEGMENTERS, NOTHING), LOOKERS) == []
    assert crosstable.as_csv([]) == (
        "added,permuted,split,network,kind,images,perceptibility,score,low,high,clean\n"
    )
    unscored = NOTHING._replace(keys=("a",))
    records = crosstable.records(*matrix(alone(SEGMENTERS), SEGMENTERS, unscored), LOOKERS)
    assert records[0]["score"] is None and records[0]["clean"] is None
    assert json.loads(json.dumps(records, allow_nan=False)) == records
