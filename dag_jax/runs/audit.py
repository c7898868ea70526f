"""Whether a table measures the attack: its rows' checks, kept beside them.

    findings = audit.of_table(workdir, {name: audit.Audit(plan)}, mesh=mesh)

The findings of a row are kept in audit.json beside it. A row is not audited again while it, the
rows that it is compared with, and the checks stay the same. `stored_findings` reads them for
launches that work on the rows' perturbations. `audit_checks` and `audit_scores` have the checks.
"""

import functools
import json
import pathlib
import sys
from collections.abc import Callable
from typing import NamedTuple

import dag_jax
from dag_jax import files
from dag_jax.engine.audit import Finding
from dag_jax.progress import progress
from dag_jax.runs import audit_checks, audit_scores, rundir
from dag_jax.runs import findings as rules
from dag_jax.runs.attacks import Plan
from dag_jax.runs.audit_checks import Row
from dag_jax.runs.audit_scores import WHITE_BOX
from dag_jax.runs.dataset import ROW

FILE = "audit.json"
CHECKS = (
    audit_checks.model,
    audit_checks.stops,
    audit_checks.stands,
    audit_checks.grows,
    audit_checks.goes_on,
    audit_scores.permuted,
    audit_scores.saved,
)


class Audit(NamedTuple):
    """How to audit a row of a table.

    Attributes:
      plan: how it was attacked.
      checks: functions of an `audit_checks.Row`, each returning a `Finding` or a list of them.
      rivals: names of other models' rows, attacked on the same images. None compares with none.
    """

    plan: Plan
    checks: tuple[Callable, ...] = CHECKS
    rivals: tuple[str, ...] | None = None


def checks_but(*out) -> tuple[Callable, ...]:
    """Return all checks of a row without those that make no sense for it."""
    return tuple(check for check in CHECKS if check not in out)


def of_row(row: Row, rivals, *, checks=CHECKS, then=None, bar=None) -> tuple[list[Finding], bool]:
    """Audit a row.

    Args:
      row: the row.
      rivals: as in `audit_scores.white_box`; None leaves that check out.
      checks: functions of a row, each returning a Finding or a list of them.
      then: earlier findings of this row with other rivals. Only the check that compares with
        rivals is run again.
      bar: progress bar to advance by 1 for each check.

    Returns:
      (findings, whether all checks ran). A check that raises is a finding that could not be judged.
    """
    findings, ran = [finding for finding in then or () if finding.check != WHITE_BOX], True
    compare = functools.partial(audit_scores.white_box, rivals=rivals)
    last = () if rivals is None else (compare,)
    for check in (*checks, *last):
        if check in last or not then:
            try:
                new = check(row)
            except Exception as error:  # whatever it is, it must not cost the other checks
                ran = False
                detail = f"{type(error).__name__}: {error}"
                remedy = "mend that, and run the same command again"
                name = WHITE_BOX if check in last else f"check {check.__name__}"
                new = Finding(name, None, detail, remedy)
            findings += new if isinstance(new, list) else [new]
        if bar is not None:
            bar.update()
    return findings, ran


def of_table(workdir, rows: dict[str, Audit], *, mesh=None, slots=None):
    """Audit each row of a table, or read its stored findings.

    Write the table first: an audit takes its time and can be interrupted.

    Args:
      workdir: the run's folder, which holds the table.
      rows: {name: `Audit`}; each has a folder with a row.json.
      mesh: devices.
      slots: images under way at a time on each device.

    Returns:
      {name of a row: its findings}.

    Raises:
      OSError: where results cannot be written.
    """
    workdir, findings = files.open_folder(workdir), {}
    print(f"results: {workdir}/, where the audit is still to be added", file=sys.stderr)
    count = {name: len(row.checks) + (row.rivals is not None) for name, row in rows.items()}
    with progress(total=sum(count.values()), desc="audit", unit="check") as bar:
        for name, audit in rows.items():
            then, rival_runs = _read(workdir, name), None
            rivals = _rows(workdir, audit.rivals)
            if then is not None and then["rivals"] == rivals:
                findings[name] = then["findings"]
                bar.update(count[name])
                continue
            row = Row(audit.plan, rundir.read(_folder(workdir, name)), mesh, slots)
            if rivals is not None:
                rival_runs = {
                    title: rundir.read(_folder(workdir, rival))
                    for title, rival in zip(_titles(rows, rivals), rivals, strict=True)
                }
            old = then["findings"] if then is not None else None
            findings[name], ran = of_row(row, rival_runs, checks=audit.checks, then=old, bar=bar)
            if ran:
                content = _about(workdir, name) | {"rivals": rivals}
                content |= {"findings": [finding.as_json() for finding in findings[name]]}
                files.write_json(_folder(workdir, name) / FILE, content)
    return findings


def stored_findings(workdir, names) -> dict[str, list[Finding]]:
    """Return {name of a row: its findings} as `of_table` stored them; other rows are left out."""
    folder = files.open_folder(workdir)
    then = {name: _read(folder, name) for name in names}
    return {name: content["findings"] for name, content in then.items() if content is not None}


def checks_sha256() -> str:
    """Return a digest of the checks' sources, which changes with the checks and their limits."""
    package = pathlib.Path(dag_jax.__file__).parent
    sources = [pathlib.Path(str(module.__file__)) for module in (audit_checks, audit_scores, rules)]
    sources += [package / "engine" / "audit.py", package / "engine" / "planted.py"]
    return files.sha256(" ".join(map(files.sha256_of, sources)))


def _folder(workdir, name):
    return workdir / rundir.folder_name(name)


def _about(workdir, name) -> dict:
    """Return what findings depend on: the row, and the checks with their limits."""
    return {
        "row": files.load_json(_folder(workdir, name) / ROW, digest=True),
        "checks": checks_sha256(),
    }


def _titles(rows, names) -> list[str]:
    """Return the models' titles; equal titles are followed by the models' names."""
    titles = [rows[name].plan.subject.about.title for name in names]
    return [
        title if titles.count(title) == 1 else f"{title} ({name})"
        for title, name in zip(titles, names, strict=True)
    ]


def _rows(workdir, rivals):
    """Return {name: digest of the row.json} of rivals; None where they are not compared."""
    if rivals is None:
        return None
    paths = {name: _folder(workdir, name) / ROW for name in rivals}
    return {name: files.sha256_of(path) if path.exists() else "" for name, path in paths.items()}


def _read(workdir, name):
    """Return the stored audit of a row, or None where there is none of the same row and checks.

    If a row that it was compared with has changed, that comparison is left out.
    """
    try:
        then, about = (
            files.load_json(_folder(workdir, name) / FILE, digest=True),
            _about(workdir, name),
        )
        if all(json.dumps(then[key]) == json.dumps(about[key]) for key in about):
            same = then["rivals"] == _rows(workdir, then["rivals"])
            findings = [Finding.from_json(content) for content in then["findings"]]
            judged = [finding for finding in findings if same or finding.check != WHITE_BOX]
            return then | {"findings": judged}
    except (ValueError, KeyError, TypeError):
        pass
    return None
