"""Whether a table measures the attack: its rows' checks, kept beside them and printed under it.

    found = audit.of_table(workdir, rows, networks, examples, mesh=mesh, slots=slots)
    print(audit.report(found))

What is found of a row is in audit.json beside it, and not looked for again while the row and the
checks are the same; `kept` hands it to launches that work on the rows' perturbations. What each
check asks is in `experiments.runs.audit_checks`.
"""

import functools
import json

from dag_jax import Finding
from experiments import console, evaluation
from experiments.runs import audit_checks, files, rundir
from experiments.runs.audit_checks import WHITE_BOX, Subject

FILE = "audit.json"
CHECKS = (
    audit_checks.model,
    audit_checks.stops,
    audit_checks.grows,
    audit_checks.goes_on,
    audit_checks.permuted,
    audit_checks.saved,
)


def of_row(
    subject: Subject, rivals, *, checks=CHECKS, then=None, bar=None
) -> tuple[list[Finding], bool]:
    """Audit a row.

    Args:
      subject: the row.
      rivals: as in `audit_checks.white_box`; None leaves that check out.
      checks: functions of a subject, each returning a Finding or a list of them.
      then: findings of the same row beside other rivals: only what rivals change is done again.
      bar: progress bar to advance by 1 for each check.

    Returns:
      (findings, whether all checks ran: one that raised could not be judged).
    """
    found, ran = [one for one in then or () if one.check != WHITE_BOX], True
    compare = functools.partial(audit_checks.white_box, rivals=rivals)
    last = () if rivals is None else (compare,)
    for check in (*checks, *last):
        if check in last or not then:
            try:
                new = check(subject)
            except (ValueError, OSError, RuntimeError) as error:  # it must not cost the table
                ran = False
                said = f"{type(error).__name__}: {error}"
                remedy = "mend that, and run the same command again"
                name = WHITE_BOX if check in last else f"audit_checks.{check.__name__}"
                new = Finding(name, None, said, remedy)
            found += new if isinstance(new, list) else [new]
        if bar is not None:
            bar.update()
    return found, ran


def of_table(workdir, rows, loaded, examples, *, mesh, slots) -> dict[str, list[Finding]]:
    """Audit each row of a table, or take what was found of it before.

    Args:
      workdir: the run's folder.
      rows: of table1.json.
      loaded: {name: `Network`}.
      examples: {whether a network detects: its examples}.
      mesh: from `console.open_mesh`.
      slots: images under way at a time on each device.

    Returns:
      {network's name: its findings}.

    Raises:
      OSError: where results cannot be written.
    """
    workdir, found = files.open_folder(workdir), {}
    total = len(rows) * (len(CHECKS) + 1)
    with console.progress(total=total, desc="audit", unit="check") as bar:
        for row in rows:
            name = row["network"]
            kind = loaded[name].detects
            names = [one["network"] for one in rows if loaded[one["network"]].detects == kind]
            names = sorted(set(names) - {name})
            of = {"row": row, "rivals": names, "checks": _checks()}
            then = _read(workdir / name / FILE, row)
            if then is not None and then["rivals"] == names:
                found[name] = then["findings"]
                bar.update(len(CHECKS) + 1)
                continue
            subject = Subject(
                loaded[name], examples[kind], rundir.read(workdir / name), mesh, slots
            )
            rivals = {evaluation.TITLES[one]: rundir.read(workdir / one) for one in names}
            old = then["findings"] if then is not None else None
            found[name], ran = of_row(subject, rivals, then=old, bar=bar)
            if ran:
                content = of | {"findings": [one._asdict() for one in found[name]]}
                files.write(workdir / name / FILE, json.dumps(content, indent=2) + "\n")
    return found


def kept(workdir, rows) -> dict[str, list[Finding]]:
    """Return what `of_table` found of some rows: {network's name: findings}, where it is there."""
    folder = files.open_folder(workdir)
    then = {row["network"]: _read(folder / row["network"] / FILE, row) for row in rows}
    return {name: one["findings"] for name, one in then.items() if one is not None}


def _checks() -> str:
    """Return what tells these checks from others, their limits too."""
    return files.sha256_of(audit_checks.__file__)


def _read(path, row):
    """Return what `of_table` wrote of the same row, None where it is not there."""
    try:
        then = files.load_json(path)
        if (json.dumps(then["row"]), then["checks"]) == (json.dumps(row), _checks()):
            return then | {"findings": [Finding(**one) for one in then["findings"]]}
    except (ValueError, KeyError, TypeError):
        pass
    return None


def as_json(found) -> dict[str, list[dict]]:
    """Return findings as JSON can hold them."""
    return {name: [one._asdict() for one in findings] for name, findings in found.items()}


def report(found: dict[str, list[Finding]]) -> str:
    """Return findings as Markdown: a line for all that passed, one for each that did not.

    Args:
      found: {a network's name or title: its findings}.
    """
    every = [one for findings in found.values() for one in findings]
    names = list(dict.fromkeys(one.check for one in every))
    passed, fired, open_ = (
        sum(one.passed is verdict for one in every) for verdict in (True, False, None)
    )
    lines = [
        f"{len(found)} network{'s' * (len(found) > 1)}, {len(names)} checks each: {passed} hold, "
        f"{fired} do{'es' * (fired == 1)} not, {open_} could not be judged. Checked: "
        f"{'; '.join(names)}."
    ]
    for name, findings in found.items():
        for one in findings:
            if not one.passed:
                verdict = "could not be judged" if one.passed is None else "does not hold"
                title = evaluation.TITLES.get(name, name)
                lines.append(
                    f'- **{title}: "{one.check}" {verdict}**: {one.said}. *Remedy:* {one.remedy}.'
                )
    return "\n".join([lines[0], "", *lines[1:]]).rstrip() + "\n"
