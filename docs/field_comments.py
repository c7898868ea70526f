"""Fields of a dataclass are described by the comments beside them: the reference shows these, too.

    num_steps: Int32[Array, ""]  # updates made

Used by mkdocs.yml; a field that has a docstring keeps it.
"""

import griffe


class FieldComments(griffe.Extension):
    """Give a field without a docstring the comment at its end, or else the one above it."""

    def on_attribute_instance(self, *, attr, **kwargs):
        """Look beside an attribute of a class."""
        if attr.docstring or attr.lineno is None or not attr.parent or not attr.parent.is_class:
            return
        lines = attr.lines_collection[attr.filepath]
        last = lines[(attr.endlineno or attr.lineno) - 1]
        beside = last.rpartition("  # ")
        text = [beside[2]] if beside[1] else []
        above = attr.lineno - 2
        while not beside[1] and above >= 0 and lines[above].strip().startswith("# "):
            text.insert(0, lines[above].strip()[2:])
            above -= 1
        if text:
            attr.docstring = griffe.Docstring(" ".join(text), lineno=attr.lineno, parent=attr)
