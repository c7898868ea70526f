"""What models make of perturbations that were found for others, cell by cell."""

import pathlib
import shutil

import numpy as np
import pytest

from dag_jax import metrics
from dag_jax.errors import DamagedError, StorageError
from dag_jax.runs import evaluation
from dag_jax.runs.matrix import Cell, Matrix
from dag_jax.runs.stored import Source, Stored

CLEAN = Source("val")
FIRST, SECOND, WINDOW = (Source("val", (n,)) for n in ("fcn_vgg", "mine:first", "mine:window"))
SUM = Source("val", ("fcn_vgg", "mine:first"))
SHUFFLED = SUM._replace(permuted=True)
SOURCES = [CLEAN, FIRST, SECOND, WINDOW, SUM, SHUFFLED]


def open_matrix(cells, folder, examples, looking, sources=SOURCES):
    """The matrix of a table's folder; its images are among the examples."""

    def load(settings, split, ids):
        return examples.pick([row for row, key in enumerate(examples.ids) if key in ids])

    return Matrix(cells, Stored(folder, load), sources, looking, num_sets=20)


@pytest.fixture(scope="module")
def whole(write_table, windows, looking, tmp_path_factory):
    """A matrix of three images with all cells; only to be read."""
    root = tmp_path_factory.mktemp("whole")
    folder = write_table(root / "table1", windows(3))
    matrix = open_matrix(root / "cells", folder, windows(3), looking)
    for name in looking:
        matrix.fill(name)
    return matrix


@pytest.fixture
def matrix_of(windows, looking, tmp_path):
    """A matrix in a folder of the test's own."""

    def make(folder, examples=None, *, sources=SOURCES, names=None, replaced=()):
        lookers = {name: looking[name] for name in names or looking} | dict(replaced)
        return open_matrix(tmp_path / "cells", folder, examples or windows(3), lookers, sources)

    return make


@pytest.fixture
def filled(whole, matrix_of, tmp_path):
    """(A copy of the whole matrix, the folder of its table.)"""
    for source, name in ((whole.folder, "cells"), (whole.stored.folder, "table1")):
        shutil.copytree(source, tmp_path / name)
    return matrix_of(tmp_path / "table1"), tmp_path / "table1"


def written(matrix):
    paths = [path for path in pathlib.Path(matrix.folder).rglob("*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in paths}


@pytest.mark.parametrize("target", ["fcn_vgg", "mine:window"])
def test_a_cell_is_what_the_model_makes_of_the_images(whole, looking, target):
    matrix = whole
    stored = matrix.stored
    for source in SOURCES[:-1]:
        subject = matrix.subject(target, source)
        images = [stored.image(source, example) for example in subject.examples]
        predictions = evaluation.predict(looking[target][0], images)
        expected = evaluation.score(subject, subject.examples, predictions)
        cell = matrix.cell(target, source)
        assert cell.scores[0] == pytest.approx(expected) and cell.keys == ("a", "b", "c")
        assert len(cell.scores) == 21 and cell.images == 3


def test_what_was_found_for_a_model_does_harm(whole):
    matrix = whole
    clean, white_box, transferred = (
        matrix.cell("fcn_vgg", source) for source in (CLEAN, FIRST, SECOND)
    )
    assert clean.scores[0] == 100 and clean.remaining_share[0] == 1
    assert white_box.scores[0] < 80 and white_box.remaining_share[0] == pytest.approx(
        white_box.scores[0] / 100
    )
    assert white_box.scores[0] != transferred.scores[0]
    np.testing.assert_array_equal(white_box.clean, clean.scores)


def test_a_permuted_source_is_the_mean_of_its_shuffles(whole, looking):
    matrix = whole
    subject, each = matrix.subject("mine:first", SHUFFLED), []
    for shuffle in range(3):
        images = [matrix.stored.image(SHUFFLED, example, shuffle) for example in subject.examples]
        predictions = evaluation.predict(looking["mine:first"][0], images)
        each.append(evaluation.score(subject, subject.examples, predictions))
    assert len(set(each)) > 1
    assert matrix.cell("mine:first", SHUFFLED).scores[0] == pytest.approx(np.mean(each))


def test_sets_of_a_cell_are_those_of_every_other(whole):
    matrix = whole
    sets = metrics.draw_images(0, 3, 20)
    cell, subject = matrix.cell("fcn_vgg", FIRST), matrix.subject("fcn_vgg", FIRST)
    images = [matrix.stored.image(FIRST, example) for example in subject.examples]
    pairs = zip(subject.examples, evaluation.predict(subject.model, images), strict=True)
    evidence = [evaluation.evidence(subject, *pair) for pair in pairs]
    expected = evaluation.score_sets(subject, subject.examples, evidence, sets)
    np.testing.assert_allclose(cell.scores, expected)


def test_a_cell_of_some_images_is_theirs_alone(whole):
    matrix = whole
    part = matrix.cell("fcn_vgg", SUM, ("c", "a"))
    assert part.keys == ("c", "a") and part.images == 2
    subject = matrix.subject("fcn_vgg", SUM)
    examples = subject.examples.pick([2, 0])
    images = [matrix.stored.image(SUM, example) for example in examples]
    expected = evaluation.score(subject, examples, evaluation.predict(subject.model, images))
    assert part.scores[0] == pytest.approx(expected)


def test_what_is_there_is_not_made_again(filled, looking):
    matrix, _ = filled
    before = written(matrix)
    assert len([path for path in before if path.suffix == ".safetensors"]) == 3 * len(SOURCES)
    assert all(map(matrix.is_complete, looking))
    matrix.fill("fcn_vgg")
    assert written(matrix) == before


def test_a_cell_that_is_missing_is_made_anew_and_no_other(filled):
    matrix, _ = filled
    path, before = matrix.path("fcn_vgg", SUM), written(matrix)
    content = path.read_bytes()
    path.unlink()
    assert not matrix.is_complete("fcn_vgg") and matrix.is_complete("mine:first")
    matrix.fill("fcn_vgg")
    assert path.read_bytes() == content
    after = written(matrix)
    assert {name for name in after if after[name] != before[name]} == {path}


def test_new_sources_and_models_join_those_that_are_there(filled, matrix_of):
    matrix, folder = filled
    before = written(matrix)
    more = matrix_of(folder, sources=[*SOURCES, FIRST._replace(permuted=True)])
    assert not more.is_complete("fcn_vgg")
    more.fill("fcn_vgg")
    after = written(more)
    assert after.items() > before.items() and len(after) == len(before) + 1


def test_more_images_make_their_cells_anew(matrix_of, make_table, windows):
    names = ("fcn_vgg",)
    folder = make_table(windows(2), changes=dict.fromkeys(("fcn_vgg", "mine:first"), 50))
    sources = [CLEAN, FIRST, SECOND]
    matrix_of(folder, sources=sources, names=names).fill("fcn_vgg")
    make_table(windows(3), changes={"fcn_vgg": 50})
    grown = matrix_of(folder, sources=sources, names=names)
    second = grown.path("fcn_vgg", SECOND)
    content = second.read_bytes()
    assert not grown.is_complete("fcn_vgg")
    grown.fill("fcn_vgg")
    assert grown.cell("fcn_vgg", FIRST).keys == ("a", "b", "c")
    assert grown.cell("fcn_vgg", SECOND).keys == ("a", "b") and second.read_bytes() == content
    assert np.isfinite(grown.cell("fcn_vgg", SECOND).remaining_share[0])


def test_cells_of_other_perturbations_are_refused(filled, matrix_of, make_table, windows):
    matrix, folder = filled
    before = written(matrix)
    shutil.rmtree(folder / "fcn_vgg")
    make_table(windows(3), changes={"fcn_vgg": 50}, weights="other weights")
    other_matrix = matrix_of(folder)
    for look in (other_matrix.is_complete, other_matrix.fill):
        with pytest.raises(ValueError, match=r"weights_sha256: now .*other weights.*--workdir"):
            look("mine:first")
    assert written(matrix) == before
    assert matrix_of(folder, sources=[CLEAN, SECOND]).is_complete("mine:first")


def test_a_model_of_other_weights_is_refused(filled, matrix_of):
    matrix, folder = filled
    replaced = {"mine:first": (matrix.looking["mine:first"][0], "other")}
    with pytest.raises(ValueError, match=r"weights_sha256: now \"other\", there \"weights of mine"):
        matrix_of(folder, replaced=replaced).fill("mine:first")


def test_a_segmenter_sees_no_image_that_nobody_segmented(matrix_of, make_table, windows, looking):
    bare = windows(2, without=("a", "b"))
    folder = make_table(bare, changes={"mine:window": 25})
    matrix = matrix_of(folder, bare, sources=[CLEAN, WINDOW])
    for name in ("fcn_vgg", "mine:window"):
        matrix.fill(name)
    cell = matrix.cell("fcn_vgg", WINDOW)
    assert cell.images == 0 and np.isnan(cell.scores).all() and np.isnan(cell.remaining_share).all()
    assert matrix.cell("mine:window", WINDOW).images == 2
    assert matrix.subject("fcn_vgg", WINDOW) is None
    matrix.check_shown()
    with pytest.raises(
        ValueError, match="none of the models can be scored .* segmenters need mask"
    ):
        matrix_of(folder, bare, sources=[CLEAN], names=("fcn_vgg",)).check_shown()


def test_a_disk_that_fails_is_no_model_without_images(filled, monkeypatch):
    matrix, _ = filled

    def fails(*_):
        raise StorageError(5, "the disk fails")

    monkeypatch.setattr(matrix.stored, "subject", fails)
    with pytest.raises(StorageError, match="the disk fails"):
        matrix.subject("fcn_vgg", CLEAN)


def test_the_size_of_a_source_is_that_of_what_is_looked_at(filled):
    matrix, _ = filled
    assert matrix.size(CLEAN) == 0
    examples = matrix.stored.examples("val")
    change = [matrix.stored.image(SUM, example) - example["image"] for example in examples]
    assert matrix.size(SUM) == pytest.approx(np.mean([metrics.perceptibility(c) for c in change]))
    each = [
        [
            metrics.perceptibility(matrix.stored.image(SHUFFLED, example, i) - example["image"])
            for i in range(3)
        ]
        for example in examples
    ]
    assert matrix.size(SHUFFLED) == pytest.approx(np.mean(each))
    before = written(matrix)
    assert matrix.size(SHUFFLED) == pytest.approx(np.mean(each)) and written(matrix) == before


def test_a_damaged_cell_is_named(filled):
    matrix, _ = filled
    path = matrix.path("fcn_vgg", SUM)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError, match="is damaged"):
        matrix.cell("fcn_vgg", SUM)


def test_a_model_that_finds_nothing_leaves_no_share():
    cell = Cell(np.array([0.0, 5.0]), np.array([0.0, 10.0]), ("a",))
    assert np.isnan(cell.remaining_share[0]) and cell.remaining_share[1] == 0.5


def test_a_cell_in_the_place_of_another_is_named(filled):
    """Both are made of the same perturbations."""
    matrix, _ = filled
    for target, source in (("mine:first", SUM), ("fcn_vgg", SHUFFLED)):
        shutil.copy(matrix.path(target, source), matrix.path("fcn_vgg", SUM))
        with pytest.raises(DamagedError, match="is damaged .it is /cells/"):
            matrix.cell("fcn_vgg", SUM)
        with pytest.raises(DamagedError, match="is damaged .it is /cells/"):
            matrix.is_complete("fcn_vgg")
