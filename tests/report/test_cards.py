"""The score cards of the HTML report: intervals of medians and means over images."""

import numpy as np
import pytest

from dag_jax import metrics
from dag_jax.report import cards


def row(**more):
    return {"task": "detection", **more}


def test_medians_of_sets_are_those_of_the_sets_written_out(rng):
    values = rng.integers(0, 9, 7).astype(float)
    images = metrics.draw_images(3, 7, 50)
    expected = [np.median(np.repeat(values, counts)) for counts in images]
    np.testing.assert_array_equal(cards.medians_of_sets(values, images), expected)


@pytest.mark.parametrize("values", [[4.0], [3.0] * 20])
def test_numbers_that_are_alike_have_an_interval_of_nothing(values):
    assert cards.median_interval(np.array(values)) == (values[0],) * 3


def test_intervals_hold_the_true_median_as_often_as_they_say(rng):
    drawn = np.round(np.exp(rng.normal(np.log(20), 0.7, (100, 40))))
    images = metrics.draw_images(0, 40)
    basic = [metrics.interval(cards.medians_of_sets(values, images)) for values in drawn]
    percentile = [cards.median_interval(values) for values in drawn]
    held, less = (sum(i.low <= 20 <= i.high for i in some) for some in (percentile, basic))
    assert held in range(90, 100) and less < held


def test_steps_and_sizes_have_intervals_and_scores_are_the_rows():
    records = [{"num_steps": steps, "perceptibility": 0.001 * steps} for steps in range(3, 30)]
    intervals = {"orig": [70.0, 60.0, 80.0]}
    shown = cards.cards(row(orig=70.0, intervals=intervals), records)
    clean, steps, size = (card["range"] for card in shown)
    assert clean == "95% interval 60.00 to 80.00" and shown[0]["unit"] == "% mAP"
    ends = [
        [float(end) for end in text.split("interval ")[1].split(" to ")] for text in (steps, size)
    ]
    assert all(3 < low < 16 < high < 30 for low, high in ends)


def test_a_row_without_targets_and_scores_has_no_card():
    assert cards.cards(row(), []) == []
