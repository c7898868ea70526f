"""The skeleton of a launch that makes a table: claim its folder, make its rows, report, audit.

    share, settings = console.start_shared(argv), options.settings(__name__)
    with starting("table1", settings, share):
        entries = [...]  # everything that can be wrong
    table = Table("table1", entries, settings=settings, share=share)
    table.make(mesh, lambda entry, row: f"{entry.title}: ADVR {row['advr']:.2f}")
    table.finish(mesh, report, draw)

Each row has a folder of its own in the run's. After a kill the same command continues with the next
image. Each of several processes attacks its own images and waits for no other; process 0 joins
their results once they are there.
"""

import collections
import functools
import time
from collections.abc import Callable
from typing import NamedTuple

from absl import flags

from dag_jax import files, report
from dag_jax.errors import UserError
from dag_jax.report import audit as audit_report
from dag_jax.report import tables
from dag_jax.runs import audit, failures, provenance, rundir, scores
from dag_jax.runs.attacks import Plan, check_images
from dag_jax.runs.audit import Audit
from dag_jax.runs.dataset import ROW, attack_and_score, join_row
from experiments.common import console

FLAGS = flags.FLAGS


def starting(launch, settings, share):
    """Return the context for all that a launch does before it claims --workdir: see `failures`."""
    about = {"launch": launch, "settings": settings}
    return failures.starting(FLAGS.workdir, about, *share)


class Entry(NamedTuple):
    """A row to be made.

    Attributes:
      name: of the row, and of its folder.
      title: of the row in the table.
      plan: the attack.
      manifest: entries of its folder's manifest besides the plan: the split, and what tells the
        row from others.
      columns: which of `scores.COLUMNS` to score.
      subsets: as in `scores.row_of`.
      beside: another entry of the same subject, made first, whose row `complete` gets.
      complete: function of the entry, its `rundir.Results`, its row and the row beside it (or None)
        that returns the row as the table has it.
      checks: of its audit; none: it is not audited.
      rivals: names of other rows, as in `audit.Audit`.
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

    It reads the flags workdir, accept_version, slots and audit.

    Args:
      launch: its name, that of its files.
      entries: its rows.
      settings: the flags that results depend on.
      share: (number of this process, number of processes), from `console.start_shared`.
      earlier: rows that stay in the table as they are, from `rows_in`; none of the entries'.

    Raises:
      UserError: where the folder is of another run, or damaged; nothing was changed then.
      OSError: where it cannot be written.
    """

    def __init__(self, launch, entries, *, settings, share=(0, 1), earlier=()):
        self.launch, self.settings, self.entries = launch, settings, list(entries)
        (self._process, processes), self._started = share, time.monotonic()
        manifest = {
            "launch": launch,
            "settings": settings,
            "units": rundir.UNITS,
            "provenance": provenance.environment(),
        }
        accept = {"accept_version": FLAGS.accept_version}
        self.workdir = rundir.claim(FLAGS.workdir, manifest, **accept)
        parts = {part.name: part for entry in self.entries for part in entry.parts()}
        folders = {name: self.workdir / rundir.folder_name(name) for name in parts}
        names = [entry.name for entry in self.entries]
        self._notes = {name: failures.notes_of(self.workdir, name) for name in names}
        self._results = {}
        with failures.noted(self._notes.values(), self._process):
            # Those that are there come first: what is wrong with one leaves no folder of another.
            for name in sorted(parts, key=lambda name: not files.exists(folders[name])):
                part = parts[name]
                self._results[name] = rundir.Results(
                    folders[name],
                    part.plan.manifest(launch=launch, settings=settings, **part.manifest),
                    list(map(str, part.plan.subject.ids)),
                    process=self._process,
                    processes=processes,
                    **accept,
                )
                done = self._results[name].done().values()
                check_images(folders[name], done, part.plan.subject.examples)
        self.made: dict[str, dict] = {}
        self._earlier = list(earlier)
        self._errors: list[str] = []

    def make(self, mesh, line) -> None:
        """Make the rows. An error in one does not stop the others.

        Args:
          mesh: devices.
          line: function of an entry and its row that returns the line which process 0 prints once
            the row is complete.
        """
        waiting = []
        with failures.noted(self._notes.values(), self._process):
            for entry in self.entries:
                with self._others_go_on(entry):
                    for part in entry.parts():
                        attack_and_score(
                            part.plan,
                            self._results[part.name],
                            slots=FLAGS.slots,
                            mesh=mesh,
                            columns=part.columns,
                        )
                    waiting.append(entry)
                if self._process == 0:
                    self._join(waiting, line, wait=entry is self.entries[-1])

    def _others_go_on(self, entry):
        folder = self._notes[entry.name]
        return failures.others_go_on(folder, entry.title, self._process, self._errors)

    def _join(self, waiting, line, *, wait):
        """Make the rows of those entries that every process has finished, and take them out."""
        for entry in list(waiting):
            if not (wait or self._is_complete(entry)):
                continue
            waiting.remove(entry)
            with self._others_go_on(entry):
                failures.wait_until(
                    lambda entry=entry: self._is_complete(entry),
                    lambda entry=entry: self._lacks(entry),
                    lambda entry=entry: failures.failures(
                        failures.notes_of(self.workdir), self._notes[entry.name]
                    ),
                )
                row = self.made[entry.name] = self._row(entry)
                count = f"{len(self.made)} of {len(self.entries)} rows"
                console.say(f"{line(entry, row)}  ({count})")

    def _is_complete(self, entry):
        return all(self._results[part.name].is_complete(part.columns[-1]) for part in entry.parts())

    def _lacks(self, entry):
        missing = {}
        for part in entry.parts():
            for process, count in self._results[part.name].missing(part.columns[-1]).items():
                missing[process] = max(count, missing.get(process, 0))
        return f"{entry.title}: {failures.images_of(missing)}"

    def _row(self, entry):
        row = None
        for part in entry.parts():
            results, beside = self._results[part.name], row
            row = join_row(
                part.plan,
                results,
                columns=part.columns,
                subsets=part.subsets,
                complete=functools.partial(_completed, part, results, beside),
                beside=beside,
            )
        return row

    @property
    def rows(self) -> list[dict]:
        """The rows of earlier launches, and those that were made in the order of the entries."""
        made = [self.made[entry.name] for entry in self.entries if entry.name in self.made]
        return _told_apart([*self._earlier, *made])

    @property
    def models(self) -> dict[str, list[dict]]:
        """The rows of each model, by its title."""
        by_name: dict = {}
        for row in self.rows:
            by_name.setdefault(row["network"], []).append(row)
        return {rows[0]["model"]: rows for rows in by_name.values()}

    def run(self, row) -> rundir.Run:
        """Return the `rundir.Run` of a row."""
        return rundir.read(self.workdir / rundir.folder_name(row["row"]))

    def picture(self, number=0, name=None):
        """Return the path of a PNG of the launch, or of another name; of several by number."""
        return self.workdir / f"{name or self.launch}{f'_{number + 1}' * bool(number)}.png"

    def notes(self) -> list[str]:
        """Return notes on the classes of rows, on images left out and on versions."""
        notes = [*tables.class_notes(self.rows), *tables.skipped_notes(self.rows)]
        return [*notes, *tables.version_notes(self.rows, rundir.accepted(self.workdir))]

    def finish(self, mesh, text_of, draw) -> None:
        """Write and print the table, draw, audit; raise what went wrong with rows.

        The table is written before its audit, too: that takes its time, and can be interrupted.

        Args:
          mesh: devices.
          text_of: function of the table that returns (Markdown, what else its JSON file holds).
          draw: function of the table that draws its pictures.

        Raises:
          UserError: naming the rows that could not be made.
        """
        if self._process:
            print(f"process {self._process} is done; process 0 writes the table: {self.workdir}/")
        elif self.made:
            markdown, more = text_of(self)
            audited = audit.stored_findings(self.workdir, [row["row"] for row in self.rows])
            text = self._write(markdown, more, audited)
            draw(self)
            if FLAGS.audit:
                text = self._write(markdown, more, audited | self._audit(mesh))
            page = report.write(self.workdir)
            seconds = time.monotonic() - self._started
            print(f"{text}\n{seconds:.0f} s; results: {self.workdir}/, to be looked at: {page}")
        if self._errors:
            raise UserError("no row of " + "; no row of ".join(self._errors))

    def _audit(self, mesh) -> dict:
        """Return {name of a row: its findings}."""
        audits = {}
        for entry in self.entries:
            if entry.name in self.made and entry.checks:
                rivals = entry.rivals
                if rivals is not None:
                    rivals = tuple(name for name in rivals if name in self.made)
                audits[entry.name] = Audit(entry.plan, entry.checks, rivals)
        return audit.of_table(self.workdir, audits, mesh=mesh, slots=FLAGS.slots)

    def _write(self, markdown, more, audited):
        content = {"settings": self.settings, "rows": self.rows, **more}
        titles = {row["row"]: row["title"] for row in self.rows}
        return audit_report.write(
            self.workdir, self.launch, markdown, content, titles=titles, findings=audited
        )


def _completed(entry, results, beside, row):
    """Return a row with the entries that its launch adds."""
    about = entry.plan.subject.about
    row = row | {"row": entry.name, "title": entry.title, "model": about.title}
    return entry.complete(entry, results, row, beside) if entry.complete else row


def _told_apart(rows):
    """Return rows whose models have their names in their titles, where several have one title."""
    networks = collections.defaultdict(set)
    for row in rows:
        networks[row["model"]].add(row["network"])

    def named(row):
        if len(networks[row["model"]]) == 1:
            return row
        title = f"{row['model']} ({row['network']})"
        return row | {"model": title} | ({"title": title} if row["title"] == row["model"] else {})

    return list(map(named, rows))


def rows_in(workdir, launch) -> dict[str, dict]:
    """Return the rows that a folder has from earlier launches of this name, by their own names.

    Raises:
      UserError: where one is damaged, or the folder's manifest.
    """
    folder = files.open_folder(workdir)
    if not files.exists(folder / rundir.MANIFEST):
        return {}
    if rundir.load_manifest(folder).get("launch") != launch:  # `Table` says so
        return {}
    rows = [
        files.load_json(folder / name / ROW, digest=True, keys=("row",))
        for name in sorted(rundir.folders_in(folder, ROW))
    ]
    return {row["row"]: row for row in rows}
