"""What a table shows, as texts."""

from dag_jax.report import findings

ROW = {
    "title": "A net",
    "images": 10,
    "intervals": {
        "orig": [60, 59, 61],
        "advr": [5, 4, 6],
        "perm": [56, 55.5, 56.75],
        "advr_minus_orig": [-55, -55, -54.5],
        "perm_minus_orig": [-4, -4.25, -3.125],
    },
}


def test_an_interval_is_its_value_and_its_ends():
    assert findings.text((-1.654, -2.3, -0.907)) == "-1.65 [-2.30, -0.91]"


def test_a_verdict_has_its_difference_where_there_are_images_enough():
    assert findings.verdict([-1, -2, -0.5], 10) == "holds: -1.00 [-2.00, -0.50]"
    assert findings.verdict([1, 0.5, 2], 10) == "does not hold: 1.00 [0.50, 2.00]"
    assert findings.verdict([-3, -7, 1], 10) == "not shown: -3.00 [-7.00, 1.00]"
    assert findings.verdict([-1, -2, -0.5], 9) == "not shown (fewer than 10 images)"
    assert findings.verdict(None, 0) == "-"


def test_table_1_says_what_holds():
    text = findings.table1([ROW])
    assert "within 5% of ORIG" in text and "95% intervals" in text
    heads, _, row = text.splitlines()[2:]
    assert [head.strip() for head in heads.split("|")[1:-1]] == [
        *("network", "ORIG", "ADVR", "PERM"),
        *("adversarial below original", "permuted equal to original"),
    ]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "A net",
        "60.00 [59.00, 61.00]",
        "5.00 [4.00, 6.00]",
        "56.00 [55.50, 56.75]",
        "holds: -55.00 [-55.00, -54.50]",
        "does not hold: -4.00 [-4.25, -3.12]",
    ]


def test_few_images_show_nothing_in_table_1():
    text = findings.table1([ROW | {"images": 9}], heading="variant")
    assert text.count("not shown (fewer than 10 images): ") == 2 and "variant |" in text
