"""What tables are evidence of, as texts; the rules are those of `dag_jax.runs.findings`."""

from dag_jax.report import tables
from dag_jax.runs import findings


def text(interval) -> str:
    """Return an interval as '-1.65 [-2.30, -0.91]'.

    Args:
      interval: (value, low, high).
    """
    value, low, high = interval
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def verdict(difference, images) -> str:
    """Return whether images show that a difference is below 0: 'holds: -1.65 [-2.30, -0.91]'.

    Args:
      difference: (value, low, high); None where there is no image.
      images: their number.
    """
    if difference is None:
        return "-"
    judged = findings.below(difference, images)
    return judged if images < findings.FEWEST else f"{judged}: {text(difference)}"


def of_row(row) -> list[dict]:
    """Return the paper's claims of a row of Table 1: {"claim", "cells", "difference", "verdict"}.

    Args:
      row: as of `table1`; without "intervals" there is no claim.
    """
    intervals, images = row.get("intervals", {}), row["images"]
    judged = []
    if "advr_minus_orig" in intervals:
        difference = intervals["advr_minus_orig"]
        verdict = findings.below(difference, images)
        judged.append(("the attack lowers the score", difference, verdict))
    if "perm_minus_orig" in intervals:
        difference = intervals["perm_minus_orig"]
        verdict = findings.equal(difference, intervals["orig"][0], images)
        judged.append(("the same change, shuffled, does not", difference, verdict))
    return [
        {"claim": claim, "cells": row["title"], "difference": text(difference), "verdict": verdict}
        for claim, difference, verdict in judged
    ]


def of_matrix(claims) -> list[dict]:
    """Return the claims in transfer.json in the form of `of_row`.

    Args:
      claims: from `runs.claims.Claim.as_json`.
    """
    return [
        {
            "claim": claim["statement"],
            "cells": claim["cells"],
            "difference": "-" if None in claim["interval"] else text(claim["interval"]),
            "verdict": claim["verdict"],
        }
        for claim in claims
    ]


def table1(rows, *, heading="network") -> str:
    """Return what Table 1, or another table of its columns, shows, as Markdown.

    Args:
      rows: dicts with "title", "images" (how many) and "intervals" from `findings.intervals_of`.
      heading: of the column of titles: what a row is of.
    """

    def lower(row):
        difference = row["intervals"]["advr_minus_orig"]
        return f"{findings.below(difference, row['images'])}: {text(difference)}"

    def same(row):
        difference, clean = (row["intervals"][name] for name in ("perm_minus_orig", "orig"))
        return f"{findings.equal(difference, clean[0], row['images'])}: {text(difference)}"

    columns = [
        (heading, lambda row: row["title"]),
        ("ORIG", lambda row: text(row["intervals"]["orig"])),
        ("ADVR", lambda row: text(row["intervals"]["advr"])),
        ("PERM", lambda row: text(row["intervals"]["perm"])),
        ("adversarial below original", lower),
        ("permuted equal to original", same),
    ]
    return (
        f"{findings.LEVEL:.0%} intervals by the bootstrap over images, in points; behind each "
        "claim the difference from ORIG on the same images. Below: holds where the whole interval "
        "is below 0, does not hold where it is above 0. Equal: holds where the whole interval is "
        f"within {findings.EQUAL:.0%} of ORIG to either side of 0, does not hold where all of it "
        f"is outside of that. Else, and of fewer than {findings.FEWEST} images, nothing is "
        f"shown.\n\n{tables.markdown(rows, columns)}\n"
    )
