import matplotlib
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dag_jax.report import lineplot


def test_no_marker_is_cut_and_what_is_zero_has_a_scale():
    figure, panels = lineplot.panels(2, "two of three", columns=3)
    assert [axes.get_visible() for axes in figure.axes] == [True, True, False]
    for axes, y, top in zip(panels, ([3, 3], [0, 0]), (3.3, 1), strict=True):
        series = [("a", [1, 2], y)]
        lineplot.lines(axes, series, xlabel="x", ylabel="y", doubling=False, log=False)
        assert axes.get_ylim() == (0, pytest.approx(top))


def test_points_become_lines_by_their_key_and_those_without_a_value_are_left_out():
    points = [{"k": "b", "x": 2, "y": 3}, {"k": "a", "x": 4, "y": 1}, {"k": "a", "x": 1, "y": 2}]
    points += [{"k": "c", "x": 1, "y": None}]
    assert list(lineplot.series(points, "k", "x", "y", 10)) == [
        ("a", (1, 4), (20, 10)),
        ("b", (2,), (30,)),
    ]


def test_lines_differ_in_colour_and_in_marker():
    axes = lineplot.panels(1, "ten")[1][0]
    series = [(f"{number}", [1, 2], [1, number + 1]) for number in range(10)]
    lineplot.lines(axes, series, xlabel="x", ylabel="y")
    looks = {(line.get_color(), line.get_marker()) for line in axes.get_lines()}
    assert len(looks) == 10 and len({colour for colour, _ in looks}) == 10


def test_a_figure_is_saved_into_a_new_folder_without_a_backend(tmp_path):
    backend = matplotlib.get_backend()
    lineplot.save(Figure((2, 1)), tmp_path / "new" / "a.png")
    with Image.open(tmp_path / "new" / "a.png") as picture:
        assert picture.format == "PNG" and picture.size == (400, 200)
    assert matplotlib.get_backend() == backend


def test_letters_of_any_script_are_drawn_without_a_warning(tmp_path):
    figure, axes = lineplot.panels(1, "狗 😀 كلب")
    axes[0].plot([1, 2], label="猫")
    axes[0].legend()
    lineplot.save(figure, tmp_path / "a.png")  # a warning is an error here
    assert figure.findobj(matplotlib.text.Text)[0].get_fontfamily()[0] == "DejaVu Sans"


def test_a_picture_is_as_wide_as_where_it_is_shown_and_its_title_is_not_wider(tmp_path):
    figure, panels = lineplot.panels(4, "many words " * 20 + "\nand a line of its own")
    assert len(figure.axes) == len(panels) == 4
    lineplot.save(figure, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == 2 * 832
    figure.draw_without_rendering()
    title = figure.get_suptitle().splitlines()
    assert len(title) == 4 and title[-1] == "and a line of its own"
    extent = figure._suptitle.get_window_extent()
    assert extent.x0 > 0 and extent.x1 < figure.bbox.x1


def test_a_training_curve_is_drawn(tmp_path):
    points = [{"step": 10, "loss": 2.5, "score": 10.0}, {"step": 20, "loss": 0.5, "score": 80.0}]
    lineplot.training_curve(points, "a_network", tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.width > picture.height > 300
