"""What the audit of a table found, as the section under the table, and the table's files."""

import collections
import json

from dag_jax import files


def section(findings, titles, *, remedy="--audit") -> str:
    """Return findings as the section of a report: a line for all that hold, one for each other.

    Args:
      findings: {name of a row: list of `dag_jax.Finding`}, of the rows that were audited.
      titles: {name of a row: what it is called}, of all rows of the table.
      remedy: what makes the findings of rows that have none.

    Returns:
      Markdown, with its heading.
    """
    lines = []
    if findings:
        every = [finding for row_findings in findings.values() for finding in row_findings]
        checked = "; ".join(
            check if rows == len(findings) else f"{check} ({_count(rows, 'row')})"
            for check, rows in collections.Counter(finding.check for finding in every).items()
        )
        verdicts = collections.Counter(finding.passed for finding in every)
        fails = verdicts[False]
        lines += [
            f"{_count(len(every), 'check')} of {_count(len(findings), 'row')}: {verdicts[True]} "
            f"hold, {fails} do{'es' * (fails == 1)} not, {verdicts[None]} could not be judged. "
            f"Checked: {checked}.",
            "",
        ]
    if missing := [title for name, title in titles.items() if name not in findings]:
        lines += [f"Not audited: {', '.join(missing)}; {remedy} does it.", ""]
    for name, row_findings in findings.items():
        for finding in row_findings:
            if not finding.passed:
                verdict = "could not be judged" if finding.passed is None else "does not hold"
                lines.append(
                    f'- **{titles[name]}: "{finding.check}" {verdict}**: {finding.detail}. '
                    f"*Remedy:* {finding.remedy}."
                )
    return "\n".join(["## Audit", "", *lines]).rstrip() + "\n"


def _count(number, noun):
    return f"{number} {noun}{'s' * (number != 1)}"


def as_json(findings) -> dict[str, list[dict]]:
    """Return findings, {name of a row: list of `dag_jax.Finding`}, as JSON can hold them."""
    return {
        name: [finding.as_json() for finding in row_findings]
        for name, row_findings in findings.items()
    }


def write(workdir, name, report, content, *, findings, titles, remedy="--audit") -> str:
    """Write a table as Markdown and as JSON, each with what was found of its rows.

    Args:
      workdir: the run's folder.
      name: of the two files, without their ends.
      report: Markdown.
      content: dict, what JSON can hold.
      findings: as in `section`; none before the audit.
      titles: as in `section`.
      remedy: as in `section`.

    Returns:
      The Markdown.

    Raises:
      OSError: where the files cannot be written.
    """
    text = f"{report}\n{section(findings, titles, remedy=remedy)}"
    files.remove_drafts(workdir)
    files.write(workdir / f"{name}.md", text)
    content = {**content, "audit": as_json(findings)}
    files.write(workdir / f"{name}.json", json.dumps(content, indent=2) + "\n")
    return text


def table1_remedy(folder) -> str:
    """Return what makes findings of a table's rows, for launches over its perturbations."""
    return (
        f"`python -m experiments.table1 --workdir={folder}`, with the flags and the version of the "
        "launch that made it,"
    )
