"""Tables of a matrix of transfer: Markdown, CSV, LaTeX; rows are sources, columns are networks."""

import csv
import io
from typing import NamedTuple

from dag_jax.runs import claims, evaluation, findings
from dag_jax.runs.scores import PERMUTATIONS

_RISKY = str.maketrans({"*": r"$^*$", "&": r"\&", "_": r"\_", "%": r"\%"})


class Block(NamedTuple):
    """A table of some rows and columns of the matrix."""

    title: str
    sources: list  # of `stored.Source`
    targets: list[str]  # names of networks
    cells: dict  # {(source, target): matrix.Cell}
    sizes: dict  # {source: mean perceptibility of what is added}


def blocks(cells, sizes) -> list[Block]:
    """Return the paper's three tables: within detection, within segmentation, across tasks.

    Args:
      cells: {(source, target): `matrix.Cell`}.
      sizes: {source: mean perceptibility of what is added}.

    Returns:
      List of `Block`; one without a row of its own or without a column is left out, and so is that
      across tasks where all rows and columns are of one.
    """
    sources = list(dict.fromkeys(source for source, _ in cells))
    targets = list(dict.fromkeys(target for _, target in cells))

    def tasks(source):
        return {name.startswith("fr_") for name in source.members}

    def block(title, wanted, some):
        """Keep clean rows of the splits that other rows are of."""
        rows = [source for source in sources if source.members and wanted(source)]
        splits = {source.split for source in rows}
        rows = [one for one in sources if one in rows or (not one.members and one.split in splits)]
        rows.sort(key=lambda one: (one.permuted, len(one.members)))
        return Block(title, rows, some, cells, sizes)

    found = [
        block(title, lambda one, t=task: tasks(one) == {t}, [n for n in targets if is_of(n, task)])
        for title, task in (("Within detection", True), ("Within segmentation", False))
    ]
    whole = lambda one: len(one.members) > 1 or not one.permuted  # noqa: E731
    found.append(block("Across tasks", whole, targets))
    if len({is_of(name, True) for name in targets}.union(*map(tasks, sources))) < 2:
        found.pop()
    return [one for one in found if len(one.sources) > 1 and one.targets]


def is_of(name, detects) -> bool:
    """Return whether a network is of a task, by its name."""
    return name.startswith("fr_") == detects


def row_title(source, sources) -> str:
    """Return what a row is called; with its split where the rows have several."""
    several = len({one.split for one in sources}) > 1
    return source.title + (f" ({source.split})" if several else "")


def _text(cell, source, target):
    if not cell.images:
        return "-"
    return f"{cell.scores[0]:.2f}" + ("°" if source.is_white_box(target) else "")


def markdown(tables, diagonal, found, stored) -> str:
    """Return transfer.md.

    Args:
      tables: from `blocks`.
      diagonal: from `diagonal`.
      found: from `claims.of_transfer`.
      stored: `stored.Stored`.
    """
    settings = stored.settings
    size = "miniatures" if settings["miniature"] else "full-size networks"
    images = {len(run.keys) for run in stored.runs.values()}
    text = [
        f"# Transfer ({size}, {settings['dataset']})\n",
        f"Rows are what is added to {' or '.join(map(str, sorted(images)))} images, columns are "
        "networks that look at them: mIoU of an FCN, 11-point VOC mAP of a detector, in percent. "
        "none: the clean images. °: the perturbation was found for this network (white box). "
        f"permuted: rows and columns shuffled, mean over {PERMUTATIONS} shuffles. p: mean "
        "perceptibility of what is added to the image, which stays within 0 to 255: sums are "
        f"larger than their members. The {findings.LEVEL:.0%} interval of each cell is in "
        "transfer.csv and transfer.json.\n",
    ]
    for table in tables:
        columns = [("added", lambda one, t=table: row_title(one, t.sources))]
        columns.append(("p x1000", lambda one, t=table: f"{1000 * t.sizes[one]:.1f}"))
        columns += [
            (
                evaluation.TITLES[target],
                lambda one, t=table, name=target: _text(t.cells[one, name], one, name),
            )
            for target in table.targets
        ]
        text.append(f"## {table.title}\n\n{tables.markdown(table.sources, columns)}\n")
    off = [abs(new - old) for new, old in diagonal.values() if new is not None]
    equal = f"equals ADVR of Table 1 ({len(off)} cells)"
    if off:
        differs = f"differs from Table 1 by up to {max(off):.2f}"
        text.append(f"The diagonal {differs if max(off) else equal}.\n")
    text.append(f"## What holds\n\n{claims.markdown(found)}")
    return "\n".join(text)


def diagonal(cells, rows) -> dict[str, list[float]]:
    """Return {network: [its cell on the diagonal, ADVR of its row of Table 1]}, as printed."""
    return {
        target: [findings.as_json(cell.scores[0]), rows[target]["advr"]]
        for (source, target), cell in cells.items()
        if source.members == (target,) and not source.permuted and cell.images
    }


_FIELDS = ("added", "permuted", "split", "network", "kind", "images", "perceptibility")
_FIELDS += ("score", "low", "high", "clean")


def records(cells, sizes) -> list[dict]:
    """Return each cell as what JSON can hold: `_FIELDS`; low and high are of the score's interval.

    Args:
      cells: {(source, target): `matrix.Cell`}.
      sizes: {source: mean perceptibility of what is added}.
    """
    found = []
    for (source, target), cell in cells.items():
        if cell.images:
            numbers = [*findings.in_percent(cell.scores), cell.clean[0]]
            about = (list(source.members), source.permuted, source.split, target)
            about += (claims.kind_of(source, target), cell.images)
            about += (findings.as_json(sizes[source], 6), *map(findings.as_json, numbers))
            found.append(dict(zip(_FIELDS, about, strict=True)))
    return found


def csv_of(cells, sizes) -> str:
    """Return each cell as a line of CSV; see `records`."""
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=_FIELDS, lineterminator="\n")
    writer.writeheader()
    for line in records(cells, sizes):
        writer.writerow(line | {"added": "+".join(line["added"])})
    return file.getvalue()


def latex(tables) -> str:
    """Return the tables for LaTeX's booktabs; white-box cells are bold."""
    text = []
    for table in tables:
        heads = [evaluation.TITLES[target].translate(_RISKY) for target in table.targets]
        text += [
            f"% {table.title}",
            r"\begin{tabular}{l" + "r" * len(heads) + "}",
            r"\toprule",
            " & ".join(["added", *heads]) + r" \\",
            r"\midrule",
        ]
        for source in table.sources:
            numbers = []
            for target in table.targets:
                shown = _text(table.cells[source, target], source, target)
                white = shown.endswith("°")
                numbers.append(rf"\textbf{{{shown[:-1]}}}" if white else shown)
            title = row_title(source, table.sources).translate(_RISKY)
            text.append(" & ".join([title, *numbers]) + r" \\")
        text += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(text)
