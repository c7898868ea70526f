"""What a table shows, on made-up scores."""

import numpy as np
import pytest

from experiments.runs import findings
from experiments.runs.matrix import Cell
from experiments.runs.stored import Source


def sets(value, spread=1.0, seed=0):
    """Return scores of a table and of 400 sets around it."""
    return np.append(value, np.random.default_rng(seed).normal(value, spread, 400))


def test_intervals_are_paired():
    noise = sets(0, 5)
    row = findings.intervals_of({"orig": 60 + noise, "advr": 4 + noise, "perm": 60 + noise})
    assert row["orig"][0] == 60 and row["orig"][2] - row["orig"][1] > 15
    assert row["advr_minus_orig"] == [-56, -56, -56]
    assert row["perm_minus_orig"] == [0, 0, 0]


@pytest.mark.parametrize(
    ("difference", "below", "equal"),
    [
        ([-3, -5, -1], "holds", "does not hold"),
        ([-1, -3, 1], "not shown", "holds"),
        ([2, 1, 3], "does not hold", "does not hold"),
        ([float("nan")] * 3, "not shown", "not shown"),
    ],
)
def test_verdicts(difference, below, equal):
    assert findings.below(difference) == below
    assert findings.equal(difference) == equal


def test_table_1_says_what_holds():
    noise = sets(0)
    row = {"network": "a"}
    row["intervals"] = findings.intervals_of(
        {"orig": 60 + noise, "advr": noise, "perm": 58 + noise}
    )
    text = findings.table1([row], {"a": "Net"})
    assert "holds: -60.00 [-60.00, -60.00]" in text
    assert "does not hold: -2.00 [-2.00, -2.00]" in text


@pytest.mark.parametrize(
    ("members", "target", "kind"),
    [
        (("fcn_alex", "fr_zf_07"), "fr_zf_07", "white box"),
        (("fcn_alex",), "fcn_alex_star", "cross-training"),
        (("fcn_alex", "fr_zf_07"), "fr_zf_0712", "cross-training"),
        (("fcn_alex",), "fcn_vgg", "cross-network"),
        (("fr_vgg_07",), "fr_zf_0712", "cross-network"),
        (("fcn_vgg",), "fr_vgg_07", "cross-task"),
    ],
)
def test_kinds_of_cells(members, target, kind):
    assert findings.kind_of(Source("val", members), target) == kind


TARGETS = ("fcn_alex", "fcn_alex_star", "fcn_vgg")  # the second one is never attacked


def matrix(*, near=0.2, far=0.9, kept=0.05, black_box=0.6, permuted=1.0):
    """Return cells with given shares left of a clean score of 80."""
    cells = {}

    def add(source, target, share):
        noise = sets(0, 0.01, seed=len(cells))
        cells[source, target] = Cell(80 * (share + noise), np.full(401, 80.0), 9)

    for target in TARGETS:
        add(Source("val"), target, 1)
        for name in ("fcn_alex", "fcn_vgg"):
            source = Source("val", (name,))
            share = {"white box": 0.01, "cross-training": near, "cross-network": far}
            add(source, target, share[findings.kind_of(source, target)])
        both = Source("val", ("fcn_alex", "fcn_vgg"))
        add(both, target, kept if target in both.members else black_box)
        add(both._replace(permuted=True), target, permuted)
    return cells


def verdicts(cells):
    return {(one.claim.split(" (")[0], one.of): one.verdict for one in findings.of_transfer(cells)}


STRONGER = (
    "cross-training transfer is stronger than cross-network",
    "segmentation, 1 against 3 cells (1)",
)
KEEPS = ("a sum keeps the white-box effects", "FCN-Alex + FCN-VGG (2)")
HELPS = ("a sum is stronger on other networks than its best member", "FCN-Alex + FCN-VGG (1)")
UNSEEN = ("... and on networks that no attack has seen", "FCN-Alex + FCN-VGG (1)")
NOTHING = ("a permuted sum does nothing", "FCN-Alex + FCN-VGG, permuted (3)")


def test_what_the_paper_claims_holds_where_it_does():
    found = verdicts(matrix(black_box=0.1))
    assert set(found) == {
        ("fools the network itself", "white box (2)"),
        ("transfers", "cross-training (1)"),
        ("transfers", "cross-network (3)"),
        *(STRONGER, KEEPS, HELPS, UNSEEN, NOTHING),
    }
    assert set(found.values()) == {"holds"}


@pytest.mark.parametrize(
    ("shares", "claim"),
    [
        ({"near": 0.95, "far": 0.3, "black_box": 0.1}, STRONGER),
        ({"kept": 0.4, "black_box": 0.1}, KEEPS),
        ({"black_box": 0.6}, UNSEEN),  # the nearer of its members leaves 0.2 alone
        ({"permuted": 0.8, "black_box": 0.1}, NOTHING),
    ],
)
def test_a_claim_that_does_not_hold_is_said_not_to(shares, claim):
    found = verdicts(matrix(**shares))
    assert found.pop(claim) == "does not hold"
    if claim == UNSEEN:
        assert found.pop(HELPS) == "does not hold"
    assert set(found.values()) == {"holds"}


def test_networks_without_images_are_left_out():
    cells = matrix()
    nothing = Cell(np.full(401, np.nan), np.full(401, np.nan), 0)
    empty = {pair: nothing for pair in cells if pair[1] == "fcn_vgg"}
    found = findings.of_transfer(cells | empty)
    assert found and not any(np.isnan(one.interval).any() for one in found)
