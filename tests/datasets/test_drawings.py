import numpy as np
import pytest

from dag_jax.datasets import drawings


@pytest.mark.parametrize("shape", [(128, 128), (90, 150), (151, 90)])
def test_shapes_are_in_the_middle_and_as_large_as_they_say(shape):
    height, width = shape
    radius = 0.3 * min(shape)
    circle, square, strip = (
        draw(shape) for draw in (drawings.circle, drawings.square, drawings.strip)
    )
    for drawn in (circle, square, strip):
        assert drawn.shape == shape and drawn.dtype == bool
        np.testing.assert_array_equal(drawn, drawn[::-1, ::-1])
    assert circle.sum() == pytest.approx(np.pi * radius**2, rel=0.02)
    assert square.sum() == pytest.approx(4 * radius**2, rel=0.05)
    assert (square | ~circle).all()  # the disc touches the square's sides
    assert strip.all(axis=1).sum() == strip.any(axis=1).sum() == pytest.approx(height / 4, abs=1)


@pytest.mark.parametrize("shape", [(128, 128), (90, 150), (375, 500)])
@pytest.mark.parametrize("text", ["DAG", "I", "Äpfel", "γ = 0.5"])
def test_a_word_fills_the_room_that_it_has(shape, text):
    drawn = drawings.word(shape, text)
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    high, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert high <= 0.6 * shape[0] + 2 and wide <= 0.9 * shape[1] + 2
    assert high >= 0.6 * shape[0] - 5 or wide >= 0.9 * shape[1] - 5
    for ends, side in ((rows, shape[0]), (columns, shape[1])):
        assert abs((ends[0] + ends[-1]) / 2 - (side - 1) / 2) <= 2


def test_letters_are_told_apart():
    words = [drawings.word((64, 64), text) for text in ("DAG", "GAD", "CAT")]
    assert all((a != b).mean() > 0.02 for a, b in zip(words, words[1:], strict=False))
    hollow = drawings.word((128, 128), "D")
    assert not hollow[64, 64] and hollow[64].any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  ", "is empty"),
        ("字", "letters that the font lacks: \\['字'\\]"),
        ("a word that nobody can read in this", "pixels high in an image of 64 x 64"),
    ],
)
def test_a_word_that_cannot_be_drawn_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        drawings.word((64, 64), text)
