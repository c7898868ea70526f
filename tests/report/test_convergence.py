import numpy as np
from PIL import Image

from dag_jax.report import convergence


def pair(network, task, margin, steps, attacked=True):
    """Return a row and its curves."""
    row = {"network": network, "title": f"Net {network}", "task": task, "margin": margin}
    row |= {"max_steps": steps, "images": 4, "statuses": {"FOOLED": 3, "NO_TARGETS": 1}}
    curve = np.linspace(1, 0, steps + 1)
    return row, dict.fromkeys(("low", "median", "high", "mean"), curve) if attacked else {}


PAIRS = [
    pair("a", "segmentation", 0.0, 12),
    pair("b", "segmentation", 0.0, 12),
    pair("x", "detection", 3.0, 8),
    pair("x", "detection", 0.0, 8, attacked=False),
]


def saved(monkeypatch):
    figures = []
    monkeypatch.setattr(convergence.lineplot, "save", lambda figure, path: figures.append(figure))
    return figures


def test_a_panel_for_each_network_a_line_for_each_task(monkeypatch):
    figures = saved(monkeypatch)
    convergence.draw_curves(PAIRS, "a.png", paper_steps={"segmentation": 20, "detection": 5})
    panels = figures[0].axes
    shown = [axes.get_title() for axes in panels if axes.get_visible()]
    assert shown == ["Net a", "Net b", "Net x"] and len(panels) == 4
    assert panels[0].get_xlim()[1] > 20 > 8 * 1.03 == panels[2].get_xlim()[1]
    texts = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert texts[:2] == [
        "median of the images, margin 0 (segmentation), 3 (detection)",
        "median of the images, margin 0 (the paper's rule)",
    ]
    assert "the paper's $M_0$" in texts


def test_without_the_paper_s_steps_no_line_is_drawn_for_them(monkeypatch):
    figures = saved(monkeypatch)
    convergence.draw_curves(PAIRS[:1], "a.png", paper_steps={})
    (axes,) = figures[0].axes
    assert len(axes.get_lines()) == 2  # median and mean
    assert "the paper's $M_0$" not in [t.get_text() for t in figures[0].legends[0].get_texts()]


def test_rows_of_one_network_say_their_margins(monkeypatch):
    figures = saved(monkeypatch)
    records = [[{"active_counts": [5, 0], "num_steps": 1, "perceptibility": 0.01}]] * 3
    records += [[{"active_counts": [0], "num_steps": 0, "perceptibility": 0.0}]]
    convergence.draw_distributions([row for row, _ in PAIRS], records, "a.png")
    steps, sizes, statuses = figures[0].axes
    names = [label.get_text() for label in steps.get_yticklabels()]
    assert names == ["Net a", "Net b", "Net x, margin 3", "Net x, margin 0"]
    assert "p × 1000" in sizes.get_xlabel()
    assert [text.get_text() for text in statuses.texts] == ["75%"] * 4 + ["25%"] * 4


def test_both_are_pictures(tmp_path):
    convergence.draw_curves(PAIRS, tmp_path / "curves.png", paper_steps={"detection": 5})
    convergence.draw_distributions(
        [PAIRS[0][0]],
        [[{"active_counts": [5, 0], "num_steps": 1, "perceptibility": 0.01}]],
        tmp_path / "distributions.png",
    )
    for name in ("curves", "distributions"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 800
