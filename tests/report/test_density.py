import pytest
from matplotlib.figure import Figure

from dag_jax.report import density, lineplot


def row(threshold, most, *, unfinished=0):
    return {
        "orig": 80.0,
        "nms_threshold": threshold,
        "max_proposals": most,
        "proposals": 100.0 * threshold,
        "targets": 10.0,
        "advr": 30.0,
        "steps_median": 7.0,
        "unfinished": unfinished,
        "margin": 0.0,
        "images": 10,
        "intervals": {"advr": [30.0, 20.0, 40.0]},
    }


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, in place of files."""
    figures: list[Figure] = []
    monkeypatch.setattr(lineplot, "save", lambda figure, path: figures.append(figure))
    return figures


ROWS = [row(0.9, 300), row(0.5, 100), row(0.7, 100), row(0.7, 300)]


def test_rows_come_by_the_number_kept_and_rising_threshold():
    groups = density.by_kept(ROWS)
    assert [most for most, _ in groups] == [100, 300]
    assert [[each["nms_threshold"] for each in group] for _, group in groups] == [
        [0.5, 0.7],
        [0.7, 0.9],
    ]


def test_a_line_for_each_number_kept_and_no_empty_panel(drawn):
    density.draw(ROWS, "a.png", title="FR")
    assert len(drawn[0].axes) == 4 and all(axes.get_visible() for axes in drawn[0].axes)
    assert all(axes.get_lines() and axes.get_ylabel() for axes in drawn[0].axes)
    assert "\n(margin 0; 10 images, none ends with targets left; " in drawn[0].get_suptitle()
    (legend,) = drawn[0].legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[:2] == ["at most 100 kept", "at most 300 kept"] and "ORIG 80.0" in texts[2]


def test_what_is_unfinished_is_said(drawn):
    density.draw([*ROWS, row(0.95, 300, unfinished=2)], "a.png", title="FR")
    assert "10 images, at most 2 of a setting end with targets left;" in drawn[0].get_suptitle()


def test_steps_that_nothing_has_are_no_panel(drawn):
    density.draw([row(0.5, 100) | {"steps_median": None}], "a.png", title="FR")
    assert "steps of an image (median)" not in [axes.get_ylabel() for axes in drawn[0].axes]
