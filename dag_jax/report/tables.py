"""The one writer of tables."""


def markdown(rows, columns) -> str:
    """Return rows as a Markdown table, padded so that it is also a table in a terminal.

    Args:
      rows: anything.
      columns: pairs (name, function of a row that returns its text).
    """
    cells = [[name for name, _ in columns]]
    cells += [[text(row).replace("|", r"\|") for _, text in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| "
        + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
