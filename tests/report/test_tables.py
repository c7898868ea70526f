from dag_jax.report import tables


def test_a_table_is_padded_and_a_bar_in_a_text_ends_no_cell():
    columns = (("name", str), ("twice", lambda row: f"{row}{row}"))
    assert tables.markdown(["a|b", "c"], columns).splitlines() == [
        "| name |    twice |",
        "|-----:|---------:|",
        r"| a\|b | a\|ba\|b |",
        "|    c |       cc |",
    ]


def test_images_that_were_left_out_are_counted_and_the_first_named():
    two = {"skipped": 2, "skipped_files": ["x.png is cut", "y.png is cut"]}
    five = {"skipped": 5, "skipped_files": ["v.png", "w.png", "x.png", "y.png"]}
    rows = [{"title": "a"} | two, {"title": "b"}, {"title": "c"} | two, {"title": "d"} | five]
    text = "images whose files cannot be read were left out (--skip_bad)"
    assert tables.skipped_notes(rows) == [
        f"a, c: 2 {text}: x.png is cut; y.png is cut.",
        f"d: 5 {text}: v.png; w.png; x.png; and 2 more.",
    ]
    assert tables.skipped_notes([{"title": "b", "skipped": 0}]) == []
