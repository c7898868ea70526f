"""What a matrix of transfer shows, as texts."""

import math

from dag_jax import metrics
from dag_jax.report import claims
from dag_jax.runs.claims import Claim

HOLDS = Claim(
    "it fools", "white box: 2 cells", metrics.Interval(-50, -60, -40), "holds", ("A on B",)
)
UNKNOWN = Claim("it helps", "a sum: 1 cell", metrics.Interval(*[math.nan] * 3), "not shown")


def rows_of(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def test_a_claim_is_a_row_and_one_without_a_score_has_no_number():
    assert rows_of(claims.markdown([HOLDS, UNKNOWN])) == [
        ["it fools", "white box: 2 cells", "-50.00 [-60.00, -40.00]", "holds"],
        ["it helps", "a sum: 1 cell", "-", "not shown"],
    ]


def test_cells_that_are_left_out_are_named_once():
    text = claims.markdown(claim for claim in (HOLDS, HOLDS))
    assert "Left out, without a clean score to compare with: A on B.\n" in text
    assert "Left out" not in claims.markdown([UNKNOWN])


def test_the_words_are_explained():
    text = claims.markdown([HOLDS])
    for word in ("cell", "white box", "cross-training", "cross-network", "cross-task", "holds"):
        assert f"{word}: " in text
    assert "within 5% of the clean score" in text
