"""The claims over a matrix of transfer, as texts; the rules are those of `dag_jax.runs.claims`."""

import math

from dag_jax.report import tables
from dag_jax.report.findings import text
from dag_jax.runs.claims import KEPT
from dag_jax.runs.findings import EQUAL, FEWEST, LEVEL

TERMS = f"""\
- cell: what one network (column) scores on images with one thing added (row), as percent of what it
  scores on the same images without it.
- white box: what is added was found for this network. cross-training: for the same architecture,
  trained on other data or at another resolution. cross-network: for another architecture of the
  same task, columns that no attack has seen (black boxes) included. cross-task: for a network of
  the other task. Of a sum, the nearest of its members counts.
- difference: value and {LEVEL:.0%} interval by the bootstrap over images, in percent of the clean
  score. Of "fools", "transfers" and "does nothing": the cell minus the clean images. Of "stronger
  than cross-network": the mean of cross-training cells minus the mean of cross-network cells. Of
  "keeps": the sum minus its member's own white-box cell, minus {KEPT:.0%}. Of "best member": the
  sum minus the strongest of its members on the same network. Of "permuted form": the sum minus the
  same sum with rows and columns shuffled. Cells that are compared are scored on the images that
  all of them have. "Other networks" are those that the sum was not found for.
- holds: the whole interval is below 0; does not hold: all of it is above 0. For "does nothing":
  holds where the whole interval is within {EQUAL:.0%} of the clean score to either side of 0, does
  not hold where all of it is outside of that. Else, and of fewer than {FEWEST} images: not shown.
- "keeps" and "does nothing" are judged cell by cell: they hold if all cells do, do not hold if one
  does not, and the difference is that of the worst cell, which is named. The others are of the mean
  over their cells."""


def _difference(claim):
    return "-" if math.isnan(claim.interval.value) else text(claim.interval)


COLUMNS = (
    ("claim", lambda claim: claim.statement),
    ("of", lambda claim: claim.cells),
    ("difference", _difference),
    ("", lambda claim: claim.verdict),
)


def markdown(claims) -> str:
    """Return the claims of `dag_jax.runs.claims` as Markdown, after what their words mean."""
    claims = list(claims)
    left_out = list(dict.fromkeys(title for claim in claims for title in claim.left_out))
    missing = f"Left out, without a clean score to compare with: {'; '.join(left_out)}.\n\n"
    return f"{TERMS}\n\n{missing if left_out else ''}{tables.markdown(claims, COLUMNS)}\n"
