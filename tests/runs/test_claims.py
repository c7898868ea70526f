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


def matrix(*, near=0.2, far=0.9, white_box=(0.05, 0.05), black_box=0.6, permuted=(1.0, 1.0, 1.0)):
    """Return cells with given shares left of a clean score of 80."""
    cells, white_box, permuted = {}, list(white_box), list(permuted)
    for target in TARGETS:
        cells[Source("val"), target] = cell(1, seed=len(cells))
        for name in ("fcn_alex", "fcn_vgg"):
            source = Source("val", (name,))
            share = {"white box": 0.01, "cross-training": near, "cross-network": far}
            share = share[claims.kind_of(source, target, LOOKERS)]
            cells[source, target] = cell(share, seed=len(cells))
        share = white_box.pop(0) if target in BOTH.members else black_box
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
    claims_by_key = verdicts(matrix(black_box=0.1))
    plain = {key for key in claims_by_key if key[0] not in (KEEPS, NOTHING)}
    assert plain == {
        ("fools the network itself", "white box: 2 cells"),
        ("transfers", "cross-training: 1 cell"),
        ("transfers", "cross-network: 3 cells"),
        *(STRONGER, HELPS, UNSEEN, MORE),
    }
    ((_, keeps),) = (key for key in claims_by_key if key[0] == KEEPS)
    ((_, nothing),) = (key for key in claims_by_key if key[0] == NOTHING)
    assert keeps.startswith(f"{SUM}: 2 of 2 cells hold; worst: FCN-")
    assert nothing.startswith(f"{SHUFFLED}: 3 of 3 cells hold; worst: FCN-")
    assert {claim.verdict for claim in claims_by_key.values()} == {"holds"}


@pytest.mark.parametrize(
    ("shares", "claim"),
    [
        ({"near": 0.95, "far": 0.3, "black_box": 0.1}, STRONGER),
        ({"black_box": 0.6}, UNSEEN),  # the nearer of its members leaves 0.2 alone
        ({"permuted": (1.0, 0.97, 1.0), "near": 1.2, "black_box": 1.1}, MORE),
    ],
)
def test_a_claim_that_does_not_hold_is_said_not_to(shares, claim):
    claims_by_key = verdicts(matrix(**shares))
    assert claims_by_key[claim].verdict == "does not hold"
    for other_claim in {HELPS, UNSEEN, MORE, STRONGER} - {claim}:
        either = {HELPS, UNSEEN}
        if not (claim in either and other_claim in either) and "near" not in shares:
            assert claims_by_key[other_claim].verdict == "holds"


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
    claim = by_claim(matrix(permuted=permuted))[NOTHING]
    assert claim.verdict == verdict
    assert claim.cells.startswith(f"{SHUFFLED}: {count} of 3 cells hold; worst: ")
    assert claim.cells.rpartition(": ")[2] in worst


def test_a_sum_keeps_every_member_or_does_not():
    claim = by_claim(matrix(white_box=(0.01, 0.15)))[KEEPS]
    assert claim.verdict == "does not hold" and "1 of 2 cells hold; worst: FCN-VGG" in claim.cells
    np.testing.assert_allclose(claim.interval.value, 4, atol=1e-9)


def test_claims_are_judged_before_they_are_rounded():
    cells = matrix()
    source = Source("val", ("fcn_vgg",))
    cells = {(source, "fcn_alex"): Cell(80 - 1e-3 * cell(1).scores, np.full(401, 80.0), KEYS)}
    (claim,) = claims.of_transfer(cells, LOOKERS)
    assert claim.verdict == "holds" and -0.1 < claim.interval.high < 0
    cells[source, "fcn_alex"] = Cell(80 - 1e-6 * cell(1).scores, np.full(401, 80.0), KEYS)
    (claim,) = claims.of_transfer(cells, LOOKERS)
    assert claim.verdict == "holds" and claim.as_json()["interval"][2] == 0


def test_nine_images_show_nothing():
    few_images = {pair: cell._replace(keys=KEYS[:9]) for pair, cell in matrix().items()}
    judged = claims.of_transfer(few_images, LOOKERS)
    assert {claim.verdict for claim in judged} == {"not shown (fewer than 10 images)"}


def test_cells_without_a_clean_score_are_left_out_and_named():
    cells = matrix(black_box=0.1)
    pair = Source("val", ("fcn_vgg",)), "fcn_alex"
    cells[pair] = Cell(np.zeros(401), np.zeros(401), KEYS)
    claims_by_key = verdicts(cells)
    claim = claims_by_key["transfers", "cross-network: 2 cells"]
    assert claim.verdict == "holds" and claim.left_out == ("FCN-VGG on FCN-Alex",)
    assert abs(claim.interval.value + 10) < 1e-9
    (alone,) = claims.of_transfer({pair: cells[pair]}, LOOKERS)
    assert alone.verdict == "not shown" and alone.as_json()["interval"] == [None] * 3


def test_networks_without_images_are_left_out():
    cells = matrix()
    nothing = Cell(np.full(401, np.nan), np.full(401, np.nan), ())
    empty = {pair: nothing for pair in cells if pair[1] == "fcn_vgg"}
    judged = claims.of_transfer(cells | empty, LOOKERS)
    assert judged and not any(np.isnan(claim.interval).any() for claim in judged)
    assert not any("FCN-VGG" in title for claim in judged for title in claim.left_out)


def test_cells_are_compared_on_the_images_that_both_have():
    cells, requests = matrix(black_box=0.1), []
    more = (*KEYS[::-1], "k")  # the member was seen on one image more, in another order
    pair = Source("val", ("fcn_alex",)), "fcn_alex_star"
    cells[pair] = cell(0.05, keys=more)

    def score(target, source, keys):
        requests.append((source, target, keys))
        return cell(0.3, keys=keys)

    claims_by_key = verdicts(cells, score)
    assert (*pair, KEYS) in requests and {request[:2] for request in requests} == {pair}
    assert (
        claims_by_key[HELPS].verdict == "holds"
    )  # 0.05 on its own images is less than the sum leaves
    assert abs(claims_by_key[HELPS].interval.value + 20) < 1
