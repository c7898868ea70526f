import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dag_jax.datasets import CLASS_NAMES
from dag_jax.metrics import Detections
from dag_jax.report import figures

NOTHING = Detections(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))


def some_axes():
    return Figure((figures._PANEL_INCHES,) * 2, dpi=150).subplots()


def texts(axes):
    return [text.get_text() for text in axes.texts]


def shown(axes):
    return np.asarray(axes.images[0].get_array())


def some_row(rng, before, after, size=(40, 60)):
    image = rng.uniform(0, 255, (*size, 3)).astype(np.float32)
    perturbation = rng.normal(0, 2, image.shape).astype(np.float32)
    return figures.AttackRow(
        "net, 3 steps", image, image + perturbation, perturbation, before, after
    )


def test_palette_is_the_kit_s():
    palette = figures.voc_palette()
    assert palette.shape == (256, 3) and palette.dtype == np.uint8
    assert palette[[0, 1, 2, 3, 15, 20]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
    ]
    assert palette[255].tolist() == [224, 224, 192]
    assert len(np.unique(palette[:21], axis=0)) == 21


def test_images_are_rounded_not_truncated():
    axes = some_axes()
    figures.image_panel(axes, np.array([[[-3.0, 1.5, 254.6], [0.4, 300, 7]]]), "title")
    assert shown(axes).tolist() == [[[0, 2, 255], [0, 255, 7]]]
    assert axes.get_title() == "title"


def test_perturbation_is_magnified_around_mid_grey_and_says_so():
    axes = some_axes()
    figures.perturbation_panel(axes, np.array([[[0, 1, -2.5], [20, -20, 0.04]]]))
    assert shown(axes).tolist() == [[[128, 138, 103], [255, 0, 128]]]
    assert axes.get_title() == "perturbation ×10 (largest 20.0)"


def test_large_regions_carry_their_name():
    labels = np.zeros((60, 80), int)
    labels[10:50, 30:70] = 12
    labels[0:3, 0:3] = 15  # too small
    labels[:, 76:] = 255
    axes = some_axes()
    figures.segmentation_panel(axes, labels, "before")
    assert sorted(texts(axes)) == ["background", "dog"]
    x, y = next(t.get_position() for t in axes.texts if t.get_text() == "dog")
    assert labels[round(y), round(x)] == 12
    np.testing.assert_array_equal(shown(axes), figures.voc_palette()[labels])


def test_boxes_carry_name_and_score_and_weak_ones_are_left_out():
    boxes = np.array([[0, 0, 9, 9], [20, 20, 39, 29], [1, 1, 5, 5]], np.float32)
    detections = Detections(boxes, np.array([8, 15, 2]), np.array([0.61, 0.9, 0.3]))
    axes = some_axes()
    figures.detection_panel(axes, np.zeros((40, 60, 3)), detections, "before")
    assert texts(axes) == ["person 0.90", "cat 0.61"]
    corners = {(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in axes.patches}
    # Inclusive corners: the box of pixels 0..9 is drawn around them, 10 wide.
    assert corners == {(-0.5, -0.5, 10, 10), (19.5, 19.5, 20, 10)}
    axes = some_axes()
    figures.detection_panel(axes, np.zeros((40, 60, 3)), NOTHING, "after")
    assert texts(axes) == ["no box scores 0.5"]


def test_labels_of_crowded_boxes_do_not_cover_each_other():
    boxes = np.array([[30, 30, 90, 90], [31, 32, 92, 90], [29, 30, 88, 91], [30, 1, 90, 127]])
    detections = Detections(boxes, np.array([17, 11, 16, 14]), np.array([0.9, 0.8, 0.7, 0.6]))
    figure = Figure((figures._PANEL_INCHES,) * 2, dpi=150)
    axes = figure.add_axes((0.025, 0.025, 0.95, 0.95))
    figures.detection_panel(axes, np.zeros((128, 128, 3)), detections, "")
    figure.draw_without_rendering()
    frame = axes.get_window_extent()
    extents = [text.get_window_extent() for text in axes.texts]
    assert len(extents) == 4
    for at, extent in enumerate(extents):
        assert not any(extent.overlaps(other) for other in extents[at + 1 :])
        assert frame.x0 <= extent.x0 and extent.x1 <= frame.x1


def test_the_figure_has_a_row_per_attack_and_a_legend_of_the_classes_present(
    rng, tmp_path, monkeypatch
):
    before = np.zeros((40, 60), int)
    before[5:30, 5:30] = 12
    after = np.where(before == 12, 20, 255)
    boxes = Detections(np.array([[3.0, 4, 30, 35]]), np.array([7]), np.array([0.8]))
    rows = [some_row(rng, before, after), some_row(rng, boxes, NOTHING)]
    legends = []
    handles = figures.class_legend
    monkeypatch.setattr(figures, "class_legend", lambda c: legends.append(c) or handles(c))
    backend = matplotlib.get_backend()
    figures.attack_figure(rows, tmp_path / "new" / "figure.png")
    assert matplotlib.get_backend() == backend
    assert legends == [[0, 12, 20, 255]]
    assert [patch.get_label() for patch in handles(legends[0])] == [
        "background",
        "dog",
        "tvmonitor",
        "void",
    ]
    with Image.open(tmp_path / "new" / "figure.png") as picture:
        assert picture.format == "PNG" and picture.width == 1725
        two_rows = picture.height
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    figures.attack_figure(rows[:1], tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.height < 0.6 * two_rows
    assert legends[1] == [0, 12, 20, 255]


def test_every_class_at_once_and_boxes_alone(rng, tmp_path):
    every = np.arange(40 * 60).reshape(40, 60) % len(CLASS_NAMES)
    figures.attack_figure([some_row(rng, every, every)], tmp_path / "every.png")
    figures.attack_figure([some_row(rng, NOTHING, NOTHING)], tmp_path / "boxes.png")


def test_no_row_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        figures.attack_figure([], tmp_path / "none.png")
