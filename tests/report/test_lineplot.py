"""Names that stand beside their points."""

import itertools

import numpy as np
import pytest
from matplotlib.text import Text

from dag_jax.report import lineplot


def test_names_of_points_that_crowd_cover_nothing(tmp_path):
    figure, (axes,) = lineplot.panels(1, "points", inches=(6.0, 4.5))
    points = [(10 + 0.2 * i, 0.3 * i, f"a name of {i}") for i in range(8)]
    others = [(12, 3)]
    axes.plot(*np.array([point[:2] for point in points]).T, "o")
    axes.set(xlim=(0, 40), ylim=(0, 100))
    texts = lineplot.name_points(figure, axes, points, others)
    assert [text.get_text() for text in texts] == [name for *_, name in points]
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    spots = axes.transData.transform([point[:2] for point in points] + others)
    assert not any(box.contains(*spot) for box in boxes for spot in spots)
    frame = axes.get_window_extent()
    assert all(frame.contains(*box.min) and frame.contains(*box.max) for box in boxes)
    lineplot.save(figure, tmp_path / "points.png")
    assert (tmp_path / "points.png").stat().st_size > 5000


def test_no_marker_is_cut_and_what_is_zero_has_a_scale():
    figure, panels = lineplot.panels(2, "two of three", columns=3)
    assert [axes.get_visible() for axes in figure.axes] == [True, True, False]
    for axes, y, top in zip(panels, ([3, 3], [0, 0]), (3.3, 1), strict=True):
        series = [("a", [1, 2], y)]
        lineplot.lines(axes, series, xlabel="x", ylabel="y", doubling=False, log=False)
        assert axes.get_ylim() == (0, pytest.approx(top))
