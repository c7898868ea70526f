import pytest
from matplotlib.figure import Figure

from dag_jax.report import lineplot, tradeoff


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, in place of files."""
    figures: list[Figure] = []
    monkeypatch.setattr(lineplot, "save", lambda figure, path: figures.append(figure))
    return figures


def row(title, size):
    return {"title": title, "perceptibility": size, "orig": 90.0, "advr": 1.0, "perm": 80.0}


def test_each_attack_has_a_mark_of_its_own_in_the_legend(drawn):
    groups = {"free": [row("DAG", 0.01)], "bounded": [row(f"PGD {n}", 0.04) for n in range(11)]}
    tradeoff.draw(groups, "a.png", title="a net", ylabel="mIoU left (%)")
    (legend,) = drawn[0].legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[:4] == ["no attack: 90.0", "\nfree", "DAG", "\nbounded"]
    assert texts[4:-1] == [f"PGD {n}" for n in range(11)] and "hollow" in texts[-1]
    marks = [h for h, text in zip(legend.legend_handles, texts, strict=True) if "GD" in text]
    assert len({(mark.get_color(), mark.get_marker()) for mark in marks}) == 11


def test_the_plot_names_its_units_and_holds_all_marks(drawn):
    tradeoff.draw({"free": [row("DAG", 0.01)]}, "a.png", title="a net", ylabel="mIoU left (%)")
    (axes,) = drawn[0].axes
    assert axes.get_ylabel() == "mIoU left (%)" and "one grey level" in axes.get_xlabel()
    assert axes.get_xlim()[1] > 10 and axes.get_ylim()[0] < 0 < 90 < axes.get_ylim()[1]
