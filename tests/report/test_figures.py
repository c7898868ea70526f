"""Pictures of attacks, of seven classes that no dataset of the project has."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dag_jax.metrics import Detections
from dag_jax.report import figures, lineplot, pictures

NAMES = ("sky", "roof", "wall", "door", "tree", "lawn", "road")
PALETTE = np.arange(21, dtype=np.uint8).reshape(7, 3) * 12
VOID, VOID_COLOUR = 99, (250, 240, 230)
CLASSES = {"class_names": NAMES, "palette": PALETTE}
VOIDS = {"void": VOID, "void_colour": VOID_COLOUR}
NOTHING = Detections(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))


def some_axes():
    return Figure((2.3, 2.3), dpi=150).subplots()


def texts(axes):
    return [text.get_text() for text in axes.texts]


def shown(axes):
    return np.asarray(axes.images[0].get_array())


def some_row(rng, before, after, size=(40, 60)):
    clean = rng.uniform(0, 255, (*size, 3)).astype(np.float32)
    adversarial = clean + rng.normal(0, 2, clean.shape).astype(np.float32)
    return figures.AttackRow("net, 3 steps of $file$", clean, adversarial, before, after)


def test_images_are_rounded_not_truncated():
    axes = some_axes()
    figures.image_panel(axes, np.array([[[-3.0, 1.5, 254.6], [0.4, 300, 7]]]), "title")
    assert shown(axes).tolist() == [[[0, 2, 255], [0, 255, 7]]]
    assert axes.get_title() == "title"


def test_the_change_is_magnified_around_mid_grey_and_says_so():
    axes = some_axes()
    clean = np.full((1, 2, 3), 100, np.uint8)
    adversarial = clean + np.array([[[0, 1, -2.5], [20, -20, 0.04]]])
    figures.change_panel(axes, clean, adversarial)
    assert shown(axes).tolist() == [[[128, 138, 103], [255, 0, 128]]]
    assert axes.get_title() == "change ×10" and axes.get_xlabel() == "at most 20.0 grey levels"


def test_large_regions_carry_their_name():
    labels = np.zeros((60, 80), int)
    labels[10:50, 30:60] = 5
    labels[0:3, 0:3] = 2  # too small
    labels[:, 60:] = VOID
    axes = some_axes()
    figures.segmentation_panel(axes, labels, "before", **CLASSES, **VOIDS)
    assert sorted(texts(axes)) == ["lawn", "sky"]
    x, y = next(text.get_position() for text in axes.texts if text.get_text() == "lawn")
    assert labels[round(y), round(x)] == 5
    colours = np.where((labels == VOID)[..., None], VOID_COLOUR, PALETTE[labels % 7])
    np.testing.assert_array_equal(shown(axes), colours)


def test_a_dataset_may_have_no_void_and_more_classes_than_a_byte_holds():
    labels = np.repeat(np.arange(300), 4).reshape(30, 40)
    names = [f"class {index}" for index in range(300)]
    palette = np.stack([np.arange(300) // 256, np.arange(300) % 256, np.zeros(300)], 1)
    axes = some_axes()
    options = {"class_names": names, "palette": palette.astype(np.uint8)}
    figures.segmentation_panel(axes, labels, "", **options, void=None, void_colour=None)
    np.testing.assert_array_equal(shown(axes), palette[labels])


def test_boxes_carry_name_and_score_and_weak_ones_are_left_out():
    boxes = np.array([[0, 0, 9, 9], [20, 20, 39, 29], [1, 1, 5, 5]], np.float32)
    detections = Detections(boxes, np.array([3, 4, 2]), np.array([0.61, 0.9, 0.3]))
    axes = some_axes()
    figures.detection_panel(axes, np.zeros((40, 60, 3)), detections, "before", **CLASSES)
    assert texts(axes) == ["tree 0.90", "door 0.61"]
    corners = {(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in axes.patches}
    # Inclusive corners: the box of pixels 0..9 is drawn around them, 10 wide.
    assert corners == {(-0.5, -0.5, 10, 10), (19.5, 19.5, 20, 10)}
    axes = some_axes()
    figures.detection_panel(axes, np.zeros((40, 60, 3)), NOTHING, "after", **CLASSES)
    assert texts(axes) == ["no box scores 0.5"]


def test_names_of_boxes_stay_on_the_panel_and_those_at_one_place_are_all_read():
    boxes = np.array([[30, 30, 90, 90], [31, 32, 92, 90], [29, 30, 88, 91]])
    boxes = np.concatenate([boxes, [[0, 0, 3, 3], [124, 0, 127, 4], [1, 120, 4, 127]]])
    detections = Detections(boxes, np.array([1, 2, 3, 4, 5, 6]), np.linspace(0.9, 0.6, 6))
    figure = Figure((1.66, 1.66), dpi=200)  # as one of five panels
    axes = figure.add_axes((0.015, 0.015, 0.97, 0.97))
    figures.detection_panel(axes, np.zeros((128, 128, 3)), detections, "", **CLASSES)
    figure.draw_without_rendering()
    frame = axes.get_window_extent()
    extents = [text.get_window_extent() for text in axes.texts]
    assert all(frame.containsx(x) for box in extents for x in (box.x0, box.x1))
    assert all(frame.containsy(y) for box in extents for y in (box.y0, box.y1))
    first, second, third = extents[:3]
    assert not (first.overlaps(second) or first.overlaps(third) or second.overlaps(third))


@pytest.mark.slow
def test_the_figure_has_a_row_per_attack_and_a_legend_of_the_classes_present(rng, tmp_path):
    before = np.zeros((40, 60), int)
    before[5:30, 5:30] = 5
    after = np.where(before == 5, 6, VOID)
    boxes = Detections(np.array([[3.0, 4, 30, 35]]), np.array([1]), np.array([0.8]))
    rows = [some_row(rng, before, after), some_row(rng, boxes, NOTHING)]
    path = tmp_path / "new" / "figure.png"
    lineplot.save(figures.attack_figure(rows, **CLASSES, **VOIDS), path)
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width == 2 * 832
        two_rows = picture.height
        colours = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)
    for colour in (*PALETTE[[0, 5, 6]], VOID_COLOUR):
        assert (colours == colour).all(axis=1).any()
    lineplot.save(figures.attack_figure(rows[1:], **CLASSES), path)
    with Image.open(path) as picture:
        assert picture.height < 0.6 * two_rows


def test_the_legend_names_classes_and_void():
    handles = figures.class_legend([0, 5, VOID], **CLASSES, **VOIDS)
    assert [patch.get_label() for patch in handles] == ["sky", "lawn", "void"]
    assert handles[2].get_facecolor()[:3] == pytest.approx(np.divide(VOID_COLOUR, 255))


def test_what_cannot_be_drawn_is_named(rng):
    labels = np.full((40, 60), 7)
    boxes = Detections(np.array([[3.0, 4, 30, 35]]), np.array([8]), np.array([0.8]))
    for rows, options, message in (
        ([], CLASSES, "at least one row"),
        ([some_row(rng, labels, labels)], CLASSES, r"has class 7; there are names .* 0 to 6"),
        ([some_row(rng, NOTHING, boxes)], CLASSES | VOIDS, "has class 8"),
        ([some_row(rng, NOTHING, boxes)], CLASSES | {"palette": PALETTE[:3]}, r"need \(7, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            figures.attack_figure(rows, **options)


def test_models_of_other_classes_share_one_legend(tmp_path):
    image = np.zeros((32, 32, 3), np.uint8)
    labels = np.zeros((32, 32), np.int32)
    found = Detections(np.float32([[2, 2, 20, 20]]), np.array([1]), np.array([0.9]))
    rows = [
        figures.AttackRow("a segmenter", image, image, labels, labels + 1),
        figures.AttackRow("a detector", image, image, found, found),
    ]
    classes = [("sky", "road"), ("road", "car")]
    pictures.draw_together(rows, classes, tmp_path / "both.png")
    with Image.open(tmp_path / "both.png") as picture:
        assert picture.width > 1000
    names = np.array([1, 2])  # road and car among sky, road, car
    assert pictures._renamed(found, names).classes.tolist() == [2]
    assert pictures._renamed(labels, names).tolist() == (labels + 1).tolist()
