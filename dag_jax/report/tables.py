"""The one writer of tables."""

_FILES_NAMED = 3  # files that could not be read which a sentence names


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


def method_notes(settings) -> list[str]:
    """Return a note where a launch with these settings did not attack by the paper's method."""
    method = settings.get("method", "dag")
    return [f"Attacked by {method}, which is not the paper's method."] * (method != "dag")


def class_notes(rows) -> list[str]:
    """Return a sentence for each group of rows that compare the same classes, where not all are.

    Args:
      rows: dicts with the facts of `runs.subject.Subject`.
    """
    groups: dict = {}
    for row in rows:
        key = tuple(
            tuple(row[name])
            for name in ("classes", "classes_of_model_alone", "classes_of_dataset_alone")
        )
        groups.setdefault(key, []).append(row["title"])
    notes = []
    for (classes, model_alone, dataset_alone), titles in groups.items():
        if not (model_alone or dataset_alone):
            continue
        parts = [f"{', '.join(titles)}: compared on {len(classes)} classes ({_some(classes)})"]
        if model_alone:
            parts.append(f"the model alone has {_some(model_alone)}")
        if dataset_alone:
            parts.append(f"the dataset alone has {_some(dataset_alone)}, left out")
        notes.append("; ".join(parts) + ".")
    return notes


def skipped_notes(rows) -> list[str]:
    """Return a sentence on images that were left out as they cannot be read, if there is any.

    Args:
      rows: dicts with "title", the number "skipped" and "skipped_files", what is wrong with the
        first of them.
    """
    groups: dict = {}
    for row in rows:
        if row.get("skipped"):
            group = row["skipped"], tuple(row.get("skipped_files", [])[:_FILES_NAMED])
            groups.setdefault(group, []).append(row["title"])
    notes = []
    for (count, files), titles in groups.items():
        more = [f"and {count - len(files)} more"] * (count > len(files))
        named = f": {'; '.join([*files, *more])}" if files else ""
        notes.append(
            f"{', '.join(titles)}: {count} image{'s' * (count != 1)} whose files cannot be read "
            f"{'were' if count != 1 else 'was'} left out (--skip_bad){named}."
        )
    return notes


def version_notes(rows, accepted=()) -> list[str]:
    """Return a sentence on what more than one version made (--accept_version), if there is any.

    Args:
      rows: dicts with "title", and "accepted_versions" where there are some.
      accepted: those of the folder itself, from `rundir.accepted`.
    """
    mixed = [row["title"] for row in rows if row.get("accepted_versions")]
    if not mixed and accepted:
        return [
            'Another version or device began this folder (--accept_version): "accepted" in its '
            "manifest.json says which."
        ]
    if not mixed:
        return []
    return [
        f"More than one version or device made the results of {', '.join(mixed)} "
        "(--accept_version): the rows' accepted_versions in the JSON file say which."
    ]


def _some(names, most=25):
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
