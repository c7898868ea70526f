"""The skeleton of a launch that makes a table: claim its folder, make its rows, report, audit.

    table = Table("table1", entries, settings=settings, process=process, processes=processes)
    for entry, row in table.rows(mesh):
        print(entry.name, row["advr"])
    text = table.report(markdown)
    text = table.report(markdown, table.audit(mesh))
    table.finish()

Each row has a folder of its own below the run's: whatever kills a launch, the same command goes on
with the next image. Of several processes each makes its own images and waits for no other; process
0 joins what all have kept, as soon as it is there.
"""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

from absl import flags

from dag_jax import files
from dag_jax.errors import UserError
from dag_jax.report import audit as audit_report
from dag_jax.runs import audit, failures, provenance, rundir, scores
from dag_jax.runs.attacks import Plan
from dag_jax.runs.audit import Audit
from dag_jax.runs.dataset import ROW, attack_and_score, join_row

FLAGS = flags.FLAGS


class Entry(NamedTuple):
    """A row to be made.

    Attributes:
      name: of the row, and of its folder.
      title: what it is called in the table.
      plan: what is attacked, and how.
      manifest: what its folder is of beside the plan: the split, what makes it differ from others.
      columns: what is scored, of `scores.COLUMNS`.
      subsets: as in `scores.row_of`.
      beside: another entry of the same subject, made first, whose row `complete` gets.
      complete: function of the entry, its `rundir.Results`, its row and the row beside it (or None)
        that returns the row as the table has it.
      checks: of its audit; none: it is not audited.
      rivals: folders of other rows, as in `audit.Audit`.
    """

    name: str
    title: str
    plan: Plan
    manifest: dict
    columns: tuple[str, ...] = scores.COLUMNS
    subsets: dict | None = None
    beside: "Entry | None" = None
    complete: Callable | None = None
    checks: tuple[Callable, ...] = audit.CHECKS
    rivals: tuple[str, ...] | None = None

    def parts(self):
        """Return the entries that are attacked for it, itself last."""
        return [*(self.beside.parts() if self.beside else ()), self]


class Table:
    """A launch's table, from its folder to its text.

    Args:
      launch: its name, that of its files.
      entries: its rows; those that the folder has already among them.
      settings: the flags that results depend on.
      process: number of this process.
      processes: their number.

    Raises:
      UserError: where the folder is of another run, or damaged; nothing was changed then.
      OSError: where it cannot be written.
    """

    def __init__(self, launch, entries, *, settings, process=0, processes=1):
        self.launch, self.settings, self.entries = launch, settings, list(entries)
        self._process, self._started = process, time.monotonic()
        manifest = {
            "launch": launch,
            "settings": settings,
            "units": rundir.UNITS,
            "provenance": provenance.environment(),
        }
        accept = {"accept_version": FLAGS.accept_version}
        self.workdir = rundir.claim(FLAGS.workdir, manifest, **accept)
        self._results = {}
        for entry in self.entries:
            for part in entry.parts():
                self._results[part.name] = rundir.Results(
                    self.workdir / rundir.folder_name(part.name),
                    part.plan.manifest(launch=launch, settings=settings, **part.manifest),
                    list(map(str, part.plan.subject.ids)),
                    process=process,
                    processes=processes,
                    **accept,
                )
        self._notes = {
            entry.name: self.workdir / rundir.folder_name(entry.name) / "failed"
            for entry in self.entries
        }
        failures.forget(self._notes.values(), process, processes)
        self.made: dict[str, dict] = {}
        self._earlier: dict[str, dict] = {}
        self._errors: list[str] = []

    @property
    def seconds(self) -> float:
        """Seconds since the folder was claimed."""
        return time.monotonic() - self._started

    def rows(self, mesh, *, slots=None):
        """Make the rows; what goes wrong with one costs no other.

        Yields:
          (entry, row), as they are complete; of process 0 alone.
        """
        waiting = []
        with failures.noted(self._notes.values(), self._process):
            for entry in self.entries:
                with self._others_go_on(entry):
                    for part in entry.parts():
                        results = self._results[part.name]
                        attack_and_score(
                            part.plan, results, slots=slots, mesh=mesh, columns=part.columns
                        )
                waiting.append(entry)
                if self._process == 0:
                    yield from self._join(waiting, wait=entry is self.entries[-1])

    def _others_go_on(self, entry):
        folder = self._notes[entry.name]
        return failures.others_go_on(folder, entry.title, self._process, self._errors)

    def _join(self, waiting, *, wait):
        """Yield those of the entries that every process has finished, and take them out."""
        for entry in list(waiting):
            if not (wait or self._is_complete(entry)):
                continue
            waiting.remove(entry)
            with self._others_go_on(entry):
                failures.wait_until(
                    lambda entry=entry: self._is_complete(entry),
                    lambda entry=entry: self._lacks(entry),
                    lambda entry=entry: failures.failures(self._notes[entry.name]),
                )
                self.made[entry.name] = self._row(entry)
                yield entry, self.made[entry.name]

    def _is_complete(self, entry):
        return all(self._results[part.name].is_complete(part.columns[-1]) for part in entry.parts())

    def _lacks(self, entry):
        missing = {}
        for part in entry.parts():
            for process, count in self._results[part.name].missing(part.columns[-1]).items():
                missing[process] = max(count, missing.get(process, 0))
        return f"{entry.title}: {failures.images_of(missing)}"

    def _row(self, entry):
        parts = entry.parts()
        row, beside = None, None
        for part in parts:
            results = self._results[part.name]
            beside = row
            row = join_row(
                part.plan,
                results,
                columns=part.columns,
                subsets=part.subsets,
                complete=functools.partial(_completed, part, results, beside),
                beside=beside,
            )
        return row

    def audit(self, mesh, *, slots=None) -> dict:
        """Return what the audit finds of each row."""
        asked = {
            rundir.folder_name(entry.name): Audit(
                entry.plan,
                entry.checks,
                entry.rivals and tuple(map(rundir.folder_name, entry.rivals)),
            )
            for entry in self.entries
            if entry.name in self.made and entry.checks
        }
        found = audit.of_table(self.workdir, asked, mesh=mesh, slots=slots)
        names = {rundir.folder_name(entry.name): entry.name for entry in self.entries}
        return {names[folder]: findings for folder, findings in found.items()}

    def keep_rows(self, names) -> None:
        """Let rows of earlier launches stay in the table, which this one does not make again.

        Args:
          names: of rows, as `rows_in` gives them.
        """
        made_now = {entry.name for entry in self.entries}
        for name in names:
            path = self.workdir / rundir.folder_name(name) / ROW
            if name not in made_now and path.exists():
                row = files.load_json(path, digest=True)
                if "title" in row:
                    self._earlier[name] = row

    @property
    def all_rows(self) -> list[dict]:
        """The rows of earlier launches, and those that were made in the order of the entries."""
        made = [self.made[entry.name] for entry in self.entries if entry.name in self.made]
        return [*self._earlier.values(), *made]

    def run(self, entry) -> rundir.Run:
        """Return what the folder of an entry holds."""
        return rundir.read(self._results[entry.name].folder)

    def report(self, markdown: str, found=None, *, more: dict | None = None) -> str:
        """Write the table and what its audit found as Markdown and JSON.

        Args:
          markdown: the table and its notes.
          found: from `audit`; None before it.
          more: what else the JSON file holds.

        Returns:
          The Markdown.
        """
        titles = {row["row"]: row["title"] for row in self.all_rows}
        content = {"settings": self.settings, "rows": self.all_rows, **(more or {})}
        return audit_report.write(
            self.workdir, self.launch, markdown, content, titles=titles, findings=found or {}
        )

    def finish(self) -> None:
        """Say where results are; raise what went wrong with rows.

        Raises:
          UserError: naming the rows that could not be made.
        """
        if self._process:
            print(f"process {self._process} is done; process 0 writes the table: {self.workdir}/")
        else:
            print(f"{self.seconds:.0f} s; results: {self.workdir}/")
        if self._errors:
            raise UserError("no row of " + "; no row of ".join(self._errors))


def _completed(entry, results, beside, row):
    """Return a row with what its launch says of it."""
    row = row | {"row": entry.name, "title": entry.title}
    return entry.complete(entry, results, row, beside) if entry.complete else row


def rows_in(workdir, launch) -> list[str]:
    """Return the names of the rows that a folder has from earlier launches; none without a table.

    Raises:
      UserError: where its table is damaged.
    """
    path = files.open_folder(workdir) / f"{launch}.json"
    if not path.exists():
        return []
    return [row["row"] for row in files.load_json(path)["rows"]]
