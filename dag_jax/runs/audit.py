"""Whether a table measures the attack: its rows' checks, kept beside them and printed under it.

    found = audit.of_table(workdir, {name: audit.Row(title, network, examples)}, mesh=mesh, slots=2)
    print(dag_jax.report.audit.section(found, titles))

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
from dag_jax import Finding, files, networks
from dag_jax.progress import progress
from dag_jax.runs import attacks, audit_checks, rundir
from dag_jax.runs import findings as rules
from dag_jax.runs.audit_checks import WHITE_BOX, Subject

FILE = "audit.json"
CHECKS = (
    audit_checks.model,
    audit_checks.stops,
    audit_checks.grows,
    audit_checks.goes_on,
    audit_checks.permuted,
    audit_checks.saved,
)


class Row(NamedTuple):
    """A row of a table, whose folder has what was attacked, and what is asked of it.

    Attributes:
      title: what it is called.
      network: the `Network` that was attacked.
      examples: of all images of the run.
      checks: functions of a `Subject`, each returning a `Finding` or a list of them.
      rivals: folders of other networks' rows, attacked on the same images; None: not compared.
      targets_of: as in `attacks.attack_inputs`.
      options: of `dag_jax.attack_stream`, where they are not what the folder's manifest says.
    """

    title: str
    network: networks.Network
    examples: list
    checks: tuple[Callable, ...] = CHECKS
    rivals: tuple[str, ...] | None = None
    targets_of: Callable = attacks.paper_targets
    options: dict = {}


def checks_but(*out) -> tuple[Callable, ...]:
    """Return the checks of a row but those that make no sense for it."""
    return tuple(check for check in CHECKS if check not in out)


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


def of_table(workdir, rows: dict[str, Row], *, mesh, slots) -> dict[str, list[Finding]]:
    """Audit each row of a table, or take what was found of it before.

    The table is written before that, as an audit takes its time and can be interrupted.

    Args:
      workdir: the run's folder, which is named as where the table is.
      rows: by the names of their folders, which have a row.json.
      mesh: from `console.open_mesh`.
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
        for name, row in rows.items():
            then, others = _read(workdir, name), None
            rivals = _rows(workdir, row.rivals)
            if then is not None and then["rivals"] == rivals:
                found[name] = then["findings"]
                bar.update(count[name])
                continue
            run = rundir.read(workdir / name)
            how = row.targets_of, row.options
            subject = Subject(row.network, row.examples, run, mesh, slots, *how)
            if rivals is not None:
                others = {rows[one].title: rundir.read(workdir / one) for one in rivals}
            old = then["findings"] if then is not None else None
            found[name], ran = of_row(subject, others, checks=row.checks, then=old, bar=bar)
            if ran:
                content = _about(workdir, name) | {"rivals": rivals}
                content |= {"findings": [one._asdict() for one in found[name]]}
                files.write(workdir / name / FILE, json.dumps(content, indent=2) + "\n")
    return found


def kept(workdir, names) -> dict[str, list[Finding]]:
    """Return what `of_table` found of some rows: {name of a row: findings}, where it is there."""
    folder = files.open_folder(workdir)
    then = {name: _read(folder, name) for name in names}
    return {name: one["findings"] for name, one in then.items() if one is not None}


def checks_sha256() -> str:
    """Return what changes with the checks and their limits: a digest of their sources."""
    package = pathlib.Path(dag_jax.__file__).parent
    sources = [module.__file__ for module in (audit_checks, rules)]
    sources += [package / "audit.py", package / "planted.py"]
    return files.sha256(" ".join(map(files.sha256_of, sources)))


def _about(workdir, name) -> dict:
    """Return what findings are of: the row, and the checks with their limits."""
    return {"row": files.load_json(workdir / name / "row.json"), "checks": checks_sha256()}


def _rows(workdir, rivals):
    """Return {name: digest of the row.json} of rivals; None where they are not compared."""
    if rivals is None:
        return None
    paths = {name: workdir / name / "row.json" for name in rivals}
    return {name: files.sha256_of(path) if path.exists() else "" for name, path in paths.items()}


def _read(workdir, name):
    """Return what `of_table` wrote of the same row, None where it is not there.

    Where a row that it was compared with is not the same, it is without that comparison.
    """
    try:
        then, about = files.load_json(workdir / name / FILE), _about(workdir, name)
        if all(json.dumps(then[key]) == json.dumps(about[key]) for key in about):
            same = then["rivals"] == _rows(workdir, then["rivals"])
            found = [Finding(**one) for one in then["findings"]]
            return then | {"findings": [one for one in found if same or one.check != WHITE_BOX]}
    except (ValueError, KeyError, TypeError):
        pass
    return None
