"""What an audit found, as the section under a table."""

import functools
import json

from dag_jax import Finding
from dag_jax.report import audit

GOOD, BAD = Finding("a", True, "1 of 1", "none"), Finding("b", False, "2 of 3", "do this")
TITLES = {"fcn_alex": "FCN-Alex", "x": "X", "y": "Y"}


def test_the_section_has_a_line_for_all_that_holds_and_one_for_each_other():
    findings = {"fcn_alex": [GOOD, GOOD._replace(check="b")], "x": [GOOD, BAD]}
    assert audit.section(findings, TITLES).splitlines() == [
        "## Audit",
        "",
        "4 checks of 2 rows: 3 hold, 1 does not, 0 could not be judged. Checked: a; b.",
        "",
        "Not audited: Y; --audit does it.",
        "",
        '- **X: "b" does not hold**: 2 of 3. *Remedy:* do this.',
    ]


def test_a_check_of_some_rows_says_of_how_many():
    unknown = GOOD._replace(passed=None, check="c")
    text = audit.section({"x": [GOOD, unknown], "y": [GOOD]}, TITLES)
    assert "2 hold, 0 do not, 1 could not be judged. Checked: a; c (1 row)." in text
    assert '- **X: "c" could not be judged**: 1 of 1.' in text


def test_the_section_of_good_rows_is_short_and_that_of_none_names_the_remedy():
    assert audit.section({"x": [GOOD]}, {"x": "X"}).splitlines()[2:] == [
        "1 check of 1 row: 1 hold, 0 do not, 0 could not be judged. Checked: a."
    ]
    text = audit.section({}, {"x": "X"}, remedy="a launch")
    assert text == "## Audit\n\nNot audited: X; a launch does it.\n"


def test_a_table_is_there_before_its_audit(tmp_path):
    write = functools.partial(audit.write, tmp_path, "table", "# T\n", {"rows": [1]})
    assert write(titles={"x": "X"}, findings={}) == (tmp_path / "table.md").read_text()
    assert "Not audited: X" in (tmp_path / "table.md").read_text()
    assert json.loads((tmp_path / "table.json").read_text()) == {"rows": [1], "audit": {}}
    text = write(titles={"x": "X"}, findings={"x": [BAD]})
    assert text == (tmp_path / "table.md").read_text() and "# T\n\n## Audit\n" in text
    content = json.loads((tmp_path / "table.json").read_text())
    assert content == {"rows": [1], "audit": {"x": [BAD.as_json()]}}
