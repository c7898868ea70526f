"""Whether a table measures the attack: its rows' checks, kept beside them.

    found = audit.of_table(workdir, {name: audit.Audit(plan)}, mesh=mesh)

What is found of a row is in audit.json beside it, and not looked for again while the row, those
that it is compared with, and the checks are the same; `kept` hands it to launches that work on the
rows' perturbations. What each check asks is in `dag_jax.runs.audit_checks`.
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
from dag_jax.runs import audit_checks, rundir
from dag_jax.runs import findings as rules
from dag_jax.runs.attacks import Plan
from dag_jax.runs.audit_checks import WHITE_BOX, Row
from dag_jax.runs.dataset import ROW

FILE = "audit.json"
CHECKS = (
    audit_checks.model,
    audit_checks.stops,
    audit_checks.stands,
    audit_checks.grows,
    audit_checks.goes_on,
    audit_checks.permuted,
    audit_checks.saved,
)


class Audit(NamedTuple):
    """What is asked of a row of a table.

    Attributes:
      plan: how it was attacked.
      checks: functions of an `audit_checks.Row`, each returning a `Finding` or a list of them.
      rivals: names of other models' rows, attacked on the same images; None: not compared.
    """

    plan: Plan
    checks: tuple[Callable, ...] = CHECKS
    rivals: tuple[str, ...] | None = None


def checks_but(*out) -> tuple[Callable, ...]:
    """Return the checks of a row but those that make no sense for it."""
    return tuple(check for check in CHECKS if check not in out)


def of_row(row: Row, rivals, *, checks=CHECKS, then=None, bar=None) -> tuple[list[Finding], bool]:
    """Audit a row.

    Args:
      row: the row.
      rivals: as in `audit_checks.white_box`; None leaves that check out.
      checks: functions of a row, each returning a Finding or a list of them.
      then: findings of the same row beside other rivals: only what rivals change is done again.
      bar: progress bar to advance by 1 for each check.

    Returns:
      (findings, whether all checks ran: one that raised could not be judged).
    """
    found, ran = [finding for finding in then or () if finding.check != WHITE_BOX], True
    compare = functools.partial(audit_checks.white_box, rivals=rivals)
    last = () if rivals is None else (compare,)
    for check in (*checks, *last):
        if check in last or not then:
            try:
                new = check(row)
            except Exception as error:  # whatever it is, it must not cost the other checks
                ran = False
                said = f"{type(error).__name__}: {error}"
                remedy = "mend that, and run the same command again"
                name = WHITE_BOX if check in last else f"audit_checks.{check.__name__}"
                new = Finding(name, None, said, remedy)
            found += new if isinstance(new, list) else [new]
        if bar is not None:
            bar.update()
    return found, ran


def of_table(workdir, rows: dict[str, Audit], *, mesh=None, slots=None):
    """Audit each row of a table, or take what was found of it before.

    The table is written before that, as an audit takes its time and can be interrupted.

    Args:
      workdir: the run's folder, which is named as where the table is.
      rows: by their names, of which each has a folder with a row.json.
      mesh: devices.
      slots: images under way at a time on each device.

    Returns:
      {name of a row: its findings}.

    Raises:
      OSError: where results cannot be written.
    """
    workdir, found = files.open_folder(workdir), {}
    print(f"results: {workdir}/, where the audit is still to be added", file=sys.stderr)
    count = {name: len(row.checks) + (row.rivals is not None) for name, row in rows.items()}
    with progress(total=sum(count.values()), desc="audit", unit="check") as bar:
        for name, audit in rows.items():
            then, others = _read(workdir, name), None
            rivals = _rows(workdir, audit.rivals)
            if then is not None and then["rivals"] == rivals:
                found[name] = then["findings"]
                bar.update(count[name])
                continue
            row = Row(audit.plan, rundir.read(_folder(workdir, name)), mesh, slots)
            if rivals is not None:
                others = {
                    title: rundir.read(_folder(workdir, rival))
                    for title, rival in zip(_titles(rows, rivals), rivals, strict=True)
                }
            old = then["findings"] if then is not None else None
            found[name], ran = of_row(row, others, checks=audit.checks, then=old, bar=bar)
            if ran:
                content = _about(workdir, name) | {"rivals": rivals}
                content |= {"findings": [finding._asdict() for finding in found[name]]}
                files.write_json(_folder(workdir, name) / FILE, content)
    return found


def kept(workdir, names) -> dict[str, list[Finding]]:
    """Return what `of_table` found of some rows: {name of a row: findings}, where it is there."""
    folder = files.open_folder(workdir)
    then = {name: _read(folder, name) for name in names}
    return {name: content["findings"] for name, content in then.items() if content is not None}


def checks_sha256() -> str:
    """Return what changes with the checks and their limits: a digest of their sources."""
    package = pathlib.Path(dag_jax.__file__).parent
    sources = [pathlib.Path(str(module.__file__)) for module in (audit_checks, rules)]
    sources += [package / "engine" / "audit.py", package / "engine" / "planted.py"]
    return files.sha256(" ".join(map(files.sha256_of, sources)))


def _folder(workdir, name):
    return workdir / rundir.folder_name(name)


def _about(workdir, name) -> dict:
    """Return what findings are of: the row, and the checks with their limits."""
    return {
        "row": files.load_json(_folder(workdir, name) / ROW, digest=True),
        "checks": checks_sha256(),
    }


def _titles(rows, names) -> list[str]:
    """Return what models are called; where several are called the same, with their names."""
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
    """Return what `of_table` wrote of the same row, None where it is not there.

    Where a row that it was compared with is not the same, it is without that comparison.
    """
    try:
        then, about = (
            files.load_json(_folder(workdir, name) / FILE, digest=True),
            _about(workdir, name),
        )
        if all(json.dumps(then[key]) == json.dumps(about[key]) for key in about):
            same = then["rivals"] == _rows(workdir, then["rivals"])
            found = [Finding(**one) for one in then["findings"]]
            return then | {"findings": [one for one in found if same or one.check != WHITE_BOX]}
    except (ValueError, KeyError, TypeError):
        pass
    return None
