"""What a table says of a claim."""

from dag_jax.runs import scores


def test_a_verdict_is_of_the_whole_interval_and_of_enough_images():
    assert scores.verdict([-3, -4, -1], 10) == "holds: -3.00 [-4.00, -1.00]"
    assert scores.verdict([3, 1, 4], 10) == "does not hold: 3.00 [1.00, 4.00]"
    assert scores.verdict([-3, -7, 1], 10) == "not shown: -3.00 [-7.00, 1.00]"
    assert scores.verdict([-3, -4, -1], 9) == "not shown (fewer than 10 images)"
    assert scores.verdict(None, 0) == "-"
