"""What a matrix of transfer shows, on made-up cells."""

import numpy as np
import pytest

from dag_jax.runs import claims
from dag_jax.runs.matrix import Cell
from dag_jax.runs.stored import Source

ALEX, VGG, ZF = object(), object(), object()  # architectures
LOOKERS = {
    "fcn_alex": claims.Looker("FCN-Alex", "segmentation", ALEX),
    "fcn_alex_star": claims.Looker("FCN-Alex*", "segmentation", ALEX),
    "fcn_vgg": claims.Looker("FCN-VGG", "segmentation", VGG),
    "mine": claims.Looker("My net", "segmentation"),
    "yours": claims.Looker("Your net", "segmentation"),
    "fr_zf_07": claims.Looker("FR-ZF-07", "detection", ZF),
    "fr_zf_0712": claims.Looker("FR-ZF-0712", "detection", ZF),
    "fr_vgg_07": claims.Looker("FR-VGG-07", "detection", VGG),
}


@pytest.mark.parametrize(
    ("members", "target", "kind"),
    [
        (("fcn_alex", "fr_zf_07"), "fr_zf_07", "white box"),
        (("fcn_alex",), "fcn_alex_star", "cross-training"),
        (("fcn_alex", "fr_zf_07"), "fr_zf_0712", "cross-training"),
        (("fcn_alex",), "fcn_vgg", "cross-network"),
        (("fr_vgg_07",), "fr_zf_0712", "cross-network"),
        (("mine",), "yours", "cross-network"),  # nothing is known of their architectures
        (("fcn_alex",), "fr_vgg_07", "cross-task"),
        ((), "fr_vgg_07", "clean"),
    ],
)
def test_kinds_of_cells(members, target, kind):
    source = Source("val", members)
    assert claims.kind_of(source, target, LOOKERS) == kind
    assert source.is_white_box(target) == (kind == "white box")
    shuffled = source._replace(permuted=True)
    assert claims.kind_of(shuffled, target, LOOKERS) == ("permuted" if members else "clean")
    assert not shuffled.is_white_box(target)


def test_a_source_is_called_by_its_members_titles():
    sources = [Source("val"), Source("val", ("mine",)), Source("val", ("mine", "fcn_vgg"), True)]
    assert [claims.source_title(source, LOOKERS) for source in sources] == [
        *("none", "My net", "My net + FCN-VGG, permuted"),
    ]


TARGETS = ("fcn_alex", "fcn_alex_star", "fcn_vgg")  # the second one is never attacked
KEYS = tuple("abcdefghij")
BOTH = Source("val", ("fcn_alex", "fcn_vgg"))


def cell(share, *, seed=0, keys=KEYS, clean=80.0):
    """Return a cell with a share left of its clean score."""
    noise = np.append(0, np.random.default_rng(seed).normal(0, 0.01, 400))
    return Cell(clean * (share + noise), np.full(401, clean), keys)


def matrix(*, near=0.2, far=0.9, kept=(0.05, 0.05), black_box=0.6, permuted=(1.0, 1.0, 1.0)):
    """Return cells with given shares left of a clean score of 80."""
    cells, kept, permuted = {}, list(kept), list(permuted)
    for target in TARGETS:
        cells[Source("val"), target] = cell(1, seed=len(cells))
        for name in ("fcn_alex", "fcn_vgg"):
            source = Source("val", (name,))
            share = {"white box": 0.01, "cross-training": near, "cross-network": far}
            share = share[claims.kind_of(source, target, LOOKERS)]
            cells[source, target] = cell(share, seed=len(cells))
        share = kept.pop(0) if target in BOTH.members else black_box
        cells[BOTH, target] = cell(share, seed=len(cells))
        shuffled = BOTH._replace(permuted=True)
        cells[shuffled, target] = cell(permuted.pop(0), seed=len(cells))
    return cells


def verdicts(cells, score=None):
    judged = claims.of_transfer(cells, LOOKERS, score)
    return {(claim.statement.split(" (")[0], claim.cells): claim for claim in judged}


SUM, SHUFFLED = "FCN-Alex + FCN-VGG", "FCN-Alex + FCN-VGG, permuted"
STRONGER = (
    "cross-training transfer is stronger than cross-network",
    "segmentation: 1 against 3 cells",
)
HELPS = ("a sum is stronger on other networks than its best member", f"{SUM}: 1 cell")
UNSEEN = ("... and on networks that no attack has seen", f"{SUM}: 1 cell")
MORE = ("a sum does more on other networks than its permuted form", f"{SUM}: 1 cell")
KEEPS, NOTHING = "a sum keeps the white-box effects", "a permuted sum does nothing"


def by_claim(cells):
    """Return {claim: it} of those that are made once."""
    judged = claims.of_transfer(cells, LOOKERS)
    return {claim.statement.split(" (")[0]: claim for claim in judged}


def test_what_the_paper_claims_holds_where_it_does():
    found = verdicts(matrix(black_box=0.1))
    plain = {key for key in found if key[0] not in (KEEPS, NOTHING)}
    assert plain == {
        ("fools the network itself", "white box: 2 cells"),
        ("transfers", "cross-training: 1 cell"),
        ("transfers", "cross-network: 3 cells"),
        *(STRONGER, HELPS, UNSEEN, MORE),
    }
    ((_, keeps),) = (key for key in found if key[0] == KEEPS)
    ((_, nothing),) = (key for key in found if key[0] == NOTHING)
    assert keeps.startswith(f"{SUM}: 2 of 2 cells hold; worst: FCN-")
    assert nothing.startswith(f"{SHUFFLED}: 3 of 3 cells hold; worst: FCN-")
    assert {one.verdict for one in found.values()} == {"holds"}


@pytest.mark.parametrize(
    ("shares", "claim"),
    [
        ({"near": 0.95, "far": 0.3, "black_box": 0.1}, STRONGER),
        ({"black_box": 0.6}, UNSEEN),  # the nearer of its members leaves 0.2 alone
        ({"permuted": (1.0, 0.97, 1.0), "near": 1.2, "black_box": 1.1}, MORE),
    ],
)
def test_a_claim_that_does_not_hold_is_said_not_to(shares, claim):
    found = verdicts(matrix(**shares))
    assert found[claim].verdict == "does not hold"
    for other in {HELPS, UNSEEN, MORE, STRONGER} - {claim}:
        either = {HELPS, UNSEEN}
        if not (claim in either and other in either) and "near" not in shares:
            assert found[other].verdict == "holds"


@pytest.mark.parametrize(
    ("permuted", "verdict", "count", "worst"),
    [
        ((0.9, 1.0, 1.1), "does not hold", 1, {"FCN-Alex", "FCN-VGG"}),  # their mean is 1
        ((1.0, 1.05, 1.0), "not shown", 2, {"FCN-Alex*"}),
        ((1.0, 1.0, 0.96), "not shown", 2, {"FCN-VGG"}),
        ((1.0, 1.0, 1.0), "holds", 3, {"FCN-Alex", "FCN-Alex*", "FCN-VGG"}),
    ],
)
def test_harm_and_gain_do_not_cancel(permuted, verdict, count, worst):
    found = by_claim(matrix(permuted=permuted))[NOTHING]
    assert found.verdict == verdict
    assert found.cells.startswith(f"{SHUFFLED}: {count} of 3 cells hold; worst: ")
    assert found.cells.rpartition(": ")[2] in worst


def test_a_sum_keeps_every_member_or_does_not():
    found = by_claim(matrix(kept=(0.01, 0.15)))[KEEPS]
    assert found.verdict == "does not hold" and "1 of 2 cells hold; worst: FCN-VGG" in found.cells
    np.testing.assert_allclose(found.interval.value, 4, atol=1e-9)


def test_claims_are_judged_before_they_are_rounded():
    cells = matrix()
    source = Source("val", ("fcn_vgg",))
    cells = {(source, "fcn_alex"): Cell(80 - 1e-3 * cell(1).scores, np.full(401, 80.0), KEYS)}
    (found,) = claims.of_transfer(cells, LOOKERS)
    assert found.verdict == "holds" and -0.1 < found.interval.high < 0
    cells[source, "fcn_alex"] = Cell(80 - 1e-6 * cell(1).scores, np.full(401, 80.0), KEYS)
    (found,) = claims.of_transfer(cells, LOOKERS)
    assert found.verdict == "holds" and found.as_json()["interval"][2] == 0


def test_nine_images_show_nothing():
    some = {pair: one._replace(keys=KEYS[:9]) for pair, one in matrix().items()}
    found = claims.of_transfer(some, LOOKERS)
    assert {one.verdict for one in found} == {"not shown (fewer than 10 images)"}


def test_cells_without_a_clean_score_are_left_out_and_named():
    cells = matrix(black_box=0.1)
    pair = Source("val", ("fcn_vgg",)), "fcn_alex"
    cells[pair] = Cell(np.zeros(401), np.zeros(401), KEYS)
    found = verdicts(cells)
    one = found["transfers", "cross-network: 2 cells"]
    assert one.verdict == "holds" and one.left_out == ("FCN-VGG on FCN-Alex",)
    assert abs(one.interval.value + 10) < 1e-9
    (alone,) = claims.of_transfer({pair: cells[pair]}, LOOKERS)
    assert alone.verdict == "not shown" and alone.as_json()["interval"] == [None] * 3


def test_networks_without_images_are_left_out():
    cells = matrix()
    nothing = Cell(np.full(401, np.nan), np.full(401, np.nan), ())
    empty = {pair: nothing for pair in cells if pair[1] == "fcn_vgg"}
    found = claims.of_transfer(cells | empty, LOOKERS)
    assert found and not any(np.isnan(one.interval).any() for one in found)
    assert not any("FCN-VGG" in title for one in found for title in one.left_out)


def test_cells_are_compared_on_the_images_that_both_have():
    cells, asked = matrix(black_box=0.1), []
    more = (*KEYS[::-1], "k")  # the member was seen on one image more, in another order
    pair = Source("val", ("fcn_alex",)), "fcn_alex_star"
    cells[pair] = cell(0.05, keys=more)

    def score(target, source, keys):
        asked.append((source, target, keys))
        return cell(0.3, keys=keys)

    found = verdicts(cells, score)
    assert (*pair, KEYS) in asked and {one[:2] for one in asked} == {pair}
    assert found[HELPS].verdict == "holds"  # 0.05 on its own images is less than the sum leaves
    assert abs(found[HELPS].interval.value + 20) < 1
