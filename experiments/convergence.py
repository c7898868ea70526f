"""How the attack converges: targets still active against iteration, steps, sizes, statuses.

    python -m experiments.table1                                 attacks, and keeps its records
    python -m experiments.convergence                            reads those of runs/table1

    python -m experiments.table1 --limit=100 --workdir=runs/table1_100
    python -m experiments.convergence --run=runs/table1_100 --workdir=runs/convergence_100

Nothing is attacked here: all figures come from the records of Table 1's images, finished or not.
The curve of an image is its number of active targets at each iterate, as a share of those active on
the clean image. It can rise, as a target becomes active again when its label wins again. After a
finished attack it is 0; after an attack that stopped with active targets it stays at its last
value. A detector was attacked twice, with its margin and by the paper's rule (margin 0), and has a
row for each.

Results go to --workdir: convergence.md, with what table1's audit found of the attacks;
convergence.json, with the curves; convergence.png, the targets left against iteration;
distributions.png, of steps, perceptibility and statuses. The same command makes them anew from a
run that went on meanwhile; a folder of another run is refused.
"""

import json
from typing import NamedTuple

import numpy as np
from absl import flags

from dag_jax import files
from dag_jax.engine.algorithm import Status
from dag_jax.errors import UserError
from dag_jax.models import MAX_STEPS
from dag_jax.progress import progress
from dag_jax.report import audit as audit_report
from dag_jax.report import convergence, tables
from dag_jax.report import findings as findings_report
from dag_jax.runs import audit, findings, rundir, scores
from dag_jax.runs.stored import open_run, table_order
from experiments.common import console, options

MARKS = (10, 50, 100)  # iterations at which the table has the share of targets left
QUARTILES = (25, 50, 75)  # percent

FLAGS = flags.FLAGS
options.string("run", "runs/table1", "Folder that experiments.table1 wrote, its --workdir.")
options.define(__name__, "accept_version", "workdir", workdir="runs/convergence")


class Attacked(NamedTuple):
    """The images of a model that were attacked in one way."""

    manifest: dict
    records: list[dict]  # of the images that are done

    @property
    def margin(self) -> float:
        """Logits by which a label must have lost before its target rests."""
        return self.manifest["method"]["margin"]

    @property
    def max_steps(self) -> int:
        """M_0 of the run."""
        return self.manifest["method"]["max_steps"]


def read_run(folder) -> list[Attacked]:
    """Read the attacks of a run of experiments.table1, a model's own margin before margin 0.

    Raises:
      UserError: where it is no folder of such a run, has no image yet, or is damaged.
    """
    workdir, attacked = open_run(folder), []
    for name in progress(sorted(rundir.folders_in(workdir, rundir.MANIFEST)), desc="records"):
        run = rundir.read(workdir / name)
        if run.records:
            attacked.append(Attacked(run.manifest, run.records))
    if not attacked:
        raise UserError(
            f"--run={folder} has no image that was attacked; "
            f"`python -m experiments.table1 --workdir={folder}` attacks some"
        )
    return sorted(attacked, key=lambda each: (table_order(each.manifest["model"]), -each.margin))


def claim(workdir, manifest, attacked):
    """Claim the folder of a run, which may have gone on, but not with other weights.

    Args:
      workdir: --workdir.
      manifest: of the run.
      attacked: from `read_run`.

    Returns:
      The folder.

    Raises:
      UserError: for a folder of another run.
    """
    about = {
        "launch": "convergence",
        "run": {"settings": manifest["settings"]},
        "provenance": manifest.get("provenance", {}),
    }
    workdir = rundir.claim(workdir, about, accept_version=FLAGS.accept_version)
    path = workdir / "convergence.json"
    now = {each.manifest["model"]: each.manifest["weights_sha256"] for each in attacked}
    stored = files.load_json(path, keys=("rows",)) if path.exists() else {"rows": []}
    for row in stored["rows"]:
        # Models may have joined since, and none leaves a run.
        if row.get("weights_sha256") != now.get(row["network"]):
            raise UserError(
                f"{path} is of other weights of {row['title']} than --run has; give another "
                "--workdir"
            )
    return workdir


def shares_left(records, max_steps) -> np.ndarray:
    """Return the share of each image's targets that are active at each iterate.

    Args:
      records: of `rundir.Run`; images without a target are left out.
      max_steps: M_0.

    Returns:
      f64[M, max_steps + 1], 1 at iterate 0; above 1 where targets became active that were not on
      the clean image.
    """
    rows = []
    for record in records:
        counts = record["active_counts"]
        if counts[0]:
            padding = [counts[-1]] * (max_steps + 1 - len(counts))
            rows.append(np.array(counts + padding) / counts[0])
    return np.array(rows).reshape(len(rows), max_steps + 1)


def less_than_half(finished) -> list[float]:
    """Return [value, low, high] of 50 minus the mean of some percentages."""
    return scores.mean_interval([50 - percent for percent in finished], within=(-50, 50))


def row_of(attacked: Attacked) -> tuple[dict, dict]:
    """Return (row of the table, its curves) of a model's images.

    Quartiles are [25%, 50%, 75%], over the images that had targets; None where none had. The share
    that finished is [value, low, high], percent.
    """
    shares = shares_left(attacked.records, attacked.max_steps)
    with_targets = [record for record in attacked.records if record["active_counts"][0]]
    statuses = [record["status"] for record in attacked.records]
    finished = [100 * (record["status"] == Status.FOOLED.name) for record in with_targets]

    def quartiles(values):
        return np.percentile(values, QUARTILES).tolist() if with_targets else None

    marks = [mark for mark in MARKS if mark < attacked.max_steps] + [attacked.max_steps]
    row = {
        "network": attacked.manifest["model"],
        "title": attacked.manifest["title"],
        "task": attacked.manifest["task"],
        "weights_sha256": attacked.manifest["weights_sha256"],
        "accepted_versions": attacked.manifest.get("accepted", []),
        "margin": attacked.margin,
        "max_steps": attacked.max_steps,
        "images": len(attacked.records),
        "with_targets": len(with_targets),
        "targets": quartiles([record["active_counts"][0] for record in with_targets]),
        "steps": quartiles([record["num_steps"] for record in with_targets]),
        "finished": scores.mean_interval(finished) if with_targets else None,
        "half_minus_finished": less_than_half(finished) if with_targets else None,
        "left": {str(mark): float(shares[:, mark].mean()) for mark in marks}
        if with_targets
        else {},
        "perceptibility": quartiles([record["perceptibility"] for record in with_targets]),
        "statuses": {
            status.name: statuses.count(status.name) for status in Status if status.name in statuses
        },
    }
    curves = {}
    if with_targets:
        low, median, high = np.percentile(shares, QUARTILES, axis=0).tolist()
        mean = shares.mean(axis=0).tolist()
        curves = {"low": low, "median": median, "high": high, "mean": mean}
    return row, curves


def _spread(name, form, scale=1):
    """Return the function of a row that formats its quartiles as 'median [low, high]'."""

    def text(row):
        if row[name] is None:
            return "-"
        low, median, high = (f"{value * scale:{form}}" for value in row[name])
        return f"{median} [{low}, {high}]"

    return text


def _left(mark):
    """Return the function of a row that formats the share of targets left at an iterate."""

    def text(row):
        share = row["left"].get(str(row["max_steps"]) if mark is None else str(mark))
        return "-" if share is None else f"{100 * share:.3g}%"

    return text


COLUMNS = (
    ("network", lambda row: row["title"]),
    ("margin", lambda row: f"{row['margin']:g}"),
    ("images", lambda row: f"{row['images']}"),
    ("with targets", lambda row: f"{row['with_targets']}"),
    ("targets", _spread("targets", ".0f")),
    ("steps", _spread("steps", "g")),
    (
        "finished %",
        lambda row: "-" if row["finished"] is None else findings_report.text(row["finished"]),
    ),
    *((f"left at {mark}", _left(mark)) for mark in MARKS),
    ("at M_0", _left(None)),
    ("M_0", lambda row: f"{row['max_steps']}"),
    ("p x1000", _spread("perceptibility", ".1f", 1000)),
)


CLAIMS = (
    ("network", lambda row: row["title"]),
    ("margin", lambda row: f"{row['margin']:g}"),
    (
        "most images finish within M_0",
        lambda row: findings_report.verdict(row["half_minus_finished"], row["with_targets"]),
    ),
)


def report(rows, settings, accepted) -> str:
    """Return convergence.md, of rows from `row_of`, the run's settings, the folder's versions."""
    kind = "rendered scenes" if settings["dataset"] == "scenes" else settings["dataset"]
    notes = [
        *tables.method_notes(settings),
        f"Images: {kind}. Step size {settings['step_size']:g} grey levels.",
        "targets: active on the clean image by the row's margin. targets, steps, p: median "
        "[quartiles] over the images with targets. finished: share of these in which no target is "
        f"active any more, [{findings.LEVEL:.0%} interval] by the bootstrap over images. p: "
        "perceptibility.",
        "left: the targets of an image that are active after so many iterations, as a share of "
        "those active on the clean image, mean over the images with targets; one that has finished "
        "counts as 0. It can rise: a target is active again when its label wins again.",
        "The audit is of each model's own margin, not of the rows of margin 0 beside it.",
        *tables.version_notes(rows, accepted),
    ]
    text = "\n".join(f"{note}  " for note in notes)
    table, claims = tables.markdown(rows, COLUMNS), tables.markdown(rows, CLAIMS)
    shown = (
        "Behind each verdict 50% minus the share that finished, in points, with its interval: the "
        "claim holds where all of it is below 0, and does not where all is above."
    )
    parts = [f"# Convergence ({kind})", text, table, "## What holds", shown, claims]
    return "\n\n".join(parts) + "\n"


def main(argv):
    """Read the records, print the table, write everything."""
    console.start(argv)
    attacked = read_run(FLAGS.run)
    manifest = rundir.load_manifest(files.open_folder(FLAGS.run))
    workdir = claim(FLAGS.workdir, manifest, attacked)
    pairs = [row_of(each) for each in progress(attacked, desc="curves")]
    rows = [row for row, _ in pairs]
    titles = {row["network"]: row["title"] for row in rows}
    audited = audit.stored_findings(FLAGS.run, titles)
    section = audit_report.section(audited, titles, remedy=audit_report.table1_remedy(FLAGS.run))
    text = f"{report(rows, manifest['settings'], rundir.accepted(workdir))}\n{section}"
    files.write(workdir / "convergence.md", text)
    with_curves = [row | {"curves": curves} for row, curves in pairs]
    content = {"settings": manifest["settings"], "rows": with_curves}
    content["audit"] = audit_report.as_json(audited)
    files.write(workdir / "convergence.json", json.dumps(content, indent=2) + "\n")
    convergence.draw_curves(pairs, workdir / "convergence.png", paper_steps=MAX_STEPS)
    records = [each.records for each in attacked]
    convergence.draw_distributions(rows, records, workdir / "distributions.png")
    print(text)
    print(f"results: {workdir}/")


if __name__ == "__main__":
    console.run(main)
