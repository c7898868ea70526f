"""What a table shows, on made-up scores."""

import numpy as np
import pytest

from dag_jax.runs import findings


def sets(value, spread=1.0, seed=0):
    """Return scores of a table and of 400 sets around it."""
    return np.append(value, np.random.default_rng(seed).normal(value, spread, 400))


def test_intervals_are_paired():
    noise = sets(0, 5)
    row = findings.intervals_of({"orig": 60 + noise, "advr": 4 + noise, "perm": 60 + noise})
    assert row["orig"][0] == 60 and row["orig"][2] - row["orig"][1] > 15
    assert row["advr_minus_orig"] == [-56, -56, -56]
    assert row["perm_minus_orig"] == [0, 0, 0]


def test_scores_and_differences_stay_within_what_they_can_be():
    noise = sets(0, 5)
    row = findings.intervals_of({"orig": 99 + noise, "advr": 1 - noise, "perm": 2 - noise})
    assert row["orig"][2] == 100 and row["advr"][1] == row["perm"][1] == 0
    assert row["advr_minus_orig"][1] == -100


@pytest.mark.parametrize(
    ("difference", "below", "equal"),  # equal: to within 5 of 100
    [
        ([-8, -9, -6], "holds", "does not hold"),
        ([-3, -5, -1], "holds", "holds"),
        ([-1, -3, 1], "not shown", "holds"),
        ([0, -6, 6], "not shown", "not shown"),
        ([-4, -6, -2], "holds", "not shown"),
        ([7, 6, 8], "does not hold", "does not hold"),
        ([-0.002, -0.004, -0.001], "holds", "holds"),
        ([float("nan")] * 3, "not shown", "not shown"),
    ],
)
def test_verdicts(difference, below, equal):
    assert findings.below(difference) == below
    assert findings.equal(difference, 100) == equal


def test_few_images_and_no_clean_score_show_nothing():
    few = "not shown (fewer than 10 images)"
    assert findings.below([-3, -3, -3], 9) == findings.equal([0, 0, 0], 100, 9) == few
    assert findings.below([-3, -3, -3], 10) == findings.equal([0, 0, 0], 100, 10) == "holds"
    assert findings.equal([0, 0, 0], 0) == "not shown"
