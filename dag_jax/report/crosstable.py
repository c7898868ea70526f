"""Tables of a matrix of transfer: Markdown, CSV, LaTeX; rows are sources, columns are networks."""

import csv
import io
from typing import NamedTuple

from dag_jax.report import tables
from dag_jax.report.claims import markdown as claims_markdown
from dag_jax.runs import claims, findings

_RISKY = str.maketrans(
    {
        **{letter: rf"\{letter}" for letter in "&%#_{}"},
        **{letter: rf"${letter}$" for letter in "<>|"},
        **{"*": r"$^*$", "$": r"\$", "\\": r"\textbackslash{}"},
        **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    }
)


class Block(NamedTuple):
    """A table of some rows and columns of the matrix."""

    title: str
    sources: dict  # {`stored.Source`: what its row is called}
    targets: dict  # {name of a network: its title}
    cells: dict  # {(source, target): `matrix.Cell`}
    sizes: dict  # {source: mean perceptibility of what is added}

    def text(self, source, target) -> str:
        """Return what a cell reads like: the score in percent, '°' behind it for a white box."""
        cell = self.cells[source, target]
        if not cell.images:
            return "-"
        return f"{cell.scores[0]:.2f}" + "°" * source.is_white_box(target)


def blocks(cells, sizes, lookers) -> list[Block]:
    """Return the paper's three tables: within detection, within segmentation, across tasks.

    Args:
      cells: {(source, target): `matrix.Cell`}.
      sizes: {source: mean perceptibility of what is added}.
      lookers: {name: `claims.Looker`} of all targets and of all members of sources.

    Returns:
      List of `Block`; one without a row of its own or without a column is left out, and so is that
      across tasks where all rows and columns are of one.
    """
    sources = list(dict.fromkeys(source for source, _ in cells))
    targets = {target: lookers[target].title for _, target in cells}
    tasks_of = {
        source: {lookers[name].task for name in source.members}
        for source in sources
        if source.members
    }
    tasks = {lookers[target].task for target in targets}.union(*tasks_of.values())

    def block(title, rows, columns):
        """Add the clean images of the splits that the rows are of."""
        splits = {source.split for source in rows}
        rows = [
            source
            for source in sources
            if source in rows or (not source.members and source.split in splits)
        ]
        rows.sort(key=lambda source: (source.permuted, len(source.members)))
        titles = {
            source: claims.source_title(source, lookers)
            + (f" ({source.split})" if len(splits) > 1 else "")
            for source in rows
        }
        return Block(title, titles, columns, cells, sizes)

    tables_of_task = [
        block(
            f"Within {task}",
            [source for source in tasks_of if tasks_of[source] == {task}],
            {name: title for name, title in targets.items() if lookers[name].task == task},
        )
        for task in sorted(tasks)
    ]
    across = [source for source in tasks_of if len(source.members) > 1 or not source.permuted]
    every = tables_of_task + [block("Across tasks", across, targets)] * (len(tasks) > 1)
    return [table for table in every if len(table.sources) > 1 and table.targets]


def markdown(blocks, judged, *, heading, images, shuffles, diagonal, notes=()) -> str:
    """Return the tables and what they show.

    Args:
      blocks: list of `Block`.
      judged: list of `claims.Claim`, from `claims.of_transfer`.
      heading: of the report, in a line.
      images: numbers of images that something is added to, one or several.
      shuffles: number of permutations that a permuted row is the mean of.
      diagonal: from `diagonal`.
      notes: more sentences on what the tables are of.
    """
    counts = " or ".join(map(str, sorted(set(images))))
    text = [
        f"# {heading}\n",
        f"Rows are what is added to {counts} images, columns are networks that look at them: mIoU "
        "of a segmentation, 11-point VOC mAP of a detector, in percent. none: the clean images. "
        "°: the perturbation was found for this network (white box). permuted: rows and columns "
        f"shuffled, mean over {shuffles} shuffles. p: mean perceptibility of what is added to the "
        "image, which stays within 0 to 255: sums are larger than their members. The "
        f"{findings.LEVEL:.0%} interval of each cell is in the CSV and JSON files.\n",
        *(f"{note}\n" for note in notes),
    ]
    for block in blocks:
        columns = [
            ("added", block.sources.get),
            ("p x1000", lambda source, block=block: f"{1000 * block.sizes[source]:.1f}"),
        ]
        columns += [
            (title, lambda source, block=block, target=target: block.text(source, target))
            for target, title in block.targets.items()
        ]
        text.append(f"## {block.title}\n\n{tables.markdown(block.sources, columns)}\n")
    differences = [abs(new - old) for new, old in diagonal.values() if new is not None]
    if differences:
        equal = f"equals ADVR of Table 1 ({len(differences)} cells)"
        differs = f"differs from Table 1 by up to {max(differences):.2f}"
        text.append(f"The diagonal {differs if max(differences) else equal}.\n")
    text.append(f"## What holds\n\n{claims_markdown(judged)}")
    return "\n".join(text)


def diagonal(cells, rows) -> dict[str, list[float | None]]:
    """Return {network: [its cell on the diagonal, ADVR of its row of Table 1]}, as printed.

    Args:
      cells: {(source, target): `matrix.Cell`}.
      rows: {network: its row of Table 1, a dict with "advr"}.
    """
    return {
        target: [findings.as_json(cell.scores[0]), rows[target]["advr"]]
        for (source, target), cell in cells.items()
        if source.members == (target,) and not source.permuted and cell.images
    }


_FIELDS = ["added", "permuted", "split", "network", "kind", "images", "perceptibility"]
_FIELDS += ["score", "low", "high", "clean"]


def records(cells, sizes, lookers) -> list[dict]:
    """Return each cell as what JSON can hold: `_FIELDS`; low and high are of the score's interval.

    Args:
      cells: {(source, target): `matrix.Cell`}.
      sizes: {source: mean perceptibility of what is added}.
      lookers: {name: `claims.Looker`} of all targets and of all members of sources.
    """
    lines = []
    for (source, target), cell in cells.items():
        if cell.images:
            numbers = [*findings.in_percent(cell.scores), cell.clean[0]]
            line = [list(source.members), source.permuted, source.split, target]
            line += [claims.kind_of(source, target, lookers), cell.images]
            line += [findings.as_json(sizes[source], 6), *map(findings.as_json, numbers)]
            lines.append(dict(zip(_FIELDS, line, strict=True)))
    return lines


def as_csv(lines) -> str:
    """Return cells, from `records`, as CSV: a line for each."""
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=_FIELDS, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow(line | {"added": "+".join(line["added"])})
    return file.getvalue()


def latex(blocks) -> str:
    """Return the tables for LaTeX's booktabs; white-box cells are bold."""
    text = []
    for block in blocks:
        heads = [title.translate(_RISKY) for title in block.targets.values()]
        text += [
            f"% {block.title}",
            r"\begin{tabular}{l" + "r" * len(heads) + "}",
            r"\toprule",
            " & ".join(["added", *heads]) + r" \\",
            r"\midrule",
        ]
        for source, title in block.sources.items():
            numbers = []
            for target in block.targets:
                shown = block.text(source, target)
                white = shown.endswith("°")
                numbers.append(rf"\textbf{{{shown[:-1]}}}" if white else shown)
            text.append(" & ".join([title.translate(_RISKY), *numbers]) + r" \\")
        text += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(text)
