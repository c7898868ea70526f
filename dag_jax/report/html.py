"""The HTML report of a run: one page that opens from disk, without a network.

    path = dag_jax.report.write("runs/table1")

`report.html` lies beside the table, what it shows in `report_files`: both together can be moved,
mailed, or put on a server. Each score is the table's own, read from its JSON file or its rows.

    report.html
    report_files/clean/<digest>.webp        clean images, shared by all rows
    report_files/rows/<row>/index.js        of each image: name, outcome, steps, sizes
    report_files/rows/<row>/<n>.js          of each of 100 images: targets left, predictions
    report_files/rows/<row>/<digest>*.webp  adversarial images, changes, predicted labels
"""

import functools
import json
import pathlib
import urllib.parse

from dag_jax import files
from dag_jax.datasets.classes import palette
from dag_jax.errors import UserError, optional_import
from dag_jax.files import PathLike
from dag_jax.report import cards, charts, failures, findings, gallery
from dag_jax.runs import findings as rules
from dag_jax.runs import rundir, scores
from dag_jax.runs.dataset import ROW

PAGE, FOLDER = "report.html", "report_files"
CHUNK = 100  # images whose details are in one file
_SOURCES = pathlib.Path(__file__).parent / "page"


def write(folder: PathLike) -> files.epath.Path:
    """Write the HTML report of a run, or of what is there of one that is not finished.

    Args:
      folder: what `experiments.table1`, `variants`, `transfer` or `attack_dataset` wrote.

    Returns:
      The path of report.html.

    Raises:
      UserError: where there is no such folder, or nothing to show in it.
      DamagedError, MissingError, StorageError: naming a file that cannot be read or written.
    """
    home = files.open_folder(folder)
    manifest = rundir.load_manifest(home)
    table, rows = _rows_of(home, manifest)
    matrix = charts.transfer_blocks(table["cells"]) if "cells" in table else []
    if not rows and not matrix:
        raise UserError(f"{home} holds no attacked image and no table: there is nothing to show")
    clean = gallery.Folder(home / FOLDER / "clean")
    shown = [_show(home, name, row, clean) for name, row in rows.items()]
    clean.tidy()
    audit = table.get("audit", {})
    scored = [name for name, row in rows.items() if "unfinished_run" not in row]
    page = _template().render(
        title=manifest.get("launch") or manifest.get("title") or "run",
        rows=shown,
        columns=list(dict.fromkeys(card["name"] for row in shown for card in row["cards"])),
        matrix=matrix,
        claims=[
            *(claim for row in shown for claim in row["claims"]),
            *findings.of_matrix(table.get("findings", [])),
        ],
        failures=[] if matrix else failures.of_run(home, scored),
        audits=[_audit(name, _title(row), audit) for name, row in rows.items()]
        or [_audit(name, name, audit) for name in audit],
        manifests={
            "the run": json.dumps(manifest, indent=2),
            **{row["data"]["title"]: row["manifest"] for row in shown if row["manifest"]},
        },
        data=_script_json({"rows": [row["data"] for row in shown]}),
        rules=rules,
        noticeable=scores.NOTICEABLE,
    )
    # A row's name may hold bytes that are no text.
    files.write(home / PAGE, page.encode("utf-8", "replace"))
    return home / PAGE


def _rows_of(folder, manifest):
    """Return (the JSON of the table, {name of a row's folder: row}) of what is there."""
    if manifest.get("format") == rundir.FORMAT:  # of one row alone
        return {}, {"": _row_in(folder, manifest)}
    path = folder / f"{manifest.get('launch')}.json"
    table = files.load_json(path) if files.exists(path) else {}
    rows = {row["row"]: row for row in table.get("rows", []) if "row" in row}
    if not rows:
        for name in sorted(rundir.folders_in(folder, rundir.MANIFEST)):
            about = rundir.load_manifest(folder / name)
            if about.get("format") == rundir.FORMAT:
                row = _row_in(folder / name, about)
                rows[row.get("row", urllib.parse.unquote(name))] = row
    return table, {name: row for name, row in rows.items() if row["images"]}


def _row_in(folder, manifest):
    """Return the row of a folder; where it is not made yet, what its finished images say."""
    if files.exists(folder / ROW):
        return files.load_json(folder / ROW, digest=True)
    facts = {"title": manifest["title"], "task": manifest["task"], "unfinished_run": True}
    return facts | scores.summary_of(rundir.read(folder).records)


def _show(folder, name, row, clean):
    """Write what the page loads of a row, and return what the template is given of it."""
    run = rundir.read(folder / rundir.folder_name(name) if name else folder)
    place = rundir.folder_name(name or "run")
    target = gallery.Folder(folder / FOLDER / "rows" / place)
    shown = gallery.show(run, target, clean)
    parts = [shown.details[at : at + CHUNK] for at in range(0, len(shown.details), CHUNK)]
    for part, content in [("index", shown.images), *enumerate(parts)]:
        call = f"dagReport.take({_script_json([place, part])},{_script_json(content)});\n"
        target.put(f"{part}.js", call.encode())
    target.tidy()
    classes = run.manifest["classes"]
    data = {
        "name": place,
        "url": f"{FOLDER}/rows/{urllib.parse.quote(place)}",
        "title": _title(row),
        "classes": classes,
        "colours": [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in palette(len(classes)).tolist()],
        "chunk": CHUNK,
    }
    records = [record for record in run.records if record["status"] != "NO_TARGETS"]
    return {
        "row": row,
        "data": data,
        "kept": len(shown.images),
        "exact": shown.exact,
        "method": run.manifest["method"],
        "manifest": json.dumps(run.manifest, indent=2) if name else "",
        "claims": [claim | {"cells": _title(row)} for claim in findings.of_row(row)],
        "failures": failures.of_row(row, run.records),
        "cards": cards.cards(row, records),
        "histograms": charts.histograms(records),
        "class_scores": charts.class_scores(row),
        "score": "mAP" if row["task"] == "detection" else "mIoU",
    }


def _title(row):
    """Return what a row is called beside those of other models."""
    model = row.get("model", row["title"])
    return row["title"] if row["title"].startswith(model) else f"{model}, {row['title']}"


def _audit(name, title, audit):
    """Return what the template is given of the audit of a row."""
    verdicts = {True: "holds", False: "fails", None: "open"}
    findings = [
        {**finding, "verdict": verdicts[finding["passed"]]} for finding in audit.get(name, [])
    ]
    return {"title": title, "findings": sorted(findings, key=lambda f: f["passed"] is True)}


def _script_json(value) -> str:
    """Return JSON that may stand in a script of an HTML page, in ASCII."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@functools.cache
def _template():
    with optional_import("experiments"):  # when a page is made
        import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_SOURCES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja")
